"""Get the files of the data set bandit_uci from three repositories at fixed commits: python data/recipes/bandit_uci.py [FOLDER]

The files are taken as they are; two get the names that the registry knows them by. Their hashes are checked when they are written.
"""
import sys
import tempfile
from pathlib import Path

from amortlit.core import data

HOST = "https://raw.githubusercontent.com"
ADDRESSES = {
    "agaricus-lepiota.data": f"{HOST}/liyorkl/mushroom-classification-decision-tree/20882fb347a5c749f53c41097ce586c55e691dc1/data/agaricus-lepiota.data",
    "magic_train.csv": f"{HOST}/garyForeman/MAGIC-Gamma/8b22cdd9600df701cfee4f6b5ab9c25475a68f89/data/train.csv",
    "magic_test.csv": f"{HOST}/garyForeman/MAGIC-Gamma/8b22cdd9600df701cfee4f6b5ab9c25475a68f89/data/test.csv",
    "shuttle.trn": f"{HOST}/ssmcnatt/assignments/0ff4d1020232e9ff1c32813584601f3dac48423a/data/shuttle.trn",
}


def build(get) -> dict[str, bytes]:
    "File name -> content; `get` maps an address to the path of what lies there."
    return {name: Path(get(address)).read_bytes() for name, address in ADDRESSES.items()}


if __name__ == "__main__":
    import pooch
    with tempfile.TemporaryDirectory() as folder:
        files = build(lambda address: pooch.retrieve(address, known_hash=None, path=folder, progressbar=True))
    print("written to", data.deposit("bandit_uci", files, *sys.argv[1:]))
