"Properties of amortlit.bandits.recovering that do not fit its page: shapes, dtypes, refusals, brute force, agreement with a linear program."
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from amortlit.bandits.recovering import (
    PeriodicPlan,
    _bits_backwards,
    _corners,
    _family,
    _learn,
    _offsets,
    _phase,
    _plan,
    _play,
    _pulls_needed,
    _queue,
    greedy_rewards,
    learn_periodic,
    periodic_plan,
    rate_frontier,
    relaxation_bound,
)

quick = settings(max_examples=30, deadline=None)
dtypes = st.sampled_from([torch.float32, torch.float64])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def table(N, D, seed=0, dtype=torch.float64, power=4):
    steps = torch.rand(N, D, generator=generator(seed), dtype=torch.float64) ** power
    return (steps.cumsum(1) * torch.rand(N, 1, generator=generator(seed + 1), dtype=torch.float64)).to(dtype)


def schedule(plan, T):
    "Round by round, as the plan's own words say."
    return torch.tensor([[p > 0 and t >= o and (t - o) % p == 0 for p, o in zip(plan.periods.tolist(), plan.offsets.tolist())] for t in range(T)])


@quick
@given(N=st.integers(1, 6), D=st.integers(1, 8), M=st.integers(0, 5), dtype=dtypes, seed=st.integers(0, 99))
def test_frontier_is_the_concave_envelope(N, D, M, dtype, seed):
    rewards, rates = table(N, D, seed, dtype), torch.rand(N, M, generator=generator(seed))
    F = rate_frontier(rewards, rates)
    assert F.shape == (N, M) and F.dtype == torch.float64
    d = np.arange(1, D + 1)
    for i, m in itertools.product(range(N), range(M)):
        best = -linprog(-rewards[i].double().numpy(), A_ub=np.stack([d, np.ones(D)]), b_ub=[1, rates[i, m].item()], method="highs").fun
        assert abs(F[i, m] - best) < 1e-8


@quick
@given(N=st.integers(1, 12), D=st.integers(1, 12), seed=st.integers(0, 99), data=st.data(), dtype=dtypes)
def test_bound_is_the_linear_program(N, D, seed, data, dtype):
    K, rewards = data.draw(st.integers(1, N)), table(N, D, seed, dtype)
    value, rates = relaxation_bound(rewards, K)
    assert value.shape == () and rates.shape == (N,) and value.dtype == rates.dtype == torch.float64
    rows = np.vstack([np.kron(np.eye(N), np.arange(1, D + 1)[None]), np.ones((1, N * D))])
    assert abs(value + linprog(-rewards.double().numpy().ravel(), A_ub=rows, b_ub=np.r_[np.ones(N), K], method="highs").fun) < 1e-9
    assert rates.sum() <= K + 1e-12 and (rates >= 0).all() and (rates <= 1 + 1e-12).all()
    assert torch.isclose(rate_frontier(rewards, rates.clamp(0, 1)[:, None]).sum(), value)


@quick
@given(N=st.integers(1, 25), D=st.integers(1, 25), seed=st.integers(0, 99), data=st.data(), dtype=dtypes, power=st.sampled_from([0.5, 1, 6, 30]))
def test_plan_fits_and_keeps_its_promise(N, D, seed, data, dtype, power):
    K, a = data.draw(st.integers(1, N)), data.draw(st.sampled_from([None, 1, 2, 3, 5]))
    rewards = table(N, D, seed, dtype, power)
    plan = periodic_plan(rewards, K, a)
    assert isinstance(plan, PeriodicPlan) and plan.periods.dtype == plan.offsets.dtype == torch.int64 and plan.value.dtype == torch.float64 and plan.value.shape == ()
    assert plan.periods.shape == plan.offsets.shape == (N,) and (plan.offsets >= 0).all() and (plan.offsets < plan.periods.clamp_min(1)).all()
    assert schedule(plan, 300).sum(1).max() <= K
    earned = sum(rewards[i, min(p, D) - 1].item() / p for i, p in enumerate(plan.periods.tolist()) if p)
    bound = relaxation_bound(rewards, K)[0]
    assert abs(earned - plan.value) < 1e-9 and plan.value <= bound + 1e-9
    if a is None: assert plan.value >= bound * max([(1 - (b + 1) / K) * b / (b + 1) for b in range(1, K)], default=0) - 1e-12
    else:
        assert plan.value <= periodic_plan(rewards, K).value + 1e-12 or a > math.isqrt(4 * K) + 1
        assert plan.value >= bound * (1 - (a + 1) / K) * a / (a + 1) - 1e-12


@quick
@given(periods=st.lists(st.sampled_from([0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32]), min_size=1, max_size=30))
def test_any_timetable_is_as_crowded_as_it_says(periods):
    periods = torch.tensor(periods)
    offsets = _offsets(periods, 3)
    pulled = schedule(PeriodicPlan(periods, offsets, None), 480)
    assert pulled.sum(1).max() <= _pulls_needed(periods, 3)
    for o in (1, 3, 5):
        mine = torch.tensor([p > 0 and (p // (p & -p)) == o for p in periods.tolist()])
        channels = math.ceil((o / periods[mine]).double().sum().item() - 1e-6)
        assert pulled[:, mine].sum(1).max() <= math.ceil(channels / o)


@quick
@given(a=st.integers(1, 9), D=st.integers(1, 60))
def test_family_has_no_wide_gaps(a, D):
    family = _family(a, D).flip(0).tolist()
    assert family == sorted(set(family)) and set(range(1, 2 * a + 1)) <= set(family) and max(family) >= D
    assert all(later <= earlier * (a + 1) / a + 1e-9 for earlier, later in zip(family, family[1:]) if earlier >= a)


def plainly(rewards, K, a):
    "The search for one family as it is told: arm by arm, capacity by capacity."
    family = _family(a, rewards.shape[1])
    vertices, x, y = _corners(rewards, family)
    start, end, _ = _queue(x, y)
    stops = torch.cat([torch.zeros(1, dtype=torch.long), family])[vertices]
    for c in np.arange(K, 0, -0.25):
        lower = [sum(e <= c + 1e-9 for e in row) for row in end.tolist()]
        upper = [sum(b < c - 1e-9 for b in row) for row in start.tolist()]
        for reached in (upper, lower):
            periods = torch.tensor([stops[i, k] for i, k in enumerate(reached)])
            if _pulls_needed(periods, a) <= K: return periods
    return torch.zeros(len(rewards), dtype=torch.long)


@pytest.mark.parametrize("seed", range(12))
def test_plan_is_the_search_as_it_is_told(seed):
    rewards, K = table(14, 9, seed, power=2), 1 + seed % 4
    for a in (1, 2, 3): assert torch.equal(periodic_plan(rewards, K, a).periods, plainly(rewards, K, a))


def test_bits_backwards():
    assert _bits_backwards(torch.tensor([1, 3, 6, 0]), torch.tensor([2, 8, 8, 1])).tolist() == [1, 6, 3, 0]


def test_one_arm_by_hand():
    plan = periodic_plan(torch.tensor([[0.2, 1.0, 1.0]]), 1)
    assert plan.periods.tolist() == [2] and plan.value == 0.5
    assert torch.equal(rate_frontier(torch.tensor([[0.2, 1.0, 1.0]]), torch.tensor([[0.5, 0.25, 1.0]])), torch.tensor([[0.5, 0.25, 0.5]]).double())


def test_worthless_arms():
    plan = periodic_plan(torch.zeros(4, 3), 2)
    assert plan.value == 0 and plan.periods.tolist() == [0] * 4 and relaxation_bound(torch.zeros(4, 3), 2)[0] == 0


def test_batched_plans_are_single_plans():
    many = torch.stack([table(9, 12, seed) for seed in range(6)])
    together = _plan(many, 3)
    for i in range(6):
        one = periodic_plan(many[i], 3)
        assert torch.equal(one.periods, together.periods[i]) and torch.equal(one.offsets, together.offsets[i]) and one.value == together.value[i]


@quick
@given(N=st.integers(1, 7), D=st.integers(1, 6), T=st.integers(1, 25), seed=st.integers(0, 99), data=st.data(), dtype=dtypes)
def test_greedy_by_hand(N, D, T, seed, data, dtype):
    K, rewards = data.draw(st.integers(1, N)), (4 * table(N, D, seed, power=1)).round().to(dtype)
    income, idle, expected = greedy_rewards(rewards, K, T), [D] * N, []
    for _ in range(T):
        now = [rewards[i, idle[i] - 1].item() for i in range(N)]
        chosen = sorted(range(N), key=lambda i: (-now[i], i))[:K]
        expected.append(sum(now[i] for i in chosen))
        idle = [1 if i in chosen else min(D, idle[i] + 1) for i in range(N)]
    assert income.shape == (T,) and income.dtype == torch.float64 and torch.allclose(income, torch.tensor(expected).double())


@settings(max_examples=10, deadline=None)
@given(N=st.integers(1, 5), D=st.integers(1, 6), T=st.integers(1, 90), R=st.integers(1, 3), phase=st.sampled_from([None, 1, 7]), dtype=dtypes, sigma=st.sampled_from([0.0, 0.1]))
def test_learning_shapes_and_repeats(N, D, T, R, phase, dtype, sigma):
    rewards = table(N, D, N, dtype)
    runs = [learn_periodic(rewards, 1, T, R, sigma, phase, generator(5)) for _ in range(2)]
    assert runs[0].shape == (R, T) and runs[0].dtype == torch.float64 and torch.equal(*runs)
    assert (runs[0] >= 0).all() and (runs[0] <= rewards.max() + 1e-9).all()


def test_phase_is_the_ceiling_of_the_root():
    assert [_phase(T, 1) for T in (1, 2, 4, 5, 9, 10)] == [1, 2, 2, 3, 3, 4] and _phase(10, 20) == 20


def test_without_noise_the_learner_ends_near_its_plan():
    rewards = table(5, 6, 3)
    income = learn_periodic(rewards, 2, 20_000, 1, 0.0, 60, generator())
    assert income[0, -600:].mean() >= 0.99 * periodic_plan(rewards, 2).value


def test_play_is_the_schedule_round_by_round():
    rewards = table(6, 7, 8)
    plans = [_plan(rewards[None], 2, a) for a in (1, 2, 3)]
    turn = iter(plans)
    income = _play(rewards[None], 150, 50, 0.0, lambda mean, count: next(turn), generator())[0]
    idle, expected = [7] * 6, []
    for t in range(150):
        plan = plans[t // 50]
        pulled = [i for i in range(6) if plan.periods[0, i] > 0 and t >= plan.offsets[0, i] and (t - plan.offsets[0, i]) % plan.periods[0, i] == 0]
        expected.append(sum(rewards[i, idle[i] - 1].item() for i in pulled))
        idle = [1 if i in pulled else min(7, idle[i] + 1) for i in range(6)]
    assert torch.allclose(income, torch.tensor(expected).double())


def test_means_and_counts_are_those_of_the_pulls():
    rewards, seen = table(4, 5, 2)[None], []
    plan = _plan(rewards, 2)
    _play(rewards, 120, 40, 0.0, lambda mean, count: (seen.append((mean, count)), plan)[1], generator())
    for mean, count in seen: assert torch.allclose(mean[count > 0], rewards[count > 0]) and (mean[count == 0] == 0).all()
    assert [count.sum().item() for _, count in seen] == [schedule(PeriodicPlan(*(x[0] for x in plan)), 40 * k).sum().item() if k else 0 for k in range(3)]


def test_replications_are_independent_and_own_instances_are_allowed():
    rewards = torch.stack([table(4, 5, 1), table(4, 5, 2)])
    both = _learn(rewards, 1, 100, 0.0, 20, generator())
    for i in range(2): assert torch.allclose(both[i], learn_periodic(rewards[i], 1, 100, 1, 0.0, 20, generator())[0])
    noisy = learn_periodic(rewards[0], 1, 400, 2, 0.5, None, generator())
    assert not torch.equal(noisy[0], noisy[1])


GOOD = table(4, 5)
BAD_TABLES = [GOOD[0], GOOD[None], GOOD[:0], GOOD[:, :0], GOOD.flip(1), -GOOD.flip(1), GOOD * math.nan, GOOD / 0, "rewards", GOOD.numpy(), GOOD - torch.tensor([0.0, 0.0, 0.0, 0.0, 5.0])]
REFUSED = [
    *[lambda f=f, bad=bad: f(bad) for bad in BAD_TABLES for f in (
        lambda r: rate_frontier(r, torch.zeros(4, 1)), lambda r: relaxation_bound(r, 1), lambda r: periodic_plan(r, 1), lambda r: greedy_rewards(r, 1, 3), lambda r: learn_periodic(r, 1, 3, 1))],
    *[lambda f=f, K=K: f(K) for K in (0, -1, 5, 1.5) for f in (
        lambda K: relaxation_bound(GOOD, K), lambda K: periodic_plan(GOOD, K), lambda K: greedy_rewards(GOOD, K, 3), lambda K: learn_periodic(GOOD, K, 3, 1))],
    *[lambda rates=rates: rate_frontier(GOOD, rates) for rates in (torch.full((4, 1), 1.1), torch.full((4, 1), -0.1), torch.full((4, 1), math.nan), torch.zeros(3, 1), torch.zeros(4), 0.5)],
    lambda: periodic_plan(GOOD, 1, a=0), lambda: periodic_plan(GOOD, 1, a=1.5), lambda: greedy_rewards(GOOD, 1, 0), lambda: learn_periodic(GOOD, 1, 0, 1), lambda: learn_periodic(GOOD, 1, 3, 0),
    lambda: learn_periodic(GOOD, 1, 3, 1, phase=0), lambda: learn_periodic(GOOD, 1, 3, 1, sigma=-0.1), lambda: learn_periodic(GOOD, 1, 3, 1, sigma=math.nan),
]


@pytest.mark.parametrize("call", REFUSED)
def test_bad_input_is_refused_at_the_door(call):
    with pytest.raises(ValueError): call()
