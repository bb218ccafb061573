"Properties of amortlit.bandits.streaming_mab that do not fit its page: shapes, budgets, refusals, repetition."
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from amortlit.bandits.streaming_mab import POLICIES, arm_stream, exploration_batch, run_stream

quick = settings(max_examples=30, deadline=None)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@quick
@given(policy=st.sampled_from(POLICIES), K=st.integers(3, 90), R=st.integers(1, 4), power=st.floats(0, 8), kind=st.sampled_from(["clear_cut", "mix_in"]), noise=st.sampled_from(["bernoulli", "code"]))
def test_a_pass_stays_in_its_budget(policy, K, R, power, kind, noise):
    means, T = arm_stream(kind, K, R, generator(K)), K * 10**power
    result = run_stream(policy, means, T, generator(R), noise)
    worst = means.amax(1) - means.amin(1)
    assert result.regret.shape == result.arm.shape == result.pulls.shape == (R,)
    assert result.regret.dtype == result.pulls.dtype == torch.float64 and result.arm.dtype == torch.int64 and isinstance(result.memory, int)
    assert (result.pulls <= T * (1 + 1e-9)).all() and (result.regret >= -1e-9 * T).all() and (result.regret <= worst * T * (1 + 1e-9) + 1e-9).all()
    assert ((result.arm >= 0) & (result.arm < K)).all()


@pytest.mark.parametrize("policy", POLICIES)
def test_the_same_generator_repeats_and_another_does_not(policy):
    means = arm_stream("mix_in", 200, 6, generator())
    a, b, c = (run_stream(policy, means, 1e6, generator(seed)).regret for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert torch.allclose(run_stream(policy, means.float(), 1e6, generator(1)).regret, a, rtol=0.2)


@pytest.mark.parametrize("policy", POLICIES)
def test_more_trials_find_better_arms(policy):
    means = arm_stream("clear_cut", 300, 200, generator())
    found = [(run_stream(policy, means, T, generator(3)).arm == means.argmax(1)).double().mean() for T in (1e4, 1e7, 1e11)]
    assert found[0] < found[2] and found[2] > 0.97


def test_a_replication_does_not_depend_on_its_neighbors():
    "With rewards of mean 0 and 1 nothing is random but the insurance coins."
    means = torch.zeros(5, 40, dtype=torch.float64).scatter(1, torch.arange(5)[:, None] * 7, 1.0)
    for policy in POLICIES[:-1]:
        together = run_stream(policy, means, 1e6)
        alone = [run_stream(policy, row[None], 1e6).regret for row in means]
        assert torch.allclose(together.regret, torch.cat(alone)) and torch.equal(together.arm, means.argmax(1))


def test_levels_need_fewer_pulls_than_certainty():
    K, T = 5000, 1e12
    unit = (T / K) ** (2 / 3)
    pulls = {p: run_stream(p, arm_stream("mix_in", K, 1, generator()), T, generator()).pulls.item() / (K * unit) for p in POLICIES}
    assert math.isclose(pulls["uniform"], math.log(T) ** (1 / 3)) and math.isclose(pulls["eps_naive"], math.log(K))
    assert all(1 <= pulls[p] < 2.6 for p in ("eps_log", "eps_loglog", "eps_logstar"))
    assert exploration_batch("eps_logstar", K, T) == exploration_batch("game_of_arms", K, T) == unit


MEANS = torch.full((1, 4), 0.5)


@pytest.mark.parametrize("call", [
    lambda: run_stream("uniform", MEANS[0], 1e3), lambda: run_stream("uniform", MEANS[:, :2], 1e3), lambda: run_stream("uniform", MEANS - 1, 1e3), lambda: run_stream("uniform", MEANS * math.nan, 1e3),
    lambda: run_stream("uniform", MEANS, 3), lambda: run_stream("uniform", MEANS, math.inf), lambda: run_stream("uniform", MEANS, 1e3, noise="none"), lambda: run_stream("", MEANS, 1e3), lambda: run_stream("uniform", MEANS[:0], 1e3),
    lambda: arm_stream("mix_in", 2, 1), lambda: arm_stream("mix_in", 5, 0), lambda: arm_stream("other", 5, 1),
    lambda: exploration_batch("uniform", 2, 1e3), lambda: exploration_batch("uniform", 10, 9), lambda: exploration_batch("best", 10, 100)])
def test_bad_input_is_refused(call):
    with pytest.raises(ValueError): call()
