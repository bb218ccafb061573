"""The floor of the chapter on diffusion: networks, their training, the weights that ship, and distances between sets of pictures."""
import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from amortlit.core import data, diffusion, zoo
from amortlit.core.denoisers import Denoiser, DiT, FlatNet, UNet, train_denoiser
from amortlit.core.fidelity import class_histogram_tv, frechet, frechet_floor, frechet_inf, jackknife_ci, kid, precision_recall
from amortlit.core.mixtures import MixtureModel, mixture_from_data, mixture_w2, random_mixture
from amortlit.core.schedules import EDM, VPDiscrete, VPLinear, ddpm_betas, timesteps
from amortlit.core.solvers import heun

FOLDER = data.project_root() / "data" / "zoo"
SHIPPED = [n for n in zoo.recipes() if not n.startswith("cifar") and n != "mnist-dit"]  # those need a GPU, or hours


def seed(k=0): return torch.Generator().manual_seed(k)


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    "No weights anywhere but in an empty cache."
    monkeypatch.setattr(zoo, "folders", lambda: [tmp_path / "zoo"])
    monkeypatch.setenv("AMORTLIT_CACHE", str(tmp_path))
    return tmp_path / "zoo"


@pytest.mark.parametrize("name", SHIPPED)
def test_weights_are_of_the_recipe_in_the_code_and_say_where_they_come_from(name):
    recipe, kind = zoo.recipes()[name], name.split("-")[1]
    expected = zoo.recipe_hash(recipe, (zoo.Features, zoo._classify) if kind == "features" else (zoo._KINDS[kind], *zoo._PARTS))
    weights = sorted(FOLDER.glob(f"{name}-*.safetensors"))
    assert [w.name for w in weights] == [f"{name}-{expected}.safetensors"], "the recipe or the code that it reads has changed: make zoo"
    assert weights[0].stat().st_size < 1_500_000
    card = json.loads(weights[0].with_suffix(".json").read_text())
    assert card["recipe"] == json.loads(json.dumps(recipe)) and card["minutes"] >= 0 and card["device"]
    assert card.get("accuracy", 1) > 0.98 and card.get("loss", 0) < 0.6


def test_nothing_lies_around_in_the_zoo():
    assert {f.stem.rpartition("-")[0] for f in FOLDER.iterdir() if f.name != "recipes.toml"} == set(SHIPPED)
    assert sum(f.stat().st_size for f in FOLDER.iterdir()) < 10e6


@pytest.mark.parametrize("name", ["digits-mlp", "digits-unet", "digits-dit", "mnist-unet"])
def test_what_a_denoiser_draws_is_of_the_class_that_was_asked_for(name):
    model, judge = zoo.zoo(name), zoo.features(name.split("-")[0])
    shape = (1, 32, 32) if name.startswith("mnist") else (1, 8, 8)
    y = torch.arange(10).repeat(3)
    with torch.no_grad():
        x = heun(lambda x, t: model.cfg_eps(x, t, y, 1.5), 80 * torch.randn(30, *shape, generator=seed()), timesteps(EDM(), 10, "karras"))
        right = (judge.logits(x.clamp(-1, 1)).argmax(-1) == y).float().mean()
    assert right > (0.6 if name == "digits-mlp" else 0.8) and model.nfe == 40


def test_missing_weights_are_trained_only_where_that_is_quick(nowhere, monkeypatch):
    for name in ("mnist-unet", "mnist-dit", "cifar-unet"):
        with pytest.raises(FileNotFoundError, match=f"NETS={name}"): zoo.zoo(name)
    with pytest.raises(FileNotFoundError, match="mnist-features"): zoo.features("mnist")
    quick = {n: r | dict(steps=3) for n, r in zoo.recipes().items()}
    monkeypatch.setattr(zoo, "recipes", lambda: quick)
    first, classifier = zoo.zoo("digits-mlp"), zoo.features("digits")
    assert len(list(nowhere.glob("*.safetensors"))) == len(list(nowhere.glob("*.json"))) == 2
    monkeypatch.setattr(zoo, "train_denoiser", None)
    again = zoo.zoo("digits-mlp")
    x = torch.randn(3, 1, 8, 8, generator=seed())
    assert torch.equal(first(x, 1.0), again(x, 1.0)) and torch.equal(classifier(x), zoo.features("digits")(x))
    with pytest.raises(TypeError): zoo.zoo("digits-mlp", retrain=True)


def test_make_zoo_trains_what_is_missing_once(nowhere, monkeypatch, tmp_path):
    quick = {n: r | dict(steps=2) for n, r in zoo.recipes().items()}
    monkeypatch.setattr(zoo, "recipes", lambda: quick)
    monkeypatch.setattr(zoo, "folders", lambda: [tmp_path / "made"])
    made = zoo.make_zoo(["digits-unet"], tmp_path / "made")
    assert [m.suffix for m in made] == [".safetensors"] and zoo.make_zoo(["digits-unet"], tmp_path / "made") == []
    with pytest.raises(ValueError, match="unknown names"): zoo.make_zoo(["digits"])


@pytest.mark.parametrize("call", [lambda: zoo.zoo("imagenet"), lambda: zoo.features("imagenet"), lambda: zoo.images("imagenet")])
def test_unknown_names_are_refused_with_the_known_ones(call):
    with pytest.raises(ValueError, match="digits"): call()


def test_recipe_hash_sees_numbers_data_and_code():
    def f(x):
        "Words."
        return x  # more
    def g(x): return x + 1
    assert len({zoo.recipe_hash(r, c) for r in (dict(lr=1.0), dict(lr=2.0), dict(lr=1.0, data="mnist")) for c in ((f,), (g,), (f, g))}) == 9


@settings(deadline=None, max_examples=15)
@given(st.sampled_from(["flat", "unet", "dit"]), st.integers(1, 3), st.integers(0, 2))
def test_networks_keep_shapes_and_take_labels_or_conditions(kind, batch, classes):
    channels = 2
    net = {"flat": lambda: FlatNet(128, 16, 1, classes), "unet": lambda: UNet(8, (1, 2), True, classes, channels), "dit": lambda: DiT(4, 16, 2, 2, classes, channels, 8)}[kind]()
    x, t = torch.randn(batch, channels, 8, 8), torch.randn(batch)
    y = torch.full((batch,), classes)
    assert net(x, t, y).shape == x.shape and torch.equal(net(x, t), net(x, t, y))
    model = Denoiser(net, num_classes=classes)
    for value in (torch.tensor(0.5), torch.full((batch,), 0.5).double(), 0.5): assert model.eps(x, value).shape == x.shape
    assert model.denoise(x.double(), 0.5).dtype == torch.float64 and model.nfe == 4
    assert not any(p.requires_grad for p in net.parameters())


def test_bad_networks_and_trainings_are_refused():
    for bad in (lambda: UNet(12), lambda: UNet(8, ()), lambda: DiT(3, 16, 1, size=8), lambda: DiT(4, 18, 1, size=8), lambda: DiT(4, 16, 1, 3, size=8), lambda: FlatNet(0), lambda: Denoiser(FlatNet(2), sigma_data=-1.0)):
        with pytest.raises(ValueError): bad()
    net, x = FlatNet(2, 8, 1), torch.randn(10, 2)
    for bad in (dict(steps=0), dict(batch=0), dict(lr=0.0), dict(ema=1.0), dict(p_uncond=1.5)):
        with pytest.raises(ValueError): train_denoiser(net, x, EDM(), **(dict(steps=1, batch=2, lr=1e-3) | bad))
    with pytest.raises(ValueError): train_denoiser(net, x * float("nan"), EDM(), steps=1, batch=2, lr=1e-3)


def test_training_repeats_with_its_generator():
    def run():
        torch.manual_seed(0)
        return train_denoiser(FlatNet(2, 8, 1, 3), torch.randn(50, 2, generator=seed()), EDM(), steps=5, batch=8, lr=1e-2, labels=torch.arange(50) % 3, generator=seed(1))
    a, b = run(), run()
    assert torch.equal(a(torch.ones(2, 2), 1.0), b(torch.ones(2, 2), 1.0)) and a.num_classes == 3


@pytest.mark.parametrize("schedule", [VPLinear(), VPDiscrete(ddpm_betas())])
def test_one_network_in_every_schedule_is_the_same_function(schedule):
    model = zoo.zoo("digits-unet")
    t = torch.linspace(schedule.t_min + 0.01, schedule.t_max, 4)
    alpha, sigma = (f(t).view(-1, 1, 1, 1) for f in (schedule.alpha, schedule.sigma))
    x = torch.randn(4, 1, 8, 8, generator=seed())
    other = replace(model, schedule=schedule)
    assert torch.allclose(other.denoise(alpha * x, t), model.denoise(x, (sigma / alpha).flatten()), atol=1e-4)
    assert torch.allclose(other.score(alpha * x, t), -other.eps(alpha * x, t) / sigma, rtol=1e-4)


@settings(deadline=None, max_examples=20)
@given(st.integers(3, 40), st.integers(3, 40), st.integers(1, 5), st.integers(0, 99))
def test_frechet_is_a_symmetric_distance_that_rotations_leave_alone(n, m, d, k):
    x, y = torch.randn(n, d, generator=seed(k)).double(), 2 * torch.randn(m, d, generator=seed(k + 1)).double() + 1
    turn = torch.linalg.qr(torch.randn(d, d, generator=seed(k + 2)).double()).Q
    assert abs(frechet(x, y) - frechet(y, x)) < 1e-6 and abs(frechet(x @ turn, y @ turn) - frechet(x, y)) < 1e-6 and frechet(x, y) > -1e-9


def test_distances_refuse_what_they_cannot_compare():
    x = torch.randn(20, 3, generator=seed())
    for bad in (x[:1], x[0], x[:, :2], x * float("nan")):
        for distance in (frechet, lambda a, b: kid(a, b, 2), precision_recall, lambda a, b: frechet_inf(a, b, [5, 10]), lambda a, b: frechet_floor(a, b, 5)):
            with pytest.raises(ValueError): distance(bad, x)
    for bad in (lambda: class_histogram_tv(torch.zeros(0, 3)), lambda: class_histogram_tv(torch.tensor([0.5])), lambda: jackknife_ci(torch.mean, x, x[:5]), lambda: jackknife_ci(torch.mean, x, blocks=21)):
        with pytest.raises(ValueError): bad()


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 99))
def test_a_mixture_as_model_says_what_the_mixture_says(d, k, number):
    mixture, schedule = random_mixture(d, k, seed=number), VPLinear()
    model, x, t = MixtureModel(mixture, schedule), torch.randn(5, d, generator=seed(number)).double(), torch.rand(5, generator=seed(number)).double() * 0.9 + 0.05
    assert torch.allclose(model(x, t), -schedule.sigma(t)[:, None] * mixture.score(x, schedule.alpha(t), schedule.sigma(t))) and model.nfe == 1
    assert model(x.float().view(5, 1, d), t).shape == (5, 1, d)


def test_mixtures_refuse_bad_input():
    x = torch.randn(10, 2, generator=seed())
    for bad in (lambda: random_mixture(2, 0), lambda: random_mixture(2, 1, spread=0.0), lambda: mixture_from_data(x, 11), lambda: mixture_from_data(x, 2, rank=3), lambda: mixture_from_data(x * float("nan"), 1), lambda: mixture_w2(x, random_mixture(3, 1))):
        with pytest.raises(ValueError): bad()
    assert mixture_from_data(x, 10).values.min() > 0


def test_one_name_holds_the_whole_floor():
    assert all(hasattr(diffusion, name) for name in diffusion.__all__) and len(diffusion.__all__) > 30
