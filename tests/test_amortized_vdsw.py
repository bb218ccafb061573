"Properties of amortlit.transport.amortized_vdsw that do not fit its page: shapes, dtypes, refusals, invariants, agreement with scipy and POT."
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ive
from scipy.stats import kstest, wasserstein_distance
from torch.nn.functional import normalize

from amortlit.transport.amortized_vdsw import AmortizedDirection, optimize_direction, sample_vmf, sliced_wasserstein, v_dsw

KINDS = ("efficient", "self_attention", "linformer", "linear", "generalized_linear", "nonlinear")
sizes = st.integers(1, 5)
dims = st.integers(2, 6)
kappas = st.sampled_from([1e-3, 0.5, 10.0, 1e4])
dtypes = st.sampled_from([torch.float32, torch.float64])
quick = settings(max_examples=25, deadline=None)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def cloud(batch, n, dim, dtype=torch.float64, seed=0):
    return torch.randn(batch, n, dim, generator=generator(seed)).to(dtype)


def unit(batch, dim, dtype=torch.float64, seed=9):
    return normalize(torch.randn(batch, dim, generator=generator(seed)).to(dtype), dim=-1)


def network(kind, n=None, dim=3, dtype=torch.float64, **kw):
    torch.manual_seed(0)
    return AmortizedDirection(dim, kind, n_points=n, **kw).to(dtype).requires_grad_(False)


@quick
@given(batch=sizes, n=sizes, dim=dims, draws=sizes, kappa=kappas, dtype=dtypes)
def test_shapes_and_dtypes(batch, n, dim, draws, kappa, dtype):
    x, y, mu = cloud(batch, n, dim, dtype), cloud(batch, n, dim, dtype, 1), unit(batch, dim, dtype)
    theta = sample_vmf(mu, kappa, draws, generator=generator())
    out = {(batch, draws, dim): [theta], (batch, draws): [sliced_wasserstein(x, y, theta), sliced_wasserstein(x, y, theta, p=1)],
           (batch,): [v_dsw(x, y, mu, kappa, n_projections=draws), v_dsw(x, y, mu, torch.full((batch,), kappa), n_projections=draws, p=1.5)],
           (batch, dim): [optimize_direction(x, y, kappa=k, n_projections=draws, steps=2) for k in (None, kappa)]}
    assert all(v.shape == shape and v.dtype == dtype and v.isfinite().all() for shape, values in out.items() for v in values)
    assert all(torch.allclose(v.norm(dim=-1), torch.ones(()).to(dtype), atol=1e-5) for v in (theta, *out[batch, dim]))


@quick
@given(kind=st.sampled_from(KINDS), batch=sizes, n=sizes, dim=dims, dtype=dtypes)
def test_networks(kind, batch, n, dim, dtype):
    x, y, net = cloud(batch, n, dim, dtype), cloud(batch, n, dim, dtype, 1), network(kind, n, dim, dtype)
    mu = net(x, y)
    assert mu.shape == (batch, dim) and mu.dtype == dtype and torch.allclose(mu.norm(dim=-1), torch.ones(()).to(dtype), atol=1e-5)
    many = network(kind, n, dim, dtype, members=3)
    assert many(x.expand(3, *x.shape), y.expand(3, *y.shape)).shape == (3, batch, dim)


@pytest.mark.parametrize("kind", KINDS)
def test_members_are_independent_networks(kind):
    many, one, x, y = network(kind, 20, members=2), network(kind, 20), cloud(3, 20, 3), cloud(3, 20, 3, seed=1)
    both = many(x.expand(2, *x.shape), y.expand(2, *y.shape))
    for k in range(2):
        one.load_state_dict({name: weight[k] for name, weight in many.state_dict().items()})
        assert torch.allclose(both[k], one(x, y))


@pytest.mark.parametrize("kind", KINDS)
def test_who_sees_the_order(kind):
    x, y, net, order = cloud(4, 30, 3), cloud(4, 30, 3, seed=1), network(kind, 30), torch.randperm(30, generator=generator())
    moved = (net(x[:, order], y) - net(x, y)).abs().max()
    swapped = (net(y, x) - net(x, y)).abs().max()
    assert (moved < 1e-6) == (kind in ("efficient", "self_attention")) and (moved < 1e-6 or moved > 1e-3)
    assert (swapped < 1e-6) == (kind in ("efficient", "self_attention", "linformer"))


def test_attention_is_the_formula():
    x, y = cloud(2, 10, 3), cloud(2, 10, 3, seed=1)
    net = network("self_attention")
    def head(x):
        q, k, v = (net.parts[name](x) for name in ("query", "key", "value"))
        return torch.stack([sum(torch.softmax(q[b, i] @ k[b].T / 8, -1) @ v[b] for i in range(10)) / 10 for b in range(2)])
    assert torch.allclose(net(x, y), normalize(head(x) + head(y), dim=-1))


@pytest.mark.parametrize("dim", [2, 3, 5, 20])
@pytest.mark.parametrize("kappa", [0.1, 3.0, 50.0])
def test_vmf_moments(dim, kappa):
    mu = unit(1, dim)
    theta = sample_vmf(mu, kappa, 20_000, generator=generator(dim))[0]
    exact = ive(dim / 2, kappa) / ive(dim / 2 - 1, kappa)
    error = theta.std(0) / 20_000**0.5
    assert ((theta.mean(0) - exact * mu[0]).abs() < 4.5 * error).all()


@pytest.mark.parametrize("kappa", [1e-4, 1.0, 20.0, 1e3])
def test_cosine_follows_its_distribution_function(kappa):
    w = (sample_vmf(unit(1, 3), kappa, 5000, generator=generator(1))[0] @ unit(1, 3)[0]).numpy()
    cdf = lambda w: (torch.exp(kappa * (torch.as_tensor(w) - 1)) - math.exp(-2 * kappa)).numpy() / -math.expm1(-2 * kappa)
    assert kstest(w, cdf).pvalue > 1e-3


def test_small_and_large_concentration_in_single_precision():
    for kappa in (1e-6, 1e-3, 1e6):
        for dim in (2, 3, 4):
            theta = sample_vmf(unit(1, dim, torch.float32), kappa, 4000, generator=generator(2))[0]
            along = theta @ unit(1, dim, torch.float32)[0]
            assert theta.isfinite().all() and (along > 0.99).all() == (kappa > 1)
            if kappa < 1: assert kstest(along.numpy(), sample_vmf(unit(1, dim), kappa, 4000, generator=generator(3))[0].matmul(unit(1, dim)[0]).numpy()).pvalue > 1e-3


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("dim", [2, 3, 4])
def test_poles_have_finite_gradients(sign, dim):
    mu = (sign * torch.eye(dim)[:1].double()).requires_grad_()
    x, y = cloud(1, 10, dim), cloud(1, 10, dim, seed=1)
    theta = sample_vmf(mu, 5.0, 4000, generator=generator())
    assert (theta[0] @ mu[0].detach()).mean() > 0.5
    gradient, = torch.autograd.grad(v_dsw(x, y, mu, 5.0, generator=generator()).sum(), mu)
    assert gradient.isfinite().all() and 0 < gradient.norm() < 10


def test_gradient_in_the_center_is_that_of_the_expectation():
    mu, kappa = unit(1, 3), 2.0
    target = torch.tensor([1.0, 2.0, -1.0]).double()
    mu.requires_grad_()
    value = (sample_vmf(mu, kappa, 200_000, generator=generator()) @ target).mean()
    gradient, = torch.autograd.grad(value, mu)
    tangent = lambda g: g - (g * mu[0].detach()).sum() * mu[0].detach()
    assert torch.allclose(tangent(gradient[0]), tangent((1 / math.tanh(kappa) - 1 / kappa) * target), atol=0.02)


@quick
@given(n=sizes, dim=dims, draws=sizes)
def test_slices_agree_with_scipy_and_pot(n, dim, draws):
    ot = pytest.importorskip("ot")
    x, y, theta = cloud(2, n, dim), cloud(2, n, dim, seed=1), sample_vmf(unit(2, dim), 1.0, draws, generator=generator())
    ours = sliced_wasserstein(x, y, theta, p=1)
    assert all(abs(ours[b, k] - wasserstein_distance(x[b] @ theta[b, k], y[b] @ theta[b, k])) < 1e-9 for b in range(2) for k in range(draws))
    theirs = torch.stack([ot.sliced_wasserstein_distance(a, b, projections=t.T, n_projections=draws, p=2) for a, b, t in zip(x, y, theta)])
    assert torch.allclose(sliced_wasserstein(x, y, theta).mean(-1).sqrt(), theirs, atol=1e-9)


@quick
@given(n=sizes, dim=dims, kappa=kappas, p=st.sampled_from([1.0, 2.0, 3.0]))
def test_symmetries_and_scale(n, dim, kappa, p):
    x, y, mu = cloud(3, n, dim), cloud(3, n, dim, seed=1), unit(3, dim)
    distance = lambda x, y: v_dsw(x, y, mu, kappa, p=p, n_projections=8, generator=generator())
    assert torch.allclose(distance(x, y), distance(y, x)) and torch.allclose(distance(2 * x, 2 * y), 2 * distance(x, y))
    assert torch.allclose(distance(x.flip(1), y), distance(x, y)) and torch.allclose(distance(x + 1, y + 1), distance(x, y))
    assert (distance(x, x) == 0).all()


def test_equal_clouds_have_no_gradient_and_spoil_none():
    x = cloud(2, 10, 3)
    y = torch.stack([x[0], x[1] + 1]).requires_grad_()
    gradient, = torch.autograd.grad(v_dsw(x, y, unit(2, 3), 5.0, generator=generator()).sum(), y)
    assert gradient.isfinite().all() and (gradient[0] == 0).all() and gradient[1].norm() > 0


@pytest.mark.parametrize("kappa", [0.5, 5.0, 50.0])
def test_translation(kappa):
    x, c = cloud(1, 20, 3), 2 * unit(1, 3)
    exact = 4 * (1 - 2 * (1 / math.tanh(kappa) - 1 / kappa) / kappa)
    assert abs(v_dsw(x, x + c[:, None], c / 2, kappa, n_projections=20_000, generator=generator()) ** 2 / exact - 1) < 0.01


def test_limits_of_the_concentration():
    x, y, mu = cloud(4, 30, 3), cloud(4, 30, 3, seed=1), unit(4, 3)
    uniform = sliced_wasserstein(x, y, normalize(cloud(4, 5000, 3, seed=5), dim=-1))
    flat = v_dsw(x, y, mu, 1e-3, n_projections=5000, generator=generator()) ** 2
    assert ((flat - uniform.mean(-1)).abs() < 4 * uniform.std(-1) * (2 / 5000) ** 0.5).all()
    sharp = v_dsw(x, y, mu, 1e4, n_projections=2000, generator=generator()) ** 2
    assert torch.allclose(sharp, sliced_wasserstein(x, y, mu[:, None])[:, 0], rtol=0.02)


@pytest.mark.parametrize("kappa", [None, 20.0])
def test_ascent_finds_a_translation_and_rises(kappa):
    x, c = cloud(5, 30, 3), unit(5, 3, seed=4)
    found = optimize_direction(x, x + c[:, None], kappa=kappa, steps=200, generator=generator())
    assert not found.requires_grad and ((found * c).sum(-1).abs() > 0.97).all()


def test_ascent_starts_where_it_is_told_and_leaves_it():
    x, y, init = cloud(2, 10, 3), cloud(2, 10, 3, seed=1), unit(2, 3)
    before = init.clone()
    assert torch.equal(optimize_direction(x, y, steps=0, init=init), init)
    assert not torch.equal(optimize_direction(x, y, steps=1, init=init), init) and torch.equal(init, before)
    with torch.no_grad(): assert not torch.equal(optimize_direction(x, y, steps=1, init=init), init)
    assert torch.equal(optimize_direction(x, y, kappa=3.0, generator=generator()), optimize_direction(x, y, kappa=3.0, generator=generator()))


X, Y, MU = cloud(2, 5, 3), cloud(2, 5, 3, seed=1), unit(2, 3)
THETA = sample_vmf(MU, 1.0, 4, generator=generator())
NAN, EFFICIENT = X * math.nan, network("efficient")
BAD_CLOUDS = (NAN, X[:, :4], X[:1], X[..., :2], X[0], X[:0], X[:, :0], X.float(), X.long(), "x")
REFUSED = [
    *[lambda mu=mu: sample_vmf(mu, 1.0, 3) for mu in (2 * MU, MU * math.nan, MU[0], MU[:0], MU.long(), torch.ones(2, 1), 1.01 * MU, "mu")],
    *[lambda k=k: sample_vmf(MU, k, 3) for k in (0.0, -1.0, math.nan, math.inf, torch.ones(3), torch.tensor([1.0, 0.0]))],
    *[lambda n=n: sample_vmf(MU, 1.0, n) for n in (0, -1, 2.5, True)],
    *[lambda f=f, bad=bad: f(bad) for bad in BAD_CLOUDS for f in (
        lambda x: sliced_wasserstein(x, Y, THETA), lambda x: sliced_wasserstein(Y, x, THETA), lambda x: v_dsw(x, Y, MU, 1.0), lambda x: v_dsw(Y, x, MU, 1.0),
        lambda x: optimize_direction(x, Y), lambda x: optimize_direction(Y, x), lambda x: EFFICIENT(x, Y), lambda x: EFFICIENT(Y, x))],
    *[lambda t=t: sliced_wasserstein(X, Y, t) for t in (THETA[:1], THETA[..., :2], THETA * math.nan, THETA[:, :0], THETA.float(), THETA[0])],
    *[lambda p=p: sliced_wasserstein(X, Y, THETA, p=p) for p in (0.5, math.nan, -1.0)], lambda: v_dsw(X, Y, MU, 1.0, p=0.0),
    *[lambda f=f, k=k: f(k) for k in (0.0, -1.0, math.nan) for f in (lambda k: v_dsw(X, Y, MU, k), lambda k: optimize_direction(X, Y, kappa=k))],
    lambda: v_dsw(X, Y, 2 * MU, 1.0), lambda: v_dsw(X, Y, MU[:1], 1.0), lambda: v_dsw(X, Y, MU.float(), 1.0), lambda: v_dsw(X, Y, MU, 1.0, n_projections=0),
    lambda: optimize_direction(X, Y, steps=-1), lambda: optimize_direction(X, Y, lr=0.0), lambda: optimize_direction(X, Y, lr=math.nan), lambda: optimize_direction(X, Y, n_projections=0),
    lambda: optimize_direction(X, Y, init=2 * MU), lambda: optimize_direction(X, Y, init=MU[:1]), lambda: optimize_direction(X[..., :1], Y[..., :1]),
    lambda: AmortizedDirection(kind="attention"), *[lambda kind=kind: AmortizedDirection(kind=kind) for kind in KINDS[2:]], lambda: AmortizedDirection(1), lambda: AmortizedDirection(d_key=0),
    lambda: AmortizedDirection(kind="linear", n_points=0), lambda: AmortizedDirection(kind="linformer", n_points=5, n_low=0), lambda: AmortizedDirection(members=0),
    *[lambda kind=kind: network(kind, 6)(X, Y) for kind in KINDS[2:]], lambda: network("efficient", dim=2)(X, Y), lambda: network("efficient", members=3)(X[None].expand(2, 2, 5, 3), Y[None].expand(2, 2, 5, 3)),
]


@pytest.mark.parametrize("call", REFUSED)
def test_bad_input_is_refused_at_the_door(call):
    with pytest.raises(ValueError): call()
