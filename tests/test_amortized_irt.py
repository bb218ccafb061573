"""amortized_irt: doors, shapes, dtypes, peers, and the checks that do not fit the page."""
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from amortlit.evaluation.amortized_irt import adaptive_test, empirical_reliability, estimate_ability, fit_amortized, fit_irt, irt_probability

NAN = float("nan")


def answers(n, j, seed=0, dtype=torch.float64, spread=1.0):
    g = torch.Generator().manual_seed(seed)
    theta, z = torch.randn(n, generator=g, dtype=torch.float64), torch.randn(j, generator=g, dtype=torch.float64)
    a = (0.3 * torch.randn(j, generator=g, dtype=torch.float64)).exp() if spread > 1 else None
    return torch.bernoulli(irt_probability(theta, z, a), generator=g).to(dtype), theta, z


@given(st.integers(1, 4), st.integers(1, 5), st.sampled_from([torch.float32, torch.float64]))
@settings(deadline=None, max_examples=20)
def test_probability_shapes_and_range(n, j, dtype):
    p = irt_probability(torch.randn(3, n, dtype=dtype), torch.randn(3, j, dtype=dtype), torch.rand(j, dtype=dtype))
    assert p.shape == (3, n, j) and p.dtype == dtype and bool(((p >= 0) & (p <= 1)).all())


def test_probability_of_nobody_is_empty():
    assert irt_probability(torch.zeros(0), torch.zeros(3)).shape == (0, 3)


def test_hard_items_are_failed():
    p = irt_probability(torch.zeros(1), torch.tensor([-3.0, 0.0, 3.0]))[0]
    assert p[0] > p[1] == 0.5 > p[2]


@pytest.mark.parametrize("bad", [
    lambda: irt_probability(torch.tensor([NAN]), torch.zeros(2)),
    lambda: irt_probability(torch.zeros(2), torch.tensor([math.inf])),
    lambda: irt_probability(torch.tensor(0.0), torch.zeros(2)),
    lambda: irt_probability(torch.zeros(2), torch.zeros(2), torch.tensor([1.0, -1.0])),
    lambda: irt_probability(torch.zeros(2), torch.zeros(2), torch.ones(3)),
    lambda: fit_irt(torch.tensor([[0.0, 0.5], [1.0, 0.0]])),
    lambda: fit_irt(torch.tensor([[0.0, math.inf], [1.0, 0.0]])),
    lambda: fit_irt(torch.ones(1, 3)),
    lambda: fit_irt(torch.ones(3)),
    lambda: fit_irt(torch.ones(2, 0)),
    lambda: fit_irt(torch.tensor([[NAN, NAN], [1.0, 0.0]])),
    lambda: fit_irt(torch.tensor([[NAN, 1.0], [NAN, 0.0]])),
    lambda: fit_irt(torch.eye(3), model="3pl"),
    lambda: fit_irt(torch.eye(3), method="vi"),
    lambda: fit_irt(torch.eye(3), model="2pl", method="nuisance"),
    lambda: fit_irt(torch.eye(3), difficulty_sd=0.0),
    lambda: fit_irt(torch.eye(3), n_quad=1),
    lambda: fit_amortized(torch.eye(3), torch.ones(2, 4)),
    lambda: fit_amortized(torch.eye(3), torch.full((3, 2), NAN)),
    lambda: fit_amortized(torch.eye(3), torch.ones(3)),
    lambda: fit_amortized(torch.eye(3) * 2, torch.ones(3, 1)),
    lambda: fit_amortized(torch.eye(3)[:1], torch.ones(3, 1)),
    lambda: fit_amortized(torch.eye(3), torch.ones(3, 1), ability="fixed"),
    lambda: fit_amortized(torch.eye(3), torch.ones(3, 1), l2=-1.0),
    lambda: fit_amortized(torch.eye(3), torch.ones(3, 1), hidden=(0,)),
    lambda: estimate_ability(torch.ones(2, 3), torch.zeros(2)),
    lambda: estimate_ability(torch.ones(2, 3), torch.tensor([0.0, NAN, 0.0])),
    lambda: estimate_ability(torch.full((2, 3), 0.3), torch.zeros(3)),
    lambda: estimate_ability(torch.ones(2, 3), torch.zeros(3), -torch.ones(3)),
    lambda: estimate_ability(torch.ones(2, 3), torch.zeros(3), method="mode"),
    lambda: estimate_ability(torch.ones(2, 3), torch.zeros(3), bounds=(1.0, -1.0)),
    lambda: estimate_ability(torch.ones(2, 3), torch.zeros(3), method="map", prior=(0.0, 0.0)),
    lambda: adaptive_test(torch.ones(2, 3), torch.zeros(3), 4),
    lambda: adaptive_test(torch.ones(2, 3), torch.zeros(3), 0),
    lambda: adaptive_test(torch.ones(2, 3), torch.zeros(3), 2, policy="greedy"),
    lambda: adaptive_test(torch.ones(2, 3), torch.zeros(3), 2, discrimination=-torch.ones(3)),
    lambda: adaptive_test(torch.full((2, 3), NAN), torch.zeros(3), 2),
    lambda: adaptive_test(torch.ones(2, 4), torch.zeros(3), 2),
    lambda: adaptive_test(torch.ones(2, 3), torch.zeros(3), 2, first_item=3),
    lambda: adaptive_test(torch.ones(2, 3), torch.full((3,), NAN), 2),
    lambda: empirical_reliability(torch.tensor([0.0, NAN]), torch.ones(2)),
    lambda: empirical_reliability(torch.zeros(2), torch.tensor([1.0, -1.0])),
    lambda: empirical_reliability(torch.zeros(2), torch.ones(3)),
    lambda: empirical_reliability(torch.zeros(1), torch.ones(1)),
])
def test_refused_at_the_door(bad):
    with pytest.raises(ValueError):
        bad()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("model, method", [("1pl", "mml"), ("2pl", "mml"), ("1pl", "jml"), ("2pl", "jml"), ("1pl", "nuisance")])
def test_fit_keeps_dtype_and_takes_missing_and_extreme_items(model, method, dtype):
    y, _, _ = answers(30, 12, dtype=dtype)
    y[:, 0], y[:, 1], y[0] = 1.0, 0.0, 1.0
    y[3, 5:] = NAN
    fit = fit_irt(y, model=model, method=method)
    assert fit.difficulty.shape == fit.discrimination.shape == (12,) and fit.ability.shape == fit.ability_se.shape == (30,)
    assert all(v.dtype == dtype and bool(v.isfinite().all()) for v in fit[:4]) and math.isfinite(fit.log_likelihood)
    assert fit.difficulty.argmin() == 0 and fit.difficulty.argmax() == 1


@given(st.integers(0, 50))
@settings(deadline=None, max_examples=10)
def test_rasch_ability_is_a_function_of_the_score_and_items_follow_their_means(seed):
    y, _, _ = answers(60, 15, seed)
    y[0], y[1] = 0.0, 1.0
    fit, score = fit_irt(y), y.sum(1)
    order = score.argsort()
    steps = fit.ability[order].diff()
    assert bool((steps[score[order].diff() > 0] > 0).all()) and bool((steps[score[order].diff() == 0].abs() < 1e-6).all())
    assert bool((fit.difficulty[y.mean(0).argsort()].diff() <= 1e-9).all())


def test_more_evidence_is_not_less_likely():
    y, _, _ = answers(200, 30)
    values = [fit_irt(y, difficulty_sd=100.0, max_iter=k).log_likelihood for k in (1, 2, 4, 8, 16)]
    assert all(b >= a - 1e-6 for a, b in zip(values, values[1:]))


def test_center_moves_both_scales():
    y, _, _ = answers(100, 10)
    free, centered = fit_irt(y), fit_irt(y, center=True)
    assert abs(centered.difficulty.mean()) < 1e-9
    assert torch.allclose(free.ability - centered.ability, free.difficulty.mean().expand(100))


def test_nuisance_solves_its_equation_and_ignores_who_answered():
    y, _, _ = answers(50, 8)
    fit, shuffled = fit_irt(y, method="nuisance"), fit_irt(y[torch.randperm(50)], method="nuisance")
    grid = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    weights = (-grid**2 / 2).softmax(0)
    assert torch.allclose(weights @ torch.sigmoid(grid[:, None] - fit.difficulty), y.mean(0), atol=1e-6)
    assert torch.allclose(fit.difficulty, shuffled.difficulty)


def test_girth_agrees():
    girth = pytest.importorskip("girth")
    y, _, _ = answers(172, 40)
    theirs = torch.as_tensor(girth.rasch_mml(y.T.numpy().astype(int))["Difficulty"])
    assert (fit_irt(y, method="nuisance").difficulty - theirs).abs().max() < 2e-3
    assert torch.corrcoef(torch.stack([fit_irt(y).difficulty, theirs]))[0, 1] > 0.999


@given(st.integers(1, 30), st.data())
@settings(deadline=None, max_examples=30)
def test_closed_form_ability(n, data):
    k, c = data.draw(st.integers(0, n)), data.draw(st.floats(-1, 1))
    y = (torch.arange(n) < k).double()
    theta, se = estimate_ability(y, torch.full((n,), c, dtype=torch.float64))
    expected = min(max(c + math.log(k / (n - k)), -4.0), 4.0) if 0 < k < n else math.copysign(4.0, k - 0.5)
    assert theta.shape == se.shape == () and abs(theta - expected) < 1e-4
    assert (k not in (0, n)) or theta.item() == expected


def test_ability_of_a_blank_record():
    blank, z = torch.full((2, 3), NAN, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    theta, se = estimate_ability(blank, z)
    assert theta.tolist() == [0, 0] and se.tolist() == [math.inf] * 2
    assert estimate_ability(blank, z, bounds=(1.0, 2.0))[0].tolist() == [1, 1]
    for method in ("map", "eap"):
        theta, se = estimate_ability(blank, z, method=method, prior=(0.5, 2.0))
        assert theta.tolist() == [0.5, 0.5] and torch.allclose(se, torch.tensor(2.0).double())


def test_map_and_eap_against_a_fine_grid():
    y, _, z = answers(20, 12)
    grid = torch.linspace(-10, 10, 20001, dtype=torch.float64)
    p = irt_probability(grid, z)
    log_posterior = (y[:, None] * p.log() + (1 - y[:, None]) * (1 - p).log()).sum(2) - (grid - 0.3) ** 2 / (2 * 0.8**2)
    mode, mean = grid[log_posterior.argmax(1)], log_posterior.softmax(1) @ grid
    assert torch.allclose(estimate_ability(y, z, method="map", prior=(0.3, 0.8))[0], mode, atol=1e-3)
    assert torch.allclose(estimate_ability(y, z, method="eap", prior=(0.3, 0.8))[0], mean, atol=1e-3)


def test_recovery_of_both_models():
    g = torch.Generator().manual_seed(3)
    theta, z = torch.randn(1000, generator=g).double(), 1.2 * torch.randn(40, generator=g).double()
    a = (0.3 * torch.randn(40, generator=g).double()).exp()
    rasch = fit_irt(torch.bernoulli(irt_probability(theta, z), generator=g), center=True)
    two = fit_irt(torch.bernoulli(irt_probability(theta, z, a), generator=g), model="2pl")
    assert (rasch.difficulty - z + z.mean()).square().mean().sqrt() < 0.13 and rasch.converged
    assert 0.93 < (rasch.ability.var() + rasch.ability_se.square().mean()).sqrt() / theta.std() < 1.08
    corr = lambda x, y: torch.corrcoef(torch.stack([x, y]))[0, 1]
    assert corr(two.discrimination.log(), a.log()) > 0.85 and corr(two.difficulty, z) > 0.98


@pytest.mark.parametrize("ability", ["joint", "nuisance"])
@pytest.mark.parametrize("hidden", [(), (8,)])
def test_amortized_prices_new_questions(ability, hidden):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(150, 2, generator=g)
    z = 1.5 * x[:, 0] - x[:, 1]
    y = torch.bernoulli(irt_probability(torch.randn(100, generator=g), z), generator=g)
    f, fit = fit_amortized(y[:, :100], x[:100], hidden=hidden, ability=ability, generator=g)
    new = f(x[100:])
    assert new.shape == (50,) and new.dtype == torch.float32 and fit.difficulty.shape == (100,) and fit.ability.shape == (100,)
    assert torch.allclose(f(x[:100]), fit.difficulty, atol=1e-4)
    assert torch.corrcoef(torch.stack([new, z[100:]]))[0, 1] > 0.97


def test_amortized_leaves_the_global_generator_alone_and_repeats():
    y, _, _ = answers(20, 10)
    x = torch.randn(10, 3, dtype=torch.float64)
    state = torch.get_rng_state()
    first, second = (fit_amortized(y, x, hidden=(4,), generator=torch.Generator().manual_seed(7))[1].difficulty for _ in range(2))
    assert torch.equal(state, torch.get_rng_state()) and torch.equal(first, second)


def test_amortized_tolerates_an_unanswered_question():
    y, _, _ = answers(20, 10)
    y[:, 4] = NAN
    f, fit = fit_amortized(y, torch.eye(10, dtype=torch.float64))
    assert bool(fit.difficulty.isfinite().all())


@given(st.integers(1, 5), st.integers(2, 12), st.sampled_from(["fisher", "random"]), st.booleans(), st.data())
@settings(deadline=None, max_examples=40)
def test_adaptive_test_asks_each_item_once(takers, items, policy, two, data):
    n_steps, first = data.draw(st.integers(1, items)), data.draw(st.none() | st.integers(0, items - 1))
    g = torch.Generator().manual_seed(1)
    y, z = torch.rand(takers, items, generator=g).round(), torch.randn(items, generator=g)
    a = torch.rand(items, generator=g) + 0.5 if two else None
    trace = adaptive_test(y, z, n_steps, discrimination=a, policy=policy, first_item=first, generator=g)
    assert trace.items.shape == trace.answers.shape == trace.ability.shape == trace.se.shape == (takers, n_steps)
    assert trace.items.dtype == torch.int64 and trace.ability.dtype == torch.float32
    assert all(len(set(row)) == n_steps for row in trace.items.tolist())
    assert first is None or bool((trace.items[:, 0] == first).all())
    assert torch.equal(trace.answers, y.gather(1, trace.items))
    masked = torch.full_like(y, NAN).scatter(1, trace.items, trace.answers)
    theta, se = estimate_ability(masked, z, a)
    assert torch.allclose(trace.ability[:, -1], theta, atol=1e-4) and torch.allclose(trace.se[:, -1], se, rtol=1e-3)


def test_two_parameter_choice_maximizes_information():
    g = torch.Generator().manual_seed(2)
    y, z, a = torch.rand(30, 40, generator=g).double().round(), torch.randn(40, generator=g).double(), torch.rand(40, generator=g).double() + 0.3
    trace = adaptive_test(y, z, 20, discrimination=a)
    before = torch.cat([torch.zeros(30, 1).double(), trace.ability[:, :-1]], 1)
    for k in range(20):
        p = irt_probability(before[:, k], z, a)
        information = (a**2 * p * (1 - p)).scatter(1, trace.items[:, :k], -1.0)
        assert torch.allclose(information.gather(1, trace.items[:, k:k + 1])[:, 0], information.amax(1))


def test_ties_go_to_the_lowest_index():
    z = torch.tensor([1.0, -1.0, 0.5, -0.5, 0.5])
    for a in (None, torch.ones(5)):
        assert adaptive_test(torch.ones(1, 5), z, 1, discrimination=a).items.item() == 2


def test_random_order_comes_from_the_generator():
    y, z = torch.ones(3, 20), torch.zeros(20)
    orders = [adaptive_test(y, z, 20, policy="random", generator=torch.Generator().manual_seed(s)).items for s in (0, 0, 1)]
    assert torch.equal(orders[0], orders[1]) and not torch.equal(orders[0], orders[2])


@given(st.integers(2, 20), st.floats(0.01, 3))
@settings(deadline=None, max_examples=20)
def test_reliability(n, error):
    ability = torch.linspace(-1, 1, n, dtype=torch.float64).expand(4, n)
    value = empirical_reliability(ability, torch.full((4, n), error, dtype=torch.float64))
    assert value.shape == (4,) and torch.allclose(value, ability.var(-1) / (ability.var(-1) + error**2))
    assert empirical_reliability(ability, torch.full((4, n), math.inf)).tolist() == [0] * 4


def test_reliability_of_equal_abilities_is_zero():
    assert empirical_reliability(torch.zeros(3), torch.zeros(3)).item() == 0
