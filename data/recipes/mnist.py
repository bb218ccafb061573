"""Make the data set mnist from the PNG files of rasbt/mnist-pngs: python data/recipes/mnist.py [FOLDER]

Downloads the repository at a fixed commit as one archive, decodes the images (lossless), puts them into the order of their running
index, and writes mnist.npz into FOLDER (the user's cache unless given). The result is accepted only if it has the sha256 of data/registry.toml.
"""
import hashlib
import io
import sys
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from amortlit.core import data

COMMIT = "d26bd33bf1e454dd15bd4fe8b8ba64c76308f91c"
ARCHIVE = "https://github.com/rasbt/mnist-pngs/archive/{commit}.zip"


def split(archive: zipfile.ZipFile, part: str) -> tuple[np.ndarray, np.ndarray]:
    "Images (n, 28, 28) and labels (n,) of train or test; files are named <part>/<label>/<index>.png."
    paths = [Path(name) for name in archive.namelist() if name.endswith(".png") and Path(name).parts[-3] == part]
    ordered = sorted(paths, key=lambda path: int(path.stem))
    images = [np.asarray(Image.open(io.BytesIO(archive.read(path.as_posix())))) for path in ordered]
    return np.stack(images), np.array([int(path.parts[-2]) for path in ordered], np.uint8)


def build(archive: Path) -> bytes:
    "mnist.npz, whose bytes depend on its content alone."
    with zipfile.ZipFile(archive) as z: (x_train, y_train), (x_test, y_test) = (split(z, part) for part in ("train", "test"))
    buffer = io.BytesIO()
    np.savez_compressed(buffer, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return buffer.getvalue()


def checked(content: bytes) -> bytes:
    "The file, if it has the sha256 of the registry; ValueError otherwise."
    expected, actual = data.entry("mnist")["files"]["mnist.npz"], hashlib.sha256(content).hexdigest()
    if actual != expected: raise ValueError(f"mnist.npz came out with sha256 {actual[:12]}..., the registry expects {expected[:12]}...; nothing was written")
    return content


def main(folder: Path):
    import pooch
    archive = Path(pooch.retrieve(ARCHIVE.format(commit=COMMIT), known_hash=None, path=folder / "archives", progressbar=True))
    (folder / "mnist.npz").write_bytes(checked(build(archive)))
    print(f"written to {folder}")


if __name__ == "__main__": main(Path(sys.argv[1]) if sys.argv[1:] else data.cache_folder() / "mnist")
