"""Thresholdout and the analysis around it: any queries, any noise, bad input, and the closed form of the attack."""
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from amortlit.evaluation.reusable_holdout import attack_bias, noisy_answers, sign_vote, thresholdout, variable_selection


def generator(seed=0): return torch.Generator().manual_seed(seed)


def means(q, seed, dtype=torch.float64): return torch.rand(2, q, generator=generator(seed), dtype=dtype)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 80), st.integers(0, 20), st.floats(0, 1), st.floats(0, 0.5), st.sampled_from(["laplace", "gaussian"]), st.sampled_from([torch.float32, torch.float64]), st.integers(0, 99))
def test_budget_is_kept_and_only_exceedances_leave_the_training_mean(q, budget, threshold, noise, kind, dtype, seed):
    t, h = means(q, seed, dtype)
    r = thresholdout(t, h, threshold=threshold, noise=noise, budget=budget, noise_kind=kind, generator=generator(seed))
    assert r.answers.shape == r.over.shape == (q,) and r.answers.dtype == dtype
    assert int(r.over.sum()) + r.budget_left == budget
    told = r.answers.isfinite()
    assert torch.equal(r.answers[told & ~r.over], t[told & ~r.over])
    if r.budget_left == 0:
        last = int(r.over.nonzero()[-1]) if budget else -1
        assert r.answers[last + 1:].isnan().all() and told[:last + 1].all()
    else: assert told.all()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.floats(0, 1), st.integers(0, 99))
def test_without_noise_it_is_the_plain_rule(q, threshold, seed):
    t, h = means(q, seed)
    r = thresholdout(t, h, threshold=threshold, noise=0.0, budget=q)
    assert torch.equal(r.over, (t - h).abs() > threshold) and torch.equal(r.answers, torch.where(r.over, h, t))


def test_the_threshold_is_drawn_anew_after_each_exceedance_only():
    far = torch.full((4000,), 10.0).double()
    always = thresholdout(0 * far, far, threshold=0.0, noise=0.01, budget=4000, generator=generator())
    assert always.over.all() and abs((always.answers - 10).abs().mean() - 0.01) < 0.001
    never = [thresholdout(far, far, threshold=2.0, noise=0.05, budget=1, noise_kind="gaussian", generator=generator(s)).over.any().item() for s in range(50)]
    assert not any(never)


@pytest.mark.parametrize("bad", [dict(threshold=-1), dict(noise=-1), dict(noise=math.nan), dict(budget=-1), dict(budget=1.5), dict(noise_kind="uniform"), dict(h=torch.zeros(3)), dict(t=torch.full((4,), math.nan)), dict(t=torch.zeros(4, dtype=torch.long)), dict(t=torch.zeros(2, 2))])
def test_bad_input_of_thresholdout(bad):
    good = dict(t=torch.zeros(4), h=torch.zeros(4), threshold=0.1, noise=0.1, budget=2, noise_kind="laplace")
    t, h, *_ = (good | bad).values()
    with pytest.raises(ValueError): thresholdout(t, h, **{k: v for k, v in (good | bad).items() if k not in "th"})


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 5), max_size=3), st.sampled_from(["laplace", "gaussian"]), st.sampled_from([torch.float32, torch.float64]))
def test_noise_keeps_shape_and_dtype(shape, kind, dtype):
    x = torch.rand(shape, dtype=dtype)
    y = noisy_answers(x, 0.3, kind=kind, generator=generator())
    assert y.shape == x.shape and y.dtype == dtype and y.isfinite().all()
    assert torch.equal(noisy_answers(x, 0.0, kind=kind), x)


@pytest.mark.parametrize("arguments", [(torch.zeros(2), -1.0), (torch.zeros(2), math.nan), (torch.tensor([math.nan]), 1.0), ([0.0], 1.0)])
def test_bad_input_of_noise(arguments):
    with pytest.raises(ValueError): noisy_answers(*arguments)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 8), st.integers(1, 9), st.integers(0, 99))
def test_votes_depend_on_signs_alone(n, d, seed):
    w, x = torch.randn(d, generator=generator(seed)), torch.randn(n, d, generator=generator(seed + 1))
    assert torch.equal(sign_vote(w, x), sign_vote(5 * w, x)) and torch.equal(sign_vote(-w, x), -sign_vote(w, x))
    assert (sign_vote(0 * w, x) == 0).all() and set(sign_vote(w, x).tolist()) <= {-1.0, 0.0, 1.0}


@pytest.mark.parametrize("w, x", [(torch.zeros(3), torch.zeros(2, 4)), (torch.zeros(3), torch.zeros(3)), (torch.tensor([math.nan]), torch.zeros(2, 1))])
def test_bad_input_of_votes(w, x):
    with pytest.raises(ValueError): sign_vote(w, x)


def test_closed_form():
    assert math.isclose(attack_bias(100, 10_000), 0.063662, abs_tol=1e-6) and math.isclose(attack_bias(100, 2000), 0.14235, abs_tol=1e-5)
    assert torch.allclose(attack_bias(torch.tensor([100.0]), 2000, 2000**-0.5), torch.tensor([0.14235 / 2**0.5]), atol=1e-5)
    for bad in ((0, 10), (10, 0), (10, 10, -1.0), (math.nan, 10)):
        with pytest.raises(ValueError): attack_bias(*bad)


@pytest.mark.parametrize("mechanism", ["standard", "thresholdout", "thresholdout_laplace", "noisy", "split", "train_only"])
def test_every_mechanism_answers_and_repeats_itself(mechanism):
    one, two = (variable_selection(200, 150, (5, 300), n_signal=10, mechanism=mechanism, generator=generator(3)) for _ in range(2))
    assert set(one) == {"train", "holdout", "fresh", "n_selected"} and all(torch.equal(one[k], two[k]) for k in one)
    assert all(one[k].shape == (2,) and one[k].isfinite().all() for k in ("train", "holdout", "fresh")) and one["n_selected"].ndim == 0


def test_a_spent_budget_refuses():
    r = variable_selection(200, 150, (5,), mechanism="thresholdout", threshold=0.0, budget=0, generator=generator())
    assert r["holdout"].isnan().all() and r["n_selected"] == 0


@pytest.mark.parametrize("bad", [dict(n=1), dict(d=1), dict(ks=()), dict(ks=(0,)), dict(n_signal=-1), dict(n_signal=999), dict(mechanism="oracle"), dict(threshold=-1.0), dict(noise=-1.0), dict(budget=-1)])
def test_bad_input_of_the_analysis(bad):
    with pytest.raises(ValueError): variable_selection(**(dict(n=20, d=20, ks=(5,), generator=generator()) | bad))
