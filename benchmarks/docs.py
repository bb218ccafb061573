"""How long the site takes for sixty papers: `python benchmarks/docs.py`. Copies of the published papers stand in for those to come; nothing is executed."""
import itertools
import shutil
import sys
import tempfile
import time
from pathlib import Path

from amortlit.core.data import project_root
from amortlit.suite import catalog
from amortlit.suite.docs import build, vendored


def project(folder: Path, papers: int) -> Path:
    "A copy of the project in which the first papers of the catalog have the pages, figures and modules of the published ones, in turn."
    root = project_root()
    for part in ("nbs", "theme", "figures", "amortlit"): shutil.copytree(root / part, folder / part, ignore=shutil.ignore_patterns("node_modules", "__pycache__"))
    for part in ("_quarto.yml", "settings.ini"): shutil.copy(root / part, folder)
    (folder / "theme" / "node_modules").symlink_to(vendored(root))
    models = itertools.cycle([p for p in catalog.select(["all"], root) if p.record(root)])
    for paper, model in zip(catalog.papers(root)[:papers], models):
        if paper.notebook(folder).is_file(): continue
        for one, other in ((model.notebook(root), paper.notebook(folder)), (model.published(root), paper.published(folder)), (root / "amortlit" / model.chapter / f"{model.slug}.py", folder / "amortlit" / paper.chapter / f"{paper.slug}.py")):
            other.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if one.is_dir() else shutil.copy)(one, other)
    return folder


if __name__ == "__main__":
    papers = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    with tempfile.TemporaryDirectory() as folder:
        root = project(Path(folder) / "project", papers)
        start = time.perf_counter()
        engine, pages = build(root)
        print(f"{papers} papers, {pages} pages by {engine}: {time.perf_counter() - start:.1f} s")
