"""The engine against everything that goes wrong: for real, with tiny notebooks, processes and signals."""
import contextlib
import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import psutil
import pytest
from conftest import REPORT

from amortlit.suite.execute import execute, put_in_place, recover
from amortlit.suite.rerun import Board, plan, run, sweep
from amortlit.suite.worker import clean_text

REPOSITORY = Path(__file__).parents[1]
LOG_RUN = "open(r'{log}', 'a').write('{slug} ')"


def go(project, *pages, **options):
    out = io.StringIO()
    outcomes = run(pages, **dict(root=project.root, scale="smoke", out=out, warm=False) | options)
    return outcomes, out.getvalue()


def once(project, page, **options):
    return execute(page, **dict(root=project.root, scale="smoke") | options)


def working_for(root, word=None):
    "Processes that work for a run anywhere under a root and, where a word is given, have it in their command line. One that ends while it is looked at, or has not been reaped, does not work."
    found = []
    for process in psutil.process_iter():
        try:
            ours = process.environ().get("AMORTLIT_RUN_DIR", "").startswith(str(root)) and process.status() != psutil.STATUS_ZOMBIE
            if ours and (word is None or word in process.cmdline()): found.append(process)
        except psutil.Error: pass
    return found


def private_folders():
    import tempfile
    return {folder for folder in Path(tempfile.gettempdir()).glob("amortlit-*")}


def hidden(project, scale="smoke"):
    return [f.name for f in (project.root / "_runs" / scale).glob("*/.*") if f.is_dir()]


def eventually(condition, seconds=20):
    end = time.time() + seconds
    while time.time() < end:
        if found := condition(): return found
        time.sleep(0.05)
    raise AssertionError("it never came to that")


@pytest.fixture(autouse=True)
def nothing_is_left(project):
    "Whatever a test does: no process, no private folder, no temporary folder stays."
    before = private_folders()
    yield
    eventually(lambda: not working_for(project.root), 5)
    assert private_folders() <= before and not hidden(project)


# Success

def test_result_is_whole(project):
    page = project.page("good", "import sys; print('to the log', file=sys.__stderr__)", "  ", "seed + 1", prose="# good")
    outcome = once(project, page, seed=4)
    record, shown = project.record("good"), nbformat.read(outcome.folder / "good.ipynb", 4)
    assert outcome.ok and outcome.kind == "" and outcome.folder == project.result("good")
    assert record["digest"] == outcome.digest and record["seed"] == 4 and len(record["cells"]) == 4
    assert record["wall_seconds"] > 0 and record["peak_rss_mb"] > 20
    assert [c.outputs[0].data["text/plain"] for c in shown.cells if c.source == "seed + 1"] == ["5"]
    assert "papermill" not in json.dumps(shown) and shown.cells[0].source == "# good"
    assert sorted(f.name for f in outcome.folder.iterdir()) == ["good.ipynb", "log.txt", "record.json"]


def test_no_absolute_paths_in_the_result(project):
    page = project.page("paths", "import os\nprint(os.getcwd(), os.environ['AMORTLIT_ROOT'] + '/nbs', os.path.expanduser('~/x'))", "import warnings; warnings.warn('w')")
    text = (once(project, page).folder / "paths.ipynb").read_text()
    assert str(project.root) not in text and str(Path.home()) + "/" not in text and "ipykernel_" not in text and "~/x" in text


def test_environment_of_a_run(project, monkeypatch):
    monkeypatch.setenv("JUPYTER_PATH", "/nowhere")
    names = "OMP_NUM_THREADS MKL_NUM_THREADS PYTHONHASHSEED AMORTLIT_OFFLINE AMORTLIT_QUIET CUDA_VISIBLE_DEVICES JUPYTER_PATH AMORTLIT_ROOT".split()
    page = project.page("env", f"import os\nassert [os.environ.get(n) for n in {names}] == ['3', '3', '0', '1', '1', '', None, r'{project.root}']",
                        "import sys, amortlit.core.checks\nassert os.environ['PYTHONPATH'].startswith(os.environ['AMORTLIT_ROOT'])")
    assert once(project, page, cores=3).ok


def test_the_project_s_own_package_wins(project):
    (project.root / "amortlit").mkdir()
    for item in (REPOSITORY / "amortlit").iterdir():
        if item.name != "__pycache__": (project.root / "amortlit" / item.name).symlink_to(item)
    project.write("amortlit/mine.py", "x = 7")
    assert once(project, project.page("own", "from amortlit.mine import x\nassert x == 7")).ok


def test_same_seed_same_record(project):
    page = project.page("dice", "import random\nrandom.seed(seed)\noverrides = {'x': random.random()}")
    keep = lambda: {k: v for k, v in project.record("dice").items() if k not in ("wall_seconds", "peak_rss_mb", "cells", "digest")}
    records = []
    for seed in (0, 0, 1):
        once(project, page, seed=seed)
        records.append(keep())
    assert records[0] == records[1] and records[0]["parameters"] != records[2]["parameters"]


def test_second_run_executes_nothing(project):
    pages = [project.page(s, "1") for s in ("a", "b")]
    first, _ = go(project, *pages)
    stamps = [(project.result(s) / "record.json").stat().st_mtime_ns for s in ("a", "b")]
    second, said = go(project, *pages)
    assert all(o.ok for o in first + second) and [o.kind for o in second] == ["up to date"] * 2
    assert stamps == [(project.result(s) / "record.json").stat().st_mtime_ns for s in ("a", "b")]
    assert "2 up to date, 0 to execute" in said


def test_states(project):
    good, bad = project.page("good", "1"), project.page("bad", "1 / 0")
    states = lambda **changes: [what for _, what in plan([good, bad], root=project.root, scale="smoke", **changes)]
    assert states() == ["new", "new"]
    go(project, good, bad)
    assert states() == ["done", "failed"] and states(seed=1) == ["stale", "new"]
    project.page("good", "2")
    project.page("bad", "1 / 1")
    assert states() == ["stale", "new"]
    outcomes, _ = go(project, good, bad)
    assert states() == ["done", "done"] and not (project.result("bad").with_name("bad.failed")).exists()


def test_edit_while_running_leaves_a_stale_result(project):
    page = project.page("edited", "import time; time.sleep(1)")
    with ThreadPoolExecutor() as pool:
        future = pool.submit(once, project, page)
        eventually(lambda: working_for(project.root))
        project.page("edited", "import time; time.sleep(0)")
        assert future.result().ok
    assert plan([page], root=project.root, scale="smoke")[0][1] == "stale"
    project.page("edited", "import time; time.sleep(1)")
    assert plan([page], root=project.root, scale="smoke")[0][1] == "stale"


def test_twelve_at_once(project):
    pages = [project.page(f"p{k}", f"{k}") for k in range(12)]
    outcomes, _ = go(project, *pages, jobs=12)
    assert [o.message for o in outcomes if not o.ok] == []


def test_two_runs_at_once_execute_each_once(project, tmp_path):
    log = tmp_path / "log"
    pages = [project.page(s, LOG_RUN.format(log=log, slug=s)) for s in "abc"]
    with ThreadPoolExecutor() as pool:
        both = [pool.submit(go, project, *pages) for _ in range(2)]
        assert all(o.ok for future in both for o in future.result()[0])
    assert sorted(log.read_text().split()) == ["a", "b", "c"]


# Failure: kind, message, and the others finish

FAILURES = {
    "raises": (["1 + 1", "raise ValueError('bad\\nvalue')"], {}, "cell error", 3, "cell 3 of 4 raised ValueError: bad value"),
    "cell_limit": (["import time; time.sleep(60)"], dict(cell_timeout=0.5), "time limit", 2, "cell 2 of 3 took longer than the 0.5 s"),
    "stubborn": (["import time, signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN); signal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(60)"], dict(cell_timeout=0.5), "time limit", 2, "cell 2 of 3"),
    "whole_limit": (["import time; time.sleep(60)"], dict(timeout=4), "time limit", 2, "limit of 4 s passed in cell 2 of 3"),
    "exits": (["import os; os._exit(3)"], {}, "kernel died", 2, "the kernel died in cell 2 of 3 with exit status 3"),
    "killed": (["import os; os.kill(os.getpid(), 9)"], {}, "kernel died", 2, "with signal SIGKILL"),
    "hog": (["x = bytearray(400_000_000)\nimport time; time.sleep(60)"], dict(mem_mb=350), "out of memory", 2, "cell 2 of 3 needed more than the 350 MB"),
    "memory": (["raise MemoryError"], {}, "out of memory", 2, "cell 2 of 3 raised MemoryError"),
    "huge": (["import numpy as np; np.zeros((1 << 48,), np.float64)"], {}, "out of memory", 2, "Unable to allocate"),
    "data": (["from amortlit.core.data import DataMissing\nraise DataMissing('digits')"], {}, "data missing", 2, "DataMissing: digits"),
    "leaves": (["import sys; sys.exit()"], {}, "cell error", 2, "cell 2 of 3 raised SystemExit: the notebook ended early"),
    "syntax": (["x ="], {}, "cell error", 2, "SyntaxError"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_failure(project, case):
    cells, limits, kind, cell, part = FAILURES[case]
    outcome = once(project, project.page(case, *cells), **limits)
    place = project.result(case).with_name(f"{case}.failed")
    failure = json.loads((place / "failure.json").read_text())
    assert (outcome.ok, outcome.kind, outcome.cell) == (False, kind, cell), outcome.message
    assert part in outcome.message and "\n" not in outcome.message
    assert outcome.message.startswith(f"toys.{case}: ") and outcome.message.endswith(f"log: _runs/smoke/toys/{case}.failed/log.txt")
    assert (project.root / failure["log"]).is_file() and set(failure) == {"kind", "cell", "message", "log", "seconds", "digest"}
    assert (place / f"{case}.ipynb").is_file() and (place / "traceback.txt").read_text().strip()
    assert not (place / "record.json").exists() and not project.result(case).exists()
    assert str(project.root) not in (place / "traceback.txt").read_text() + (place / f"{case}.ipynb").read_text()


def test_partly_executed_notebook_is_kept(project):
    for slug, cell in (("slow", "import time; time.sleep(60)"), ("dies", "import os; os._exit(1)"), ("raises", "1 / 0")):
        outcome = once(project, project.page(slug, "6 * 7", cell), cell_timeout=2)
        cells = [c for c in json.loads((outcome.folder / f"{slug}.ipynb").read_text())["cells"] if "6 * 7" in "".join(c["source"])]
        assert "42" in json.dumps(cells[0]["outputs"]), slug


@pytest.mark.parametrize("cell, kind", [
    ("import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()", "time limit"),
    ("import atexit, time\natexit.register(time.sleep, 60)", "time limit"),
])
def test_hang_after_the_last_cell(project, cell, kind):
    outcome = once(project, project.page("hangs", cell), grace=1.5)
    assert not outcome.ok and outcome.kind == kind and "after the last cell" in outcome.message


def test_worker_that_hangs_after_its_outcome(project):
    project.write("sitecustomize.py", "import sys, atexit, time\nif 'notebook' in sys.orig_argv: atexit.register(time.sleep, 60)")
    outcome = once(project, project.page("hangs", "1"), grace=1.5)
    assert (outcome.ok, outcome.kind) == (False, "time limit") and "after the last cell" in outcome.message


def test_worker_that_fails_after_its_outcome(project):
    project.write("sitecustomize.py", "import sys, atexit, os\nif 'notebook' in sys.orig_argv: atexit.register(os._exit, 7)")
    outcome = once(project, project.page("ends", "1"))
    assert (outcome.ok, outcome.kind) == (False, "kernel died") and "after the last cell with exit status 7" in outcome.message


def test_error_after_the_record_leaves_no_record(project):
    outcome = once(project, project.page("late", "paper = 'toys.late'" + REPORT, "1 / 0"))
    assert outcome.kind == "cell error" and not (outcome.folder / "record.json").exists()


def test_hang_after_an_error_is_the_error(project):
    outcome = once(project, project.page("hangs", "import atexit, time\natexit.register(time.sleep, 60)\n1 / 0"), grace=1.5)
    assert outcome.kind == "cell error" and "ZeroDivisionError" in outcome.message


@pytest.mark.parametrize("fails, ok, tries", [(2, True, 3), (9, False, 3)])
def test_only_start_up_is_retried(project, tmp_path, fails, ok, tries):
    count = tmp_path / "count"
    count.touch()
    project.write("sitecustomize.py", f"import sys, os\nif 'kernel' in sys.orig_argv:\n    open(r'{count}', 'a').write('x')\n    if os.path.getsize(r'{count}') <= {fails}: os._exit(5)")
    outcome = once(project, project.page("fragile", "1"))
    assert outcome.ok == ok and len(count.read_text()) == tries
    assert ok or (outcome.kind == "start-up" and "did not start" in outcome.message)


@pytest.mark.parametrize("report, part", [
    ("1", "no record was written"),
    ("open('record.json', 'w').write('{\"paper\": \"toys.forged\", \"scale\": \"smoke\", \"seed\": 0}')", "record of toys.forged"),
    ("open('record.json', 'w').write('{\"paper\":')", "Expecting value"),
    ("open('record.json', 'w').write('{\"paper\": \"toys.other\"}')", "its paper is 'toys.other'"),
])
def test_without_a_valid_record_there_is_no_result(project, report, part):
    outcome = once(project, project.page("forged", report, report=False))
    assert not outcome.ok and outcome.kind == "cell error" and part in outcome.message and not project.result("forged").exists()


def test_earlier_result_survives_a_failure(project):
    page = project.page("good", "1")
    once(project, page)
    before = project.record("good")
    project.page("good", "1 / 0")
    assert not once(project, page).ok and project.record("good") == before


def test_the_others_finish(project):
    pages = [project.page("bad", "1 / 0"), project.page("dies", "import os; os._exit(1)"), project.page("a", "1"), project.page("b", "1")]
    outcomes, said = go(project, *pages)
    assert [o.ok for o in outcomes] == [False, False, True, True] and not all(o.ok for o in outcomes)
    assert said.count("FAILED") == 2 and "toys.bad: cell 2 of 3 raised ZeroDivisionError" in said
    again, said = go(project, *pages, retry_failed=False)
    assert [o.ok for o in again] == [False, False, True, True] and "2 failed before and unchanged, 0 to execute" in said


def test_wrong_hash_in_a_mirror(project, tmp_path, monkeypatch):
    monkeypatch.setenv("AMORTLIT_DATA", str(tmp_path / "mirror"))
    monkeypatch.setenv("AMORTLIT_CACHE", str(tmp_path / "cache"))
    project.write("data/registry.toml", f'[digits]\nmegabytes = 1\nlicence = "CC0"\nsource = "nowhere"\n[digits.files]\n"digits.csv" = "{hashlib.sha256(b"a").hexdigest()}"\n')
    (tmp_path / "mirror/digits").mkdir(parents=True)
    (tmp_path / "mirror/digits/digits.csv").write_text("b")
    pages = [project.page("reads", "from amortlit.core.data import load\nload('digits')"), project.page("other", "1")]
    (bad, good), said = go(project, *pages, scale="cpu")
    assert good.ok and not bad.ok and "digits" in bad.message and "sha256" in bad.message
    assert "data missing: digits, wanted by toys.reads" in said


def test_missing_data_is_announced_and_the_default_is_used(project, tmp_path, monkeypatch):
    monkeypatch.setenv("AMORTLIT_DATA", "")
    monkeypatch.setenv("AMORTLIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("AMORTLIT_OFFLINE", "1")
    project.write("data/registry.toml", '[digits]\nmegabytes = 1\nlicence = "CC0"\nsource = "nowhere"\n[digits.files]\n"digits.csv" = "ab"\n')
    pages = [project.page("strict", "from amortlit.core.data import load\nload('digits')"),
             project.page("lenient", "from amortlit.core.data import DataMissing, load\ntry: load('digits')\nexcept DataMissing: pass")]
    (strict, lenient), said = go(project, *pages, scale="cpu")
    assert lenient.ok and strict.kind == "data missing" and said.count("data missing: digits, wanted by toys.strict, toys.lenient") == 1
    _, said = go(project, pages[1], scale="cpu")
    assert "0 to execute" in said and "data missing: digits; toys.lenient ran without it" in said


# Refused at the door

BUDGET = "study.pick(smoke=dict(steps=2), cpu=dict(steps=3), gpu=dict(steps=4))"


@pytest.mark.parametrize("change, part", [
    (dict(scale="huge"), "unknown scale 'huge'; there are smoke, cpu, gpu"),
    (dict(seed="1"), "seed must be a non-negative integer"), (dict(seed=True), "seed"), (dict(seed=-1), "seed"),
    (dict(device="tpu"), "device must be auto, cpu or cuda"),
    (dict(overrides=[("steps", 1)]), "overrides must be a dict"),
    (dict(overrides={"step": 1}), "unknown parameter step; there are steps"),
    (dict(overrides={"steps": "many"}), "parameter steps must be of type int"),
    (dict(timeout=0), "timeout must be positive"), (dict(cell_timeout=-1), "cell_timeout must be positive"), (dict(mem_mb=0), "mem_mb must be positive"),
])
def test_bad_requests_start_nothing(project, change, part):
    with pytest.raises(ValueError, match="^toys.asked: ") as error: once(project, project.page("asked", BUDGET), **change)
    assert part in str(error.value) and not list((project.root / "_runs").glob("*/*/.*"))


def test_bad_requests_of_a_run(project):
    page = project.page("asked", BUDGET)
    for change in (dict(jobs=0), dict(jobs=1.5), dict(scale="huge"), dict(overrides={"step": 1})):
        with pytest.raises(ValueError): go(project, page, **change)
    with pytest.raises(ValueError, match="no notebook"): go(project)
    with pytest.raises(ValueError, match="no such notebook"): go(project, project.root / "nbs/toys/none.ipynb")


def test_parameters_that_only_the_notebook_can_refuse(project):
    page = project.page("late", "assert not overrides, f'toys.late: unknown parameter {list(overrides)}'")
    outcome = once(project, page, overrides={"step": 1})
    assert outcome.kind == "cell error" and "unknown parameter ['step']" in outcome.message


# Killed for real

START = """
import sys, pathlib
from amortlit.suite.rerun import run
if __name__ == "__main__":
    root = pathlib.Path(sys.argv[1])
    outcomes = run(sorted(root.glob("nbs/*/*.ipynb")), root=root, scale="smoke", jobs=2)
    sys.exit(not all(o.ok for o in outcomes))
"""
WAIT = "import time, pathlib\nwhile not pathlib.Path(r'{flag}').exists(): time.sleep(0.05)"


@pytest.fixture
def stopped(project, tmp_path):
    "Three notebooks in a run of its own process: one done, one that waits for a flag with a child of its own, one not yet begun."
    log, flag = tmp_path / "log", tmp_path / "flag"
    note = lambda slug: LOG_RUN.format(log=log, slug=slug)
    project.page("a_quick", note("a"))
    wait = f"import subprocess, sys\nchild = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n{note('b')}\n" + WAIT.format(flag=flag) + "\nchild.kill()"
    project.page("b_waits", wait)
    project.page("c_waits", wait.replace("'b", "'c"))
    process = subprocess.Popen([sys.executable, "-c", START, str(project.root)], cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
    eventually(lambda: log.is_file() and {"a", "b", "c"} <= set(log.read_text().split()), 60)
    eventually(lambda: (project.result("a_quick") / "record.json").is_file())
    yield process, log, flag
    if process.poll() is None: process.kill()
    process.communicate()


def processes_of(project, slug, role):
    return working_for(project.result(slug).with_name(f".{slug}"), role)


def finish(project, log, flag):
    "Run again; what was executed this time."
    log.write_text("")
    flag.touch()
    outcomes, _ = go(project, *sorted(project.root.glob("nbs/*/*.ipynb")))
    assert all(o.ok for o in outcomes)
    return sorted(log.read_text().split())


def test_whole_run_is_killed(project, stopped):
    process, log, flag = stopped
    process.kill()
    process.wait()
    eventually(lambda: not working_for(project.root, "amortlit.suite.worker"), 3)
    assert not project.result("b_waits").exists() and not project.result("c_waits").exists()
    assert finish(project, log, flag) == ["b", "c"]


def test_whole_process_group_is_killed_with_its_workers(project, stopped):
    process, log, flag = stopped
    for victim in [psutil.Process(process.pid), *working_for(project.root, "notebook")]: victim.kill()
    process.wait()
    eventually(lambda: not working_for(project.root, "kernel"), 3)
    assert finish(project, log, flag) == ["b", "c"]


@pytest.mark.parametrize("role", ["notebook", "kernel"])
def test_one_worker_or_kernel_is_killed(project, stopped, role):
    process, log, flag = stopped
    processes_of(project, "b_waits", role)[0].kill()
    eventually(lambda: not working_for(project.result("b_waits").with_name(".b_waits")), 5)
    flag.touch()
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 1 and "FAILED  toys.b_waits: " in errors and "SIGKILL" in errors and "ok  toys.c_waits" in errors
    assert finish(project, log, flag) == ["b"]


def test_a_hundred_notebooks_survive_five_kills(project, tmp_path):
    "Random workers and kernels, then the scheduler, five times: none is lost, none that had finished runs again, no result is half."
    pages, log, chance = [f"p{k:03d}" for k in range(100)], tmp_path / "log", random.Random(0)
    for slug in pages: project.page(slug, LOG_RUN.format(log=log, slug=slug), "import time; time.sleep(0.2)")
    finished = lambda: {slug for slug in pages if (project.result(slug) / "record.json").is_file()}
    done, killed, executed = set(), 0, 0
    for goal in (10, 25, 40, 55, 70):
        log.write_text("")
        process = subprocess.Popen([sys.executable, "-c", START, str(project.root)], cwd=REPOSITORY, stderr=subprocess.DEVNULL)
        eventually(lambda goal=goal: len(finished()) >= goal, 120)
        workers = working_for(project.root)
        for victim in chance.sample(workers, min(2, len(workers))):
            with contextlib.suppress(psutil.NoSuchProcess): victim.kill()
            killed += 1
        time.sleep(0.3 * chance.random())
        process.kill()
        process.wait()
        eventually(lambda: not working_for(project.root), 10)
        begun = log.read_text().split()
        assert not done & set(begun) and len(begun) == len(set(begun)), "a notebook that had finished was executed again"
        done, executed = finished(), executed + len(begun)
    log.write_text("")
    outcomes, _ = go(project, *sorted(project.root.glob("nbs/*/*.ipynb")), jobs=2)
    last = log.read_text().split()
    print(f"{len(pages)} notebooks; killed: 5 schedulers, {killed} workers or kernels; executions begun: {executed + len(last)}; results: {len(finished())}")
    assert all(o.ok for o in outcomes) and finished() == set(pages) and sorted(last) == sorted(set(pages) - done)
    assert all(project.record(slug)["paper"] == f"toys.{slug}" for slug in pages)


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_run_is_interrupted(project, stopped, number, status):
    process, log, flag = stopped
    process.send_signal(number)
    process.communicate(timeout=10)
    assert process.returncode in (status, -number)
    assert not working_for(project.root) and not hidden(project)
    assert finish(project, log, flag) == ["b", "c"]


def test_interrupt_of_execute_leaves_nothing(project):
    stop = threading.Event()
    with ThreadPoolExecutor() as pool:
        future = pool.submit(once, project, project.page("waits", "import time; time.sleep(60)"), stop=stop)
        eventually(lambda: working_for(project.root))
        stop.set()
        with pytest.raises(KeyboardInterrupt): future.result(timeout=10)
    assert not working_for(project.root) and not hidden(project)


def test_killed_between_two_renames(project):
    page = project.page("good", "1")
    once(project, page)
    place, record = project.result("good"), project.record("good")
    os.replace(place, place.with_name(".good.old"))
    (place.with_name(".good.7-x")).mkdir()
    assert plan([page], root=project.root, scale="smoke")[0][1] == "new"
    sweep(project.root, "smoke")
    assert project.record("good") == record and plan([page], root=project.root, scale="smoke")[0][1] == "done"


def test_put_in_place_replaces_a_result(tmp_path):
    new, place = tmp_path / ".x.1-a", tmp_path / "x"
    for folder, text in ((place, "old"), (new, "new")):
        folder.mkdir()
        (folder / "record.json").write_text(text)
    put_in_place(new, place)
    assert (place / "record.json").read_text() == "new" and not new.exists() and not (tmp_path / ".x.old").exists()
    recover(place)
    assert (place / "record.json").read_text() == "new"


def test_sweep_leaves_a_living_run_alone(project):
    page = project.page("lives", "import time; time.sleep(2)")
    with ThreadPoolExecutor() as pool:
        future = pool.submit(once, project, page)
        eventually(lambda: working_for(project.root))
        sweep(project.root, "smoke")
        assert future.result().ok


# What one sees

def test_board_on_a_terminal(project, monkeypatch):
    import amortlit.suite.rerun as rerun
    class Terminal(io.StringIO):
        def isatty(self): return True
        def fileno(self): return 1
    monkeypatch.setattr(rerun.os, "get_terminal_size", lambda fd: os.terminal_size((60, 20)))
    out = Terminal()
    board = Board(out, 1)
    board.moved(dict(name="toys.a", cell=1, cells=3, seconds=2.0, mb=100.0))
    board.say("hello")
    assert "cell 1 of 3" in out.getvalue() and "\x1b[1A" in out.getvalue() and all(len(line) < 70 for line in out.getvalue().splitlines())


def test_imports_stay_light():
    code = "import sys, amortlit.suite.rerun; print([m for m in ('torch', 'papermill', 'pandas', 'matplotlib', 'numpy', 'jsonschema', 'nbformat') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY).stdout.strip() == "[]"


def test_paths_are_cut_at_whole_components(tmp_path):
    home = Path.home()
    assert clean_text(f"{home}/x {tmp_path}/a {tmp_path}b", tmp_path) .startswith("~/x a ")


def test_a_set_that_is_named_and_not_loaded_does_not_make_a_page_stale(project, tmp_path, monkeypatch):
    from amortlit.suite.status import digest_today
    monkeypatch.setenv("AMORTLIT_DATA", "")
    monkeypatch.setenv("AMORTLIT_CACHE", str(tmp_path / "cache"))
    project.write("data/registry.toml", '[digits]\nmegabytes = 1\nlicence = "CC0"\nsource = "nowhere"\n[digits.files]\n"digits.csv" = "ab"\n')
    page = project.page("names", "from amortlit.core.data import load\nif scale == 'gpu': load('digits')")
    (outcome,) = run([page], root=project.root, scale="cpu", jobs=1)
    assert outcome.ok, outcome.message
    record = project.record("names", "cpu")
    assert record["data"] == [{"name": "digits", "sha256": "missing"}] and digest_today(record | {"parameters": dict(scale="cpu", seed=0, overrides={})}, page, project.root) == record["digest"]
