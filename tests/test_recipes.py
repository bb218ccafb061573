"""Data sets that are derived: the recipe makes, from archives of the authors' form, the very bytes of the registry."""
import importlib.util
import io
import json
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from amortlit.core import data

RECIPES = Path(__file__).parents[1] / "data" / "recipes"


def recipe(name):
    spec = importlib.util.spec_from_file_location(name, RECIPES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def archives_of(found, folder):
    "One archive a model, in the authors' form, that says what the set says."
    items = found["items"].to_dict("records")
    for model in found["responses"].columns[1:]:
        rows = []
        for item, right in zip(items, found["responses"][model], strict=True):
            if right != right: continue
            pred = item["answer"] if right else None
            rows.append(item | {"pred": pred, "options": item["options"].split("\n", item["n_options"] - 1), "model_outputs": "..."})
        with zipfile.ZipFile(folder / f"{model}.zip", "w") as z: z.writestr(f"{model}.json", json.dumps(rows))
        yield model, folder / f"{model}.zip"


def test_mmlu_pro_responses_is_made_byte_by_byte(tmp_path):
    mirror = data.find("mmlu_pro_responses")
    if not mirror: pytest.skip("the set is not here")
    made = recipe("mmlu_pro_responses")
    frames = made.build(dict(archives_of(data.load("mmlu_pro_responses"), tmp_path)))
    files = made.checked({f"{name}.csv.gz": made.packed(frame) for name, frame in zip(("responses", "items"), frames, strict=True)})
    assert files == {path.name: path.read_bytes() for path in mirror.values()}
    with pytest.raises(ValueError, match="nothing was written"): made.checked(files | {"items.csv.gz": b"other"})


def test_every_derived_set_has_its_recipe():
    derived = {name for name, entry in data.registry().items() if "url" not in entry}
    assert derived == {p.stem for p in RECIPES.glob("*.py")}


def test_mnist_is_made_byte_by_byte(tmp_path):
    mirror = data.find("mnist")
    if not mirror: pytest.skip("the set is not here")
    found = data.load("mnist")["mnist"]
    with zipfile.ZipFile(tmp_path / "pngs.zip", "w") as z:
        for part in ("train", "test"):
            for k, (image, label) in enumerate(zip(found[f"x_{part}"], found[f"y_{part}"], strict=True)):
                buffer = io.BytesIO()
                Image.fromarray(image).save(buffer, "PNG", compress_level=1)
                z.writestr(f"mnist-pngs/{part}/{label}/{k}.png", buffer.getvalue())
    made = recipe("mnist")
    assert made.checked(made.build(tmp_path / "pngs.zip")) == mirror["mnist"].read_bytes()
    with pytest.raises(ValueError, match="nothing was written"): made.checked(b"")
