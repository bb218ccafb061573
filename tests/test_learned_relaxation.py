"Properties of amortlit.bandits.learned_relaxation that do not fit its page: shapes, dtypes, refusals, agreement with plain SOR, scipy and numpy."
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import solve_triangular
from scipy.optimize import lsq_linear

from amortlit.bandits.learned_relaxation import _box_least_squares, _ChebCB, _chebyshev, optimal_omega, poisson_matrix, run_bandit, sor_iterations, tsallis_inf_weights

quick = settings(max_examples=25, deadline=None)
POLICIES = ("tsallis", "tsallis_cb", "chebcb", "uniform", "fixed:1")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def systems(n, side, seed=0):
    g = generator(seed)
    shift = -0.15 + 0.6 * torch.rand(n, generator=g, dtype=torch.float64)
    return shift, torch.randn(n, side, side, generator=g, dtype=torch.float64), 1 + 0.9 * torch.rand(n, generator=g, dtype=torch.float64)


def plain(shift, b, omega, tol=1e-8, max_iter=10_000):
    A, rhs = poisson_matrix(b.shape[-1], float(shift)).numpy(), b.flatten().numpy()
    M, x = np.diag(np.diag(A)) / float(omega) + np.tril(A, -1), np.zeros(len(A))
    for k in range(1, max_iter + 1):
        x = x + solve_triangular(M, rhs - A @ x, lower=True)
        if np.linalg.norm(rhs - A @ x) < tol * np.linalg.norm(rhs): return k
    return max_iter


def table(R=2, T=12, d=4, seed=0):
    g = generator(seed)
    return torch.randint(5, 90, (R, T, d), generator=g), -0.15 + 0.8 * torch.rand(R, T, generator=g, dtype=torch.float64)


@quick
@given(n=st.integers(1, 6), side=st.integers(1, 7), seed=st.integers(0, 10**6))
def test_counts_are_those_of_the_definition(n, side, seed):
    shift, b, omega = systems(n, side, seed)
    counts = sor_iterations(shift, b, omega)
    assert counts.shape == (n,) and counts.dtype == torch.int64
    assert counts.tolist() == [plain(*s) for s in zip(shift, b, omega)]


@quick
@given(seed=st.integers(0, 10**6), size=st.sampled_from([1e-200, 1e-5, 1e120]))
def test_counts_depend_neither_on_the_batch_nor_on_the_size_of_b(seed, size):
    shift, b, omega = systems(9, 5, seed)
    whole = sor_iterations(shift, b, omega)
    assert torch.equal(whole[4:5], sor_iterations(shift[4:5], b[4:5], omega[4:5]))
    assert (whole - sor_iterations(shift, size * b, omega)).abs().max() <= 1
    assert torch.equal(whole.flip(0), sor_iterations(shift.flip(0), b.flip(0), omega.flip(0)))


def test_the_cap_the_tolerance_and_single_precision_input():
    shift, b, omega = systems(5, 6)
    whole = sor_iterations(shift, b, omega)
    assert sor_iterations(shift, b, omega, max_iter=7).tolist() == [7] * 5
    assert torch.equal(sor_iterations(shift, b, omega, max_iter=int(whole.max())), whole)
    assert (sor_iterations(shift, b, omega, tol=1e-3) < whole).all()
    rounded = shift.float(), b.float(), omega.float()
    assert torch.equal(sor_iterations(*rounded), sor_iterations(*(x.double() for x in rounded)))


def test_poisson_matrix():
    A = poisson_matrix(10)
    eigenvalues, i = torch.linalg.eigvalsh(A), torch.arange(1, 11).double()
    one = 2 - 2 * torch.cos(i * math.pi / 11)
    assert A.dtype == torch.float64 and torch.allclose(eigenvalues, (one[:, None] + one).flatten().sort().values)
    assert torch.equal(A.diagonal(), torch.full((100,), 4.0).double()) and torch.equal(poisson_matrix(1, 0.5), torch.tensor([[4.5]]).double())
    assert torch.equal(poisson_matrix(3, 0.25) - poisson_matrix(3), 0.25 * torch.eye(9).double())
    assert A[9, 10] == 0 and A[0, 10] == -1 and A[0, 1] == -1


@pytest.mark.parametrize("shift", [-0.15, 0.0, 0.45])
def test_optimal_omega_minimizes_the_radius(shift):
    A = poisson_matrix(10, shift)
    def radius(w): return float(torch.linalg.eigvals(torch.eye(100).double() - torch.linalg.solve(torch.diag(A.diagonal()) / w + A.tril(-1), A)).abs().max())
    best = float(optimal_omega(torch.tensor([shift]).double(), 10))
    grid = np.arange(best - 0.1, best + 0.1, 0.005)
    assert abs(grid[np.argmin([radius(w) for w in grid])] - best) < 0.01 and abs(radius(best) - (best - 1)) < 1e-3
    assert optimal_omega(torch.zeros(2, 3), 10).dtype == torch.float32 and optimal_omega(torch.zeros(2, 3), 10).shape == (2, 3)


@quick
@given(d=st.integers(1, 30), scale=st.sampled_from([1e-3, 1.0, 1e4]), eta=st.floats(1e-3, 2), seed=st.integers(0, 1000))
def test_tsallis_weights(d, scale, eta, seed):
    losses = scale * torch.rand(3, d, generator=generator(seed), dtype=torch.float64)
    p = tsallis_inf_weights(losses, eta)
    assert p.shape == (3, d) and (p.sum(-1) - 1).abs().max() < 1e-12 and (p > 0).all()
    root = losses - 2 / (eta * p.sqrt())
    assert torch.allclose(root, root[:, :1].expand(-1, d), rtol=1e-6, atol=1e-6 / eta)
    assert torch.allclose(p, tsallis_inf_weights(losses + 5 * scale, torch.full((3,), eta).double()), rtol=1e-6)


@quick
@given(policy=st.sampled_from(POLICIES), R=st.integers(1, 4), T=st.integers(1, 12), d=st.integers(2, 6), seed=st.integers(0, 1000))
def test_runs(policy, R, T, d, seed):
    costs, context = table(R, T, d, seed)
    arms = run_bandit(policy, costs, context, generator(seed))
    assert arms.shape == (R, T) and arms.dtype == torch.int64 and ((arms >= 0) & (arms < d)).all()
    assert torch.equal(arms, run_bandit(policy, costs.double(), context, generator(seed)))


@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_sees_only_what_it_chose(policy):
    costs, context = table(3, 40, 5)
    arms = run_bandit(policy, costs, context, generator())
    hidden = torch.full_like(costs, 10**6).scatter(-1, arms[..., None], costs.gather(-1, arms[..., None]))
    assert torch.equal(arms, run_bandit(policy, hidden, context, generator()))


@pytest.mark.parametrize("policy, most", [("tsallis", 0.7), ("tsallis_cb", 0.9), ("chebcb", 0.5)])
def test_learners_learn(policy, most):
    costs = torch.tensor([80.0, 20.0, 60.0, 70.0]).expand(8, 300, 4)
    arms = run_bandit(policy, costs, table(8, 300)[1], generator())
    assert (arms[:, 150:] != 1).double().mean() < most * 0.75


def test_costs_of_one_and_zero_do_no_harm():
    context = table(2, 20)[1]
    for policy in POLICIES:
        for value in (0.0, 1.0): assert run_bandit(policy, torch.full((2, 20, 4), value), context, generator()).shape == (2, 20)


def test_boxed_regression_agrees_with_scipy():
    z = torch.rand(60, 12, generator=generator(1), dtype=torch.float64) ** 3 * 2 - 1
    F, y = _chebyshev(z, 6), 60 + 540 * torch.rand(60, 12, generator=generator(2), dtype=torch.float64)
    box = torch.tensor([600.0] + [200 / j for j in range(1, 6)]).double().expand(60, -1)
    ours = _box_least_squares(F.mT @ F, (F.mT @ y[..., None]).squeeze(-1), box, torch.zeros(60, 6).double())
    theirs = torch.tensor(np.stack([lsq_linear(f, v, (-w, w), tol=1e-12).x for f, v, w in zip(F.numpy(), y.numpy(), box.numpy())]))
    def value(x): return ((F @ x[..., None]).squeeze(-1) - y).square().sum(-1)
    assert (ours.abs() <= box).all() and ((value(ours) - value(theirs)) / y.square().sum(-1)).max() < 5e-3
    assert np.allclose(F.numpy(), np.polynomial.chebyshev.chebvander(z.numpy(), 5))


def test_regression_is_least_squares_and_squared_errors_add_up():
    z, g = 2 * torch.rand(1, 30, generator=generator(3), dtype=torch.float64) - 1, generator(4)
    learner, seen = _ChebCB(z, 3), []
    for t in range(30):
        p = learner.weights(t)
        assert torch.allclose(p.sum(-1), torch.ones(1).double())
        arm = torch.randint(3, (1,), generator=g)
        cost = 50 + 30 * z[:, t] + 10 * arm
        learner.update(t, arm, cost, p)
        seen.append((arm.item(), learner.features[0, t], cost.item(), learner.predicted[0, arm.item()].item()))
    for a in range(3):
        X, k = torch.stack([f for i, f, *_ in seen if i == a]), torch.tensor([c for i, _, c, _ in seen if i == a]).double()
        assert torch.allclose(learner.theta[0, a], torch.linalg.lstsq(X, (k - 1)[:, None]).solution[:, 0], atol=1e-3)
    scale, errors = float(learner.scale), learner.errors[:, 0]
    direct = sum((p - c / scale) ** 2 for *_, c, p in seen)
    assert abs(float(errors[0] - 2 * errors[1] / scale + errors[2] / scale**2) - direct) < 1e-9


def test_boxes_and_learning_rate_are_those_of_the_method():
    costs, context = table(3, 30, 4)
    z, g = 2.5 * (context + 0.15) - 1, generator(5)
    learner, squares, exact = _ChebCB(z, 4), [], 0
    rows = torch.arange(3)
    for t in range(30):
        p = learner.weights(t)
        arm = torch.randint(4, (3,), generator=g)
        squares.append((learner.predicted[rows, arm], costs[rows, t, arm].double()))
        learner.update(t, arm, squares[-1][1], p)
        seen = torch.stack([c for _, c in squares])
        top, spread = seen.amax(0), seen.amax(0) - seen.amin(0)
        assert (learner.theta[..., 0].abs() <= top[:, None] + 1e-9).all()
        assert (learner.theta[..., 1:].abs() <= 2 * spread[:, None, None] / torch.arange(1, 6) + 1e-9).all()
        scale = top * (2 + 4 * spread / top * (1 + math.log(6)))
        alpha = (math.pi + 2 / math.pi * math.log(13)) / (2 * scale * 7) * spread
        total = sum((q - c / scale) ** 2 for q, c in squares)
        least = 2 * (t + 1) * (4 * (t + 1) / (total + 2 * alpha**2 * (t + 1))).sqrt()
        assert torch.allclose(learner.scale, scale) and (learner.eta >= least * (1 - 1e-9)).all() and (learner.eta <= 3 * least).all()
        exact += int(torch.isclose(learner.eta, least, rtol=1e-9).sum())
    assert exact > 5


SHIFT, B, OMEGA = systems(3, 4)
COSTS, CONTEXT = table()
REFUSED = [
    *[lambda w=w: sor_iterations(SHIFT, B, torch.full_like(SHIFT, w)) for w in (0.0, 2.0, -1.0, 2.5, math.nan, math.inf)],
    *[lambda c=c: sor_iterations(torch.full_like(SHIFT, c), B, OMEGA) for c in (4 * math.cos(math.pi / 5) - 4, -5.0, math.nan)],
    *[lambda b=b: sor_iterations(SHIFT, b, OMEGA) for b in (0 * B, B * torch.tensor([1.0, 0, 1])[:, None, None], B[:2], B[0], B[:, :3], B[:0], B.long(), B * math.nan, B.flatten(1))],
    lambda: sor_iterations(SHIFT[:2], B, OMEGA), lambda: sor_iterations(SHIFT, B, OMEGA[:2]), lambda: sor_iterations(SHIFT[:0], B[:0], OMEGA[:0]), lambda: sor_iterations(SHIFT, B, 1.5),
    lambda: sor_iterations(SHIFT, B, OMEGA, tol=0.0), lambda: sor_iterations(SHIFT, B, OMEGA, tol=math.nan), lambda: sor_iterations(SHIFT, B, OMEGA, max_iter=0),
    lambda: poisson_matrix(0), lambda: poisson_matrix(2.5), lambda: poisson_matrix(3, math.nan), lambda: poisson_matrix(3, -3.0),
    lambda: optimal_omega(torch.tensor([-3.0]), 10), lambda: optimal_omega(torch.tensor([math.nan]), 10), lambda: optimal_omega(torch.zeros(2), 0), lambda: optimal_omega(torch.zeros(0), 3), lambda: optimal_omega(0.1, 3),
    lambda: tsallis_inf_weights(torch.tensor([1.0, math.nan]), 0.5), lambda: tsallis_inf_weights(torch.zeros(3), 0.0), lambda: tsallis_inf_weights(torch.zeros(2, 0), 0.5),
    *[lambda p=p: run_bandit(p, COSTS, CONTEXT) for p in ("exp3", "", "fixed:4", "fixed:-1", "fixed:", "fixed:x", "Tsallis")],
    *[lambda p=p: run_bandit(p, COSTS) for p in ("tsallis_cb", "chebcb")], lambda: run_bandit("chebcb", COSTS, CONTEXT + 1), lambda: run_bandit("tsallis_cb", COSTS, CONTEXT[:, :3]), lambda: run_bandit("chebcb", COSTS, CONTEXT * math.nan),
    lambda: run_bandit("tsallis", COSTS[0]), lambda: run_bandit("tsallis", COSTS[:, :0]), lambda: run_bandit("tsallis", -COSTS), lambda: run_bandit("tsallis", COSTS * math.nan), lambda: run_bandit("tsallis", [[[1.0]]]),
]


@pytest.mark.parametrize("call", REFUSED)
def test_bad_input_is_refused_at_the_door(call):
    with pytest.raises(ValueError): call()
