"""The digest's truth table, row by row: what makes a result stale, and what does not."""
import os

import pytest

from amortlit.suite.digest import budget, check_overrides, data_sets, digest, imported_modules, in_project, ingredients, paper_name

CELLS = ("import amortlit.floor.shapes as shapes", "study.load('digits')", "shapes.area(2)")


@pytest.fixture
def page(project):
    project.write("amortlit/__init__.py", '__version__ = "1"\n')
    project.write("amortlit/floor/__init__.py", "")
    project.write("amortlit/floor/shapes.py", "def area(x):\n    from .numbers import pi\n    return pi * x")
    project.write("amortlit/floor/numbers.py", "# %% ../../nbs/floor/numbers.ipynb #1\npi = 3\n")
    project.write("amortlit/toys/circle.py", "import nothing")
    project.write("amortlit/toys/other.py", "x = 1")
    project.write("data/registry.toml", '[digits]\nmegabytes = 1\nlicence = "CC0"\nsource = "nowhere"\n[digits.files]\n"digits.csv" = "ab"\n[letters]\n')
    project.page("other", "1")
    return project.page("circle", *CELLS)


def of(project, **changes):
    asked = dict(notebook=project.root / "nbs/toys/circle.ipynb", root=project.root, parameters=dict(scale="cpu", seed=0, overrides={}), device_class="cpu", versions={"torch": "2"}, data={"digits": "a"})
    return digest(**asked | changes)


def edits(project):
    "name -> (a change, whether it must change the digest)"
    return {
        "prose edit": (lambda: project.page("circle", *CELLS, prose="better prose"), False),
        "touched file": (lambda: os.utime(project.root / "nbs/toys/circle.ipynb", (1, 1)), False),
        "touched module": (lambda: os.utime(project.root / "amortlit/floor/numbers.py", (1, 1)), False),
        "changed cell": (lambda: project.page("circle", *CELLS[:-1], "shapes.area(3)"), True),
        "cells swapped": (lambda: project.page("circle", CELLS[1], CELLS[0], CELLS[2]), True),
        "changed imported module": (lambda: project.write("amortlit/floor/shapes.py", "def area(x):\n    from .numbers import pi\n    return x"), True),
        "changed module imported by an imported module": (lambda: project.write("amortlit/floor/numbers.py", "# %% ../../nbs/floor/numbers.ipynb #1\npi = 4\n"), True),
        "changed package around an imported module": (lambda: project.write("amortlit/floor/__init__.py", "x = 1"), True),
        "prose in an imported module's notebook": (lambda: project.write("amortlit/floor/numbers.py", "# %% ../../nbs/floor/numbers.ipynb #7\npi = 3\n"), False),
        "release": (lambda: project.write("amortlit/__init__.py", '__version__ = "2"\n'), False),
        "unrelated paper's notebook": (lambda: project.page("other", "2"), False),
        "unrelated paper's module": (lambda: project.write("amortlit/toys/other.py", "x = 2"), False),
        "the paper's own exported module": (lambda: project.write("amortlit/toys/circle.py", "x = 3"), False),
    }


@pytest.mark.parametrize("row", edits(None))
def test_files(project, page, row):
    before = of(project)
    change, stale = edits(project)[row]
    change()
    assert (of(project) != before) == stale


@pytest.mark.parametrize("change, stale", [
    (dict(parameters=dict(scale="cpu", seed=1, overrides={})), True),
    (dict(parameters=dict(scale="gpu", seed=0, overrides={})), True),
    (dict(parameters=dict(scale="cpu", seed=0, overrides={"steps": 3})), True),
    (dict(parameters=dict(scale="cpu", seed=0, overrides={}, device="auto")), False),
    (dict(data={"digits": "b"}), True),
    (dict(versions={"torch": "3"}), True),
    (dict(device_class="cuda"), True),
    ({}, False),
])
def test_arguments(project, page, change, stale):
    assert (of(project, **change) != of(project)) == stale


def test_parameter_defaults_are_replaced_by_what_is_used(project, page):
    before = of(project)
    page.write_text(page.read_text().replace("seed = 0", "seed = 5"))
    assert of(project) == before


def test_data_file_changes_the_digest_and_not_at_smoke_scale(project, page, tmp_path, monkeypatch):
    import hashlib
    monkeypatch.setenv("AMORTLIT_DATA", str(tmp_path / "mirror"))
    monkeypatch.setenv("AMORTLIT_CACHE", str(tmp_path / "cache"))
    smoke = dict(data=None, parameters=dict(scale="smoke", seed=0))
    absent, absent_smoke = of(project, data=None), of(project, **smoke)
    registry = project.root / "data/registry.toml"
    registry.write_text(registry.read_text().replace('"ab"', f'"{hashlib.sha256(b"1,2").hexdigest()}"'))
    (tmp_path / "mirror/digits").mkdir(parents=True)
    (tmp_path / "mirror/digits/digits.csv").write_text("1,2")
    there = of(project, data=None)
    (tmp_path / "mirror/digits/digits.csv").write_text("1,3")
    assert len({absent, there, of(project, data=None)}) == 3
    assert of(project, **smoke) == absent_smoke


def test_weights_that_ship_are_seen_by_who_may_read_them(project, page):
    reader = project.page("reader", "from amortlit.core.diffusion import zoo", "zoo('digits-mlp')")
    before = [of(project, notebook=name) for name in (reader, page)]
    (project.root / "data/zoo").mkdir(parents=True)
    (project.root / "data/zoo/digits-mlp-0.safetensors").write_bytes(b"1")
    there = [of(project, notebook=name) for name in (reader, page)]
    (project.root / "data/zoo/digits-unet-0.safetensors").write_bytes(b"1")
    assert of(project, notebook=reader) == there[0]
    (project.root / "data/zoo/digits-mlp-0.safetensors").write_bytes(b"2")
    assert len({before[0], there[0], of(project, notebook=reader)}) == 3 and before[1] == there[1] == of(project, notebook=page)


def test_versions_are_those_of_the_dependencies(project, page):
    parts = ingredients(page, root=project.root, parameters={"scale": "smoke"}, device_class="cpu")
    assert {"torch", "numpy", "papermill"} <= set(parts["versions"]) and not any("+" in v for v in parts["versions"].values())


@pytest.mark.parametrize("line", [
    "import amortlit.floor.numbers", "from amortlit.floor import numbers", "from amortlit.floor.numbers import pi", "from amortlit.floor.numbers import *",
    "def f():\n    from amortlit.floor import numbers as n", "import importlib; importlib.import_module('amortlit.floor.numbers')",
    "%matplotlib inline\n!ls\nfrom amortlit.floor import numbers", "%%time\nfrom amortlit.floor import numbers",
])
def test_every_way_to_import(project, page, line):
    found = imported_modules(project.page("square", line), project.root)
    assert list(found) == ["amortlit", "amortlit.floor", "amortlit.floor.numbers"]


def test_installed_modules_are_found_too(project):
    assert "amortlit.core.checks" in imported_modules(project.page("square", "from amortlit.core.record import SCALES, check_record\nimport amortlit.core.data"), project.root)


def test_data_sets(project, page):
    assert data_sets(page, project.root) == ["digits"]
    assert data_sets(project.page("square", "study.claim('C1', data='letters')\nload('unknown')\nload(name)"), project.root) == ["letters"]


@pytest.mark.parametrize("path, text", [("nbs/toys/none.ipynb", None), ("elsewhere.ipynb", "{}"), ("nbs/index.ipynb", "{}"), ("nbs/toys/a.txt", "")])
def test_what_is_no_papers_notebook_is_refused(project, path, text):
    if text is not None: project.write(path, text)
    with pytest.raises(ValueError): paper_name(project.root / path, project.root)


def test_broken_notebook_is_refused(project):
    with pytest.raises(ValueError, match="not a notebook"): imported_modules(project.write("nbs/toys/a.ipynb", "{"), project.root)
    with pytest.raises(ValueError, match="cpu or cuda"): digest(project.page("a"), root=project.root, parameters={}, device_class="tpu")


def test_budget_is_read_without_running(project):
    page = project.page("a", "cfg = study.pick(smoke=dict(steps=2, lr=.1, sizes=(1, 2), n=len(x)), cpu={'steps': 20}, gpu=dict(**other))")
    assert budget(page, "smoke") == {"steps": 2, "lr": 0.1, "sizes": (1, 2), "n": ...}
    assert budget(page, "cpu") == {"steps": 20} and budget(page, "gpu") is None
    check_overrides("toys.a", page, "smoke", dict(steps=3, lr=1, sizes=[3], n="anything"))
    for wrong in (dict(step=1), dict(steps=1.5), dict(steps=True), dict(lr="1"), dict(sizes=3)):
        with pytest.raises(ValueError, match="^toys.a: "): check_overrides("toys.a", page, "smoke", wrong)



def test_the_environment_is_given_back(project, monkeypatch):
    monkeypatch.setenv("AMORTLIT_ROOT", "/somewhere")
    assert in_project(project.root, os.environ.get, "AMORTLIT_ROOT") == str(project.root)
    assert os.environ["AMORTLIT_ROOT"] == "/somewhere"
