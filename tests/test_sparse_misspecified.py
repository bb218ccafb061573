"Properties of amortlit.bandits.sparse_misspecified that do not fit its page: shapes, guarantees, refusals, repetition."
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from amortlit.bandits.sparse_misspecified import Elimination, design_least_squares, needle_actions, net_elimination, sparse_net, worst_misspecification

quick = settings(max_examples=20, deadline=None)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def unit(k, d, seed=0):
    return torch.nn.functional.normalize(torch.randn(k, d, dtype=torch.float64, generator=generator(seed)), dim=1)


@quick
@given(d=st.integers(1, 6), s=st.integers(1, 3), step=st.floats(0.15, 3))
def test_the_net_has_its_size_and_covers_the_cube(d, s, step):
    s = min(s, d)
    net = sparse_net(d, s, step)
    assert net.shape == (math.comb(d, s) * (math.floor(2 / step + 1e-9) + 1) ** s, d) and net.dtype == torch.float64
    assert (net != 0).sum(1).max() <= s and net.abs().max() <= 1 + 1e-9
    theta = torch.zeros(50, d, dtype=torch.float64)
    theta[:, :s] = 2 * torch.rand(50, s, dtype=torch.float64, generator=generator(d)) - 1
    theta[0, :s] = 1
    assert torch.cdist(theta, net, p=math.inf).amin(1).max() <= step / 2 + 1e-8


def test_a_step_that_divides_two_has_the_corners():
    assert sparse_net(1, 1, 0.5)[:, 0].tolist() == [-1, -0.5, 0, 0.5, 1]
    assert len(sparse_net(3, 3, 2.0)) == 8


@quick
@given(seed=st.integers(0, 10**6), d=st.integers(2, 5), eps=st.floats(0.06, 0.3))
def test_elimination_keeps_its_guarantee(seed, d, eps):
    actions, s = unit(25, d, seed), min(2, d)
    theta = torch.zeros(d, dtype=torch.float64)
    theta[:s] = unit(1, s, seed + 1)[0]
    rewards = actions @ theta + worst_misspecification(actions, seed % 25, eps)
    asked, net = [], sparse_net(d, s, 2 * eps / s**0.5)
    def query(i):
        assert isinstance(i, int)
        asked.append(i)
        return rewards[i].item()
    result = net_elimination(actions, query, net, eps)
    assert isinstance(result, Elimination) and all(x.dtype == torch.int64 and x.shape == () for x in result)
    assert rewards.max() - rewards[result.action] <= 10 * eps + 1e-9
    assert result.queries == len(asked) < len(net) and 1 <= result.alive <= len(net)
    again = net_elimination(actions, query, net, eps)
    assert tuple(map(int, again)) == tuple(map(int, result))


def test_elimination_in_single_precision_and_on_the_net():
    actions, net = unit(30, 4).float(), sparse_net(4, 2, 0.02)
    theta = net[5000]
    result = net_elimination(actions, lambda i: float(actions[i].double() @ theta), net, 1e-3)
    assert result.action == (actions.double() @ theta).argmax()


def test_elimination_accepts_a_dense_net_and_one_point():
    actions = unit(20, 7)
    result = net_elimination(actions, lambda i: actions[i] @ actions[3], actions, 0.01)
    assert result.action == 3 and result.alive == 1
    assert net_elimination(actions, lambda i: 0.0, actions[:1] * 0, 0.1).queries == 0


@quick
@given(seed=st.integers(0, 10**6), d=st.integers(1, 6), k=st.integers(6, 60))
def test_design_least_squares_is_exact_and_asks_little(seed, d, k):
    actions, theta = unit(k, d, seed), unit(1, d, seed + 1)[0]
    lengths = actions * torch.linspace(0.2, 1, k, dtype=torch.float64)[:, None]
    for a in (actions, lengths):
        estimate, queries = design_least_squares(a, lambda i, a=a: a[i] @ theta)
        assert torch.allclose(estimate, theta, atol=1e-7) and estimate.dtype == torch.float64
        assert d <= queries <= d * (d + 1) // 2 and queries.dtype == torch.int64


@quick
@given(seed=st.integers(0, 10**6), d=st.integers(1, 6), eps=st.floats(0, 1))
def test_the_worst_signs_hurt_most(seed, d, eps):
    actions = unit(40, d, seed)
    m = worst_misspecification(actions, 7, eps)
    assert m.shape == (40,) and m.dtype == torch.float64 and torch.allclose(m.abs(), torch.full_like(m, eps))
    at = lambda y: (actions[7] @ design_least_squares(actions, lambda i: y[i])[0]).item()
    random = eps * torch.randn(5, 40, generator=generator(seed)).sign().double()
    assert max(at(y) for y in random) <= at(m) + 1e-9 <= eps * (1.01 * d) ** 0.5 + 2e-9


def test_support_restricts_the_features():
    actions = unit(40, 6)
    theta = torch.zeros(6, dtype=torch.float64)
    theta[[1, 4]] = torch.tensor([0.5, -0.7], dtype=torch.float64)
    estimate, queries = design_least_squares(actions, lambda i: actions[i] @ theta, torch.tensor([4, 1]))
    assert torch.allclose(estimate, theta) and queries <= 3


@quick
@given(k=st.integers(1, 12), s=st.integers(12, 40), eps=st.floats(0.35, 1), seed=st.integers(0, 100))
def test_needles_are_nearly_orthogonal(k, s, eps, seed):
    a = needle_actions(k, s, eps, generator(seed))
    assert a.shape == (k, s) and a.dtype == torch.float64 and torch.equal(a, needle_actions(k, s, eps, generator(seed)))
    gram = a @ a.T
    assert np.allclose(gram.diagonal(), 1) and (gram - gram.diagonal().diag()).abs().max() <= eps + 1e-12
    assert len(a.unique(dim=0)) == k


def test_loose_coherence_does_not_repeat_a_vector():
    assert len(needle_actions(50, 16, 1.0, generator()).unique(dim=0)) == 50


ACTIONS, NET = torch.eye(3).double(), sparse_net(3, 1, 0.5)


@pytest.mark.parametrize("call", [
    lambda: sparse_net(3, 0, 0.5), lambda: sparse_net(3, 4, 0.5), lambda: sparse_net(3, 1, 0.0), lambda: sparse_net(3, 1, math.nan), lambda: sparse_net(3, 1, math.inf), lambda: sparse_net(64, 4, 0.1), lambda: sparse_net(3, 1, 0.5, max_size=14),
    lambda: net_elimination(ACTIONS[0], lambda i: 0.0, NET, 0.1), lambda: net_elimination(ACTIONS, lambda i: 0.0, NET[:, :2], 0.1), lambda: net_elimination(ACTIONS, lambda i: 0.0, NET[:0], 0.1), lambda: net_elimination(ACTIONS[:0], lambda i: 0.0, NET, 0.1),
    lambda: net_elimination(ACTIONS, lambda i: 0.0, NET, 0.0), lambda: net_elimination(ACTIONS, lambda i: 0.0, NET, math.nan), lambda: net_elimination(ACTIONS * math.nan, lambda i: 0.0, NET, 0.1), lambda: net_elimination(ACTIONS, lambda i: 0.0, NET * math.nan, 0.1),
    lambda: net_elimination(ACTIONS, lambda i: math.nan, NET, 0.1), lambda: net_elimination(ACTIONS, lambda i: 9.0, NET, 0.1), lambda: net_elimination(ACTIONS.long(), lambda i: 0.0, NET, 0.1),
    lambda: design_least_squares(ACTIONS[0], lambda i: 0.0), lambda: design_least_squares(ACTIONS * 0, lambda i: 0.0), lambda: design_least_squares(ACTIONS, lambda i: math.inf), lambda: design_least_squares(ACTIONS, lambda i: 0.0, torch.tensor([0, 0])),
    lambda: design_least_squares(ACTIONS, lambda i: 0.0, torch.tensor([3])), lambda: design_least_squares(ACTIONS, lambda i: 0.0, torch.tensor([-1])), lambda: design_least_squares(ACTIONS, lambda i: 0.0, torch.tensor([], dtype=torch.int64)),
    lambda: worst_misspecification(ACTIONS, 3, 0.1), lambda: worst_misspecification(ACTIONS, -1, 0.1), lambda: worst_misspecification(ACTIONS, 0, -0.1), lambda: worst_misspecification(ACTIONS * math.inf, 0, 0.1),
    lambda: needle_actions(0, 5, 0.3), lambda: needle_actions(3, 0, 0.3), lambda: needle_actions(3, 5, -0.1), lambda: needle_actions(3, 5, 1.1), lambda: needle_actions(1000, 4, 0.1, generator())])
def test_bad_input_is_refused(call):
    with pytest.raises(ValueError): call()


def test_the_message_names_how_many_were_found():
    with pytest.raises(ValueError, match=r"found only \d+ of 500"): needle_actions(500, 4, 0.1, generator())
