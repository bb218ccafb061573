"Properties of amortlit.transport.monge_gap that do not fit its page: shapes, dtypes, refusals, bounds, gradients, agreement with scipy, the floor and OTT."
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import nn

from amortlit.core.nets import mlp
from amortlit.core.ot import pairwise_cost, sinkhorn
from amortlit.transport.monge_gap import conservativity, fit_map, l2_uv, make_convex_pair, monge_gap

quick = settings(max_examples=15, deadline=None)
sizes, dims = st.integers(2, 12), st.integers(1, 4)
dtypes = st.sampled_from([torch.float32, torch.float64])
costs = st.sampled_from(["sqeuclidean", "euclidean", "arccos"])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def points(n, dim, seed=0, dtype=torch.float64, sphere=False):
    x = torch.randn(n, dim, generator=generator(1000 * seed + n)).to(dtype)
    return nn.functional.normalize(x, dim=-1) if sphere else x


def exact(x, tx, cost):
    C = pairwise_cost(x, tx, cost).numpy()
    return C.diagonal().mean() - C[linear_sum_assignment(C)].mean()


@quick
@given(n=sizes, dim=dims, dtype=dtypes, cost=costs)
def test_gap_shape_dtype_and_leading_axes(n, dim, dtype, cost):
    x, tx = points(n, dim + 1, 1, dtype, sphere=True), points(n, dim + 1, 2, dtype, sphere=True)
    one = monge_gap(x, tx, cost=cost, relative_epsilon=0.1, tol=1e-4)
    assert one.shape == () and one.dtype == dtype and one.isfinite()
    many = monge_gap(torch.stack([x, tx]), torch.stack([tx, tx]), cost=cost, relative_epsilon=0.1, tol=1e-4)
    assert many.shape == (2,) and torch.allclose(many[0], one, atol=1e-3)


@quick
@given(n=sizes, dim=dims, cost=costs, share=st.sampled_from([0.05, 0.2, 1.0]))
def test_gap_is_between_its_bounds(n, dim, cost, share):
    x, tx = points(n, dim + 1, 3, sphere=True), points(n, dim + 1, 4, sphere=True)
    epsilon = share * pairwise_cost(x, tx, cost).mean().item()
    excess = monge_gap(x, tx, cost=cost, epsilon=epsilon, tol=1e-9).item() - exact(x, tx, cost)
    assert epsilon * math.log(n) - 1e-6 <= excess <= 2 * epsilon * math.log(n) + 1e-6
    assert math.isclose(monge_gap(x, tx, cost=cost, relative_epsilon=share, tol=1e-9), monge_gap(x, tx, cost=cost, epsilon=epsilon, tol=1e-9), abs_tol=1e-6)


@quick
@given(n=sizes, dim=dims)
def test_gap_agrees_with_the_floor_s_sinkhorn(n, dim):
    x, tx = points(n, dim, 5), points(n, dim, 6)
    C = pairwise_cost(x, tx)
    value = sinkhorn(C, 0.3, tol=1e-10, max_iter=20_000).value
    assert torch.allclose(monge_gap(x, tx, epsilon=0.3, tol=1e-10, max_iter=20_000), C.diagonal().mean() - value + 0.6 * math.log(n), atol=1e-6)


@quick
@given(n=sizes, dim=dims, cost=costs)
def test_envelope_gradient(n, dim, cost):
    x, tx = points(n, dim + 1, 7, sphere=True), points(n, dim + 1, 8, sphere=True)
    way = torch.linalg.cross(tx, points(n, 3, 9)) if dim == 2 else points(n, dim + 1, 9)
    gap = lambda z: monge_gap(x, nn.functional.normalize(z, dim=-1), cost=cost, epsilon=0.2, tol=1e-11, max_iter=20_000)
    leaf = tx.clone().requires_grad_()
    inner = (torch.autograd.grad(gap(leaf), leaf)[0] * way).sum()
    assert torch.allclose((gap(tx + 1e-5 * way) - gap(tx - 1e-5 * way)) / 2e-5, inner, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean", "arccos"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradient_is_finite_where_points_stay(cost, dtype):
    x = points(30, 3, 10, dtype, sphere=True)
    tx = x.clone().requires_grad_()
    gap = monge_gap(x, tx, cost=cost)
    gap.backward()
    assert tx.grad.isfinite().all() and gap < 1


def test_a_callable_cost_and_coinciding_points():
    x, tx = points(10, 2, 11), points(10, 2, 12)
    assert torch.allclose(monge_gap(x, tx, cost=lambda a, b: pairwise_cost(a, b)), monge_gap(x, tx))
    assert monge_gap(torch.zeros(4, 2), torch.zeros(4, 2)).isfinite()


def test_small_epsilon_in_both_precisions():
    x, tx = points(60, 2, 13), points(60, 2, 14)
    gap = monge_gap(x, tx, relative_epsilon=1e-3, tol=1e-3, max_iter=20_000)
    assert torch.allclose(gap.float(), monge_gap(x.float(), tx.float(), relative_epsilon=1e-3, tol=1e-3, max_iter=20_000), atol=1e-2)
    assert exact(x, tx, "sqeuclidean") <= gap


def test_gap_agrees_with_ott():
    jnp = pytest.importorskip("jax.numpy")
    from ott.neural.methods.monge_gap import monge_gap_from_samples
    x, tx = points(40, 2, 15, torch.float32), points(40, 2, 16, torch.float32)
    theirs = float(monge_gap_from_samples(jnp.asarray(x.numpy()), jnp.asarray(tx.numpy()), epsilon=0.5, threshold=1e-5, max_iterations=5000))
    assert math.isclose(monge_gap(x, tx, epsilon=0.5, tol=1e-5), theirs, abs_tol=1e-3)


@quick
@given(n=sizes, dim=dims, dtype=dtypes, probes=st.integers(1, 3))
def test_conservativity(n, dim, dtype, probes):
    x, A = points(n, dim, 17, dtype), points(dim, dim, 18, dtype)
    kw = dict(n_probes=probes, generator=generator(1))
    value = conservativity(lambda z: z @ A.T, x, **kw)
    assert value.shape == () and value.dtype == dtype and value >= 0
    for symmetric in (lambda z: z @ (A + A.T), torch.sin, torch.zeros_like, lambda z: z): assert conservativity(symmetric, x, **kw) < 1e-8
    many = conservativity(lambda z: z @ A.T, x.repeat(1000, 1), **kw)
    assert torch.allclose(many, ((A - A.T) ** 2).sum(), rtol=0.2, atol=1e-6)


def test_conservativity_trains_a_network():
    net, x = mlp([2, 8, 2], nn.GELU, members=3), torch.randn(3, 5, 2)
    value = conservativity(net, x)
    value.sum().backward()
    assert value.shape == (3,) and all(p.grad is None or p.grad.isfinite().all() for p in net.parameters()) and net[0].weight.grad.abs().sum() > 0


@quick
@given(n=sizes, dim=dims, terms=st.integers(1, 12), dtype=dtypes)
def test_the_pair_is_optimal_and_keeps_dtype(n, dim, terms, dtype):
    source, true_map = make_convex_pair(dim, n_terms=terms, generator=generator(terms))
    x = source(n, generator(2)).to(dtype)
    y = true_map(x)
    assert y.shape == x.shape == (n, dim) and y.dtype == dtype
    assert exact(x.double(), y.double(), "sqeuclidean") < 1e-5
    assert torch.allclose(true_map(x.expand(2, n, dim))[1], y, atol=1e-5) and torch.equal(source(3, generator(5)), source(3, generator(5)))


def test_true_map_is_the_gradient_of_its_potential():
    _, true_map = make_convex_pair(3, generator=generator(3))
    x = points(4, 3, 19)
    jacobian = torch.stack([torch.autograd.functional.jacobian(lambda z: true_map(z[None])[0], row) for row in x])
    assert torch.allclose(jacobian, jacobian.mT) and (torch.linalg.eigvalsh(jacobian) > 0.49).all()


@quick
@given(n=sizes, dim=dims, dtype=dtypes)
def test_l2_uv(n, dim, dtype):
    true = points(n, dim, 20, dtype)
    assert l2_uv(true, true) == 0 and l2_uv(true, true).shape == () and l2_uv(true, true).dtype == dtype
    assert torch.allclose(l2_uv(true.mean(0).expand_as(true), true), torch.tensor(100.0, dtype=dtype))


def test_fit_is_reproducible_and_keeps_dtype():
    def fit():
        torch.manual_seed(0)
        return fit_map(mlp([2, 8, 2], nn.GELU).double(), points(50, 2, 21), lambda n, g: 2 + torch.randn(n, 2, generator=g, dtype=torch.float64), steps=4, batch_size=16, generator=generator(4))
    (net, history), (again, _) = fit(), fit()
    x = points(5, 2, 22)
    assert torch.equal(net(x), again(x)) and history["fit"].shape == history["gap"].shape == (4,) and history["gap"].dtype == torch.float64


@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean"])
def test_fit_finds_a_translation(cost):
    torch.manual_seed(1)
    x = torch.rand(400, 2, generator=generator(6))
    net, history = fit_map(mlp([2, 16, 2], nn.GELU), x, x + 2, cost=cost, steps=150, batch_size=64, lr=0.02, conservative_weight=0.01, generator=generator(7))
    assert history["fit"][-10:].mean() < history["fit"][0] / 20
    assert l2_uv(net(x).detach(), x + 2) < 60


def test_members_have_their_own_weights():
    torch.manual_seed(2)
    source = lambda n, g: torch.randn(n, 2, generator=g).expand(2, n, 2)
    net, history = fit_map(mlp([2, 8, 2], nn.GELU, members=2), source, source, gap_weight=torch.tensor([0.0, 1.0]), steps=3, batch_size=16, generator=generator(8))
    assert history["fit"].shape == (2, 3) and net(source(4, generator(9))).shape == (2, 4, 2)


@pytest.mark.parametrize("penalty", ["gap", "displacement"])
def test_weight_zero_is_the_vanilla_fit(penalty):
    def fit(**kw):
        torch.manual_seed(3)
        return fit_map(mlp([2, 8, 2], nn.GELU), points(40, 2, 23, torch.float32), points(40, 2, 24, torch.float32), steps=3, batch_size=16, generator=generator(10), **kw)[0]
    x = points(5, 2, 25, torch.float32)
    assert torch.equal(fit(gap_weight=0.0)(x), fit(gap_weight=0.0, penalty=penalty)(x))
    assert not torch.equal(fit(gap_weight=0.0)(x), fit(gap_weight=1.0, penalty=penalty)(x))


X, NET = points(6, 2, 26), mlp([2, 2]).double()
NAN = torch.full((6, 2), math.nan).double()
BAD = (NAN, X[:, :1], X[:1], X[:0], X[0], X.float(), X.long(), "x")
REFUSED = [
    *[lambda bad=bad: monge_gap(bad, X) for bad in BAD], *[lambda bad=bad: monge_gap(X, bad) for bad in BAD], lambda: monge_gap(X[:1], X[:1]),
    *[lambda kw=kw: monge_gap(X, X + 1, **kw) for kw in (dict(epsilon=0.0), dict(epsilon=-1.0), dict(epsilon=math.nan), dict(relative_epsilon=0.0), dict(max_iter=0), dict(tol=0.0), dict(cost="manhattan"), dict(cost="arccos"),
                                                        dict(cost=lambda x, y: x), dict(cost=lambda x, y: pairwise_cost(x, y) * math.nan))],
    *[lambda bad=bad: conservativity(torch.sin, bad) for bad in (NAN, X[:0], X[0], X.long(), "x")], lambda: conservativity(torch.sin, X, n_probes=0), lambda: conservativity(lambda x: x[:, :1], X),
    *[lambda kw=kw: fit_map(NET, X, X, **dict(steps=1, batch_size=4) | kw) for kw in (dict(steps=0), dict(batch_size=1), dict(lr=0.0), dict(gap_weight=-1.0), dict(gap_weight=math.nan), dict(conservative_weight=-0.1),
                                                                                    dict(cost="manhattan"), dict(cost="arccos"), dict(penalty="none"), dict(relative_epsilon=0.0))],
    *[lambda bad=bad: fit_map(NET, bad, X, steps=1, batch_size=4) for bad in (NAN, X[:0], X[0], X[:, :1], lambda n, g: X[:1])], lambda: fit_map(NET, X, X[:, :1], steps=1), lambda: fit_map(mlp([2, 3]).double(), X, X, steps=1),
    lambda: make_convex_pair(0), lambda: make_convex_pair(2, n_terms=0), lambda: make_convex_pair(3)[1](X), lambda: make_convex_pair(2)[1](NAN), lambda: make_convex_pair(2)[0](0),
    lambda: l2_uv(X, X[:, :1]), lambda: l2_uv(NAN, X), lambda: l2_uv(X, NAN), lambda: l2_uv(X[:0], X[:0]), lambda: l2_uv(X, torch.ones_like(X)), lambda: l2_uv(X[0], X[0]),
]


@pytest.mark.parametrize("call", REFUSED)
def test_bad_input_is_refused_at_the_door(call):
    with pytest.raises(ValueError): call()
