"""Notebooks forked from a warm parent: the same to the bit as fresh ones, nothing carried over, nothing left."""
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import psutil
import pytest
from test_engine import FAILURES, REPOSITORY, eventually, hidden, private_folders, working_for

from amortlit.suite.execute import execute
from amortlit.suite.warm import Warm

pytestmark = pytest.mark.skipif(not Warm.possible(), reason="this system does not fork as it must")


class Counted(Warm):
    "Says whether the last start was a fork; the name of the test, which pytest writes into the environment, does not count."
    forked = None

    def start(self, *arguments):
        self.env["PYTEST_CURRENT_TEST"] = os.environ["PYTEST_CURRENT_TEST"]
        process = super().start(*arguments)
        self.forked = process is not None
        return process


@pytest.fixture(scope="module")
def parents():
    "A warm parent for one core and one for two."
    with Counted(1) as one, Counted(2) as two: yield {1: one, 2: two}


@pytest.fixture(autouse=True)
def nothing_is_left(project, monkeypatch):
    "As for fresh starts; private folders lie where no other test has its own."
    place = Path(tempfile.mkdtemp(prefix="warm-", dir="/tmp"))
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    before = private_folders()
    yield
    eventually(lambda: not working_for(project.root), 5)
    assert private_folders() <= before and not hidden(project)
    shutil.rmtree(place)


def forked(warm):
    "What the parent has forked and that still runs."
    return psutil.Process(warm.process.pid).children(recursive=True)


def once(project, page, warm, cores=2, **options):
    return execute(page, root=project.root, scale="smoke", warm=warm, cores=cores, **options)


def joined(outputs):
    "Text that was printed in several pieces, which depends on time, in one."
    found = []
    for output in outputs:
        if found and output.output_type == "stream" == found[-1].output_type and output.name == found[-1].name: found[-1].text += output.text
        else: found.append(output)
    return found


def outputs(outcome):
    "All that a run shows, and the facts of its record that do not depend on time."
    assert outcome.ok, outcome.message
    page = nbformat.read(outcome.folder / f"{outcome.folder.name}.ipynb", 4)
    record = json.loads((outcome.folder / "record.json").read_text())
    for key in ("wall_seconds", "peak_rss_mb", "cells"): del record[key]
    return [joined(cell.get("outputs", [])) for cell in page.cells], record, (outcome.folder / "log.txt").read_text()


def printed(shown):
    "What the only cell printed."
    return next(outputs[0]["text"] for outputs in shown[0] if outputs)


def both(project, parents, slug, *cells, cores=2, **options):
    "What a page shows when it is started afresh, and when it is forked."
    page = project.page(slug, *cells)
    fresh = outputs(once(project, page, None, cores, **options))
    warm = parents[cores]
    shown = outputs(once(project, page, warm, cores, **options))
    assert warm.forked
    return fresh, shown


def said(project, parents, code, cores=2):
    "The text that a cell prints, fresh and forked."
    fresh, shown = both(project, parents, "says", code, cores=cores)
    return [printed(one) for one in (fresh, shown)]


# The same

WORK = """
import hashlib, io
import numpy as np, pandas as pd, torch, matplotlib.pyplot as plt
from scipy import linalg
from sklearn.linear_model import LogisticRegression
torch.manual_seed(seed); rng = np.random.default_rng(seed)
a, b = rng.normal(size=(700, 700)), torch.randn(700, 700)
sha = lambda x: hashlib.sha256(np.ascontiguousarray(x).tobytes()).hexdigest()[:16]
print(sha(a @ a), sha(linalg.svdvals(a)), sha(np.linalg.inv(a)), sha((b @ b).numpy()), sha(torch.linalg.inv(b).numpy()), float(b.sum()), sha(torch.softmax(b, 1).sum(0).numpy()))
model = LogisticRegression().fit(a, a[:, 0] > 0)
print(sha(model.coef_), torch.initial_seed())
net = torch.nn.Linear(700, 3); optimiser = torch.optim.Adam(net.parameters())
for _ in range(5): optimiser.zero_grad(); net(b).square().mean().backward(); optimiser.step()
print(sha(net.weight.detach().numpy()))
"""
SHOWN = ("import pandas as pd, numpy as np\npd.DataFrame(np.arange(60).reshape(2, 30))", "import matplotlib.pyplot as plt, seaborn as sns\nsns.lineplot(x=[1, 2, 3], y=[1, 4, 9]); plt.title('a')",
         "figure, axes = plt.subplots(1, 2, layout='constrained'); axes[0].scatter([1, 2], [3, 4]); axes[1].hist([1, 1, 2])", "import sklearn.linear_model; sklearn.linear_model.Ridge()",
         "from tqdm.auto import tqdm\nprint(tqdm.__module__)", "import warnings; warnings.warn('careful')", "1 / 3", "import logging; logging.getLogger('x').warning('y')")


@pytest.mark.parametrize("cores", [1, 2])
def test_results_are_the_same_to_the_bit(project, parents, cores):
    fresh, shown = both(project, parents, "works", WORK, *SHOWN, cores=cores)
    assert sum("image/png" in output.get("data", {}) for cell in shown[0] if cell for output in cell) == 2
    for k, (was, now) in enumerate(zip(fresh[0], shown[0], strict=True)): assert was == now, f"cell {k}"
    assert fresh == shown


AROUND = """
import os, sys, signal, threading, random, warnings, json, multiprocessing, resource, gc
import {modules}
from threadpoolctl import threadpool_info
import numexpr, torch
short = lambda text: str(text).replace(os.environ['AMORTLIT_RUN_DIR'], 'RUN').replace(os.environ['JUPYTER_RUNTIME_DIR'], 'RUNTIME').replace(os.environ['JPY_PARENT_PID'], 'PARENT')
mask = os.umask(0); os.umask(mask)
kind = lambda fd: os.readlink(f'/proc/self/fd/{{fd}}').partition(':')[0] if 'RUN' not in short(os.readlink(f'/proc/self/fd/{{fd}}')) else 'log'
facts = dict(
    environ=sorted((k, short(v)) for k, v in os.environ.items() if not k.startswith('KMP_')), path=list(map(short, sys.path)), argv=list(map(short, sys.argv)), orig=list(map(short, sys.orig_argv)), flags=str(sys.flags), cwd=short(os.getcwd()), umask=mask,
    handlers=[str(signal.getsignal(n)) if not callable(signal.getsignal(n)) else signal.getsignal(n).__name__ for n in signal.valid_signals()], mask=str(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
    files=len(os.listdir('/proc/self/fd')), standard=[kind(fd) for fd in (0, 1, 2)], threads=sorted(t.name.rpartition('-')[0] or t.name for t in threading.enumerate()), os_threads=len(os.listdir('/proc/self/task')),
    pools=sorted((p['user_api'], p['internal_api'], p['num_threads'], os.path.basename(p['filepath'])) for p in threadpool_info()), torch=[torch.get_num_threads(), torch.get_num_interop_threads()], numexpr=numexpr.nthreads,
    session=[os.getsid(0) == os.getpid(), os.getpgid(0) == os.getpid(), os.getppid() == int(os.environ['JPY_PARENT_PID'])], recursion=sys.getrecursionlimit(), warn=sys.warnoptions, name=multiprocessing.current_process().name,
    limits=[resource.getrlimit(k) for k in (resource.RLIMIT_NOFILE, resource.RLIMIT_CORE)], main=sorted(k for k in vars(sys.modules['__main__']) if k.startswith('__')), gc=[gc.isenabled(), gc.get_threshold()],
    std=[(type(s).__name__, s.encoding, s.errors) for s in (sys.__stdin__, sys.__stdout__, sys.__stderr__)], write=[s.write_through for s in (sys.__stdout__, sys.__stderr__)], daemon=multiprocessing.current_process().daemon,
    command=list(map(short, open('/proc/self/cmdline').read().rstrip(chr(0)).split(chr(0)))), ours='AMORTLIT_RUN_DIR=' + os.environ['AMORTLIT_RUN_DIR'] in open('/proc/self/environ').read().split(chr(0)))
print(json.dumps(facts))
"""


@pytest.mark.parametrize("cores", [1, 2])
def test_everything_around_a_notebook_is_the_same(project, parents, monkeypatch, cores):
    monkeypatch.setenv("PYTHONPATH", f"{project.root}/more{os.pathsep}{project.root}/other")
    with Counted(cores) as warm: fresh, shown = map(json.loads, said(project, {cores: warm}, AROUND.format(modules="pandas, scipy.optimize, sklearn.linear_model"), cores=cores))
    for key in fresh: assert fresh[key] == shown[key], key
    assert shown["torch"][0] == cores and shown["ours"]


def test_a_number_of_threads_beyond_the_machine_s(project):
    many = 2 * (os.cpu_count() or 1) + 1
    with Counted(many) as warm: fresh, shown = map(json.loads, said(project, {many: warm}, AROUND.format(modules="pandas, scipy.optimize, sklearn.linear_model"), cores=many))
    assert fresh["pools"] == shown["pools"] and fresh["torch"] == shown["torch"]


def test_package_at_the_start_and_modules_that_look_around(project, parents):
    code = "import sys\nprint(sorted(m for m in sys.modules if m.startswith('amortlit')), sys.modules['__main__'].__name__)"
    fresh, shown = said(project, parents, code)
    assert fresh == shown and "amortlit.suite.forks" not in shown


def test_the_project_s_own_package_wins(project, parents):
    (project.root / "amortlit").mkdir()
    for item in (REPOSITORY / "amortlit").iterdir():
        if item.name != "__pycache__": (project.root / "amortlit" / item.name).symlink_to(item)
    project.write("amortlit/mine.py", "x = 7")
    both(project, parents, "own", "from amortlit.mine import x\nassert x == 7\nimport amortlit; assert amortlit.__file__.startswith(__import__('os').environ['AMORTLIT_ROOT'])")


@pytest.mark.parametrize("name", ["sitecustomize.py", "seaborn/__init__.py"])
def test_a_module_of_the_project_that_hides_one_that_is_loaded_is_seen(project, parents, name):
    project.write(name, "mine = 7")
    module = name.partition("/")[0].removesuffix(".py")
    assert once(project, project.page("hides", f"import {module}\nassert {module}.mine == 7"), parents[2]).ok and not parents[2].forked


def test_another_environment_than_the_parent_s_is_a_fresh_start(project, parents, monkeypatch):
    monkeypatch.setenv("OMP_SCHEDULE", "static")
    assert once(project, project.page("env", "import os, sys\nassert os.environ['OMP_SCHEDULE'] == 'static' and 'seaborn' not in sys.modules"), parents[2]).ok
    assert once(project, project.page("threads", "import sys\nassert 'seaborn' not in sys.modules"), parents[1]).ok and not parents[1].forked


def test_a_notebook_may_start_processes_of_all_kinds(project, parents):
    project.write("worker_of_mine.py", "def double(x): return 2 * x")
    both(project, parents, "starts", "import subprocess, sys\nassert subprocess.run([sys.executable, '-c', 'print(1)'], capture_output=True, text=True).stdout == '1\\n'",
         "import multiprocessing\nfrom worker_of_mine import double\nfor way in ('fork', 'spawn', 'forkserver'):\n    with multiprocessing.get_context(way).Pool(2) as pool: assert pool.map(double, [1, 2]) == [2, 4]",
         "from joblib import Parallel, delayed\nassert Parallel(2)(delayed(double)(k) for k in (1, 2)) == [2, 4]", "assert multiprocessing.Manager().list([1])[0] == 1",
         "import os; assert os.popen('echo $AMORTLIT_RUN_DIR').read().strip() == os.environ['AMORTLIT_RUN_DIR']")


# Nothing is carried over

SPOIL = r"""
import os, sys, warnings, signal, atexit, random, builtins, gc, locale, logging, decimal, threading, math, time
import numpy as np, torch, pandas as pd, matplotlib, matplotlib.pyplot as plt, sklearn, scipy.optimize, seaborn
os.environ['LEAK'] = '1'; os.environ['OMP_NUM_THREADS'] = '7'; del os.environ['MPLBACKEND']
os.makedirs('sub', exist_ok=True); open('sub/leak.txt', 'w').write('x'); os.chdir('sub'); os.umask(0o123)
sys.path.insert(0, '/leak'); sys.argv.append('leak'); sys.setrecursionlimit(5000); sys.modules['leak'] = sys
np.random.seed(3); torch.manual_seed(3); random.seed(3); torch.set_default_dtype(torch.float64); torch.set_num_threads(1); torch.use_deterministic_algorithms(True); torch.set_grad_enabled(False)
matplotlib.rcParams['lines.linewidth'] = 9; plt.style.use('dark_background'); sns = seaborn; sns.set_theme()
warnings.simplefilter('error'); pd.set_option('display.max_rows', 3); np.set_printoptions(precision=1); sklearn.set_config(display='text'); np.seterr(all='raise')
signal.signal(signal.SIGUSR1, lambda *_: None); atexit.register(print, 'leak'); gc.disable(); decimal.getcontext().prec = 5
np.leak = torch.leak = builtins.leak = 1; math.pi = 3; pd.DataFrame.leak = 1; scipy.optimize.minimize = None; logging.getLogger().setLevel(10)
threading.Thread(target=time.sleep, args=(1,), daemon=True).start()
"""
LOOK = r"""
import os, sys, warnings, signal, atexit, random, builtins, gc, logging, decimal, threading, math
import numpy as np, torch, torch._dynamo, pandas as pd, matplotlib, matplotlib.pyplot as plt, sklearn, scipy.optimize, seaborn
mask = os.umask(0); os.umask(mask)
print(os.environ.get('LEAK'), os.environ['OMP_NUM_THREADS'], os.environ['MPLBACKEND'], os.listdir('.'), os.path.basename(os.getcwd())[:3], mask, '/leak' in sys.path, 'leak' in sys.argv, sys.getrecursionlimit(), 'leak' in sys.modules)
print(torch.get_default_dtype(), torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.is_grad_enabled(), torch.initial_seed() == 3)
print(sorted(matplotlib.rcParams.items(), key=str)), print(sorted(map(str, warnings.filters))), print(pd.get_option('display.max_rows'), pd.get_option('display.max_columns'), np.get_printoptions(), sklearn.get_config(), np.geterr())
print(signal.getsignal(signal.SIGUSR1), gc.isenabled(), decimal.getcontext().prec, hasattr(np, 'leak'), hasattr(torch, 'leak'), hasattr(builtins, 'leak'), math.pi, hasattr(pd.DataFrame, 'leak'), scipy.optimize.minimize is None, logging.getLogger().level)
print(sorted(t.name.rpartition('-')[0] for t in threading.enumerate()), len(os.listdir('/proc/self/fd')))
"""


def test_nothing_is_carried_over(project, parents):
    "To a notebook that runs after one that changes all it can, and to one that runs beside it."
    fresh = outputs(once(project, project.page("looks", LOOK), None))
    flag = project.root / "flag"
    spoil = project.page("spoils", SPOIL + f"\nopen(r'{flag}', 'w').close()", "time.sleep(5)")
    with ThreadPoolExecutor() as pool:
        spoiling = pool.submit(once, project, spoil, parents[2])
        eventually(flag.exists, 30)
        beside = outputs(once(project, project.page("looks", LOOK), parents[2]))
        spoiling.result()
    after = outputs(once(project, project.page("looks", LOOK), parents[2]))
    for other in (beside, after):
        for was, now in zip(printed(fresh).splitlines(), printed(other).splitlines(), strict=True): assert was == now
        assert fresh == other


def test_random_numbers_are_not_shared(project, parents):
    code = "import random, numpy, multiprocessing, torch, tempfile, uuid\nprint(random.random()), print(numpy.random.rand()), print(multiprocessing.current_process().authkey.hex()), print(tempfile.mktemp()), print(uuid.uuid4()), print(numpy.random.default_rng().random()), print(torch.initial_seed()), print(torch.rand(1))"
    pages = [project.page(slug, code) for slug in "ab"]
    a, b = (printed(outputs(once(project, page, parents[2]))).splitlines() for page in pages)
    assert len(a) == 8 and all(x != y for x, y in zip(a, b, strict=True))


# Every kind of failure, as before

@pytest.mark.parametrize("case", FAILURES)
def test_failure(project, parents, case):
    cells, limits, kind, cell, part = FAILURES[case]
    outcome = once(project, project.page(case, *cells), parents[2], **limits)
    assert (outcome.ok, outcome.kind, outcome.cell) == (False, kind, cell) and part in outcome.message, outcome.message
    eventually(lambda: not forked(parents[2]), 5)


@pytest.mark.parametrize("cell", ["import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()", "import atexit, time\natexit.register(time.sleep, 60)"])
def test_hang_after_the_last_cell(project, parents, cell):
    outcome = once(project, project.page("hangs", cell), parents[2], grace=1.5)
    assert (outcome.ok, outcome.kind) == (False, "time limit") and "after the last cell" in outcome.message


def test_only_the_memory_of_the_notebook_counts(project, parents):
    assert once(project, project.page("small", "import torch, time; time.sleep(1.5)"), parents[2], mem_mb=350).ok


# Killed for real

WAITS = "import time, pathlib\nopen(r'{flag}.{slug}', 'w').close()\nwhile not pathlib.Path(r'{flag}').exists(): time.sleep(0.05)"


@pytest.mark.parametrize("role", ["notebook", "kernel"])
def test_a_worker_or_kernel_is_killed_and_the_rest_goes_on(project, parents, role):
    flag = project.root / "flag"
    with ThreadPoolExecutor() as pool:
        a, b = (pool.submit(once, project, project.page(slug, WAITS.format(flag=flag, slug=slug)), parents[2]) for slug in "ab")
        running = lambda slug: [p for p in working_for(project.result(slug).with_name(f".{slug}"), role)]
        eventually(lambda: all(flag.with_name(f"flag.{slug}").exists() for slug in "ab"), 60)
        running("a")[0].kill()
        failed = a.result()
        flag.touch()
        assert b.result().ok
    assert failed.kind == "kernel died" and "in cell 2 of 3 with signal SIGKILL" in failed.message
    assert once(project, project.page("a", "1"), parents[2]).ok and not parents[2].facts["wrong"]


def test_the_warm_parent_is_killed(project):
    told, flag = [], project.root / "flag"
    with Counted(2, told.append) as warm, ThreadPoolExecutor() as pool:
        running = pool.submit(once, project, project.page("a", f"open(r'{flag}', 'w').close()", "import time; time.sleep(60)"), warm)
        eventually(flag.exists, 30)
        warm.process.kill()
        outcome = running.result(timeout=20)
        assert outcome.kind == "kernel died" and "SIGTERM" in outcome.message and not working_for(project.root)
        assert [once(project, project.page(slug, "1"), warm).ok for slug in "bc"] == [True, True]
    assert told == ["notebooks are started afresh, not from a warm parent: it was killed"]


def test_the_warm_parent_is_killed_while_it_imports(project):
    told = []
    with Counted(2, told.append) as warm:
        warm.process.kill()
        assert once(project, project.page("a", "1"), warm).ok
    assert told == ["notebooks are started afresh, not from a warm parent: it ended while it imported its libraries"]
    with Counted(2, told.append): pass
    assert len(told) == 1


def test_a_parent_with_threads_is_not_used(project, monkeypatch):
    project.write("site/sitecustomize.py", "import threading, time\nthreading.Thread(target=time.sleep, args=(600,), daemon=True).start()")
    monkeypatch.setenv("PYTHONPATH", str(project.root / "site"))
    told = []
    with Counted(2, told.append) as warm: assert once(project, project.page("a", "import sys; assert 'seaborn' not in sys.modules"), warm).ok
    assert told == ["notebooks are started afresh, not from a warm parent: its libraries started 1 threads"]


ENGINE = """
import sys, pathlib
from concurrent.futures import ThreadPoolExecutor
from amortlit.suite.execute import execute
from amortlit.suite.warm import Warm
if __name__ == "__main__":
    root = pathlib.Path(sys.argv[1])
    with Warm(1) as warm, ThreadPoolExecutor(2) as pool:
        print(warm.process.pid, flush=True)
        list(pool.map(lambda page: execute(page, root=root, scale="smoke", warm=warm), sorted(root.glob("nbs/*/*.ipynb"))))
"""


@pytest.mark.parametrize("imports", [False, True], ids=["while it runs", "while the parent imports"])
def test_a_killed_engine_leaves_nothing(project, imports):
    for slug in "ab": project.page(slug, "import subprocess; subprocess.Popen(['sleep', '600']); import time; time.sleep(600)")
    before = private_folders()
    engine = subprocess.Popen([sys.executable, "-c", ENGINE, str(project.root)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, env=os.environ | dict(TMPDIR=tempfile.gettempdir()))
    parent = psutil.Process(int(engine.stdout.readline()))
    sleeping = lambda: [p for p in parent.children(recursive=True) if p.name() == "sleep"]
    if not imports: eventually(lambda: len(sleeping()) == 2, 60)
    all_of_them = [parent, *parent.children(recursive=True)]
    engine.kill()
    engine.communicate()
    ours = [p for p in all_of_them if imports or p.name() != "sleep"]
    eventually(lambda: not [p for p in ours if p.is_running() and p.status() != psutil.STATUS_ZOMBIE], 5)
    if not imports: eventually(lambda: private_folders() <= before, 5)
    for slug in "ab": assert execute(project.page(slug, "1"), root=project.root, scale="smoke").ok
    assert not [p for p in all_of_them if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def test_twelve_at_once_and_none_stays(project):
    with Counted(1) as warm, ThreadPoolExecutor(12) as pool:
        pages = [project.page(f"p{k}", f"{k}") for k in range(12)]
        outcomes = list(pool.map(lambda page: once(project, page, warm, cores=1), pages))
        assert [o.message for o in outcomes if not o.ok] == [] and not forked(warm)
        parent = psutil.Process(warm.process.pid)
        assert parent.num_fds() <= 8
    with contextlib.suppress(psutil.NoSuchProcess): assert not parent.is_running()


def test_interrupted_while_the_parent_imports(project):
    from threading import Event
    stop = Event()
    with Counted(2) as warm, ThreadPoolExecutor() as pool:
        os.kill(warm.process.pid, signal.SIGSTOP)
        future = pool.submit(once, project, project.page("a", "1"), warm, stop=stop)
        time.sleep(0.5)
        stop.set()
        with pytest.raises(KeyboardInterrupt): future.result(timeout=5)


def test_a_run_warms_up_only_where_it_pays(project, monkeypatch):
    import io

    import amortlit.suite.rerun as rerun
    entered = []
    class Seen(Warm):
        def __enter__(self):
            entered.append(self.env["OMP_NUM_THREADS"])
            return super().__enter__()
    monkeypatch.setattr(rerun, "Warm", Seen)
    pages = [project.page(f"p{k}", "1") for k in range(3)]
    go = lambda *some, **options: rerun.run(some, root=project.root, scale="smoke", out=io.StringIO(), force=True, **options)
    assert all(o.ok for o in go(*pages[:2], jobs=2)) and not entered
    assert all(o.ok for o in go(*pages, jobs=2, warm=False)) and not entered
    assert all(o.ok for o in go(*pages, jobs=2)) and entered == [str(max(1, (os.cpu_count() or 1) // 2))]
    assert go(pages[0], warm=True)[0].ok and len(entered) == 2
    monkeypatch.setattr(Seen, "possible", staticmethod(lambda: False))
    assert all(o.ok for o in go(*pages, jobs=2)) and len(entered) == 2
    with pytest.raises(ValueError, match="warm starts need Linux"): go(pages[0], warm=True)
