"""What holds for the project as a whole: shape of the pages, direction of imports, export, front page, published runs."""
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from amortlit.core.data import registry
from amortlit.core.record import check_record
from amortlit.suite import catalog, lint, status
from amortlit.suite.cli import app, main
from amortlit.suite.new import new

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "nbs").glob("**/*.ipynb"))
WRITTEN = [p for p in catalog.papers(ROOT) if p.notebook(ROOT).is_file()]


def python(code, **env):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=os.environ | env)


def copy_of_project(folder: Path) -> Path:
    "The sources in a folder of their own, so that a test may change them."
    for part in ("nbs", "amortlit", "data", "settings.ini", "README.md"):
        source = ROOT / part
        shutil.copytree(source, folder / part, ignore=shutil.ignore_patterns("__pycache__")) if source.is_dir() else shutil.copy(source, folder / part)
    return folder


# the pages ---------------------------------------------------------------------------------------------------------

def test_no_page_has_a_lint_error():
    errors = [str(f) for f in lint.lint(ROOT) if f.level == "error"]
    assert errors == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT / "nbs")))
def test_cleaning_changes_nothing_and_keeps_the_parameters_cell(page, tmp_path):
    "nbdev strips tags unless it is told to keep them; without the tag a run would ignore its parameters."
    from nbdev.clean import clean_nb
    from nbdev.process import read_nb

    copy = tmp_path / page.name
    shutil.copy(page, copy)
    notebook = read_nb(copy)
    allowed = re.search(r"^allowed_cell_metadata_keys *= *(.*)$", (ROOT / "settings.ini").read_text(), re.M)[1].split()
    clean_nb(notebook, False, None, allowed, True)
    before, after = json.loads(page.read_text()), json.loads(json.dumps(notebook))
    for a, b in zip(before["cells"], after["cells"], strict=True):
        assert a["metadata"] == b["metadata"] and "".join(a["source"]) == "".join(b["source"])
    tagged = [c for c in after["cells"] if "parameters" in c["metadata"].get("tags", [])]
    paper = page.parent.name not in ("core", "suite", "nbs") and page.stem != "index"
    assert len(tagged) == (1 if paper else 0)


def test_an_import_in_the_wrong_direction_is_found(tmp_path):
    root = copy_of_project(tmp_path)
    (root / "amortlit" / "core" / "nets.py").open("a").write("\nfrom ..suite import lint\n")
    (root / "amortlit" / "transport" / "light_sb.py").open("a").write("\nfrom amortlit.samplers import fl_gfn\n")
    found = {f.paper: f.message for f in lint.lint_imports(root)}
    assert set(found) == {"core.nets", "transport.light_sb"}


def test_an_edited_module_and_a_copied_helper_are_found(tmp_path):
    root = copy_of_project(tmp_path)
    (root / "amortlit" / "core" / "nets.py").open("a").write("\nx = 1\n")
    helper = "def copied(x):\n    y = x + 1\n    z = y * 2\n    return z"
    for page in ("core/nets", "core/ot"):
        path = root / "nbs" / f"{page}.ipynb"
        notebook = json.loads(path.read_text())
        notebook["cells"].append(dict(cell_type="code", source=helper, metadata={}, outputs=[], execution_count=None, id="copied"))
        path.write_text(json.dumps(notebook))
    assert "core.nets" in {f.paper for f in lint.lint_export(root)}
    assert [f.paper for f in lint.lint_twice(root)] == ["core.ot"]


@pytest.mark.parametrize("folder", ["core", "suite"])
def test_the_floor_s_notebooks_hold_what_they_say(folder, tmp_path):
    env = os.environ | {"OMP_NUM_THREADS": "1", "AMORTLIT_RUN_DIR": str(tmp_path)}
    done = subprocess.run([Path(sys.executable).parent / "nbdev_test", "--path", f"nbs/{folder}", "--n_workers", "2"], capture_output=True, text=True, cwd=ROOT, env=env)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]


def test_a_module_of_the_floor_stays_under_300_lines():
    long = {p.name: n for p in (ROOT / "amortlit" / "core").glob("*.py") if (n := len(p.read_text().splitlines())) > 300}
    assert long == {}


# the package -------------------------------------------------------------------------------------------------------

def test_importing_amortlit_is_light():
    heavy = "{'torch', 'matplotlib', 'pandas', 'papermill', 'scipy'} & set(sys.modules)"
    for module in ("amortlit", "amortlit.suite.cli", "amortlit.suite.rerun", "amortlit.suite.status", "amortlit.core.study"):
        done = python(f"import sys, {module}; print({heavy})")
        assert done.stdout.strip() == "set()", (module, done.stdout, done.stderr)


def test_exported_modules_need_no_nbdev():
    modules = [".".join(p.relative_to(ROOT).with_suffix("").parts) for p in (ROOT / "amortlit").rglob("*.py") if p.name not in ("__init__.py", "_modidx.py")]
    code = f"import sys\nfor name in ('nbdev', 'execnb', 'ghapi'): sys.modules[name] = None\nimport importlib\nfor name in {modules!r}: importlib.import_module(name)"
    done = python(code)
    assert done.returncode == 0, done.stderr[-2000:]


def test_every_data_set_of_the_registry_is_described():
    for name, entry in registry().items():
        assert {"title", "source", "licence", "megabytes", "citation", "files"} <= set(entry), name
        assert all(re.fullmatch(r"[0-9a-f]{64}", sha) for sha in entry["files"].values()), name
        assert entry.get("url") or entry.get("derived"), name


# the command -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("arguments", [["run", "--help"], ["status"], ["status", "--all"], ["lint", "--help"], ["compare", "--help"], ["publish", "--help"], ["new", "--help"]])
def test_the_command_answers(arguments):
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0 and len(result.output) > 40


@pytest.mark.parametrize("arguments, said", [
    (["run", "transport.heavy_sb"], "no paper matches 'transport.heavy_sb'"),
    (["run", "transport.light_sb", "--scale", "huge"], "huge"),
    (["run", "transport.light_sb", "-p", "steps"], "name=value"),
    (["run", "transport.light_sb", "-p", "stepz=1"], "stepz"),
    (["run", "transport.light_sb", "--scale", "smoke", "-p", "seeds=many"], "seeds"),
    (["run", "transport.light_sb", "--executor", "abacus"], "unknown executor"),
    (["new", "transport.heavy_sb"], "not in nbs/catalog.toml"),
    (["new", "transport.light_sb"], "has a page already"),
    (["publish", "nowhere.*"], "no paper matches"),
    (["compare", "tests", "figures"], "no record.json"),
])
def test_a_bad_request_is_refused_with_one_clear_line(arguments, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["amortlit", *arguments])
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as stop: main()
    error = capsys.readouterr().err
    assert stop.value.code == 2 and said in error and len(error.strip().splitlines()) == 1, error


def test_every_make_target_that_is_documented_exists():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    texts = [(ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md")]
    named = {word for text in texts for line in re.findall(r"\bmake ((?:[a-z]+ ?)+)", text) for word in line.split()}
    assert {"run", "test", "lab", "help"} <= targets
    assert {w for w in named if w in {"run", "test", "lab", "help", "setup", "hooks", "export", "lint", "publish", "peers"}} <= targets
    assert {"run", "test", "help"} <= named


# the notebooks at scale smoke --------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    "Every paper, executed at scale smoke through the runner with neither data nor network; and once more with the same seed."
    from amortlit.suite.rerun import run

    roots = []
    for name in ("first", "second"):
        root = copy_of_project(tmp_path_factory.mktemp(name))
        os.environ["AMORTLIT_DATA"], before = "", os.environ.get("AMORTLIT_DATA")
        outcomes = run([p.notebook(root) for p in WRITTEN], root=root, scale="smoke", jobs=2)
        if before is not None: os.environ["AMORTLIT_DATA"] = before
        roots.append((root, {o.name: o for o in outcomes}))
    return roots


def record_of(root, paper):
    return json.loads((root / "_runs" / "smoke" / paper.chapter / paper.slug / "record.json").read_text())


@pytest.mark.parametrize("paper", WRITTEN, ids=lambda p: p.name)
def test_a_notebook_runs_at_scale_smoke(paper, smoke):
    root, outcomes = smoke[0]
    assert outcomes[paper.name].ok, outcomes[paper.name].message
    record = check_record(record_of(root, paper))
    assert record["claims"] and record["figures"] and record["tables"] and record["departures"]
    assert len(record["cells"]) > 10 and record["wall_seconds"] > 0
    executed = root / "_runs" / "smoke" / paper.chapter / paper.slug / f"{paper.slug}.ipynb"
    assert [m for _, m in lint.outputs(lint.read_page(executed))] == []


@pytest.mark.parametrize("paper", WRITTEN, ids=lambda p: p.name)
def test_the_same_seed_gives_the_same_record(paper, smoke):
    def timed(c): return re.search(r"\b(seconds?|time)\b", c["unit"])
    def numbers(root): return {c["id"]: (c["estimate"], c["low"], c["high"]) for c in record_of(root, paper)["claims"] if not timed(c)}
    first, second = (numbers(root) for root, _ in smoke)
    for id, values in first.items():
        for a, b in zip(values, second[id], strict=True):
            assert a == b or abs(a - b) <= 1e-6 * max(1, abs(a)), (id, a, b)
    for table in sorted((smoke[0][0] / "_runs" / "smoke" / paper.chapter / paper.slug / "figures").glob("*.csv")):
        twin = smoke[1][0] / table.relative_to(smoke[0][0])
        assert same_numbers(table, twin), table.name


def same_numbers(a, b):
    import numpy as np
    import pandas as pd
    x, y = pd.read_csv(a), pd.read_csv(b)
    numeric = [c for c in x.select_dtypes("number") if "second" not in c and "time" not in c]
    return list(x) == list(y) and np.allclose(x[numeric], y[numeric], rtol=1e-6, atol=1e-9, equal_nan=True)


def test_a_fresh_page_runs_and_publishes(tmp_path):
    from amortlit.suite.publish import publish
    from amortlit.suite.rerun import run

    root = copy_of_project(tmp_path)
    paper = next(p for p in reversed(catalog.papers(root)) if not p.notebook(root).is_file())
    notebook = new(paper.name, root)
    (outcome,) = run([notebook], root=root, scale="smoke", jobs=1)
    assert outcome.ok, outcome.message
    assert f"{paper.chapter}/{paper.slug}/{paper.slug}.ipynb" in status.run_scoreboard(root, "smoke")
    assert any(line.startswith(paper.name) and "run at smoke" in line for line in status.lines(root))
    assert publish(paper, root, "smoke") and not publish(paper, root, "smoke")
    page = catalog.read_notebook(notebook)
    assert any(c.get("outputs") for c in page["cells"]) and not any("injected-parameters" in c["metadata"].get("tags", []) for c in page["cells"])
    assert status.page_status(paper, root).state == "published"
    page["cells"][-1]["source"] += "\nassert True"
    notebook.write_text(json.dumps(page))
    assert status.page_status(paper, root).state == "stale"
    with pytest.raises(ValueError, match="its code has changed"): publish(paper, root, "smoke")


# what is published -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("paper", WRITTEN, ids=lambda p: p.name)
def test_a_published_page_is_whole_and_not_stale(paper):
    "The release check."
    state = status.page_status(paper, ROOT)
    assert state.state == "published"
    folder = paper.published(ROOT)
    for figure in state.record["figures"]:
        assert (folder / figure["file"]).is_file() and (folder / figure["data"]).is_file()
    shown = [o for c in catalog.read_notebook(paper.notebook(ROOT))["cells"] for o in c.get("outputs", [])]
    assert any("image/png" in o.get("data", {}) for o in shown)


def test_the_readme_is_the_front_page(tmp_path):
    from amortlit.suite.publish import readme

    root = copy_of_project(tmp_path)
    assert readme(root) is False, "README.md differs from nbs/index.ipynb; run `amortlit publish`"
    assert set(catalog.starter(ROOT)) <= {p.name for p in WRITTEN}


def test_every_link_of_the_readme_resolves():
    text = (ROOT / "README.md").read_text()
    targets = [t for t in re.findall(r"\]\(([^)#]+)\)|src=\"([^\"]+)\"", text) for t in t if t and not t.startswith("http")]
    assert len(targets) >= 6
    assert [t for t in targets if not (ROOT / t).exists()] == []
