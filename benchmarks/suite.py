"""What the engine costs beside plain tools: every paper at scale smoke by papermill one after another, by pytest --nbmake -n 2, by `amortlit run --jobs 2` (fresh and warm starts) and through Snakemake.

    python benchmarks/suite.py [PATTERN ...]        needs the extras dev, cluster and bench; writes benchmarks/suite.json

Papers are cut into blocks; every engine has its turn at each block, in an order that rotates, so that whatever else the machine does falls on all. Each engine gets two cores,
executes everything anew and starts from notebooks without outputs. What the three ways of the engine made is compared to the bit (cells' outputs, figures, tables, claims): whatever differs
between fresh and warm starts must be among what differs between two fresh ones, such as timings. Memory is the largest sum of proportional shares (PSS: a page that two processes share counts once) of all processes.
"""
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from threading import Thread

import nbformat
import papermill
import psutil
from papermill.iorw import load_notebook_node

from amortlit.core.data import project_root
from amortlit.suite import catalog

BIN = Path(sys.executable).parent
BLOCK = 6


def prepared(paper, root: Path, folder: Path) -> Path:
    "A copy of a notebook for plain tools: scale smoke is its default, outputs are gone."
    nb = papermill.parameterize.parameterize_notebook(load_notebook_node(str(paper.notebook(root))), dict(scale="smoke"))
    for cell in nb.cells:
        if cell.cell_type == "code": cell.outputs, cell.execution_count = [], None
    nb.metadata["kernelspec"] = dict(name="python3", display_name="python3", language="python")
    file = folder / f"{paper.chapter}_{paper.slug}.ipynb"
    nbformat.write(nb, file)
    return file


def seconds_in_cells(file: Path) -> float:
    "From the times that nbclient or papermill left in an executed notebook."
    def seconds(meta):
        if duration := meta.get("papermill", {}).get("duration"): return duration
        times = meta.get("execution", {})
        ends = [datetime.fromisoformat(times[key].replace("Z", "+00:00")) for key in ("iopub.execute_input", "shell.execute_reply") if key in times]
        return (ends[1] - ends[0]).total_seconds() if len(ends) == 2 else 0.0
    return sum(seconds(cell.metadata) for cell in nbformat.read(file, 4).cells)


def measured(commands: list[list[str]], env: dict) -> tuple[float, float]:
    "Seconds and peak MB of commands, one after another."
    peak, ended = [0.0], []
    def weigh():
        me = psutil.Process()
        while not ended:
            total = 0
            for process in me.children(recursive=True):
                try: total += process.memory_full_info().pss
                except psutil.Error: pass
            peak[0] = max(peak[0], total / 2**20)
            time.sleep(0.5)
    scale = Thread(target=weigh)
    scale.start()
    began = time.perf_counter()
    try:
        for command in commands: subprocess.run(list(map(str, command)), env=env, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    finally:
        elapsed = time.perf_counter() - began
        ended.append(True)
        scale.join()
    return elapsed, peak[0]


def plain(papers, root, work, nbmake):
    files = [prepared(paper, root, work) for paper in papers]
    env = os.environ | dict(AMORTLIT_ROOT=str(root), PYTHONPATH=str(root), AMORTLIT_QUIET="1") | (dict(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1") if nbmake else {})
    executed = files if nbmake else [file.with_suffix(".out.ipynb") for file in files]
    if nbmake: commands = [[BIN / "pytest", "--nbmake", "--overwrite", "-n", "2", "-q", "-p", "no:cacheprovider", "--rootdir", work, *files]]
    else: commands = [[BIN / "papermill", file, out, "--no-progress-bar"] for file, out in zip(files, executed)]
    elapsed, peak = measured(commands, env)
    return elapsed, sum(map(seconds_in_cells, executed)), peak


def engine(papers, root, work, *options):
    env = os.environ | dict(AMORTLIT_ROOT=str(root), PYTHONPATH=str(root))
    elapsed, peak = measured([[BIN / "amortlit", "run", *(paper.name for paper in papers), "--scale", "smoke", "--jobs", "2", "--force", *options]], env)
    folders = [root / "_runs" / "smoke" / paper.chapter / paper.slug for paper in papers]
    PRINTS[options] = {key: value for folder in folders for key, value in fingerprints(folder)}
    return elapsed, sum(sum(json.loads((folder / "record.json").read_text())["cells"]) for folder in folders), peak


PRINTS = {}  # options of a run -> what it made, by hash


def fingerprints(folder: Path):
    "A hash of everything in a result that is not about its own run."
    name, sha = folder.name, lambda content: hashlib.sha256(content if isinstance(content, bytes) else json.dumps(content, sort_keys=True).encode()).hexdigest()
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.name not in ("record.json", "log.txt", f"{name}.ipynb"): yield f"{name}/{file.relative_to(folder)}", sha(file.read_bytes())
    for claim in json.loads((folder / "record.json").read_text())["claims"]: yield f"{name}: {claim['id']}", sha(claim)
    for k, cell in enumerate(nbformat.read(folder / f"{name}.ipynb", 4).cells):
        if cell.cell_type != "code": continue
        printed = {stream: "".join(o.text for o in cell.outputs if o.output_type == "stream" and o.name == stream) for stream in ("stdout", "stderr")}
        yield f"{name}: cell {k}", sha([printed, [o.data for o in cell.outputs if "data" in o]])


def differing(one: dict, other: dict) -> set[str]:
    return {key for key in {*one, *other} if one.get(key) != other.get(key)}


ARMS = {
    "papermill, one after another": lambda *a: plain(*a, nbmake=False),
    "pytest --nbmake -n 2": lambda *a: plain(*a, nbmake=True),
    "amortlit run --jobs 2 --fresh": lambda *a: engine(*a, "--fresh"),
    "amortlit run --jobs 2": lambda *a: engine(*a, "--warm"),
    "amortlit run --jobs 2 --profile local": lambda *a: engine(*a, "--profile", "local"),
}


def main(patterns):
    source = project_root()
    papers = [paper for paper in catalog.select(patterns or ["all"], source) if paper.notebook(source).is_file()]
    blocks = [papers[k::-(-len(papers) // BLOCK)] for k in range(-(-len(papers) // BLOCK))]
    turns = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "project"
        for part in ("nbs", "amortlit", "data"): shutil.copytree(source / part, root / part, ignore=shutil.ignore_patterns("__pycache__"))
        for part in ("settings.ini", "pyproject.toml"): shutil.copy(source / part, root)
        for k, block in enumerate(blocks):
            names = list(ARMS)[k % len(ARMS):] + list(ARMS)[:k % len(ARMS)]
            for name in names:
                work = Path(tempfile.mkdtemp(dir=folder))
                elapsed, cells, peak = ARMS[name](block, root, work)
                turns.append(dict(block=k, papers=len(block), engine=name, seconds=round(elapsed, 1), in_cells=round(cells, 1), peak_mb=round(peak)))
                print(turns[-1], flush=True)
            fresh, warm, again = (PRINTS[options] for options in (("--fresh",), ("--warm",), ("--profile", "local")))
            varies, odd = differing(fresh, again), differing(fresh, warm) - differing(fresh, again)
            turns.append(dict(block=k, compared=len(fresh), differ_between_fresh=len(varies), differ_only_when_warm=sorted(odd)))
            print(turns[-1], flush=True)
            (source / "benchmarks" / "suite.json").write_text(json.dumps(turns, indent=1) + "\n")


if __name__ == "__main__": main(sys.argv[1:])
