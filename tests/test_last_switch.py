"Properties of amortlit.bandits.last_switch that do not fit its page: shapes, dtypes, refusals, brute force, agreement with a linear program."
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from amortlit.bandits.last_switch import (
    LSDRelaxation,
    _chain,
    _draw,
    _instances,
    _mirror,
    _optimal,
    _play,
    _relax,
    _step,
    _time_shares,
    cycle_rewards,
    interleave,
    lsd_relaxation,
    monotone_instance,
    optimal_average,
)

quick = settings(max_examples=30, deadline=None)
dtypes = st.sampled_from([torch.float32, torch.float64])
sizes = dict(N=st.integers(1, 6), P=st.integers(1, 4), D=st.integers(1, 5), seed=st.integers(0, 99))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def instance(N, P, D, seed=0, dtype=torch.float64):
    return tuple(table.to(dtype) for table in monotone_instance(N, P, D, generator(seed)))


def state_after(tau, played, P, D):
    "The model's own words: tau > 0 rounds of play, tau < 0 rounds of rest."
    return (min(tau + 1, P) if tau > 0 else 1) if played else (max(tau - 1, -D) if tau < 0 else -1)


def payoff(play, idle, i, tau):
    return (play[i, tau - 1] if tau > 0 else idle[i, -tau - 1]).item()


@quick
@given(**sizes)
def test_instances_are_monotone(N, P, D, seed):
    play, idle = instance(N, P, D, seed)
    assert play.shape == (N, P) and idle.shape == (N, D) and play.dtype == idle.dtype == torch.float64
    chain = _chain(play, idle)
    assert (chain.diff(dim=1) >= 0).all() and chain.min() >= 0 and chain.max() <= 1
    assert all(torch.equal(a, b) for a, b in zip((play, idle), instance(N, P, D, seed)))


@quick
@given(P=st.integers(1, 5), D=st.integers(1, 5))
def test_step_is_the_models(P, D):
    taus = [*range(P, 0, -1), *range(-1, -D - 1, -1)]
    for played in (True, False):
        after = _step(torch.arange(P + D), torch.full((P + D,), played), P, P + D)
        assert [taus[j] for j in after.tolist()] == [state_after(tau, played, P, D) for tau in taus]


@quick
@given(**sizes, dtype=dtypes)
def test_cycle_rewards_are_those_of_a_played_cycle(N, P, D, seed, dtype):
    play, idle = instance(N, P, D, seed, dtype)
    g = cycle_rewards(play, idle)
    assert g.shape == (N, P, D) and g.dtype == torch.float64
    for i, p, q in itertools.product(range(N), range(1, P + 1), range(1, D + 1)):
        tau, total = -q, 0.0
        for _ in range(p):
            total += payoff(play, idle, i, tau)
            tau = state_after(tau, True, P, D)
        assert abs(total - g[i, p - 1, q - 1].item()) < 1e-6


@quick
@given(**sizes, k=st.integers(1, 7), dtype=dtypes, monotone=st.booleans())
def test_relaxation_is_the_linear_program(N, P, D, seed, k, dtype, monotone):
    play, idle = instance(N, P, D, seed, dtype)
    if not monotone: play, idle = play.flip(1), idle - 0.3
    plan = lsd_relaxation(play, idle, k, strict=monotone)
    assert isinstance(plan, LSDRelaxation) and plan.value.shape == () and plan.cycles.shape == (N, P, D) and plan.always_on.shape == (N,)
    assert plan.value.dtype == plan.cycles.dtype == plan.always_on.dtype == torch.float64
    p, q = np.arange(1, P + 1)[:, None], np.arange(1, D + 1)
    length, plays = np.r_[(p + q).ravel(), 1], np.r_[np.broadcast_to(p, (P, D)).ravel(), 1]
    reward = torch.cat([cycle_rewards(play, idle).flatten(1), play[:, -1:].double()], 1)
    rows = np.vstack([np.kron(np.eye(N), length[None]), np.tile(plays, N)[None]])
    best = linprog(-reward.numpy().ravel(), A_ub=rows, b_ub=np.r_[np.ones(N), k], method="highs")
    z = torch.cat([plan.cycles.flatten(1), plan.always_on[:, None]], 1)
    assert abs(plan.value + best.fun) < 1e-9 and abs((z * reward).sum() - plan.value) < 1e-12
    assert (z >= 0).all() and (rows @ z.numpy().ravel() <= np.r_[np.ones(N), k] + 1e-9).all()
    assert ((z > 0).sum(1) > 1).sum() <= 1 and ((z > 0).sum(1) <= 2).all()


def test_ties_are_no_trouble():
    for N, k in itertools.product((1, 2, 5, 9), (1, 2, 3)):
        same = lsd_relaxation(torch.full((N, 2), 0.5), torch.full((N, 3), 0.5), k)
        assert math.isclose(same.value.item(), 0.5 * min(k, N), abs_tol=1e-12)
        nothing = lsd_relaxation(torch.zeros(N, 2), torch.zeros(N, 3), k)
        assert nothing.value == 0
        ready = lsd_relaxation(torch.zeros(N, 1), torch.ones(N, 3), k)
        assert math.isclose(ready.value.item(), min(k, N / 2), abs_tol=1e-12)


def test_batched_relaxations_are_single_ones():
    play, idle = _instances(7, 6, 3, 4, generator(3))
    many = _relax(play, idle, 2)
    for b in range(7):
        for one, all_ in zip(lsd_relaxation(play[b], idle[b], 2), many): assert torch.equal(one, all_[b])


@quick
@given(**sizes, k=st.integers(1, 3), T=st.integers(1, 20), R=st.integers(1, 3), dtype=dtypes)
def test_interleaving_round_by_round(N, P, D, seed, k, T, R, dtype):
    play, idle = instance(N, P, D, seed, dtype)
    plan = lsd_relaxation(play, idle, k)
    collected = interleave(play, idle, plan, T, R, k, generator(seed))
    assert collected.shape == (R, T) and collected.dtype == torch.float64
    assert torch.equal(collected, interleave(play, idle, plan, T, R, k, generator(seed)))
    copies = _draw(_time_shares(plan).expand(R, N, -1), P, D, generator(seed))
    for r in range(R):
        plays, rests, start = (part[r].tolist() for part in copies)
        tau, expected = [-D] * N, []
        virtual = [None] * N
        for i in range(N):
            if plays[i] == 0: virtual[i] = -D
            elif rests[i] == 0: virtual[i] = P
            else:
                virtual[i] = -rests[i]
                for s in range(start[i]): virtual[i] = state_after(virtual[i], s < plays[i], P, D)
        for t in range(T):
            request = [plays[i] > 0 and (start[i] + t) % (plays[i] + rests[i]) < plays[i] for i in range(N)]
            ranked = sorted((i for i in range(N) if request[i]), key=lambda i: (-payoff(play, idle, i, virtual[i]), i))[:k]
            expected.append(sum(payoff(play, idle, i, tau[i]) for i in ranked))
            tau = [state_after(tau[i], i in ranked, P, D) for i in range(N)]
            virtual = [state_after(virtual[i], request[i], P, D) for i in range(N)]
        assert torch.allclose(collected[r], torch.tensor(expected).double(), atol=1e-6)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_real_is_never_behind_virtual(k):
    play, idle = instance(6, 4, 5, k)
    chain, plan, trace = _chain(play, idle).expand(500, 6, 9), lsd_relaxation(play, idle, k), []
    rule = _mirror(chain, 4, k, lambda: _draw(_time_shares(plan).expand(500, 6, -1), 4, 5, generator(k)), trace=trace)
    _play(chain, 4, 60, rule)
    for real, virtual, request, played in trace:
        assert (real >= virtual).all() and (played <= request).all() and torch.equal(played.sum(1), request.sum(1).clamp_max(k))
        assert (chain.gather(-1, real[..., None]) >= chain.gather(-1, virtual[..., None])).all()


def test_the_promise_for_several_plays():
    for k in (1, 2, 4):
        play, idle = instance(10, 3, 4, k)
        plan = lsd_relaxation(play, idle, k)
        ratio = interleave(play, idle, plan, 120, 400, k, generator(k))[:, 60:].mean() / plan.value
        assert 1 - k**k * math.exp(-k) / math.factorial(k) - 0.01 <= ratio <= 1.001


def test_redrawing_with_the_same_numbers_starts_again():
    play, idle = instance(4, 3, 3, 2)
    chain, shares = _chain(play, idle).expand(20, 4, 6), _time_shares(lsd_relaxation(play, idle)).expand(20, 4, -1)
    traces = {redraw: [] for redraw in (None, 10)}
    for redraw, trace in traces.items(): _play(chain, 3, 20, _mirror(chain, 3, 1, lambda: _draw(shares, 3, 3, generator(1)), redraw, trace=trace))
    again = traces[10]
    assert all(torch.equal(again[t + 10][2], again[t][2]) and torch.equal(traces[None][t][2], again[t][2]) for t in range(10))


def brute_force(play, idle, k, T=400):
    "Best total of T rounds from the start by dynamic programming, over T."
    N, P, D = len(play), play.shape[1], idle.shape[1]
    taus = [*range(1, P + 1), *range(-D, 0)]
    value = dict.fromkeys(itertools.product(taus, repeat=N), 0.0)
    sets = [set(c) for j in range(min(k, N) + 1) for c in itertools.combinations(range(N), j)]
    for _ in range(T):
        value = {s: max(sum(payoff(play, idle, i, s[i]) for i in a) + value[tuple(state_after(s[i], i in a, P, D) for i in range(N))] for a in sets) for s in value}
    return value[(-D,) * N] / T


@pytest.mark.parametrize("N, P, D, k", [(1, 2, 3, 1), (2, 2, 2, 1), (2, 1, 3, 2), (3, 1, 2, 1), (3, 1, 2, 2), (2, 2, 2, 5)])
def test_optimum_by_brute_force(N, P, D, k):
    play, idle = instance(N, P, D, 7)
    best = optimal_average(play, idle, k)
    assert best.shape == () and best.dtype == torch.float64
    assert abs(best.item() - brute_force(play, idle, k)) < 0.02 and best <= lsd_relaxation(play, idle, k).value + 1e-9


def test_optimum_is_below_the_relaxation_also_without_order():
    play, idle = _instances(50, 2, 3, 3, generator(1))
    for tables in ((play, idle), (play.flip(-1), idle.flip(-1))):
        best = _optimal(_chain(*tables), 3, 1, 1e-9)
        assert (best <= _relax(*tables).value + 1e-9).all()
        for b in range(3): assert abs(optimal_average(tables[0][b], tables[1][b]) - best[b]) < 1e-8


def test_known_optima():
    assert math.isclose(optimal_average(torch.zeros(2, 2), torch.ones(2, 3)).item(), 1, abs_tol=1e-9)
    assert math.isclose(optimal_average(torch.zeros(2, 2), torch.ones(2, 3), k=2).item(), 1, abs_tol=1e-9)
    assert math.isclose(optimal_average(torch.tensor([[0.75]]), torch.tensor([[1.0]])).item(), 0.75, abs_tol=1e-9)
    wait = torch.tensor([[0.0, 0.0, 1.0]])
    assert math.isclose(optimal_average(torch.zeros(1, 1), wait).item(), 0.25, abs_tol=1e-9)


PLAY, IDLE = monotone_instance(3, 2, 3, generator())
PLAN = lsd_relaxation(PLAY, IDLE)
BAD_TABLES = [(PLAY[0], IDLE), (PLAY, IDLE[None]), (PLAY[:2], IDLE), (PLAY[:0], IDLE[:0]), (PLAY[:, :0], IDLE), (PLAY, IDLE[:, :0]), (PLAY * math.nan, IDLE), (PLAY, IDLE / 0), ("tables", IDLE), (PLAY, IDLE.numpy())]
OUT_OF_ORDER = [(PLAY.flip(1), IDLE), (PLAY, IDLE.flip(1)), (PLAY + 1, IDLE), (PLAY, IDLE - torch.tensor([0.0, 0.0, 1.0]))]
REFUSED = [
    *[lambda f=f, bad=bad: f(*bad) for bad in BAD_TABLES for f in (cycle_rewards, lsd_relaxation, optimal_average, lambda a, b: lsd_relaxation(a, b, strict=False), lambda a, b: interleave(a, b, PLAN, 3, 1))],
    *[lambda bad=bad: lsd_relaxation(*bad) for bad in OUT_OF_ORDER],
    *[lambda f=f, k=k: f(k) for k in (0, -1, 1.5, True) for f in (lambda k: lsd_relaxation(PLAY, IDLE, k), lambda k: optimal_average(PLAY, IDLE, k), lambda k: interleave(PLAY, IDLE, PLAN, 3, 1, k))],
    lambda: interleave(PLAY, IDLE, PLAN, 0, 1), lambda: interleave(PLAY, IDLE, PLAN, 3, 0),
    lambda: interleave(PLAY, IDLE, PLAN._replace(cycles=PLAN.cycles[:, :1]), 3, 1), lambda: interleave(PLAY, IDLE, PLAN._replace(always_on=PLAN.always_on[:2]), 3, 1),
    lambda: interleave(PLAY, IDLE, PLAN._replace(cycles=-1 - PLAN.cycles), 3, 1), lambda: interleave(PLAY, IDLE, PLAN._replace(cycles=PLAN.cycles + 1), 3, 1),
    lambda: interleave(PLAY, IDLE, PLAN._replace(cycles=PLAN.cycles * math.nan), 3, 1),
    lambda: optimal_average(*monotone_instance(7, 3, 3)), lambda: optimal_average(PLAY, IDLE, tol=0), lambda: optimal_average(PLAY, IDLE, tol=math.nan),
    *[lambda shape=shape: monotone_instance(*shape) for shape in ((0, 1, 1), (1, 0, 1), (1, 1, 0), (1.5, 1, 1))],
]


@pytest.mark.parametrize("call", REFUSED)
def test_bad_input_is_refused_at_the_door(call):
    with pytest.raises(ValueError): call()


def test_order_is_checked_with_a_tolerance_and_only_if_asked():
    lsd_relaxation(PLAY, IDLE - torch.tensor([0.0, 0.0, 1e-10]))
    for bad in OUT_OF_ORDER: lsd_relaxation(*bad, strict=False)
