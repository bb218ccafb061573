"""The site as a reader meets it: links, pictures, and what pages do in a real browser at the width of a desk and of a phone."""
import json
import os
import shutil
import subprocess
import threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from amortlit.suite import catalog
from amortlit.suite.docs import build, server, vendored
from amortlit.suite.site import Site, entry, paper_page
from amortlit.suite.status import page_status

ROOT = Path(__file__).parents[1]
KINDS = ("index.html", "gallery.html", "scoreboard.html", "transport/light_sb.html")


class Reader(HTMLParser):
    "What a page refers to, its anchors, its pictures, and its text."

    def __init__(self, path):
        super().__init__()
        self.links, self.sources, self.ids, self.images, self.text, self.tables, self.hidden = [], [], set(), [], [], [], 0
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        a = dict(attributes)
        if "id" in a: self.ids.add(a["id"])
        if tag == "a" and "href" in a: self.links.append(a["href"])
        if tag in ("img", "script") and "src" in a: self.sources.append(a["src"])
        if tag == "link" and "href" in a: self.sources.append(a["href"])
        if tag == "table": self.tables.append(a.get("class", ""))
        if tag == "img": self.images.append(a)
        if tag in ("script", "style"): self.hidden += 1

    def handle_endtag(self, tag): self.hidden -= tag in ("script", "style")

    def handle_data(self, data):
        if not self.hidden: self.text.append(data)


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    "The site of the repository as it stands, by nbconvert."
    target = tmp_path_factory.mktemp("site") / "_site"
    assert build(ROOT, target, engine="nbconvert")[0] == "nbconvert"
    return target


@pytest.fixture(scope="session")
def read(site):
    return {path.relative_to(site).as_posix(): Reader(path) for path in site.rglob("*.html") if "pagefind" not in path.parts}


def test_every_link_and_picture_resolves(site, read):
    broken = []
    for page, reader in read.items():
        for link in [*reader.links, *reader.sources]:
            parts = urlsplit(link)
            if parts.scheme: continue
            target = (site / page).parent.joinpath(unquote(parts.path)).resolve() if parts.path else site / page
            if not target.is_file(): broken.append((page, link))
            elif parts.fragment and parts.fragment not in read[target.relative_to(site.resolve()).as_posix() if parts.path else page].ids: broken.append((page, link))
    assert not broken


def test_pages_load_nothing_from_elsewhere(read):
    assert not [(page, s) for page, reader in read.items() for s in reader.sources if urlsplit(s).scheme not in ("", "data")]


def test_no_directive_reaches_a_reader(site, read):
    assert not [page for page, reader in read.items() if ":::" in "".join(reader.text) or "#|" in "".join(reader.text)]
    tree = site.with_name("_docs")
    sources = {p: "".join(c["source"] for c in json.loads(p.read_text())["cells"]) for p in tree.rglob("*.ipynb") if "notebooks" not in p.parts}
    assert sources and not [p for p, text in sources.items() if "#|" in text or ":::" in text]


def test_pictures_have_words(read):
    wordless = [(page, i["src"][:60]) for page, reader in read.items() for i in reader.images if not i.get("alt") and "thumbnail" not in i["src"]]
    assert not wordless


def test_gallery_is_whole_without_scripts(read):
    papers = catalog.papers(ROOT)
    text = "".join(read["gallery.html"].text)
    written = [p for p in papers if p.notebook(ROOT).is_file()]
    assert all(p.title in text for p in papers if p not in written)
    assert {f"{p.chapter}/{p.slug}.html" for p in written} <= set(read["gallery.html"].links)


def test_a_page_has_all_that_a_reader_wants(read):
    for paper in catalog.select(["all"], ROOT):
        text = "".join(read[f"{paper.chapter}/{paper.slug}.html"].text)
        links = read[f"{paper.chapter}/{paper.slug}.html"].links
        for part in ("open in Colab", "download notebook", "What it exports", "Cite", "@software{amortlit", "Solution", f"amortlit.{paper.name}"): assert part in text, (paper.name, part)
        assert any("colab.research.google.com/github/" in link for link in links) and any(link.endswith(f"{paper.slug}.ipynb") for link in links)
        for claim in (paper.record(ROOT) or {"claims": []})["claims"]: assert claim["statement"] in text


def test_every_output_of_a_page_is_shown(read):
    squeeze = lambda text: "".join(text.split())
    for paper in catalog.select(["all"], ROOT):
        shown = squeeze("".join(read[f"{paper.chapter}/{paper.slug}.html"].text))
        outputs = [o for c in catalog.read_notebook(paper.notebook(ROOT))["cells"] for o in c.get("outputs", [])]
        plain = ["".join(o["data"]["text/plain"]) for o in outputs if list(o.get("data", {})) == ["text/plain"]]
        assert not [text for text in plain if squeeze(text) not in shown], paper.name
        assert "".join(read[f"{paper.chapter}/{paper.slug}.html"].tables).count("dataframe") == sum("dataframe" in "".join(o.get("data", {}).get("text/html", "")) for o in outputs)


def test_reading_order_joins_the_pages_of_a_chapter(read):
    chapter = [p for p in catalog.reading_order("transport", ROOT) if p.notebook(ROOT).is_file()]
    for this, after in zip(chapter, chapter[1:]): assert f"../transport/{after.slug}.html" in read[f"transport/{this.slug}.html"].links


def test_a_stale_page_says_so(tmp_path):
    site = Site(ROOT, tmp_path)
    fresh = entry(page_status(catalog.select(["transport.light_sb"], ROOT)[0], ROOT), ROOT)
    banner = lambda e: any("This page is stale" in c["source"] for c in paper_page(site, e).cells)
    assert banner(fresh._replace(state="stale")) and not banner(fresh._replace(state="published"))


def test_a_formula_that_cannot_be_typeset_ends_the_build(tmp_path):
    copy = tmp_path / "project"
    for part in ("nbs", "theme", "figures", "amortlit"): shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("node_modules", "__pycache__"))
    for part in ("_quarto.yml", "settings.ini"): shutil.copy(ROOT / part, copy)
    os.symlink(vendored(ROOT), copy / "theme" / "node_modules")
    page = copy / "nbs" / "core" / "ot.ipynb"
    page.write_text(page.read_text().replace("## Costs", "## Costs\\n\\n$\\\\frac{1}{$"))
    with pytest.raises(ValueError, match="cannot be typeset"): build(copy, engine="nbconvert")
    assert not (copy / "_site").exists()


@pytest.mark.skipif(not shutil.which("quarto"), reason="quarto is not installed")
def test_quarto_renders_the_same_pages(site, tmp_path):
    tree = shutil.copytree(site.with_name("_docs"), tmp_path / "_docs")
    done = subprocess.run(["quarto", "render", str(tree)], capture_output=True, text=True)
    assert done.returncode == 0 and "WARN" not in done.stderr
    pages = [Reader(p) for p in (tree / "_site").rglob("*.html")]
    assert pages and not [p for p in pages if ":::" in "".join(p.text) or "#|" in "".join(p.text)]


# In a browser

pytest_browser = pytest.mark.skipif(not (shutil.which("chromium") and shutil.which("chromedriver")), reason="chromium and chromedriver are not installed")


@pytest.fixture(scope="session")
def address(site):
    with server(site, 0) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}/"
        http.shutdown()


@pytest.fixture(scope="session", params=[(1280, 900), (390, 844)], ids=["desk", "phone"])
def browser(request, tmp_path_factory):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service
    width, height = request.param
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in ("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking", "disable-component-update", "disable-sync", "disable-dev-shm-usage"): options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    driver.set_script_timeout(60)
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", dict(width=width, height=height, deviceScaleFactor=1, mobile=width < 700))
    driver.width = width
    yield driver
    driver.quit()


@pytest.fixture
def visit(browser, address):
    "Opens a page; afterwards nothing may stand on the console, and every request must have gone to this site."
    browser.get_log("browser"), browser.get_log("performance")

    def opened(path):
        browser.get(address + path)
        return browser

    yield opened
    assert not [line["message"] for line in browser.get_log("browser")]
    events = [json.loads(line["message"])["message"] for line in browser.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert asked and not [url for url in asked if not url.startswith((address, "data:", "chrome:"))]


def find(driver, selector): return driver.find_elements("css selector", selector)


def shown(driver, selector):
    "Texts of the elements that can be seen."
    return driver.execute_script("return [...document.querySelectorAll(arguments[0])].filter(e => e.checkVisibility()).map(e => e.textContent.trim())", selector)


def wait(driver, condition):
    from selenium.webdriver.support.ui import WebDriverWait
    return WebDriverWait(driver, 20).until(lambda _: condition())


@pytest_browser
def test_gallery_filters(visit):
    driver = visit("gallery.html")
    assert len(shown(driver, "#gallery > li")) == len(catalog.papers(ROOT))
    form = find(driver, "form.al-filter")[0]
    form.find_element("name", "text").send_keys("light schrödinger")
    wait(driver, lambda: shown(driver, "#gallery h3") == ["Light Schrödinger Bridge"])
    assert find(driver, ".al-count")[0].text == f"1 of {len(catalog.papers(ROOT))}"
    form.find_element("name", "text").clear()
    form.find_element("css selector", "select[name=chapter] option[value=samplers]").click()
    samplers = [p for p in catalog.papers(ROOT) if p.chapter == "samplers"]
    wait(driver, lambda: len(shown(driver, "#gallery > li")) == len(samplers))
    options = {o.text: o for o in form.find_elements("css selector", "select[name=verdict] option")}
    options["not reproduced"].click()
    expected = sum("not reproduced" in {c["verdict"] for c in (p.record(ROOT) or {"claims": []})["claims"]} for p in samplers)
    assert len(shown(driver, "#gallery > li")) == expected > 0
    options["to come"].click()
    assert len(shown(driver, "#gallery > li")) == sum(not p.notebook(ROOT).is_file() for p in samplers)


@pytest_browser
def test_a_paper_shows_verdicts_pictures_and_mathematics(visit):
    driver = visit("transport/light_sb.html")
    record = catalog.select(["transport.light_sb"], ROOT)[0].record(ROOT)
    assert [e.text for e in find(driver, ".al-verdicts .al-badge")] == [c["verdict"] for c in record["claims"]]
    pictures = find(driver, "main figure img")
    assert len(pictures) == len(record["figures"]) and all(p.get_attribute("naturalWidth") != "0" for p in pictures)
    assert all(p.get_attribute("alt") for p in pictures)
    formula = find(driver, ".katex-html")[0]
    assert formula.size["height"] > 5 and not find(driver, ".katex-error, span.tex")
    assert driver.execute_script("return document.fonts.ready.then(() => [...document.fonts].some(f => f.family.startsWith('KaTeX') && f.status === 'loaded'))")
    assert "$" not in "".join(e.text for e in find(driver, "main > p"))
    assert driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")


@pytest_browser
def test_code_is_folded_on_phones_and_solutions_everywhere(visit):
    driver = visit("transport/light_sb.html")
    opened = [e.get_attribute("open") is not None for e in find(driver, ".cell details.code")]
    assert len(opened) > 20 and (all(opened) if driver.width > 700 else not any(opened))
    solutions = find(driver, "details.al-solution")
    assert solutions and not any(e.get_attribute("open") for e in solutions)
    driver.execute_script("arguments[0].querySelector('summary').click()", solutions[0])
    assert solutions[0].get_attribute("open")


@pytest_browser
def test_scoreboard_sorts(visit):
    driver = visit("scoreboard.html")
    claims = [c for p in catalog.select(["all"], ROOT) for c in (p.record(ROOT) or {"claims": []})["claims"]]
    rows = find(driver, "#claims tr")
    assert len(rows) == len(claims)
    column = [e.text.split()[0] for e in find(driver, "thead th")].index("Measured")
    values = lambda: driver.execute_script("return [...document.querySelectorAll('#claims tr')].map(r => r.cells[arguments[0]].dataset.value)", column)
    press = lambda: driver.execute_script("document.querySelectorAll('thead button')[arguments[0]].click()", column)
    numbers = lambda: [float(v) for v in values() if v]
    press()
    assert numbers() == sorted(numbers()) and values() != sorted(values(), key=lambda v: v != "")
    press()
    assert numbers() == sorted(numbers(), reverse=True) and all(v == "" for v in values()[len(numbers()):])


@pytest_browser
@pytest.mark.parametrize("word, page", [("schrödinger", "transport/light_sb"), ("girth", "evaluation/amortized_irt"), ("torchgfn", "samplers/fl_gfn"), ("wilson_interval", "core/stats")])
def test_search_finds_a_page_by_a_word_of_its_text(visit, word, page):
    driver = visit(f"search.html?q={word}")
    wait(driver, lambda: find(driver, "#results a"))
    assert f"/{page}.html" in [urlsplit(e.get_attribute("href")).path for e in find(driver, "#results a")]
    assert find(driver, "#results mark")


@pytest_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("page", KINDS)
def test_no_serious_accessibility_fault(visit, page, scheme):
    driver = visit(page)
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
    driver.execute_script((vendored(ROOT) / "axe-core" / "axe.min.js").read_text())
    found = driver.execute_async_script("axe.run().then(r => arguments[0](r.violations))")
    serious = [(v["id"], v["nodes"][0]["html"][:200], len(v["nodes"])) for v in found if v["impact"] in ("serious", "critical")]
    assert not serious
