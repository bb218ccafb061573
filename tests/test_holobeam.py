"Properties of amortlit.bandits.holobeam that do not fit its page: shapes, dtypes, budgets, refusals, repetition."
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from amortlit.bandits.holobeam import METHODS, array_gain, codebook, holobeam, pilot_mean, unimodal_search

quick = settings(max_examples=30, deadline=None)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def disc(n, seed=0):
    u = torch.rand(n, 2, generator=generator(seed), dtype=torch.float64)
    return torch.stack([u[:, 0].sqrt() * (6.2832 * u[:, 1]).cos(), u[:, 0].sqrt() * (6.2832 * u[:, 1]).sin()], 1) * 0.999


@quick
@given(method=st.sampled_from(METHODS), init=st.sampled_from(["sweep", "fixed"]), K=st.tuples(st.integers(1, 9), st.integers(1, 9)), R=st.integers(1, 5), budget=st.integers(1, 900), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_a_beam_of_the_grid_or_a_refusal(method, init, K, R, budget, dtype):
    try:
        chosen = holobeam(disc(R).to(dtype), K, budget, 20.0, init, method, generator(budget))
    except ValueError as error:
        least = int(str(error).split()[-1])
        assert "too small" in str(error) and least > budget
        chosen = holobeam(disc(R).to(dtype), K, least, 20.0, init, method, generator(budget))
    assert chosen.shape == (R, 2) and chosen.dtype == torch.int64
    assert (chosen >= 0).all() and (chosen <= 2 * torch.tensor(K)).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("K", [(1, 1), (3, 5), (8, 12), (16, 7)])
def test_without_noise_to_speak_of_the_best_beam_is_found(method, K):
    alpha = disc(300)
    off = (torch.tensor(K) * alpha - (torch.tensor(K) * alpha).round()).abs().amax(1)
    alpha = alpha[off < 0.4]
    chosen = holobeam(alpha, K, 60_000, 80.0, method=method, generator=generator())
    assert (chosen == (torch.tensor(K) * (alpha + 1)).round()).all(1).double().mean() > 0.98


@pytest.mark.parametrize("method", METHODS)
def test_the_same_generator_repeats_and_more_pilots_help(method):
    alpha = disc(400, 1)
    a, b, c = (holobeam(alpha, (8, 8), 700, 20.0, method=method, generator=generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)
    best = (8 * (alpha + 1)).round()
    wrong = [(holobeam(alpha, (8, 8), n, 20.0, method=method, generator=generator(3)) != best).any(1).double().mean() for n in (700, 20_000)]
    assert wrong[1] < wrong[0]


@quick
@given(n_points=st.integers(1, 60), R=st.integers(1, 4), extra=st.integers(0, 300), weights=st.sampled_from(["equal", "geometric"]))
def test_a_search_stays_in_its_budget_and_interval(n_points, R, extra, weights):
    used, peak = [], n_points // 3

    def sampler(index, n):
        assert index.shape[0] == R and index.shape[1] <= 4 and index.dtype == torch.int64 and n >= 1 and isinstance(n, int)
        assert (index >= 0).all() and (index < n_points).all()
        used.append(n * index.shape[1])
        return -(index - peak).abs().float()
    budget = 60 + extra
    found = unimodal_search(sampler, n_points, budget, R, weights)
    assert found.dtype == torch.int64 and found.shape == (R,) and (found == peak).all() and budget - 3 <= sum(used) <= budget


def test_later_phases_get_more_when_asked():
    pulls = {}
    for weights in ("equal", "geometric"):
        pulls[weights] = []
        unimodal_search(lambda index, n, w=weights: pulls[w].append(n) or -(index - 40.2).abs(), 129, 4000, 2, weights)
    assert max(pulls["equal"]) - min(pulls["equal"]) <= 1
    assert pulls["geometric"] == sorted(pulls["geometric"]) and pulls["geometric"][-1] > 1.4 * pulls["geometric"][-2]


@quick
@given(K=st.integers(1, 64), alpha=st.floats(-1, 1))
def test_the_grid_sees_no_side_lobes(K, alpha):
    beta = codebook(K)
    assert beta.dtype == torch.float64 and beta.shape == (2 * K + 1,) and beta[0] == -1 and beta[-1] == 1
    pair = torch.stack([beta, torch.zeros_like(beta)], -1)
    gain = array_gain(torch.tensor([alpha, 0.0], dtype=torch.float64), pair, (K, 2.5))
    assert gain.shape == beta.shape and (gain >= 0).all() and (gain <= 1).all() and gain.max() >= (2 / math.pi) ** 2 - 1e-12
    sign = gain[gain > 1e-15].diff().sign()
    assert (sign.diff() <= 0).all() and (sign == 0).sum() <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gains_and_pilots_keep_their_type_and_broadcast(dtype):
    gain = array_gain(torch.zeros(5, 1, 2, dtype=dtype), torch.rand(7, 2, generator=generator(), dtype=dtype), (8, 4))
    assert gain.dtype == dtype and gain.shape == (5, 7)
    mean = pilot_mean(gain, 10.0, torch.arange(1, 8), generator())
    assert mean.dtype == dtype and mean.shape == (5, 7) and (mean > 0).all()
    assert pilot_mean(gain[:0], 10.0, 3).shape == (0, 7)
    assert torch.allclose(pilot_mean(gain, 10.0, 10**7, generator()), 10 * gain + 1, rtol=0.02)


def test_the_sweep_leaves_nobody_out():
    alpha = torch.stack([torch.linspace(-0.5, 0.5, 400, dtype=torch.float64), torch.full((400,), 0.755, dtype=torch.float64)], 1)
    best = (8 * (alpha + 1)).round()
    wrong = {init: (holobeam(alpha, (8, 8), 3200, 25.0, init, "halving", generator()) != best).any(1).double().mean() for init in ("sweep", "fixed")}
    assert wrong["sweep"] < 0.1 < 0.3 < wrong["fixed"]


ALPHA, GAIN = torch.zeros(2, 2), torch.full((3,), 0.5)
SEARCH = lambda index, n: -index.double()


@pytest.mark.parametrize("call", [
    lambda: array_gain(ALPHA + 1.1, ALPHA, (8, 8)), lambda: array_gain(ALPHA, ALPHA * math.nan, (8, 8)), lambda: array_gain(ALPHA, ALPHA, (0.5, 8)), lambda: array_gain(ALPHA, ALPHA[:, :1], (8, 8)), lambda: array_gain(ALPHA, ALPHA, (8,)),
    lambda: codebook(0), lambda: codebook(2.5), lambda: codebook(-3),
    lambda: pilot_mean(GAIN * 3, 1.0, 1), lambda: pilot_mean(-GAIN, 1.0, 1), lambda: pilot_mean(GAIN * math.nan, 1.0, 1), lambda: pilot_mean(GAIN, -1.0, 1), lambda: pilot_mean(GAIN, math.inf, 1), lambda: pilot_mean(GAIN, 1.0, 0), lambda: pilot_mean(GAIN, 1.0, torch.tensor([1, 0, 2])),
    lambda: unimodal_search(SEARCH, 0, 10, 1), lambda: unimodal_search(SEARCH, 5, 10, 0), lambda: unimodal_search(SEARCH, 17, 3, 1), lambda: unimodal_search(SEARCH, 5, 100, 1, "late"), lambda: unimodal_search(lambda i, n: i * math.nan, 5, 100, 1),
    lambda: holobeam(ALPHA + 0.9, (8, 8), 400, 25.0), lambda: holobeam(ALPHA * math.nan, (8, 8), 400, 25.0), lambda: holobeam(ALPHA[0], (8, 8), 400, 25.0), lambda: holobeam(ALPHA[:0], (8, 8), 400, 25.0), lambda: holobeam(ALPHA, (0, 8), 400, 25.0), lambda: holobeam(ALPHA, (8.5, 8), 400, 25.0),
    lambda: holobeam(ALPHA, (8, 8), 20, 25.0), lambda: holobeam(ALPHA, (8, 8), 288, 25.0, method="uniform"), lambda: holobeam(ALPHA, (8, 8), 400, math.nan), lambda: holobeam(ALPHA, (8, 8), 400, 25.0, init="random"), lambda: holobeam(ALPHA, (8, 8), 400, 25.0, method="best")])
def test_bad_input_is_refused(call):
    with pytest.raises(ValueError): call()
