"Properties of amortlit.transport.kinetic_paths that do not fit its page: shapes, dtypes, refusals, invariants, agreement with quadrature, autograd and torchcfm."
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from amortlit.transport.kinetic_paths import GaussianPath, data_separation, interpolate_separation, kinetic_energy, kinetic_optimal_path, named_path

NAMES = ("cond_ot", "trig", "vp")
KNOTS = (torch.arange(1, 41).double() * math.pi / 82).tan()
quick = settings(max_examples=25, deadline=None)
dtypes = st.sampled_from([torch.float32, torch.float64])
shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def gaussian(s):
    return s**2 / (1 + s**2)


def full(s):
    return torch.ones_like(s)


def bend(s):
    "gamma = sin(theta)^2, so phi = 1 - cos(theta) and Phi = 1."
    return 1 - 1 / (1 + s**2) ** 2


def power(p):
    "gamma = sin(theta)^p."
    return lambda s: 1 - (1 - s.atan().sin() ** p) / (1 + s**2)


def points(n, d, seed=0):
    x = torch.randn(n, d, generator=generator(seed)).double()
    x = x - x.mean(0)
    return x * (d / (x**2).sum(-1).mean()).sqrt()


PATHS = [*map(named_path, NAMES), kinetic_optimal_path(bend), kinetic_optimal_path(gaussian), kinetic_optimal_path(full)]


@quick
@given(shape=shapes, dtype=dtypes, k=st.integers(0, len(PATHS) - 1))
def test_shapes_and_dtypes_of_paths(shape, dtype, k):
    t = torch.rand(shape, generator=generator(1)).to(dtype)
    for x in (*PATHS[k](t), *PATHS[k].derivatives(t)):
        assert x.shape == shape and x.dtype == dtype and x.isfinite().all()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ends_are_exact_and_numbers_are_taken(path, dtype):
    (a, m), ends = path(torch.tensor([0.0, 1.0], dtype=dtype)), path.derivatives(torch.tensor([0.0, 1.0], dtype=dtype))
    assert a[1] == 1 and m[1] == 0 and a[0] < 0.01 and m[0] > 0.9999
    assert all(x.isfinite().all() for x in ends)
    assert torch.allclose(torch.stack(path(0.3)), torch.stack(path(torch.tensor(0.3))))


@pytest.mark.parametrize("path", PATHS)
def test_derivatives_are_those_of_the_values(path):
    t = torch.linspace(0.05, 0.95, 50).double()
    for x, y, slope in zip(path(t + 1e-5), path(t - 1e-5), path.derivatives(t)):
        assert torch.allclose((x - y) / 2e-5, slope, atol=2e-3)


def test_cond_ot_and_trig_start_as_pure_noise():
    for name in ("cond_ot", "trig"):
        a, m = named_path(name)(torch.zeros(1))
        assert a == 0 and m == 1
    assert abs(named_path("vp")(torch.zeros(1).double())[0] - math.exp(-19.9 / 4 - 0.05)) < 1e-9


@quick
@given(n=st.integers(1, 6), d=st.integers(1, 5), size=st.integers(1, 5), draws=st.integers(1, 40), dtype=dtypes)
def test_separation_shape_range_and_reproducibility(n, d, size, draws, dtype):
    x, s = torch.randn(n, d, generator=generator(n)).to(dtype), torch.linspace(0, 3, size, dtype=dtype)
    lam = data_separation(x, s, n_noise=draws, generator=generator(2))
    assert lam.shape == (size,) and lam.dtype == torch.float64 and ((lam >= 0) & (lam <= 1)).all()
    assert torch.equal(lam, data_separation(x, s, n_noise=draws, generator=generator(2)))
    if n == 1: assert torch.allclose(lam, torch.ones_like(lam))


def test_separation_does_not_depend_on_chunks_and_does_not_touch_its_input():
    from amortlit.transport.kinetic_paths import _variance_draws
    x, before = points(50, 3), points(50, 3)
    whole, parts = (_variance_draws(x, KNOTS, 20_000, generator(3), size).mean(0) for size in (2**23, 5000))
    assert torch.allclose(whole, parts, atol=0.02) and torch.equal(x, before)


@pytest.mark.parametrize("d", [1, 2, 8])
def test_two_points_against_quadrature(d):
    z, w = (torch.as_tensor(v) for v in np.polynomial.hermite_e.hermegauss(100))
    s, pair = torch.tensor([0.05, 0.2, 0.5, 1.0, 3.0]).double(), torch.stack([torch.ones(d), -torch.ones(d)]).double()
    exact = (torch.tanh(d * s[:, None] ** 2 + d**0.5 * s[:, None] * z) ** 2 * w).sum(-1) / w.sum()
    assert (data_separation(pair, s, n_noise=40_000, generator=generator(4)) - exact).abs().max() < 0.01


def test_estimator_agrees_with_the_plain_average():
    x, s, k = points(30, 4), torch.tensor([0.3, 1.0, 2.0]).double(), 40_000
    g = generator(5)
    i, z = torch.randint(30, (k,), generator=g), torch.randn(k, 4, generator=g).double()
    y = s[:, None, None] * x[i] + z
    w = (s[:, None, None] * y @ x.T - s[:, None, None] ** 2 * (x**2).sum(-1) / 2).softmax(-1)
    plain = ((w @ x) ** 2).sum(-1).mean(-1) / 4
    assert torch.allclose(data_separation(x, s, n_noise=k, generator=generator(6)), plain, atol=0.02)


def test_many_gaussian_points_in_low_dimension_approach_the_bound():
    lam = data_separation(points(5000, 2), torch.tensor([0.3, 1.0, 2.0]).double(), n_noise=2000, generator=generator(7))
    assert torch.allclose(lam, gaussian(torch.tensor([0.3, 1.0, 2.0]).double()), atol=0.03)


@pytest.mark.parametrize("d", [10, 100, 1000])
def test_theorem_of_full_separation(d):
    lam = data_separation(points(10, d, d), KNOTS, generator=generator(8))
    gamma = 1 - (1 - lam) * (1 + KNOTS**2)
    assert (lam.diff() > -1e-9).all() and ((1 - gamma).sum() * math.pi / 82) <= 30 / d**0.5


@pytest.mark.parametrize("lam", [bend, power(1), power(4), full])
def test_interpolation(lam):
    fit, s = interpolate_separation(KNOTS, lam(KNOTS)), torch.rand(3, 4, generator=generator(9)).double() * 20 + 0.1
    assert torch.allclose(fit(KNOTS), lam(KNOTS)) and fit(s).shape == s.shape and (fit(s) - lam(s)).abs().max() < 2e-3
    assert fit.clamped == 0 and fit(torch.tensor(math.inf)) == 1 and fit(s.float()).dtype == torch.float32
    assert (fit(torch.linspace(0, 100, 1000).double()) <= 1).all()


def test_clipping_is_on_record():
    low = gaussian(KNOTS).clone()
    low[:10] *= 0.5
    fit = interpolate_separation(KNOTS, low)
    assert abs(fit.clamped - 0.25) < 1e-9 and (fit(KNOTS) >= gaussian(KNOTS) - 1e-12).all()
    assert kinetic_optimal_path(lambda s: 0.5 * gaussian(s)).clamped > 0.5 and kinetic_optimal_path(bend).clamped == 0


def test_known_energies():
    energy = {name: (kinetic_energy(named_path(name), gaussian), kinetic_energy(named_path(name), full)) for name in NAMES}
    assert abs(energy["cond_ot"][1] - 2) < 1e-9 and abs(energy["trig"][1] - math.pi**2 / 4) < 1e-4
    assert abs(energy["trig"][0]) < 1e-6 and all(-1e-6 < low <= high for low, high in energy.values())
    assert energy["vp"][0].shape == () and energy["vp"][0].dtype == torch.float64


@pytest.mark.parametrize("p", [0.5, 1, 2, 4])
def test_the_optimum(p):
    lam = power(p)
    path, angle = kinetic_optimal_path(lam), math.sqrt(math.pi) / 2 * math.gamma((p / 2 + 1) / 2) / math.gamma(p / 4 + 1)
    t = torch.linspace(0, 1, 101).double()
    b = 2 * (1 - math.cos(angle))
    assert abs(path.energy - b) < 2e-3 and abs(kinetic_energy(path, lam) - path.energy) < 2e-2
    assert torch.allclose(torch.hypot(*path(t)) ** 2, 1 - path.energy * t * (1 - t), atol=1e-9)
    assert all(kinetic_energy(named_path(name), lam) > path.energy - 1e-9 for name in NAMES)
    theta = torch.atan2(*path(t))
    assert (theta.diff() > 0).all()


def test_limits_of_the_optimum():
    t = torch.linspace(0, 1, 101).double()
    still, straight = kinetic_optimal_path(gaussian), kinetic_optimal_path(full)
    assert still.energy < 1e-6 and abs(kinetic_energy(still, gaussian)) < 1e-6 and (torch.hypot(*still(t)) - 1).abs().max() < 1e-6
    assert torch.allclose(torch.stack(straight(t)), torch.stack([t, 1 - t]), atol=1e-3) and abs(straight.energy - 2) < 1e-6
    assert named_path("vp").energy is None


def test_random_perturbations_cost_more():
    best, waves = kinetic_optimal_path(bend), torch.arange(1, 4) * math.pi
    for shift in 0.2 * torch.randn(20, 3, generator=generator(10)).double():
        tau = lambda t, c=shift: t + t * (1 - t) * (c * (waves * t[..., None]).sin()).sum(-1) * 0.5
        def values(t, tau=tau):
            theta, r = torch.atan2(*best(tau(t))), torch.hypot(*best(t))
            return r * theta.sin(), r * theta.cos()
        def slopes(t, values=values):
            up, down = values(t + 1e-6), values(t - 1e-6)
            return tuple((x - y) / 2e-6 for x, y in zip(up, down))
        assert kinetic_energy(GaussianPath(values, slopes), bend) > best.energy


def test_targets_agree_with_torchcfm():
    torchcfm = pytest.importorskip("torchcfm")
    x0, x1, t = torch.randn(20, 2, generator=generator(11)), torch.randn(20, 2, generator=generator(12)), torch.rand(20, generator=generator(13))
    _, where, target = torchcfm.ConditionalFlowMatcher(sigma=0.0).sample_location_and_conditional_flow(x0, x1, t=t)
    (a, m), (da, dm) = named_path("cond_ot")(t[:, None]), named_path("cond_ot").derivatives(t[:, None])
    assert torch.allclose(a * x1 + m * x0, where, atol=1e-6) and torch.allclose(da * x1 + dm * x0, target, atol=1e-6)


X, S, BEST = points(5, 2), torch.tensor([0.5, 1.0]), PATHS[3]
NAN = torch.full((5, 2), math.nan)
REFUSED = [
    *[lambda name=name: named_path(name) for name in ("linear", "", None, "VP")],
    *[lambda bad=bad: data_separation(bad, S) for bad in (NAN, X[0], X[:0], X[:, :0], X[None], X * math.inf)],
    *[lambda bad=bad: data_separation(X, bad) for bad in (-S, S * math.nan, S[:0], S[None], torch.tensor(1.0))],
    lambda: data_separation(X, S, n_noise=0),
    *[lambda path=path, t=t, f=f: f(path)(torch.tensor(t)) for path in PATHS for t in (-0.1, 1.1, math.nan) for f in (lambda p: p, lambda p: p.derivatives)],
    lambda: interpolate_separation(KNOTS[:7], bend(KNOTS[:7])), lambda: interpolate_separation(KNOTS, bend(KNOTS)[:-1]), lambda: interpolate_separation(KNOTS.flip(0), bend(KNOTS)),
    lambda: interpolate_separation(KNOTS - KNOTS[0], bend(KNOTS)), lambda: interpolate_separation(KNOTS, 1.1 * full(KNOTS)), lambda: interpolate_separation(KNOTS, -0.1 * full(KNOTS)),
    lambda: interpolate_separation(KNOTS, math.nan * KNOTS), lambda: interpolate_separation(KNOTS * math.nan, bend(KNOTS)), lambda: interpolate_separation(KNOTS[None], bend(KNOTS)[None]),
    *[lambda lam=lam, f=f: f(lam) for lam in (lambda s: 2 * full(s), lambda s: -full(s), lambda s: math.nan * s, lambda s: s[:1], lambda s: 1.0) for f in (lambda lam: kinetic_energy(BEST, lam), kinetic_optimal_path)],
    lambda: kinetic_energy(BEST, bend, 0), lambda: kinetic_optimal_path(bend, 0),
]


@pytest.mark.parametrize("call", REFUSED)
def test_bad_input_is_refused_at_the_door(call):
    with pytest.raises(ValueError): call()
