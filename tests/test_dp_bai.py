"Properties of amortlit.bandits.dp_bai that do not fit its page: shapes, schedules, budgets, refusals, repetition."
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from amortlit.bandits.dp_bai import _dp_bai, _od_linbai, dp_bai, hardness, max_det_collection, od_linbai, phase_schedule

quick = settings(max_examples=25, deadline=None)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def instance(K, d, seed=0):
    g = generator(seed)
    return torch.randn(K, d, generator=g), torch.rand(K, generator=g)


@quick
@given(K=st.integers(1, 300), d=st.integers(1, 25))
def test_a_schedule_falls_to_one(K, d):
    s = phase_schedule(K, d)
    assert s[0] == K and s[-1] == 1 and all(a >= b >= 1 for a, b in zip(s, s[1:])) and len(s) < 60


@quick
@given(K=st.integers(1, 30), d=st.integers(1, 6), R=st.integers(1, 5), T=st.integers(30, 3000), epsilon=st.sampled_from([None, 0.05, 2.0]))
def test_arms_are_named_within_the_budget(K, d, R, T, epsilon):
    arms, means = instance(K, d, K)
    for method, inner in ((dp_bai, _dp_bai), (od_linbai, _od_linbai)):
        named = method(arms, means, T, epsilon, R, generator(T))
        assert named.shape == (R,) and named.dtype == torch.int64 and ((named >= 0) & (named < K)).all()
        assert inner(arms.double(), means.double(), T, epsilon, R, generator(T))[1].max() <= T


@pytest.mark.parametrize("method", [dp_bai, od_linbai])
def test_runs_repeat(method):
    arms, means = instance(20, 3)
    a, b, c = (method(arms, means, 300, 0.1, 50, generator(s)) for s in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_more_privacy_finds_less():
    arms, means = torch.eye(6), torch.tensor([0.2, 0.3, 0.8, 0.4, 0.5, 0.1])
    rate = [(dp_bai(arms, means, 600, e, 400, generator()) == 2).double().mean() for e in (0.001, 0.1, None)]
    assert rate[0] < 0.4 < rate[1] <= rate[2] and rate[2] > 0.99


@quick
@given(K=st.integers(1, 40), d=st.integers(1, 6), seed=st.integers(0, 999))
def test_no_swap_enlarges_the_determinant(K, d, seed):
    if K < d: return
    arms = torch.randn(K, d, generator=generator(seed)).double()
    basis = max_det_collection(arms)
    assert basis.tolist() == sorted(set(basis.tolist())) and len(basis) == d
    assert torch.linalg.solve(arms[basis], arms, left=False).abs().max() <= 1 + 1e-8


def test_duplicated_and_zero_arms_do_no_harm():
    arms = torch.cat([torch.zeros(3, 4), torch.ones(5, 4), torch.eye(4)])
    means = torch.linspace(0, 1, 12)
    assert dp_bai(arms, means, 500, 0.5, 4, generator()).shape == od_linbai(arms, means, 500, 0.5, 4, generator()).shape == (4,)


def test_hardness_of_a_tie_is_infinite():
    assert all(math.isinf(h) for h in hardness(torch.tensor([0.5, 0.5, 0.1]), 1.0))
    a, b = hardness(torch.tensor([0.1, 0.9, 0.4]), 0.5)
    assert math.isclose(a, max(2 / 0.5**2, 3 / 0.8**2), rel_tol=1e-5) and math.isclose(b, 2 * max(2 / 0.5, 3 / 0.8), rel_tol=1e-5)


A, M = instance(8, 3)


@pytest.mark.parametrize("call", [
    lambda: dp_bai(A, M[:5], 100, 1.0), lambda: dp_bai(A, M + 1, 100, 1.0), lambda: dp_bai(A, M - 1, 100, 1.0), lambda: dp_bai(A, M * math.nan, 100, 1.0), lambda: dp_bai(A * math.nan, M, 100, 1.0),
    lambda: dp_bai(A, M, 7, 1.0), lambda: dp_bai(A, M, 100, 0.0), lambda: dp_bai(A, M, 100, -1.0), lambda: dp_bai(A, M, 100, math.inf), lambda: dp_bai(A, M, 100, 1.0, 0), lambda: dp_bai(A[0], M, 100, 1.0),
    lambda: od_linbai(A, M, 7), lambda: od_linbai(A, M, 100, 0.0), lambda: od_linbai(A, M + 1, 100),
    lambda: max_det_collection(A[:2]), lambda: max_det_collection(A[:, :1] * torch.ones(1, 3)), lambda: max_det_collection(A * math.inf), lambda: max_det_collection(A[0]),
    lambda: phase_schedule(0, 2), lambda: phase_schedule(3, 0), lambda: hardness(M, 0.0), lambda: hardness(M[:1], 1.0), lambda: hardness(M * math.nan, 1.0)])
def test_bad_input_is_refused(call):
    with pytest.raises(ValueError): call()
