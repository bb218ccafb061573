"""Properties of amortlit.samplers.fl_gfn beyond its page."""
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from amortlit.samplers.fl_gfn import KINDS, SetGFN, balance_residuals, set_log_partition, train_set_gfn

quick = settings(max_examples=25, deadline=None)
sizes = st.integers(1, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n)))


def stream(seed=0): return torch.Generator().manual_seed(seed)


@quick
@given(sizes, st.integers(0, 1000))
def test_partition_equals_brute_force(size, seed):
    n, k = size
    energies = torch.randn(n, generator=stream(seed), dtype=torch.float64)
    brute = torch.logsumexp(torch.stack([-energies[list(s)].sum() for s in itertools.combinations(range(n), k)]), 0)
    assert torch.isclose(set_log_partition(energies, k), brute, atol=1e-10)


@quick
@given(sizes, st.sampled_from([torch.float32, torch.float64]))
def test_partition_keeps_the_dtype_and_its_gradient_sums_to_k(size, dtype):
    n, k = size
    energies = torch.linspace(-1, 1, n, dtype=dtype, requires_grad=True)
    value = set_log_partition(energies, k)
    (gradient,) = torch.autograd.grad(value, energies)
    assert value.dtype == dtype and value.shape == () and math.isclose(-gradient.sum().item(), k, abs_tol=1e-4)


@pytest.mark.parametrize("energies, k", [
    (torch.zeros(0), 1), (torch.zeros(3), 0), (torch.zeros(3), 4), (torch.zeros(2, 2), 1), (torch.tensor([float("nan")]), 1),
    (torch.tensor([float("inf"), 0.0]), 1), (torch.zeros(3), 1.5), (torch.zeros(3, dtype=torch.long), 1)])
def test_partition_refuses(energies, k):
    with pytest.raises(ValueError): set_log_partition(energies, k)


@quick
@given(sizes, st.integers(1, 4), st.floats(0, 1))
def test_trajectories_have_the_promised_shapes(size, n_traj, explore):
    n, k = size
    model = SetGFN(n, k, hidden=8)
    states, actions = model.sample(n_traj, explore=explore, generator=stream())
    assert states.shape == (n_traj, k + 1, n) and actions.shape == (n_traj, k) and actions.dtype == torch.long
    assert torch.equal(states.sum(-1), torch.arange(k + 1.0).expand(n_traj, -1))
    again, _ = model.sample(n_traj, explore=explore, generator=stream())
    assert torch.equal(states, again)


@quick
@given(sizes.filter(lambda s: s[1] >= 2), st.sampled_from(KINDS), st.sampled_from([torch.float32, torch.float64]))
def test_residuals_have_the_promised_shapes(size, kind, dtype):
    n, k = size
    model = SetGFN(n, k, hidden=8).to(dtype)
    states, actions = model.sample(3, generator=stream())
    residuals = balance_residuals(model, states, actions, torch.zeros(n, dtype=dtype), kind=kind)
    expected = {"db": (3, k), "fl_db": (3, k), "tb": (3,)}.get(kind, (3, k * (k + 1) // 2))
    assert residuals.shape == expected and residuals.dtype == dtype and torch.isfinite(residuals).all()


def test_trajectory_balance_uses_the_given_log_z():
    model = SetGFN(5, 3, hidden=8)
    states, actions = model.sample(4, generator=stream())
    a, b = (balance_residuals(model, states, actions, torch.zeros(5), kind="tb", log_z=torch.tensor(z)) for z in (0.0, 2.0))
    assert torch.allclose(b - a, torch.full((4,), 2.0))


@pytest.mark.parametrize("kind", ["db", "tb", "subtb"])
def test_incomplete_trajectories_need_a_forward_looking_kind(kind):
    model = SetGFN(6, 4, hidden=8)
    states, actions = model.sample(2, length=2, generator=stream())
    with pytest.raises(ValueError, match="finished trajectories"): balance_residuals(model, states, actions, torch.zeros(6), kind=kind)
    with pytest.raises(ValueError, match="finished trajectories"): train_set_gfn(torch.zeros(6), 4, kind=kind, steps=1, length=2)
    assert balance_residuals(model, states, actions, torch.zeros(6), kind="fl_" + kind if kind != "tb" else "fl_db").isfinite().all()


@pytest.mark.parametrize("call", [
    lambda m, s, a: balance_residuals(m, s, a, torch.zeros(5), kind="nonsense"),
    lambda m, s, a: balance_residuals(m, s, a, torch.zeros(4), kind="db"),
    lambda m, s, a: balance_residuals(m, s[:, :-1], a, torch.zeros(5), kind="db"),
    lambda m, s, a: balance_residuals(m, s, a, torch.full((5,), math.nan), kind="db"),
    lambda m, s, a: m.sample(0), lambda m, s, a: m.sample(1, explore=2.0), lambda m, s, a: m.sample(1, length=9),
    lambda m, s, a: m(torch.zeros(4)), lambda m, s, a: SetGFN(3, 4), lambda m, s, a: SetGFN(3, 0),
    lambda m, s, a: train_set_gfn(torch.zeros(5), 3, steps=0), lambda m, s, a: train_set_gfn(torch.zeros(5), 6),
    lambda m, s, a: train_set_gfn(torch.zeros(5), 3, kind="fm"), lambda m, s, a: train_set_gfn(torch.zeros(5), 3, explore=-1.0)])
def test_bad_input_is_refused(call):
    model = SetGFN(5, 3, hidden=8)
    with pytest.raises(ValueError): call(model, *model.sample(2, generator=stream()))


def test_training_is_reproducible_and_calls_back():
    seen = []
    def train(seed): return train_set_gfn(torch.zeros(5), 3, steps=2, generator=stream(seed), callback=lambda step, model: seen.append((step, model.k)))
    a, b, c = (torch.nn.utils.parameters_to_vector(train(seed).parameters()) for seed in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c) and seen[:2] == [(1, 3), (2, 3)]


def test_a_uniform_backward_policy_is_uniform():
    _, log_pb, _ = SetGFN(6, 4, hidden=8, uniform_backward=True)(torch.tensor([1.0, 1, 0, 0, 1, 0]))
    assert torch.allclose(log_pb.exp(), torch.tensor([1 / 3, 1 / 3, 0, 0, 1 / 3, 0]))
