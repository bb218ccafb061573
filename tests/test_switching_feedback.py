"Properties of amortlit.bandits.switching_feedback that do not fit its page: shapes, budgets, refusals, repetition."
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from amortlit.bandits.switching_feedback import batched_dartboard, dartboard_keep_prob, extra_observation_policy, multiscale_walk_losses

quick = settings(max_examples=30, deadline=None)
kinds = st.sampled_from(["full", "flexible", "bandit"])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def losses(R, T, K, seed=0):
    return torch.rand(R, T, K, generator=generator(seed))


@quick
@given(R=st.integers(1, 4), T=st.integers(1, 60), K=st.integers(1, 4), budget=st.integers(4, 300), kind=kinds, double=st.booleans())
def test_a_result_accounts_for_its_actions(R, T, K, budget, kind, double):
    table = losses(R, T, K).double() if double else losses(R, T, K)
    r = batched_dartboard(table, budget, kind, generator=generator(T))
    played = table.double().gather(2, r.actions[..., None])[..., 0].sum(1)
    assert r.actions.shape == (R, T) and r.actions.dtype == torch.int64 and r.regret.dtype == torch.float64
    assert torch.allclose(r.regret, played - table.double().sum(1).amin(1))
    assert torch.equal(r.switches, (r.actions[:, 1:] != r.actions[:, :-1]).sum(1))
    assert (r.observations <= (T if kind == "bandit" else budget)).all()


@quick
@given(K=st.integers(1, 5), seed=st.integers(0, 99), eta=st.floats(0, 50))
def test_keeping_is_a_probability(K, seed, eta):
    before = -10 * torch.rand(3, K, generator=generator(seed), dtype=torch.float64)
    after = before - eta * torch.rand(3, K, generator=generator(seed + 1), dtype=torch.float64)
    keep = dartboard_keep_prob(before, after, torch.zeros(3, dtype=torch.int64))
    assert ((keep >= 0) & (keep <= 1)).all() and torch.allclose(keep, (after - before)[:, 0].exp())


def test_an_action_that_never_loses_is_never_left():
    table = torch.zeros(200, 300, 2)
    table[..., 1] = 1
    r = batched_dartboard(table, 600, "full", generator=generator())
    assert r.switches.max() <= 1 and (r.actions[:, -1] == 0).all()


def test_a_fresh_draw_switches_more():
    table = (losses(300, 256, 2) < 0.5).double()
    bandit, dartboard = (batched_dartboard(table, 512, kind, eta=0.02, generator=generator()) for kind in ("bandit", "full"))
    assert dartboard.switches.double().mean() < 0.02 * 256 and bandit.switches.double().mean() > 10


def test_extra_observations_are_used_from_the_threshold_on():
    table = losses(2, 1000, 2)
    few, enough = (extra_observation_policy(table, b, generator()) for b in (125, 126))
    assert (few.observations == 1000).all() and (enough.observations <= 126).all()
    assert torch.equal(few.actions, batched_dartboard(table, 1, "bandit", generator=generator()).actions)


@pytest.mark.parametrize("kind", ["full", "flexible", "bandit"])
def test_runs_repeat(kind):
    a, b, c = (batched_dartboard(losses(5, 100, 3), 100, kind, generator=generator(s)).actions for s in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)


@quick
@given(T=st.integers(1, 70), K=st.integers(1, 4), R=st.integers(1, 3))
def test_the_walk_favors_one_action_by_the_gap(T, K, R):
    table, best = multiscale_walk_losses(T, K, R, gap=0.01, generator=generator(T), sigma=0.001)
    assert table.shape == (R, T, K) and best.shape == (R,) and ((table >= 0) & (table <= 1)).all()
    own = table.gather(2, best[:, None, None].expand(R, T, 1))
    if K > 1: assert torch.allclose(table.amax(-1, keepdim=True) - own, torch.tensor(0.01, dtype=torch.float64)) and torch.equal(table.argmin(-1)[:, 0], best)
    small, _ = multiscale_walk_losses(T, K, R, generator=generator(T))
    assert (small - 0.5).abs().max() < 8 / 9 / max(math.log2(T), 1) * 8


FLAT = torch.full((2, 10, 3), 0.5)


@pytest.mark.parametrize("call", [
    lambda: batched_dartboard(FLAT[0], 5), lambda: batched_dartboard(FLAT - 1, 5), lambda: batched_dartboard(FLAT * math.nan, 5), lambda: batched_dartboard(FLAT, 2), lambda: batched_dartboard(FLAT, 0, "flexible"),
    lambda: batched_dartboard(FLAT, 5, "none"), lambda: batched_dartboard(FLAT, 5, eta=-1.0), lambda: batched_dartboard(FLAT, 5, eta=math.nan), lambda: batched_dartboard(FLAT[:0], 5),
    lambda: extra_observation_policy(FLAT, -1), lambda: extra_observation_policy(FLAT + 1, 3), lambda: extra_observation_policy(FLAT[0], 3),
    lambda: dartboard_keep_prob(FLAT[0], FLAT[0] + 1, torch.zeros(10, dtype=torch.int64)), lambda: dartboard_keep_prob(FLAT[0], FLAT[1, :3], torch.zeros(10, dtype=torch.int64)),
    lambda: multiscale_walk_losses(0, 2, 1), lambda: multiscale_walk_losses(5, 2, 0), lambda: multiscale_walk_losses(5, 2, 1, gap=-0.1), lambda: multiscale_walk_losses(5, 2, 1, sigma=math.nan)])
def test_bad_input_is_refused(call):
    with pytest.raises(ValueError): call()
