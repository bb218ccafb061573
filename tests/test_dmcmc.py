"Properties of amortlit.diffusion.dmcmc that do not fit its page: shapes, dtypes, refusals, laws, agreement with the floor's sampler and with diffusers."
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from amortlit.core.densities import GaussianMixture
from amortlit.core.mixtures import random_mixture
from amortlit.core.solvers import ddim, edm_stochastic
from amortlit.diffusion.dmcmc import ChainState, ExactSigmaPosterior, SigmaClassifier, denoise_from, dlg_sample, langevin_gibbs, sigma_levels

sizes = st.integers(1, 4)
dtypes = st.sampled_from([torch.float32, torch.float64])
kinds = ["heun", "edm_stochastic", "euler_maruyama", "reverse_diffusion", "ancestral", "ode"]
quick = settings(max_examples=20, deadline=None)
levels = sigma_levels(0.05, 5.0, 30)
gm = random_mixture(2, 3, seed=0)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def score(x, s):
    return gm.score(x, 1.0, s)


def pull(x, s):
    assert s.shape == x.shape[:1] and s.dtype == x.dtype
    return -x / (1 + s.view(-1, *[1] * (x.ndim - 1)) ** 2)


def flat(x):
    return torch.zeros(len(x), 30, dtype=x.dtype)


def chains(C, *shape, dtype=torch.float64, sigma=1.0):
    return ChainState(torch.randn(C, *shape, generator=generator(C)).to(dtype), torch.full((C,), sigma, dtype=dtype))


@quick
@given(low=st.floats(1e-4, 1), ratio=st.floats(1.1, 1e5), n=st.integers(1, 1000))
def test_levels(low, ratio, n):
    made = sigma_levels(low, low * ratio, n)
    assert made.shape == (n,) and made.dtype == torch.float64 and math.isclose(made[0], low * ratio, rel_tol=1e-9) and made[-1] > low
    steps = made.log().diff()
    assert (steps < 0).all() and torch.allclose(steps, torch.full_like(steps, -math.log(ratio) / n), atol=1e-8)


def test_a_thousand_levels_are_those_of_the_paper():
    u = torch.linspace(1, 1e-3, 1000, dtype=torch.float64)
    assert torch.allclose(sigma_levels(0.01, 50.0), 0.01 * 5000**u)


@quick
@given(C=sizes, D=sizes, n=st.integers(1, 9), n_skip=sizes, n_denoise=st.integers(2, 5), kind=st.sampled_from(kinds), dtype=dtypes, tweedie=st.sampled_from([0.0, 0.01]), mode=st.sampled_from(["sample", "argmax"]))
def test_shapes_dtypes_and_counts(C, D, n, n_skip, n_denoise, kind, dtype, tweedie, mode):
    asked = []

    def counted(x, s):
        asked.append(len(x))
        return pull(x, s)

    state = chains(C, D, 2, dtype=dtype)
    x, last, spent = dlg_sample(counted, flat, levels, state, n, eta=0.1, n_skip=n_skip, n_denoise=n_denoise, denoiser=kind, tweedie=tweedie, mode=mode, generator=generator())
    assert x.shape == (n, D, 2) and x.dtype == last.x.dtype == last.sigma.dtype == dtype and last.x.shape == (C, D, 2) and x.isfinite().all()
    steps = n_denoise - 1
    assert spent == n_skip + (2 * steps - 1 if kind in kinds[:2] else steps) + (tweedie > 0) and sum(asked) == spent * C * -(-n // C)


@quick
@given(C=sizes, steps=st.integers(1, 6), seed=st.integers(0, 99), mode=st.sampled_from(["sample", "argmax"]))
def test_window(C, steps, seed, mode):
    told, begin = ExactSigmaPosterior(gm, levels).logits, chains(C, 2)
    last, least = langevin_gibbs(score, told, levels, begin, 0.2, steps, mode, generator(seed))
    again, other = langevin_gibbs(score, told, levels, begin, 0.2, steps, mode, generator(seed), keep_min=False)
    assert torch.equal(last.x, again.x) and torch.equal(again.x, other.x) and torch.equal(again.sigma, other.sigma)
    assert (least.sigma <= last.sigma).all() and torch.isin(least.sigma, levels).all()
    same = least.sigma == last.sigma
    assert steps > 1 or same.all()


def test_argmax_is_the_posterior_mode():
    told = ExactSigmaPosterior(gm, levels).logits
    last, _ = langevin_gibbs(score, told, levels, chains(50, 2), 0.2, 3, "argmax", generator())
    assert torch.equal(last.sigma, levels[told(last.x).argmax(-1)])


@quick
@given(D=sizes, K=sizes, n=st.integers(1, 6), B=sizes, dtype=dtypes)
def test_exact_posterior(D, K, n, B, dtype):
    mixture, grid, x = random_mixture(D, K, seed=D).to(dtype), sigma_levels(0.1, 4.0, n), torch.randn(B, D, generator=generator()).to(dtype)
    ours = ExactSigmaPosterior(mixture, grid).logits(x)
    brute = torch.stack([mixture.log_prob(x, 1.0, s) for s in grid.to(dtype)], 1)
    assert ours.shape == (B, n) and ours.dtype == dtype
    assert torch.allclose(ours.log_softmax(1), brute.log_softmax(1), atol=1e-10 if dtype == torch.float64 else 1e-3)


@pytest.mark.parametrize("kind", kinds)
@pytest.mark.parametrize("shape", [(3,), (2, 3, 3)])
def test_one_gaussian_is_denoised_to_its_law(kind, shape):
    sigma = torch.cat([torch.full((4000,), 0.2), torch.full((4000,), 2.0)]).double()
    x = torch.randn(8000, *shape, generator=generator()).double() * (1 + sigma.view(-1, *[1] * len(shape)) ** 2).sqrt()
    out = denoise_from(pull, x, sigma, 120 if kind in kinds[2:] else 20, kind, generator=generator(1))
    for half in out.split(4000): assert abs(half.var() - 1) < 0.06 and abs(half.mean()) < 0.05


def test_common_levels_are_the_floors_samplers():
    x, n = 3 * torch.randn(6, 2, generator=generator()).double(), 7
    grid = torch.cat([torch.lerp(torch.tensor(3.0).double() ** (1 / 7), torch.tensor(0.01).double() ** (1 / 7), torch.linspace(0, 1, n - 1).double()) ** 7, torch.zeros(1).double()])
    eps, sigma = lambda x, t: gm.eps(x, 1.0, t), torch.full((6,), 3.0).double()
    assert torch.allclose(denoise_from(score, x, sigma, n, "ode"), ddim(eps, x, grid), atol=1e-10)
    high = torch.cat([torch.lerp(torch.tensor(0.9).double() ** (1 / 7), torch.tensor(0.06).double() ** (1 / 7), torch.linspace(0, 1, n - 1).double()) ** 7, torch.zeros(1).double()])
    churned = edm_stochastic(eps, x, high, 80.0, 0.05, 1.0, 1.007, generator(4))
    assert torch.allclose(denoise_from(score, x, sigma * 0.3, n, "edm_stochastic", 0.06, generator=generator(4)), churned, atol=1e-10)


@pytest.mark.parametrize(("kind", "expected"), [("ancestral", 1.0), ("reverse_diffusion", 4 / 16 + 3), ("euler_maruyama", 4.0)])
def test_variance_after_one_step_on_data_that_are_one_point(kind, expected):
    seen = []

    def point(x, s):
        seen.append(x)
        return -x / s[:, None] ** 2

    start = 2 * torch.randn(20_000, 1, generator=generator()).double()
    denoise_from(point, start, torch.full((20_000,), 2.0).double(), 3, kind, 1.0, generator=generator(1))
    assert abs(seen[1].var() / expected - 1) < 0.03


def test_two_points_are_one_step_to_zero():
    x, sigma = torch.randn(4, 2, generator=generator()).double(), torch.tensor([0.01, 0.1, 1.0, 3.0]).double()
    for kind in ("heun", "ode", "ancestral"):
        assert torch.allclose(denoise_from(score, x, sigma, 2, kind), x + sigma[:, None] ** 2 * score(x, sigma), atol=1e-12)


def test_reverse_diffusion_is_that_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    grid = torch.lerp(torch.tensor(3.0).double() ** (1 / 7), torch.tensor(0.01).double() ** (1 / 7), torch.linspace(0, 1, 9).double()) ** 7
    scheduler, x, g = diffusers.ScoreSdeVeScheduler(), 3 * torch.randn(6, 2, generator=generator()).double(), generator(5)
    scheduler.set_timesteps(9)
    scheduler.discrete_sigmas = grid.flip(0)
    begin = x
    for k in range(8, -1, -1): x = scheduler.step_pred(score(x, scheduler.discrete_sigmas[k].expand(6)), torch.tensor((k + 0.5) / 8), x, generator=g, return_dict=False)[0]
    assert torch.allclose(denoise_from(score, begin, torch.full((6,), 3.0).double(), 10, "reverse_diffusion", generator=generator(5)), x, atol=1e-10)


def test_classifier_learns_the_level():
    data, grid = torch.sign(torch.randn(64, 1, 8, 8, generator=generator())), sigma_levels(0.05, 20.0, 12)
    net = SigmaClassifier(12, width=8, generator=generator(1)).fit(data, grid, 60, generator(2))
    noised = data + 10 * torch.randn(data.shape, generator=generator(3))
    assert net.logits(noised).shape == (64, 12) and net.logits(noised.double()).dtype == torch.float64
    assert (grid[net.logits(noised).argmax(-1)] / 10).log().abs().median() < 1
    twin = SigmaClassifier(12, width=8, generator=generator(1)).fit(data, grid, 60, generator(2))
    assert torch.equal(net.logits(noised), twin.logits(noised)) and not any(p.requires_grad for p in net.parameters())
    x, _, _ = dlg_sample(pull, net.logits, grid, chains(3, 1, 8, 8, dtype=torch.float32), 3, eta=0.1, n_skip=2, n_denoise=3, mode="argmax", generator=generator())
    assert x.shape == (3, 1, 8, 8) and x.dtype == torch.float32


def walk(**change):
    given = dict(score=pull, sigma_logits=flat, levels=levels, state=chains(3, 2), eta=0.1, steps=2) | change
    return langevin_gibbs(**given)


def sample(**change):
    given = dict(score=pull, sigma_logits=flat, levels=levels, state=chains(3, 2), n=3, eta=0.1, n_skip=2, n_denoise=3) | change
    return dlg_sample(**given)


@pytest.mark.parametrize("refused", [
    *[lambda e=e: walk(eta=e) for e in (0.0, -1.0, math.nan, math.inf)], lambda: walk(steps=0), lambda: walk(mode="mean"),
    lambda: walk(state=chains(3, 2, sigma=5.1)), lambda: walk(state=chains(3, 2, sigma=0.05)), lambda: walk(state=chains(3, 2, sigma=math.nan)),
    lambda: walk(state=chains(0, 2)), lambda: walk(state=ChainState(torch.full((3, 2), math.nan), torch.ones(3))), lambda: walk(state=ChainState(torch.zeros(3, 2), torch.ones(2))),
    lambda: walk(levels=levels.flip(0)), lambda: walk(levels=-levels), lambda: walk(levels=levels * math.nan),
    lambda: sample(n_skip=0), lambda: sample(eta=0.0), lambda: sample(n=0), lambda: sample(n_denoise=1), lambda: sample(denoiser="rk45"), lambda: sample(tweedie=-0.1), lambda: sample(state=chains(3, 2, sigma=9.0)),
    lambda: denoise_from(pull, torch.zeros(2, 2), torch.tensor([0.001, 1.0]), 4), lambda: denoise_from(pull, torch.zeros(2, 2), torch.ones(2) * math.nan, 4),
    lambda: sigma_levels(0.0, 1.0), lambda: sigma_levels(1.0, 1.0), lambda: sigma_levels(0.1, math.inf), lambda: sigma_levels(0.1, 1.0, 0), lambda: sigma_levels(math.nan, 1.0),
    lambda: ExactSigmaPosterior(gm, levels.flip(0)), lambda: ExactSigmaPosterior(gm, levels).logits(torch.zeros(2)),
    lambda: SigmaClassifier(0), lambda: SigmaClassifier(4).logits(torch.zeros(2, 3, 8, 8)), lambda: SigmaClassifier(4, width=2).fit(torch.zeros(2, 1, 8, 8), levels, 1),
    lambda: SigmaClassifier(30, width=2).fit(torch.zeros(2, 1, 8, 8) * math.nan, levels, 1), lambda: SigmaClassifier(30, width=2).fit(torch.zeros(2, 1, 8, 8), levels, 0),
])
def test_refusals(refused):
    with pytest.raises(ValueError): refused()


def test_single_gaussian_as_mixture_keeps_the_joint():
    line = GaussianMixture(torch.ones(1).double(), torch.zeros(1, 1).double(), torch.ones(1, 1, 1).double())
    grid = sigma_levels(0.3, 2.0, 8)
    start = ChainState(torch.zeros(3000, 1).double(), grid[torch.arange(3000) % 8])
    start.x = torch.randn(3000, 1, generator=generator()).double() * (1 + start.sigma[:, None] ** 2).sqrt()
    last, _ = langevin_gibbs(lambda x, s: line.score(x, 1.0, s), ExactSigmaPosterior(line, grid).logits, grid, start, 0.02, 30, generator=generator(1))
    shares = (last.sigma[:, None] == grid).double().mean(0)
    assert (shares - 1 / 8).abs().max() < 0.03
