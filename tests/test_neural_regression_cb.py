"Properties of amortlit.bandits.neural_regression_cb that do not fit its page: shapes, dtypes, refusals, repetition."
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from amortlit.bandits.neural_regression_cb import ALGORITHMS, inverse_gap, perturbed_loss, perturbed_predictions, run_neural_cb

quick = settings(max_examples=30, deadline=None)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def task(K=3, d=4, n=60, dtype=torch.float32):
    X = torch.nn.functional.normalize(torch.randn(n, d, generator=generator(1)), dim=1).to(dtype)
    return X, (X @ torch.randn(d, K, generator=generator(2)).to(dtype)).argmax(1)


@quick
@given(B=st.integers(1, 5), K=st.integers(1, 8), gamma=st.floats(0, 1e8), kind=st.sampled_from(["square", "fast"]), dtype=st.sampled_from([torch.float32, torch.float64]), zeros=st.booleans(), seed=st.integers(0, 99))
def test_rules_are_probabilities_in_the_order_of_the_losses(B, K, gamma, kind, dtype, zeros, seed):
    losses = torch.rand(B, K, generator=generator(seed), dtype=dtype) * (torch.rand(B, K, generator=generator(seed + 1)) < 0.5 if zeros else 1)
    p = inverse_gap(losses, gamma, kind)
    assert p.shape == (B, K) and p.dtype == dtype and (p >= 0).all() and torch.allclose(p.sum(-1), torch.ones(B, dtype=dtype))
    rows = torch.arange(B)
    assert (p[rows, losses.argmin(-1)] >= p.amax(-1) - 1e-6).all()
    ordered = p.gather(-1, losses.sort(-1).indices)
    assert (ordered[:, 1:].diff(dim=-1) <= 1e-6).all()


def test_gamma_may_differ_between_rows():
    losses, gamma = torch.rand(4, 5, generator=generator()).double(), torch.tensor([0.0, 1.0, 10.0, 1e6]).double()
    for kind in ("square", "fast"):
        each = torch.stack([inverse_gap(row, g, kind) for row, g in zip(losses, gamma)])
        assert torch.allclose(inverse_gap(losses, gamma, kind), each)


def test_losses_a_rounding_error_outside_are_cut():
    p = inverse_gap(torch.tensor([-5e-7, 0.5, 1 + 5e-7]).double(), 10.0, "fast")
    assert torch.equal(p, torch.tensor([1.0, 0, 0]).double())


@quick
@given(S=st.integers(1, 6), B=st.integers(1, 5), p=st.integers(1, 9), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_predictions_are_shifted_by_one_number_a_copy(S, B, p, dtype):
    output, delta = torch.randn(B, generator=generator(), dtype=dtype), torch.randn(p, generator=generator(1), dtype=dtype)
    signs = torch.randint(2, (S, p), generator=generator(2), dtype=dtype) * 2 - 1
    pred = perturbed_predictions(output, delta, signs, 0.5, 16)
    assert pred.shape == (S, B) and pred.dtype == dtype
    assert torch.allclose(pred - output, (0.25 * signs @ delta)[:, None].expand(S, B), atol=1e-5)
    assert torch.equal(perturbed_predictions(output, delta, signs, 0.0, 16), output.expand(S, B))
    batched = perturbed_predictions(output.expand(2, B), delta.expand(2, p), signs.expand(2, S, p), 0.5, 16)
    assert torch.allclose(batched, pred.expand(2, S, B))


def test_losses_have_closed_forms():
    pred, y = torch.randn(7, 4, generator=generator()).double(), torch.rand(4, generator=generator(1)).double()
    assert torch.allclose(perturbed_loss(pred, y, "square"), ((y - pred) ** 2).mean() / 2)
    q = pred.sigmoid()
    assert torch.allclose(perturbed_loss(pred, y, "kl"), -(y * q.log() + (1 - y) * (1 - q).log()).mean())
    huge = torch.tensor([[50.0, -50.0, 500.0]]).double().requires_grad_()
    value = perturbed_loss(huge, torch.tensor([0.0, 1.0, 1.0]), "kl")
    value.backward()
    assert torch.allclose(value, torch.tensor(100 / 3).double()) and torch.allclose(huge.grad * 3, torch.tensor([[1.0, -1.0, 0.0]]).double())


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_dtypes_and_repetition(algorithm, dtype):
    X, y = task(dtype=dtype)
    a, b, c = (run_neural_cb(algorithm, X, y, 70, 3, generator(seed), width=8) for seed in (5, 5, 6))
    assert a.regret.shape == a.actions.shape == (3, 70) and a.regret.dtype == torch.float64 and a.actions.dtype == torch.int64
    assert torch.equal(a.actions, b.actions) and torch.equal(a.regret, b.regret) and not torch.equal(a.actions, c.actions)
    assert ((a.actions >= 0) & (a.actions < 3)).all() and (a.regret.diff(dim=1) >= 0).all() and (a.regret[:, -1] <= 70).all()


def test_every_row_is_played_once_a_pass():
    y = torch.arange(40)
    result = run_neural_cb("uniform", torch.eye(40), y, 80, 6, generator())
    again = run_neural_cb("uniform", torch.eye(40), y, 80, 6, generator())
    assert torch.equal(result.actions, again.actions)
    from amortlit.bandits.neural_regression_cb import _orders
    order = _orders(40, 80, 6, generator(), "cpu")
    assert all((part.sort(1).values == torch.arange(40)).all() for part in order.split(40, 1)) and not torch.equal(order[0], order[1])


def test_a_hyperparameter_may_differ_between_replications():
    X, y = task()
    low, high = 0.0, 1.0
    mixed = run_neural_cb("epsgreedy", X, y, 300, 2, generator(3), width=8, lr=0.2, epsilon=torch.tensor([low, high])).regret[:, -1]
    assert mixed[0] < 120 < 160 < mixed[1]


@pytest.mark.parametrize("algorithm", ALGORITHMS[:-1])
def test_learning_beats_uniform_play(algorithm):
    X, y = task(n=300)
    regret = run_neural_cb(algorithm, X, y, 400, 4, generator(), width=16, lr=0.2, c_p=0.01).regret
    assert regret[:, -1].mean() < 160 and (regret[:, -1] - regret[:, 299]).mean() < (regret[:, 99]).mean()


def test_the_gradient_step_stays_in_the_ball():
    "With a tiny radius the network cannot move, and the perturbation cannot matter."
    X, y = task()
    runs = [run_neural_cb("neusquare", X, y, 60, 2, generator(1), width=8, radius=1e-9, c_p=c_p, copies=1).regret for c_p in (0.01, 0.5)]
    assert torch.equal(*runs)


X, Y = task()
P, S = torch.zeros(3), torch.ones(2, 3)


@pytest.mark.parametrize("call", [
    lambda: inverse_gap(torch.tensor([0.1, 1.01]), 1.0), lambda: inverse_gap(torch.tensor([-0.01, 1.0]), 1.0), lambda: inverse_gap(torch.tensor([math.nan, 1.0]), 1.0), lambda: inverse_gap(torch.zeros(2, 0), 1.0),
    lambda: inverse_gap(P, -0.1), lambda: inverse_gap(P + 0.5, -0.1, "fast"), lambda: inverse_gap(P, -0.1, "fast"), lambda: inverse_gap(P + 0.5, math.nan), lambda: inverse_gap(P, 1.0, "kl"),
    lambda: perturbed_predictions(P, P, S[:, :2], 1.0, 4), lambda: perturbed_predictions(P, P, S, -1.0, 4), lambda: perturbed_predictions(P, P, S, 1.0, 0), lambda: perturbed_predictions(P * math.nan, P, S, 1.0, 4), lambda: perturbed_predictions(P, P * math.nan, S, 1.0, 4), lambda: perturbed_predictions(P[:0], P, S, 1.0, 4), lambda: perturbed_predictions(P, P, P, 1.0, 4),
    lambda: perturbed_loss(S, P, "hinge"), lambda: perturbed_loss(S, P[:2], "square"), lambda: perturbed_loss(S, P + 2, "kl"), lambda: perturbed_loss(S * math.nan, P, "kl"), lambda: perturbed_loss(S[:0], P, "kl"), lambda: perturbed_loss(P, P, "kl"),
    lambda: run_neural_cb("linucb", X, Y, 5, 1), lambda: run_neural_cb("neufast", X, Y - 1, 5, 1), lambda: run_neural_cb("neufast", X, Y + 1, 5, 1), lambda: run_neural_cb("neufast", X, Y * 2, 5, 1), lambda: run_neural_cb("neufast", X, Y + 0.5, 5, 1),
    lambda: run_neural_cb("neufast", X * math.nan, Y, 5, 1), lambda: run_neural_cb("neufast", X[0], Y, 5, 1), lambda: run_neural_cb("neufast", X[:-1], Y, 5, 1), lambda: run_neural_cb("neufast", X[:0], Y[:0], 5, 1), lambda: run_neural_cb("neufast", X.long(), Y, 5, 1),
    lambda: run_neural_cb("neufast", X, Y, 0, 1), lambda: run_neural_cb("neufast", X, Y, 5, 0), lambda: run_neural_cb("neufast", X, Y, 5, 1, depth=3), lambda: run_neural_cb("neufast", X, Y, 5, 1, width=0), lambda: run_neural_cb("neufast", X, Y, 5, 1, copies=0),
    lambda: run_neural_cb("neufast", X, Y, 5, 1, c_p=-1.0), lambda: run_neural_cb("neufast", X, Y, 5, 1, lr=math.nan), lambda: run_neural_cb("neufast", X, Y, 5, 1, gamma0=-1.0), lambda: run_neural_cb("neufast", X, Y, 5, 2, lr=torch.ones(3)), lambda: run_neural_cb("neufast", X, Y, 5, 1, radius=0.0), lambda: run_neural_cb("epsgreedy", X, Y, 5, 1, epsilon=1.5), lambda: run_neural_cb("neuralucb", X, Y, 5, 1, ridge=0.0)])
def test_bad_input_is_refused(call):
    with pytest.raises(ValueError): call()
