"Properties of amortlit.diffusion.autodiffusion that do not fit its page: legality of the operators, budgets, refusals, shapes and dtypes, agreement of batches with single runs."
import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from amortlit.core.denoisers import Denoiser, DiT, FlatNet
from amortlit.core.mixtures import MixtureModel, random_mixture
from amortlit.core.nets import seeded
from amortlit.core.schedules import EDM, VPDiscrete, ddpm_betas
from amortlit.core.solvers import ddim, dpmpp_multistep, heun
from amortlit.diffusion.autodiffusion import Candidate, SearchResult, crossover, evolve, mutate, random_candidate, run_candidate, run_many

quick = settings(max_examples=25, deadline=None)
SCHEDULE = VPDiscrete(ddpm_betas())
EXACT = MixtureModel(random_mixture(3, 2), SCHEDULE)
SMALL = dict(population=10, parents=4, mutations=5, crossovers=3)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def transformer(depth=3):
    with seeded(generator(1)):
        net = DiT(2, 16, depth, 2, num_classes=3, size=4)
        for p in net.parameters(): p.data.add_(0.1 * torch.randn(p.shape))
    return Denoiser(net, SCHEDULE, 0.5, 3)


def legal(c, T, K, depth=0, cap=0):
    assert len(c.timesteps) == len(c.skip) == K and all(a > b for a, b in zip(c.timesteps, c.timesteps[1:])) and 0 <= c.timesteps[-1] and c.timesteps[0] < T
    assert all(len(s) <= cap and s <= set(range(depth)) for s in c.skip)


def distance_to(target):
    return lambda c: sum(abs(t - s) for t, s in zip(c.timesteps, target))


def test_a_thousand_draws_are_legal():
    g = generator()
    for i in range(1000):
        T, depth = 1 + i % 40, i % 5
        K, share = 1 + i % T, (i % 11) / 10
        cap = math.floor(share * depth + 1e-9)
        a, b = (random_candidate(T, K, depth, share, g) for _ in range(2))
        for c in (a, b, mutate(a, T, 0.5, depth, share, g), mutate(a, T, 1.0, depth, share, g), crossover(a, b, T, g)): legal(c, T, K, depth, cap)
        assert mutate(a, T, 0.0, depth, share, g) == a


@quick
@given(T=st.integers(10, 60), k=st.integers(1, 5), j=st.integers(1, 5), seed=st.integers(0, 99))
def test_children_come_from_their_parents(T, k, j, seed):
    a, b = random_candidate(T, k, 3, 1.0, generator(seed)), random_candidate(T, j, 3, 1.0, generator(seed + 100))
    child = crossover(a, b, T, generator(seed))
    legal(child, T, len(child.timesteps), 3, 3)
    assert len(child.timesteps) in (k, j)
    steps = set(zip(a.timesteps, a.skip)) | set(zip(b.timesteps, b.skip))
    if not set(a.timesteps) & set(b.timesteps) and len(set(child.timesteps) & {t for t, _ in steps}) == len(child.timesteps): assert set(zip(child.timesteps, child.skip)) <= steps
    assert crossover(a, a, T, generator(seed)) == a


def test_mutation_changes_a_quarter():
    g, c = generator(), random_candidate(1000, 100, generator=generator(1))
    moved = [len(set(c.timesteps) - set(mutate(c, 1000, generator=g).timesteps)) for _ in range(100)]
    assert abs(sum(moved) / 100 - 25) < 2
    sets = [mutate(c, 1000, 1.0, 6, 0.5, g).skip for _ in range(3)]
    assert all(any(s) for s in sets) and len(set(sets)) == 3


def test_evolve_finds_the_target_and_never_gets_worse():
    found = [evolve(distance_to((44, 20, 5)), 50, 3, epochs=30, population=30, parents=8, mutations=16, crossovers=8, generator=generator(seed)) for seed in range(10)]
    assert sum(r.best.timesteps == (44, 20, 5) and r.best_fitness == 0 for r in found) >= 9
    assert all(isinstance(r, SearchResult) and r.history.best.is_monotonic_decreasing and list(r.history.columns) == ["epoch", "evaluations", "best", "median"] for r in found)
    assert all(r.history.evaluations.iloc[-1] == r.n_evaluations and r.history.best.iloc[-1] == r.best_fitness for r in found)


@pytest.mark.parametrize("init", ["uniform", "random"])
def test_nothing_is_evaluated_twice_and_small_spaces_end(init):
    calls, told = [], []
    result = evolve(lambda c: calls.append(c) or distance_to((3, 1))(c), 6, 2, epochs=200, init=init, generator=generator(), on_epoch=told.append, **SMALL)
    assert len(calls) == len(set(calls)) == result.n_evaluations == 15 and len(result.history) < 200
    assert result.best.timesteps == (3, 1) and told[-1].best == result.best and len(told) == len(result.history)
    assert (calls[0].timesteps == (3, 0)) == (init == "uniform") or init == "random"


def test_batched_is_the_same_search():
    one = evolve(distance_to((40, 2)), 50, 2, epochs=5, generator=generator(), **SMALL)
    many = evolve(lambda cs: torch.tensor([float(distance_to((40, 2))(c)) for c in cs]), 50, 2, epochs=5, generator=generator(), batched=True, **SMALL)
    assert one.best == many.best and one.history.equals(many.history)


@pytest.mark.parametrize("budget", [12, 15, 24, 31])
def test_budget_of_blocks(budget):
    tried = []
    evolve(lambda c: tried.append(c) or -sum(map(len, c.skip)), 50, 4, epochs=12, depth=6, max_skip=0.5, block_budget=budget, generator=generator(), **SMALL)
    for c in tried: legal(c, 50, len(c.timesteps), 6, 3)
    assert all(len(c.timesteps) >= 4 and sum(6 - len(s) for s in c.skip) <= budget for c in tried)
    assert budget < 24 or max(len(c.timesteps) for c in tried) > 4


def test_blocks_come_after_times():
    tried = []
    evolve(lambda c: tried.append(c) or -len(tried), 1000, 4, epochs=12, depth=10, max_skip=0.5, generator=generator(), **SMALL)
    most = [max(len(s) for c in tried[i:i + 10] for s in c.skip) for i in range(0, len(tried), 10)]
    assert most[:4] == [0] * 4 and most[4] <= 1 and most[5] <= 2 and max(most) == 5


def test_brute_force_on_a_gaussian():
    short = VPDiscrete(ddpm_betas(T=40) * 20)
    v, unit = 0.25, torch.ones(1, 1).double()
    model = lambda x, t: (short.sigma(t) / (short.alpha(t) ** 2 * v + short.sigma(t) ** 2))[:, None] * x
    off = lambda cs: (run_many(model, unit, cs, short).flatten() / v**0.5).log().abs()
    pairs = [Candidate(p) for p in itertools.combinations(range(39, -1, -1), 2)]
    result = evolve(off, 40, 2, epochs=20, batched=True, generator=generator())
    assert result.best_fitness == pytest.approx(off(pairs).min().item(), abs=1e-12)


@quick
@given(n=st.integers(1, 4), C=st.integers(1, 3), K=st.integers(1, 4), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_shapes_dtypes_and_batches(n, C, K, dtype):
    x = torch.randn(n, 3, generator=generator(n)).to(dtype)
    candidates = [random_candidate(1000, K, generator=generator(i)) for i in range(C)]
    model = MixtureModel(EXACT.mixture.to(dtype) if dtype == torch.float64 else random_mixture(3, 2).float(), SCHEDULE)
    many, single = run_many(model, x, candidates, SCHEDULE), [run_candidate(model, x, c, SCHEDULE) for c in candidates]
    assert many.shape == (C, n, 3) and many.dtype == dtype
    assert torch.allclose(many, torch.stack([s for s, _ in single]), rtol=1e-3, atol=1e-3 if dtype == torch.float32 else 1e-10) and all(cost == K for _, cost in single)


def test_empty_batches_of_noise_pass():
    c = Candidate((5, 1))
    assert run_many(EXACT, torch.zeros(0, 3).double(), [c, c], SCHEDULE).shape == (2, 0, 3) and run_candidate(EXACT, torch.zeros(0, 3).double(), c, SCHEDULE)[0].shape == (0, 3)


def test_skipping():
    model, x = transformer(), torch.randn(5, 1, 4, 4, generator=generator())
    plain, cost = run_candidate(model, x, Candidate((900, 300)), SCHEDULE)
    assert torch.equal(plain, ddim(model, x, torch.tensor([900.0, 300.0, -1.0]))) and cost == 2 and model.nfe == 4
    none, cost = run_candidate(model, x, Candidate((900, 300), (frozenset(range(3)),) * 2), SCHEDULE)
    outer = transformer()
    outer.net.blocks = torch.nn.ModuleList()
    assert torch.allclose(none, ddim(outer, x, torch.tensor([900.0, 300.0, -1.0])), atol=1e-5) and cost == 0
    some, cost = run_candidate(model, x, Candidate((900, 300), (frozenset({1}), frozenset())), SCHEDULE)
    assert cost == pytest.approx(5 / 3) and not torch.allclose(some, plain, atol=1e-3) and len(model.net.blocks) == 3
    candidates = [random_candidate(1000, 3, 3, 1.0, generator(i)) for i in range(6)]
    assert torch.allclose(run_many(model, x, candidates, SCHEDULE), torch.stack([run_candidate(model, x, c, SCHEDULE)[0] for c in candidates]), rtol=1e-3, atol=1e-3)


def test_a_denoiser_is_asked_under_the_schedule_of_the_indices():
    model, x = transformer(), torch.randn(2, 1, 4, 4, generator=generator())
    elsewhere, c = replace(model, schedule=EDM()), Candidate((900, 300))
    assert torch.equal(run_candidate(model, x, c, SCHEDULE)[0], run_candidate(elsewhere, x, c, SCHEDULE)[0]) and isinstance(elsewhere.schedule, EDM) and elsewhere.nfe == 2
    assert torch.equal(run_many(model, x, [c], SCHEDULE), run_many(elsewhere, x, [c], SCHEDULE))


def test_other_samplers_and_their_cost():
    x, c = torch.randn(4, 3, generator=generator()).double(), Candidate((900, 300, 20))
    assert run_candidate(EXACT, x, c, SCHEDULE, dpmpp_multistep)[1] == 3 and run_candidate(EXACT, x, c, SCHEDULE, heun)[1] == 5
    model = transformer()
    thin = Candidate((900, 300), (frozenset({0}), frozenset({0, 1})))
    assert run_candidate(model, torch.zeros(2, 1, 4, 4), thin, SCHEDULE, heun)[1] == pytest.approx((2 + 1 + 1) / 3)


C, X, NAN = Candidate((5, 1)), torch.zeros(2, 3).double(), torch.full((2, 3), math.nan).double()
FLAT = Denoiser(FlatNet(3), SCHEDULE, 0.5, 0)
ZERO = lambda c: 0.0
REFUSED = [
    lambda: Candidate(()), lambda: Candidate((1, 2)), lambda: Candidate((2, 2)), lambda: Candidate((2, -1)), lambda: Candidate((2.5, 1)), lambda: Candidate((math.nan,)), lambda: Candidate((2, 1), (frozenset(),)),
    lambda: random_candidate(3, 4), lambda: random_candidate(3, 0), lambda: random_candidate(3, 2, -1), lambda: random_candidate(3, 2, 4, 1.1), lambda: random_candidate(3, 2, 4, -0.1), lambda: random_candidate(3, 2, 4, math.nan),
    lambda: mutate(C, 5), lambda: mutate(C, 10, -0.1), lambda: mutate(C, 10, 1.1), lambda: mutate(C, 10, math.nan), lambda: mutate(C, 1), lambda: mutate(Candidate((5,), (frozenset({4}),)), 10, depth=4), lambda: crossover(C, C, 5),
    lambda: evolve(ZERO, 3, 4), lambda: evolve(ZERO, 30, 4, population=0), lambda: evolve(ZERO, 30, 4, epochs=0), lambda: evolve(ZERO, 30, 4, parents=0), lambda: evolve(ZERO, 30, 4, mutations=-1), lambda: evolve(ZERO, 30, 4, init="zero"),
    lambda: evolve(ZERO, 30, 4, depth=6, max_skip=0.5, block_budget=11), lambda: evolve(ZERO, 30, 4, block_budget=11), lambda: evolve(ZERO, 30, 4, depth=6, block_budget=23), lambda: evolve(lambda c: math.nan, 30, 4), lambda: evolve(lambda c: math.inf, 30, 4),
    lambda: evolve(lambda cs: [0.0], 30, 4, batched=True), lambda: evolve(lambda cs: [math.nan] * len(cs), 30, 4, batched=True),
    *[lambda f=f: f(EXACT, NAN, C, SCHEDULE) for f in (run_candidate, lambda m, x, c, s: run_many(m, x, [c], s))],
    *[lambda f=f: f(EXACT, X, Candidate((1000, 1)), SCHEDULE) for f in (run_candidate, lambda m, x, c, s: run_many(m, x, [c], s))],
    *[lambda f=f: f(EXACT, X, C, EDM()) for f in (run_candidate, lambda m, x, c, s: run_many(m, x, [c], s))],
    lambda: run_many(EXACT, X, [], SCHEDULE), lambda: run_many(EXACT, X, [C, Candidate((5,))], SCHEDULE),
    lambda: run_candidate(EXACT, X, Candidate((5,), (frozenset({0}),)), SCHEDULE), lambda: run_candidate(FLAT, X.float(), Candidate((5,), (frozenset({0}),)), SCHEDULE),
    lambda: run_candidate(transformer(), torch.zeros(1, 1, 4, 4), Candidate((5,), (frozenset({3}),)), SCHEDULE),
]


@pytest.mark.parametrize("call", REFUSED)
def test_bad_input_is_refused_at_the_door(call):
    with pytest.raises(ValueError): call()


def test_the_message_names_the_candidate():
    with pytest.raises(ValueError, match=r"Candidate\(timesteps=\(20, 10, 0\)"): evolve(lambda c: math.nan, 30, 3)
