"Properties of amortlit.transport.sparse_ot that do not fit its page: shapes, dtypes, refusals, invariants, agreement with brute force and POT."
import contextlib
import io
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from amortlit.transport.sparse_ot import SparseOT, project_sparse_simplex, semi_dual, sparse_conjugate, sparse_ot

sizes = st.integers(1, 6)
scales = st.sampled_from([1e-3, 0.1, 1.0, 1e3])
dtypes = st.sampled_from([torch.float32, torch.float64])
quick = settings(max_examples=25, deadline=None)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed)).double()


def problem(n, m, seed=0, lead=()):
    g = generator(seed)
    a, b = (torch.rand(*lead, size, generator=g).double() + 0.1 for size in (n, m))
    return a / a.sum(-1, keepdim=True), b / b.sum(-1, keepdim=True), torch.rand(*lead, n, m, generator=g).double()


def best_by_supports(s, k, gamma, mass):
    "The maximum over all supports of at most k entries, each a small problem solved on its own."
    best = -math.inf if mass is not None else 0.0
    for size in range(1, min(k, len(s)) + 1):
        for support in itertools.combinations(range(len(s)), size):
            u = s[list(support)]
            t = u.clamp_min(0) / gamma if mass is None else (u - u.mean()) / gamma + mass / size
            if bool((t >= 0).all()): best = max(best, ((u * t).sum() - gamma / 2 * (t * t).sum()).item())
    return best


@quick
@given(n=sizes, m=sizes, k=st.integers(1, 8), z=scales, dtype=dtypes, dim=st.sampled_from([0, 1, -1, -2]))
def test_projection_is_feasible_and_keeps_shape_and_dtype(n, m, k, z, dtype, dim):
    v = random(n, m, seed=n + 10 * m).to(dtype)
    t = project_sparse_simplex(v, k, z, dim)
    assert t.shape == v.shape and t.dtype == dtype and bool((t >= 0).all()) and bool(((t != 0).sum(dim) <= k).all())
    assert torch.allclose(t.sum(dim), torch.full_like(t.sum(dim), z), rtol=1e-5)
    assert torch.allclose(project_sparse_simplex(v + 3, k, z, dim), t, atol=1e-5 * z + 1e-5)


@quick
@given(n=sizes, k=st.integers(1, 8), gamma=scales, mass=st.sampled_from([None, 0.01, 1.0, 10.0]))
def test_conjugate_is_the_best_of_all_supports(n, k, gamma, mass):
    s = random(n, seed=n).requires_grad_()
    value, t = sparse_conjugate(s, k, gamma, mass)
    assert math.isclose(value.item(), best_by_supports(s.detach(), k, gamma, mass), rel_tol=1e-9, abs_tol=1e-9)
    assert torch.allclose(torch.autograd.grad(value, s)[0], t, rtol=1e-9, atol=1e-9)
    if mass is not None: assert torch.allclose(t, project_sparse_simplex(s / gamma, k, mass))


@quick
@given(n=sizes, m=sizes, k=sizes, dtype=dtypes)
def test_conjugate_batches_and_masses(n, m, k, dtype):
    s, mass = random(3, n, m, seed=n + m).to(dtype), 0.1 + torch.rand(3, m, generator=generator(m)).to(dtype)
    value, t = sparse_conjugate(s, k, 0.5, mass, dim=1)
    assert value.shape == (3, m) and t.shape == s.shape and value.dtype == t.dtype == dtype
    assert torch.allclose(t.sum(1), mass, rtol=1e-5)
    single = sparse_conjugate(s[1, :, 0], k, 0.5, mass[1, 0])
    assert torch.allclose(single[0], value[1, 0]) and torch.allclose(single[1], t[1, :, 0])
    free, t = sparse_conjugate(s, k, 0.5, dim=1)
    top = s.topk(min(k, n), 1).values.clamp_min(0)
    assert torch.allclose(free, (top**2).sum(1)) and bool(((t != 0).sum(1) <= k).all())


def test_projection_survives_large_entries_and_small_mass():
    t = project_sparse_simplex(torch.tensor([1e8, 1e8 - 1, 0.0], dtype=torch.float64), 2, 1e-6)
    assert torch.allclose(t, torch.tensor([1e-6, 0.0, 0.0], dtype=torch.float64), rtol=1e-9, atol=0)


def test_derivatives_by_differences():
    s, mass = random(5, 7).requires_grad_(), (0.5 + torch.rand(5, generator=generator())).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda s, mass: sparse_conjugate(s, 3, 0.7, mass)[0], (s, mass))
    assert torch.autograd.gradcheck(lambda s: project_sparse_simplex(s, 3), s)
    assert torch.autograd.gradcheck(lambda s: sparse_conjugate(s, 3, 0.7)[0], s)


@quick
@given(n=sizes, m=sizes, k=sizes, gamma=st.sampled_from([0.1, 1.0]))
def test_semi_dual_is_concave_and_its_gradients_are_the_plan(n, m, k, gamma):
    a, b, cost = problem(n, m, seed=n + 10 * m)
    x, y = random(2, n, seed=m)
    f = lambda alpha: semi_dual(alpha, a, b, cost, k, gamma)
    assert f((x + y) / 2) >= (f(x) + f(y)) / 2 - 1e-12
    assert torch.allclose(f(x + 5), f(x), atol=1e-9) and f(torch.stack([x, y])).shape == (2,)
    alpha, c, rows = x.requires_grad_(), cost.requires_grad_(), a.requires_grad_()
    d_alpha, d_cost, d_a = torch.autograd.grad(semi_dual(alpha, rows, b, c, k, gamma), (alpha, c, rows))
    assert torch.allclose(d_alpha, a - d_cost.sum(1)) and torch.allclose(d_a, alpha) and torch.allclose(d_cost.sum(0), b)
    assert bool(((d_cost != 0).sum(0) <= k).all())


@settings(max_examples=10, deadline=None)
@given(n=sizes, m=sizes, k=sizes, dtype=dtypes, method=st.sampled_from(["semi_dual", "dual"]))
def test_shapes_dtypes_and_bookkeeping(n, m, k, dtype, method):
    a, b, cost = (x.to(dtype) for x in problem(n, m, seed=n + 10 * m))
    s = sparse_ot(a, b, cost, k, method=method, max_iter=40)
    assert isinstance(s, SparseOT) and s.plan.shape == (n, m) and s.value.shape == s.marginal_error.shape == () and s.alpha.shape == (n,)
    assert (s.beta is None) if method == "semi_dual" else s.beta.shape == (m,)
    assert s.plan.dtype == s.value.dtype == s.alpha.dtype == dtype and 0 <= s.n_iter <= 40 and isinstance(s.converged, bool)
    assert bool((s.plan >= 0).all()) and bool(((s.plan != 0).sum(0) <= k).all())
    error = (s.plan.sum(1) - a).abs().sum() + (s.plan.sum(0) - b).abs().sum()
    assert torch.allclose(error, s.marginal_error, atol=1e-5)


def test_leading_dimensions_broadcast():
    a, b, cost = problem(5, 4, lead=(2, 3))
    s = sparse_ot(a, b[0, 0], cost, 4)
    assert s.plan.shape == (2, 3, 5, 4) and s.value.shape == s.marginal_error.shape == (2, 3) and s.alpha.shape == (2, 3, 5)
    one = sparse_ot(a[1, 2], b[0, 0], cost[1, 2], 4)
    assert torch.allclose(one.value, s.value[1, 2], atol=1e-6)
    shared = sparse_ot(a, b, cost[0, 0], 4)
    assert shared.plan.shape == (2, 3, 5, 4)


@pytest.mark.parametrize("gamma", [0.1, 1.0])
def test_one_nonzero_is_an_assignment(gamma):
    n = 24
    x, y = random(n, 2, seed=1), random(n, 2, seed=2)
    cost = torch.cdist(x, y) ** 2
    u = torch.full((n,), 1 / n).double()
    s, (rows, columns) = sparse_ot(u, u, cost, 1, gamma), linear_sum_assignment(cost)
    assert torch.isclose(s.value, cost[rows, columns].mean() + gamma / (2 * n), atol=1e-6)
    assert s.converged and torch.equal((s.plan > 0).sum(0), torch.ones(n).long()) and bool((s.plan[rows, columns] > 0).all())


def test_value_falls_in_k_and_is_a_lower_bound():
    a, b, cost = problem(12, 10, seed=3)
    solved = {k: sparse_ot(a, b, cost, k) for k in (1, 2, 4, 8, 12)}
    values = torch.stack([s.value for s in solved.values()])
    assert bool((values.diff() <= 1e-6).all())
    dense = solved[12]
    primal = (dense.plan * cost).sum() + (dense.plan**2).sum() / 2
    assert dense.converged and torch.isclose(primal, dense.value, atol=1e-6) and bool(solved[8].value >= dense.value - 1e-6)


def test_dual_and_semi_dual_agree_without_the_constraint():
    a, b, cost = problem(8, 6, seed=4)
    fixed, free = sparse_ot(a, b, cost, 8, max_iter=3000), sparse_ot(a, b, cost, 8, method="dual", max_iter=3000)
    assert torch.isclose(fixed.value, free.value, atol=1e-6) and torch.allclose(fixed.plan, free.plan, atol=1e-4)


def test_scaling_cost_and_gamma_together_keeps_the_plan():
    a, b, cost = problem(9, 7, seed=5)
    one, thousand = sparse_ot(a, b, cost, 9, 0.5), sparse_ot(a, b, 1000 * cost + 7, 9, 500.0)
    assert torch.allclose(one.plan, thousand.plan, atol=1e-6) and torch.isclose(1000 * one.value + 7, thousand.value, rtol=1e-6)


def test_the_value_differentiates_to_the_plan():
    a, b, cost = problem(7, 7, seed=6)
    cost.requires_grad_()
    s = sparse_ot(a, b, cost, 7)
    assert torch.allclose(torch.autograd.grad(s.value, cost)[0], s.plan)


def test_zero_weights_and_constant_cost():
    a, b = torch.tensor([0.5, 0.0, 0.5]).double(), torch.tensor([0.0, 0.25, 0.75]).double()
    s = sparse_ot(a, b, torch.rand(3, 3, generator=generator()).double(), 3)
    assert s.converged and bool((s.plan[:, 0] == 0).all())
    flat = sparse_ot(a, a, torch.ones(3, 3).double(), 3)
    assert flat.converged and torch.isclose(flat.plan.sum(), torch.ones(()).double())


@pytest.mark.parametrize("k", [4, 8])
def test_agreement_with_pot(k):
    ot = pytest.importorskip("ot")
    a, b, cost = problem(16, 16, seed=7)
    ours = sparse_ot(a, b, cost, k, 0.5)
    with contextlib.redirect_stdout(io.StringIO()):
        theirs, log = ot.smooth.smooth_ot_semi_dual(a.numpy(), b.numpy(), cost.numpy(), 0.5, reg_type="sparsity_constrained", max_nz=k, stopThr=1e-12, numItermax=5000, log=True)
        value = ot.smooth.semi_dual_obj_grad(log["alpha"], a.numpy(), b.numpy(), cost.numpy(), ot.smooth.SparsityConstrained(k, 0.5))[0]
    assert ours.value >= value - 1e-6
    if ours.converged: assert torch.allclose(ours.plan, torch.as_tensor(theirs), atol=1e-4)


A, B, COST = problem(4, 3)
NAN = COST.clone()
NAN[0, 0] = math.nan
V = random(3, 4)
REFUSED = [
    *[lambda k=k, f=f: f(k) for k in (0, -1, 1.5, True, "2") for f in (lambda k: project_sparse_simplex(V, k), lambda k: sparse_conjugate(V, k), lambda k: sparse_ot(A, B, COST, k), lambda k: semi_dual(A, A, B, COST, k))],
    *[lambda gamma=gamma, f=f: f(gamma) for gamma in (0.0, -1.0, math.nan, math.inf, "1") for f in (lambda g: sparse_conjugate(V, 2, g), lambda g: sparse_ot(A, B, COST, 2, g), lambda g: semi_dual(A, A, B, COST, 2, g))],
    *[lambda z=z: project_sparse_simplex(V, 2, z) for z in (0.0, -1.0, math.nan, torch.ones(4), torch.zeros(3), torch.ones(3, 4))], *[lambda m=m: sparse_conjugate(V, 2, mass=m) for m in (0.0, -1.0, math.nan, torch.ones(4))],
    lambda: project_sparse_simplex(V * math.nan, 2), lambda: sparse_conjugate(V * math.inf, 2), lambda: project_sparse_simplex(V[:, :0], 2), lambda: sparse_conjugate(V[:, :0], 2), lambda: project_sparse_simplex(V.long(), 2),
    lambda: project_sparse_simplex(V, 2, dim=2), lambda: sparse_conjugate(V, 2, dim=-3), lambda: project_sparse_simplex([1.0], 2), lambda: project_sparse_simplex(torch.tensor(1.0), 1),
    *[lambda p=p, f=f: f(*p) for p in ((2 * A, B, COST), (A, 2 * B, COST), (A - 0.5, B, COST), (A, torch.tensor([1.5, -0.5, 0.0]).double(), COST), (A, B, NAN), (A * math.nan, B, COST), (A[:3], B, COST), (A, B, COST.T), (A, B, COST[0]),
        (A[:0], B, COST[:0]), (A, B[:0], COST[:, :0]), (A.expand(2, 4), B.expand(3, 3), COST), (A.long(), B, COST)) for f in (lambda a, b, c: sparse_ot(a, b, c, 2), lambda a, b, c: semi_dual(torch.zeros_like(a), a, b, c, 2))],
    lambda: semi_dual(A[:3], A, B, COST, 2), lambda: semi_dual(A * math.nan, A, B, COST, 2), lambda: semi_dual(A.expand(2, 4), A, B, COST.expand(3, 4, 3), 2),
    lambda: sparse_ot(A, B, COST, 2, method="primal"), lambda: sparse_ot(A, B, COST, 2, max_iter=0), lambda: sparse_ot(A, B, COST, 2, tol=-1.0), lambda: sparse_ot(A, B, COST, 2, tol=math.nan),
]


@pytest.mark.parametrize("call", REFUSED)
def test_bad_input_is_refused_at_the_door(call):
    with pytest.raises(ValueError): call()
