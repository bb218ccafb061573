"Properties of amortlit.transport.light_sb that do not fit its page: shapes, dtypes, refusals, invariants, agreement with torch.distributions and POT."
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from amortlit.core.ot import bures_wasserstein, pairwise_cost, sinkhorn
from amortlit.transport.light_sb import LightSB, cbw_uvp, fit_light_sb, make_eot_pair

sizes = st.integers(1, 5)
noise = st.sampled_from([0.01, 0.1, 1.0, 10.0])
dtypes = st.sampled_from([torch.float32, torch.float64])
quick = settings(max_examples=25, deadline=None)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_bridge(dim, k, epsilon, dtype=torch.float64, lead=()):
    g = generator(dim + 10 * k)
    log_alpha, r = torch.randn(*lead, k, generator=g), torch.randn(*lead, k, dim, generator=g)
    s = 0.1 + torch.rand(*lead, k, dim, generator=g)
    return LightSB.from_parameters(log_alpha.to(dtype), r.to(dtype), s.to(dtype), epsilon).requires_grad_(False)


def points(n, dim, dtype=torch.float64):
    return torch.randn(n, dim, generator=generator(n)).to(dtype)


def conditional(bridge, x0):
    logits = bridge.log_alpha + (((x0[:, None] ** 2) * bridge.s).sum(-1) + 2 * (x0[:, None] * bridge.r).sum(-1)) / (2 * bridge.epsilon)
    components = torch.distributions.Normal(bridge.r + bridge.s * x0[:, None], (bridge.epsilon * bridge.s).sqrt())
    return torch.distributions.MixtureSameFamily(torch.distributions.Categorical(logits=logits), torch.distributions.Independent(components, 1))


@quick
@given(dim=sizes, k=sizes, n=sizes, epsilon=noise, dtype=dtypes)
def test_shapes_and_dtypes(dim, k, n, epsilon, dtype):
    bridge, x = random_bridge(dim, k, epsilon, dtype), points(n, dim, dtype)
    mean, cov = bridge.conditional_moments(x)
    out = {(n,): [bridge.log_potential(x), bridge.log_normalizer(x)], (): [bridge.loss(x, x)], (n, dim): [mean, bridge.sample(x), bridge.drift(x, 0.3)],
           (n, dim, dim): [cov], (n, 4, dim): [bridge.sample_path(x, 3)]}
    assert all(v.shape == shape and v.dtype == dtype and v.isfinite().all() for shape, values in out.items() for v in values)
    assert torch.equal(bridge.sample_path(x, 3)[:, 0], x)
    assert bridge.r.dtype == bridge.log_alpha.dtype == dtype and bridge.epsilon == epsilon


@quick
@given(dim=sizes, k=sizes, n=sizes, epsilon=noise)
def test_leading_axes_are_independent_bridges(dim, k, n, epsilon):
    many, x = random_bridge(dim, k, epsilon, lead=(3,)), points(n, dim)
    for i in range(3):
        one = LightSB.from_parameters(many.log_alpha[i], many.r[i], many.s[i], epsilon)
        for ours, single in zip(many.conditional_moments(x), one.conditional_moments(x)): assert torch.allclose(ours[i], single)
        assert torch.allclose(many.loss(x, x)[i], one.loss(x, x)) and torch.allclose(many.drift(x, 0.4)[i], one.drift(x, 0.4))
    assert many.sample(x).shape == (3, n, dim) and many.sample_path(x, 2).shape == (3, n, 3, dim)


@quick
@given(dim=sizes, k=sizes, n=sizes, epsilon=noise)
def test_agreement_with_torch_distributions(dim, k, n, epsilon):
    bridge, x0 = random_bridge(dim, k, epsilon), points(n, dim)
    x1, plan = points(n, dim) + 1, conditional(bridge, x0)
    log_plan = (x0 * x1).sum(-1) / epsilon + bridge.log_potential(x1) - bridge.log_normalizer(x0)
    assert torch.allclose(log_plan, plan.log_prob(x1), rtol=1e-8, atol=1e-8)
    mean, cov = bridge.conditional_moments(x0)
    assert torch.allclose(mean, plan.mean) and torch.allclose(cov.diagonal(dim1=-2, dim2=-1), plan.variance)


@quick
@given(dim=sizes, k=sizes, n=sizes, epsilon=noise, t=st.floats(0, 0.999))
def test_drift(dim, k, n, epsilon, t):
    bridge, x = random_bridge(dim, k, epsilon), points(n, dim)
    a, precision = t / (epsilon * (1 - t)) + 1 / (epsilon * bridge.s), 1 / (epsilon * bridge.s)
    c = x[:, None] / (epsilon * (1 - t)) + bridge.r * precision
    logits = bridge.log_alpha - (bridge.log_s.sum(-1) + a.log().sum(-1) + (bridge.r**2 * precision).sum(-1) - (c**2 / a).sum(-1)) / 2
    expected = ((logits.softmax(-1)[..., None] * c / a).sum(-2) - x) / (1 - t)
    assert torch.allclose(bridge.drift(x, t), expected, rtol=1e-5, atol=1e-5)
    assert torch.allclose(bridge.drift(x, torch.full((n,), t, dtype=x.dtype)), bridge.drift(x, t))
    assert torch.allclose(bridge.drift(x, 0.0) + x, bridge.conditional_moments(x)[0], atol=1e-10)


@quick
@given(dim=sizes, k=sizes, epsilon=noise, shift=st.floats(-5, 5))
def test_scaling_all_weights_changes_nothing(dim, k, epsilon, shift):
    bridge, x = random_bridge(dim, k, epsilon), points(4, dim)
    scaled = LightSB.from_parameters(bridge.log_alpha + shift, bridge.r, bridge.s, epsilon)
    assert torch.allclose(scaled.loss(x, x + 1), bridge.loss(x, x + 1), atol=1e-8)
    assert torch.allclose(scaled.sample(x, generator()), bridge.sample(x, generator()))
    assert torch.allclose(scaled.drift(x, 0.5), bridge.drift(x, 0.5))


def test_no_overflow_at_small_epsilon():
    bridge = random_bridge(2, 50, 0.002, torch.float32)
    x = 3 * points(100, 2, torch.float32)
    assert all(v.isfinite().all() for v in (bridge.log_normalizer(x), bridge.log_potential(x), bridge.drift(x, 0.99), *bridge.conditional_moments(x)))
    assert torch.allclose(bridge.log_normalizer(x).double(), random_bridge(2, 50, 0.002).log_normalizer(x.double()), rtol=1e-4)


@pytest.mark.parametrize("dim, epsilon", [(1, 0.1), (2, 1.0), (3, 10.0)])
def test_the_pair_is_what_its_potential_says(dim, epsilon):
    truth = make_eot_pair(dim, epsilon, generator=generator(1)).double().requires_grad_(False)
    sigma = epsilon * truth.s / (1 - truth.s)
    mu = truth.r / (epsilon * truth.s) * sigma
    assert torch.allclose(mu.norm(dim=-1), torch.full((5,), 5.0).double(), rtol=1e-3)
    assert (sigma > 0.09).all() and (sigma < 0.51).all()
    x = points(20, dim) * 3
    usual = torch.logsumexp(torch.distributions.Normal(mu, sigma.sqrt()).log_prob(x[:, None]).sum(-1) - math.log(5), -1)
    difference = truth.log_potential(x) - (usual - (x**2).sum(-1) / (2 * epsilon))
    assert torch.allclose(difference, difference[:1].expand(20), atol=1e-3)


def test_true_plan_is_a_fixed_point_of_sinkhorn():
    truth = make_eot_pair(1, 1.0, generator=generator(2)).double().requires_grad_(False)
    x0 = points(1500, 1)
    x1 = truth.sample(points(1501, 1)[:1500], generator(3))
    cost = pairwise_cost(x0, x1) / 2
    plan = sinkhorn(cost, 1.0).plan
    discrete = plan @ x1 / plan.sum(-1, keepdim=True)
    mean, _ = truth.conditional_moments(x0)
    assert ((discrete - mean) ** 2).mean() < 0.02 * x1.var()


def test_plan_agrees_with_pot():
    ot = pytest.importorskip("ot")
    x, y = points(30, 2), points(31, 2)
    a, b = torch.full((30,), 1 / 30).double(), torch.full((31,), 1 / 31).double()
    cost = pairwise_cost(x, y) / 2
    assert torch.allclose(sinkhorn(cost, 1.0, tol=1e-8).plan, ot.sinkhorn(a, b, cost, 1.0, method="sinkhorn_log", stopThr=1e-9, warn=False), atol=1e-8)


def test_fit_finds_the_gaussian_plan_and_the_marginal():
    a, b, epsilon = torch.tensor([1.0, 0.64]), torch.tensor([0.25, 2.25]), 0.5
    x0, x1 = a.sqrt() * torch.randn(4000, 2, generator=generator(4)), b.sqrt() * torch.randn(4000, 2, generator=generator(5))
    model, losses = fit_light_sb(x0, x1, 1, epsilon, steps=800, lr=0.02, batch_size=256, s_init=1.0, generator=generator(6))
    assert torch.allclose(a * model.s, (a * b + epsilon**2 / 4).sqrt() - epsilon / 2, atol=0.1)
    gap = model.conditional_moments(x0)[0].mean(0) - x1.mean(0)
    assert (gap.abs() < 3 * x1.std(0) / 4000**0.5).all() and losses.shape == (800,)


def test_fit_is_reproducible_batched_and_keeps_dtype():
    x = points(100, 3)
    fit = lambda **kw: fit_light_sb(x, lambda n, g: 1 + torch.randn(n, 3, generator=g, dtype=torch.float64), 4, 0.3, steps=5, generator=generator(7), **kw)
    (one, losses), (again, _) = fit(), fit()
    assert torch.equal(one.r, again.r) and one.r.dtype == losses.dtype == torch.float64 and one.r.shape == (4, 3)
    many, losses = fit(seeds=2)
    assert many.r.shape == (2, 4, 3) and losses.shape == (2, 5) and not torch.equal(many.r[0], many.r[1])


def test_cbw_uvp():
    mean, cov = points(6, 3), torch.eye(3).double().expand(6, 3, 3)
    assert cbw_uvp(mean, cov, mean, cov, 3.0).abs() < 1e-8
    shifted = cbw_uvp(mean + 1, cov, mean, cov, 3.0)
    assert shifted.shape == () and torch.isclose(shifted, torch.tensor(100.0).double())
    assert torch.isclose(cbw_uvp(mean, 4 * cov, mean, cov, 3.0), 100 * bures_wasserstein(mean, 4 * cov, mean, cov).mean() / 1.5)


def test_euler_ends_like_the_plan():
    truth = make_eot_pair(2, 1.0, generator=generator(8)).requires_grad_(False)
    x0 = points(1, 2, torch.float32)
    ends = truth.sample_path(x0.expand(8000, -1), 100, generator(9))[:, -1]
    mean, cov = truth.conditional_moments(x0)
    assert (ends.mean(0) - mean[0]).norm() < 0.05 * mean[0].norm() and torch.allclose(ends.std(0), cov[0].diagonal().sqrt(), rtol=0.05)


BRIDGE, X = random_bridge(2, 3, 1.0), points(5, 2)
NAN = torch.full((5, 2), math.nan).double()
EYE = torch.eye(2).double().expand(5, 2, 2)
REFUSED = [
    lambda: LightSB(0, 3, 1.0), lambda: LightSB(2, 0, 1.0), lambda: LightSB(2, 3, 0.0), lambda: LightSB(2, 3, -1.0), lambda: LightSB(2, 3, math.nan), lambda: LightSB(2, 3, 1.0, s_init=0.0),
    lambda: LightSB.from_parameters(BRIDGE.log_alpha, BRIDGE.r, -BRIDGE.s, 1.0), lambda: LightSB.from_parameters(BRIDGE.log_alpha[:2], BRIDGE.r, BRIDGE.s, 1.0),
    lambda: LightSB.from_parameters(BRIDGE.log_alpha, BRIDGE.r, BRIDGE.s[:, :1], 1.0), lambda: LightSB.from_parameters(BRIDGE.log_alpha, BRIDGE.r * math.nan, BRIDGE.s, 1.0),
    lambda: LightSB.from_parameters(BRIDGE.log_alpha, BRIDGE.r, BRIDGE.s, 0.0), lambda: LightSB.from_parameters(BRIDGE.log_alpha.long(), BRIDGE.r, BRIDGE.s, 1.0),
    *[lambda f=f, bad=bad: f(bad) for bad in (NAN, X[:, :1], X[0], X[:0], X[None], X.float(), "x") for f in (
        BRIDGE.log_potential, BRIDGE.log_normalizer, BRIDGE.conditional_moments, BRIDGE.sample, lambda x: BRIDGE.drift(x, 0.5), lambda x: BRIDGE.sample_path(x, 2), lambda x: BRIDGE.loss(x, X), lambda x: BRIDGE.loss(X, x))],
    *[lambda t=t: BRIDGE.drift(X, t) for t in (1.0, -0.1, 2.0, math.nan, torch.zeros(4), torch.ones(5))], lambda: BRIDGE.sample_path(X, 0),
    lambda: fit_light_sb(X, X[:, :1], 2, 1.0, steps=1), lambda: fit_light_sb(X, NAN, 2, 1.0, steps=1), lambda: fit_light_sb(X[:0], X, 2, 1.0, steps=1), lambda: fit_light_sb(X, X[0], 2, 1.0, steps=1),
    lambda: fit_light_sb(X, X, 0, 1.0, steps=1), lambda: fit_light_sb(X, X, 2, 0.0, steps=1), lambda: fit_light_sb(X, X, 2, 1.0, steps=0), lambda: fit_light_sb(X, X, 2, 1.0, steps=1, batch_size=0),
    lambda: fit_light_sb(X, X, 2, 1.0, steps=1, lr=0.0), lambda: fit_light_sb(X, X, 2, 1.0, steps=1, s_init=-1.0), lambda: fit_light_sb(X, X, 2, 1.0, steps=1, seeds=0), lambda: fit_light_sb(X, lambda n, g: X[:1], 2, 1.0, steps=1),
    lambda: make_eot_pair(0, 1.0), lambda: make_eot_pair(2, 0.0), lambda: make_eot_pair(2, 1.0, n_modes=0), lambda: make_eot_pair(2, 1.0, radius=0.0), lambda: make_eot_pair(2, math.nan),
    lambda: cbw_uvp(X, EYE, X[:, :1], EYE, 1.0), lambda: cbw_uvp(X, EYE, X, EYE[:2], 1.0), lambda: cbw_uvp(NAN, EYE, X, EYE, 1.0), lambda: cbw_uvp(X, EYE, X, EYE, 0.0), lambda: cbw_uvp(X[:0], EYE[:0], X[:0], EYE[:0], 1.0), lambda: cbw_uvp(X, EYE, X, EYE, math.nan),
]


@pytest.mark.parametrize("call", REFUSED)
def test_bad_input_is_refused_at_the_door(call):
    with pytest.raises(ValueError): call()
