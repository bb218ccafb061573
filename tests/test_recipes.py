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


def content(mirror):
    return {path.name: path.read_bytes() for path in mirror.values()}


def mirror_of(name):
    found = data.find(name)
    if not found: pytest.skip("the set is not here")
    return found, data.load(name), recipe(name)


def test_mmlu_pro_responses_is_made_byte_by_byte(tmp_path):
    mirror = data.find("mmlu_pro_responses")
    if not mirror: pytest.skip("the set is not here")
    made = recipe("mmlu_pro_responses")
    assert made.files(dict(archives_of(data.load("mmlu_pro_responses"), tmp_path))) == content(mirror)


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
    assert made.build(tmp_path / "pngs.zip") == content(mirror)


def test_only_what_the_registry_expects_is_written(tmp_path):
    with pytest.raises(data.DataCorrupt, match="nothing was written"): data.deposit("mnist", {"mnist.npz": b"other"}, tmp_path)
    assert not list(tmp_path.iterdir())
    mirror = data.find("nlp_leaderboards")
    if mirror: assert content({path.name: path for path in data.deposit("nlp_leaderboards", content(mirror), tmp_path).iterdir()}) == content(mirror)


def test_nlp_leaderboards_is_made_byte_by_byte():
    mirror, tables, made = mirror_of("nlp_leaderboards")
    untidy = lambda row: f'"{row[0]}\t  \t-\t ",,' + ",\t".join(f"{x}   " for x in row[1:3]) + ",\t " + ",   ".join(map(str, row[3:5])) + "".join(f"\t,{x}" for x in row[5:])
    texts = {name: "\n".join([",\t".join(f" {c}" for c in table), *map(untidy, table.values.tolist())]) for name, table in tables.items()}
    assert made.build(texts) == content(mirror)
    two = made.table('Model, Score,\tCB-a,CB-b\n"T5 Team - Google\t-T5\t\t ",89.3,\t93.9   96.8\n')
    assert two.values.tolist() == [["T5 Team - Google -T5", 89.3, 93.9, 96.8]]


def test_nlg_instance_scores_is_made_byte_by_byte(tmp_path):
    mirror, tables, made = mirror_of("nlg_instance_scores")
    for name, table in tables.items():
        metrics = table.columns[2:]
        table.assign(**{m: table[m] * (1 + 1e-10 * (table[m] % 1 != 0)) for m in metrics}).to_csv(tmp_path / f"{name}.csv", index=False)
    assert made.build({name: tmp_path / f"{name}.csv" for name in made.NAMES}) == content(mirror)


def test_cranfield_is_made_byte_by_byte():
    mirror, found, made = mirror_of("cranfield")
    broken = lambda text: "\n ".join(" ".join(text.split(" ")[k:k + 8]) for k in range(0, len(text.split(" ")), 8))
    docs = "".join(f".I {d.doc_id}\n.T\n{broken(d.title)}\n.A\nsomebody\n.B\n\n.W\n{broken(d.text)}\n" for d in found["docs"].fillna("").itertuples())
    queries = "".join(f".I {7 * q.query_id:03d}\n.W\n{broken(q.text)}\n" for q in found["queries"].itertuples())
    qrels = "".join(f"{r.query_id} {r.doc_id} {r.grade}\n" for r in found["qrels"].itertuples())
    assert made.build(docs, queries, qrels) == content(mirror)


def test_inference_scaling_humaneval_is_made_byte_by_byte():
    mirror, found, made = mirror_of("inference_scaling_humaneval")
    cell = lambda source, text: dict(cell_type="code", source=[source], outputs=[dict(name="stdout", text=[text])])
    notebook = lambda *cells: json.dumps(dict(cells=[dict(cell_type="markdown", source="# HumanEval+"), cell("1", "Number of tasks: 150\n"), *cells]))
    shuffled = found["humaneval_plus_models"].sample(frac=1, random_state=0).values.tolist()
    scatter = notebook(cell("plot()", "\n".join(f"{name}: {x!r}, {y!r}" for name, x, y in shuffled)))
    theirs = {ours: name for name, ours in made.CURVES.items()}
    said = lambda rows: "".join(f"For pass_base={-r.cost_benefit_ratio}: Maximum reward of {r.max_reward:.3f} achieved at K = {r.optimal_K}\n" for r in rows.itertuples())
    curves = notebook(*(cell(f'import x\nMODEL = "{theirs[name]}-instruct_temp_0.8"\n', said(rows)) for name, rows in found["optimal_attempts"].groupby("model", sort=False)))
    assert made.build(scatter, curves) == content(mirror)


def test_bandit_uci_takes_each_file_from_its_repository():
    mirror = data.find("bandit_uci")
    if not mirror: pytest.skip("the set is not here")
    made = recipe("bandit_uci")
    local = {address: next(p for p in mirror.values() if p.name == name) for name, address in made.ADDRESSES.items()}
    assert made.build(local.__getitem__) == content(mirror)
