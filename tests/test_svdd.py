"Properties of amortlit.diffusion.svdd that do not fit its page: shapes, dtypes, refusals, laws, agreement with the floor's sampler and with diffusers."
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from amortlit.core.schedules import EDM, VPDiscrete, VPLinear, ddpm_betas, timesteps
from amortlit.core.solvers import ddim
from amortlit.diffusion.svdd import best_of_n, fill_masked, fit_value, gaussian_transition, masked_transition, smc_sample, soft_select, svdd_sample

sizes = st.integers(1, 4)
dtypes = st.sampled_from([torch.float32, torch.float64])
quick = settings(max_examples=25, deadline=None)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def walk(x, i, n, generator):
    return x[:, None] + torch.randn(len(x), n, *x.shape[1:], generator=generator, dtype=x.dtype)


def total(x, i):
    return x.flatten(1).sum(-1)


@quick
@given(batch=sizes, M=sizes, dim=sizes, steps=sizes, dtype=dtypes, alpha=st.sampled_from([0.0, 0.1, 1.0, math.inf]))
def test_shapes_dtypes_and_counts(batch, M, dim, steps, dtype, alpha):
    x_T = torch.zeros(batch, dim, 2, dtype=dtype)
    x, info = svdd_sample(walk, total, x_T, steps, M, alpha, generator())
    assert x.shape == x_T.shape and x.dtype == dtype and info == dict(transitions=batch * M * steps, value_calls=batch * M * steps)
    chosen, index = soft_select(torch.randn(batch, M, dim, dtype=dtype), torch.randn(batch, M), alpha, generator())
    assert chosen.shape == (batch, dim) and chosen.dtype == dtype and index.shape == (batch,) and index.dtype == torch.int64
    best, info = best_of_n(walk, lambda x: total(x, 0), x_T.repeat_interleave(M, 0), steps, M, generator())
    assert best.shape == x_T.shape and best.dtype == dtype and info == dict(transitions=batch * M * steps, value_calls=batch * M)
    particles, info = smc_sample(walk, total, x_T, steps, 1.0, generator=generator(), populations=batch)
    assert particles.shape == x_T.shape and particles.dtype == dtype and info["survivors"].tolist() == [1] * batch


@quick
@given(M=st.integers(2, 6), alpha=st.floats(0.2, 5), seed=st.integers(0, 100))
def test_selection_has_softmax_frequencies(M, alpha, seed):
    values = torch.randn(M, generator=generator(seed))
    kept, index = soft_select(torch.arange(M).expand(4000, M), values.expand(4000, M), alpha, generator(seed + 1))
    assert torch.equal(kept, index)
    assert (index.bincount(minlength=M) / 4000 - (values / alpha).softmax(0)).abs().max() < 0.05


def test_limits_of_the_temperature():
    values = torch.tensor([[1e30, 0.0, -1e30], [2.0, 3.0, 1.0]])
    for alpha in (0.0, 1e-30): assert soft_select(torch.arange(3).expand(2, 3), values, alpha, generator())[1].tolist() == [0, 1]
    index = soft_select(torch.arange(3).expand(3000, 3), values[:1].expand(3000, 3), math.inf, generator())[1]
    assert (index.bincount() / 3000 - 1 / 3).abs().max() < 0.05
    assert soft_select(torch.arange(2)[None], torch.tensor([[1, 5]]), 0.0)[1].item() == 1


def test_alpha_zero_of_the_walk_is_the_best_of_each_step():
    noise = torch.randn(4, 3, 6, 2, generator=generator())
    step = lambda x, i, n, g: x[:, None] + noise[i]
    x, _ = svdd_sample(step, total, torch.zeros(3, 2), 4, 6, 0.0)
    best = noise.sum(-1).argmax(2)
    assert torch.allclose(x, sum(noise[i, torch.arange(3), best[i]] for i in range(4)))


def test_chunks_keep_the_law_and_the_counts():
    x_T, seen = torch.zeros(7, 1), []
    def value(x, i):
        seen.append(len(x))
        return total(x, i)
    x, info = svdd_sample(walk, value, x_T, 2, 5, 0.0, generator(), chunk=3)
    assert x.shape == (7, 1) and sum(seen) == info["value_calls"] == 70 and max(seen) == 15
    means = [svdd_sample(walk, total, torch.zeros(2000, 1), 2, 5, 0.0, generator(k), chunk=chunk)[0].mean() for k, chunk in enumerate((None, 300))]
    assert abs(means[0] - means[1]) < 0.1


def test_value_is_that_of_the_state_after_the_step():
    steps = []
    def value(x, i):
        steps.append((i, x[0, 0].item()))
        return x[:, 0]
    svdd_sample(lambda x, i, n, g: (x + 1)[:, None].expand(-1, n, -1), value, torch.zeros(1, 1), 3, 2, 1.0)
    assert steps == [(0, 1.0), (1, 2.0), (2, 3.0)]


@pytest.mark.parametrize("schedule, kind", [(VPLinear(), "logsnr"), (EDM(), "karras"), (VPDiscrete(ddpm_betas()), "uniform")])
def test_gaussian_steps_are_ddims(schedule, kind):
    model, ts = lambda x, t: x.sin() * schedule.sigma(t), timesteps(schedule, 7, kind)
    start = torch.randn(9, 3, generator=generator(), dtype=torch.float64) * schedule.sigma(ts[:1])
    step, x, g = gaussian_transition(model, schedule, ts), start, generator(1)
    for i in range(7): x = step(x, i, 1, g)[:, 0]
    assert torch.allclose(x, ddim(model, start, ts, 1.0, schedule=schedule, generator=generator(1)))


def test_the_model_is_asked_once_a_step():
    calls = []
    def model(x, t):
        calls.append(len(x))
        return x
    step = gaussian_transition(model, VPLinear(), timesteps(VPLinear(), 4))
    svdd_sample(step, total, torch.randn(5, 2, generator=generator()), 4, 8, 0.5, generator())
    assert calls == [5] * 4


def test_gaussian_steps_agree_with_diffusers():
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(beta_start=1e-4, beta_end=0.02, clip_sample=False, variance_type="fixed_small")
    scheduler.set_timesteps(20)
    ts = torch.cat([scheduler.timesteps.double(), torch.tensor([-1.0]).double()])
    step, model = gaussian_transition(lambda x, t: 0.7 * x, VPDiscrete(ddpm_betas()), ts), lambda x, t: 0.7 * x
    ours = theirs = torch.randn(4, 2, 8, generator=generator())
    g, h = generator(1), generator(1)
    for i, t in enumerate(scheduler.timesteps):
        ours = step(ours, i, 1, g)[:, 0]
        theirs = scheduler.step(model(theirs, t), t, theirs, generator=h).prev_sample
    assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3)


@quick
@given(batch=sizes, length=sizes, letters=st.integers(1, 5), n=sizes)
def test_masked_steps(batch, length, letters, n):
    probs = torch.rand(batch, length, letters, generator=generator(), dtype=torch.float64)
    step = masked_transition(lambda x, t: probs / probs.sum(-1, keepdim=True), torch.tensor([1.0, 0.5, 0.0]), letters)
    x = torch.randint(letters + 1, (batch, length), generator=generator(1))
    for i in (0, 1):
        after = step(x, i, n, generator(2))
        seen = (x < letters)[:, None].expand_as(after)
        assert after.shape == (batch, n, length) and after.dtype == torch.int64 and torch.equal(after[seen], x[:, None].expand_as(after)[seen])
    assert (after < letters).all()


def test_masked_frequencies_with_a_mask_in_front():
    probs = torch.tensor([0.0, 0.5, 0.3, 0.2])
    step = masked_transition(lambda x, t: probs.expand(*x.shape, 4), torch.tensor([0.9, 0.6]), mask_index=0)
    after = step(torch.zeros(1, 2, dtype=torch.long), 0, 20_000, generator())
    expected = torch.tensor([2 / 3, 0.5 / 3, 0.1, 0.2 / 3])
    assert all((after[0, :, k].bincount(minlength=4) / 20_000 - expected).abs().max() < 0.02 for k in (0, 1))


def test_exact_values_give_the_tilted_law():
    probs = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    reward = torch.tensor([[0.0, 1.0, 2.0], [1.5, 0.0, -1.0], [0.5, 2.0, 0.0]], dtype=torch.float64)
    law = probs[:, None] * probs
    def value(x, i):
        weight = torch.cat([torch.eye(3, dtype=torch.float64), probs[None]])[x]
        return torch.einsum("bi,ij,bj->b", weight[:, 0], reward.exp(), weight[:, 1]).log()
    step = masked_transition(lambda x, t: probs.expand(*x.shape, 3), torch.tensor([1.0, 0.6, 0.3, 0.0]), 3)
    x, _ = svdd_sample(step, value, torch.full((60_000, 2), 3), 3, 64, 1.0, generator(), chunk=20_000)
    counts = (3 * x[:, 0] + x[:, 1]).bincount(minlength=9) / 60_000
    target = (law * reward.exp()).flatten()
    assert (counts - target / target.sum()).abs().sum() / 2 < 0.03
    assert (counts - law.flatten()).abs().sum() / 2 > 0.1


def test_fill_keeps_what_is_seen():
    x = torch.tensor([[3, 1], [0, 3]])
    probs = torch.tensor([[[0.2, 0.3, 0.5], [1.0, 0.0, 0.0]], [[0.0, 1.0, 0.0], [0.9, 0.1, 0.0]]])
    assert fill_masked(x, probs, 3).tolist() == [[2, 1], [0, 0]]


class Table(nn.Module):
    def __init__(self):
        super().__init__()
        self.values = nn.Parameter(torch.zeros(2, 3))
    def forward(self, x, i): return self.values[i, x[:, 0]]


@pytest.mark.parametrize("loss, alpha", [("mean", None), ("logexp", 0.7)])
def test_a_table_learns_conditional_expectations(loss, alpha):
    states = torch.randint(3, (2, 3000, 1), generator=generator())
    rewards = states[1, :, 0] + 0.5 * torch.randn(3000, generator=generator(1))
    value = fit_value(states, rewards, Table(), loss, alpha, updates=600, lr=0.2, generator=generator(2))
    mean = lambda r: r.mean() if loss == "mean" else alpha * (r / alpha).exp().mean().log()
    for i in (0, 1):
        expected = torch.stack([mean(rewards[states[i, :, 0] == k]) for k in range(3)])
        assert torch.allclose(value(torch.arange(3)[:, None], i), expected, atol=0.15)
    assert not any(p.requires_grad for p in value.parameters())


def test_smc_follows_the_tilted_gaussian():
    x_T = torch.zeros(40_000, 1, dtype=torch.float64)
    for threshold in (0.0, 0.5, 1.0):
        x, info = smc_sample(walk, total, x_T, 3, 2.0, threshold, generator(), populations=4)
        assert abs(x.mean() - 1.5) < 0.1 and abs(x.var() - 3.0) < 0.4 and info["survivors"].shape == (4,) and (info["survivors"] < 10_000).all()


def test_best_of_n_is_the_best():
    x_T = torch.zeros(12, 1)
    everyone, _ = best_of_n(walk, lambda x: total(x, 0), x_T, 3, 1, generator())
    best, _ = best_of_n(walk, lambda x: total(x, 0), x_T, 3, 4, generator())
    assert torch.equal(best[:, 0], everyone.view(3, 4).amax(1))


X, T = torch.zeros(4, 2), torch.tensor([1.0, 0.5, 0.0])
EVEN = lambda x, t: torch.full((*x.shape, 2), 0.5)
STATES, REWARDS = torch.zeros(2, 5, 1).long(), torch.zeros(5)
REFUSED = [
    lambda: soft_select(X[:, :0], torch.zeros(4, 0), 1.0), lambda: soft_select(X, torch.zeros(4, 3), 1.0), lambda: soft_select(X, torch.zeros(4), 1.0), lambda: soft_select(X, X, -0.1), lambda: soft_select(X, X, math.nan),
    lambda: soft_select(X, X * math.nan, 1.0), lambda: soft_select(X, X + math.inf, 1.0), lambda: soft_select(X[0], X[0], 1.0),
    lambda: svdd_sample(walk, total, X, 2, 0, 1.0), lambda: svdd_sample(walk, total, X, 2, -1, 1.0), lambda: svdd_sample(walk, total, X, 2, 2, -1.0), lambda: svdd_sample(walk, total, X, 0, 2, 1.0), lambda: svdd_sample(walk, total, X[:0], 2, 2, 1.0),
    lambda: svdd_sample(walk, total, X, 2, 2, 1.0, chunk=0), lambda: svdd_sample(walk, lambda x, i: x, X, 2, 2, 1.0), lambda: svdd_sample(walk, lambda x, i: total(x, i)[:-1], X, 2, 2, 1.0), lambda: svdd_sample(walk, lambda x, i: 0.0, X, 2, 2, 1.0),
    lambda: svdd_sample(lambda x, i, n, g: x, total, X, 2, 2, 1.0), lambda: svdd_sample(walk, lambda x, i: total(x, i) / 0 * 0, X, 2, 2, 1.0),
    lambda: gaussian_transition(lambda x, t: x, VPLinear(), T.flip(0)), lambda: gaussian_transition(lambda x, t: x, VPLinear(), T[:1]), lambda: gaussian_transition(lambda x, t: x, VPLinear(), T * math.nan), lambda: gaussian_transition(lambda x, t: x, VPLinear(), T - 0.5),
    lambda: gaussian_transition(lambda x, t: x, VPLinear(), T)(X, 2, 1), lambda: gaussian_transition(lambda x, t: x, VPLinear(), T)(X, -1, 1),
    lambda: masked_transition(EVEN, T * 2, 2), lambda: masked_transition(EVEN, T - 0.1, 2), lambda: masked_transition(EVEN, T.flip(0), 2), lambda: masked_transition(EVEN, T, 2)(X.long(), 2, 1),
    lambda: masked_transition(lambda x, t: EVEN(x, t) * 2, T, 2)(X.long(), 0, 1), lambda: masked_transition(lambda x, t: EVEN(x, t)[:1], T, 2)(X.long(), 0, 1), lambda: masked_transition(lambda x, t: EVEN(x, t) * math.nan, T, 2)(X.long(), 0, 1),
    lambda: masked_transition(lambda x, t: torch.tensor([1.5, -0.5]).expand(*x.shape, 2), T, 2)(X.long(), 0, 1), lambda: fill_masked(X.long(), torch.zeros(4, 3, 2), 2), lambda: fill_masked(X.long(), torch.zeros(4, 2), 2),
    lambda: fit_value(STATES, REWARDS[:4], Table()), lambda: fit_value(STATES, REWARDS, Table(), "median"), lambda: fit_value(STATES, REWARDS, Table(), "logexp"), lambda: fit_value(STATES, REWARDS, Table(), "logexp", 0.0), lambda: fit_value(STATES, REWARDS * math.nan, Table()),
    lambda: fit_value(STATES[:, :0], REWARDS[:0], Table()), lambda: fit_value(STATES, REWARDS, Table(), updates=0), lambda: fit_value(STATES, REWARDS, Table(), lr=0.0), lambda: fit_value(STATES, REWARDS, Table(), batch_size=0),
    lambda: best_of_n(walk, lambda x: total(x, 0), X, 2, 3), lambda: best_of_n(walk, lambda x: total(x, 0), X, 2, 0), lambda: best_of_n(walk, lambda x: total(x, 0) * math.nan, X, 2, 2), lambda: best_of_n(walk, lambda x: x, X, 2, 2),
    lambda: smc_sample(walk, total, X, 2, 0.0), lambda: smc_sample(walk, total, X, 2, -1.0), lambda: smc_sample(walk, total, X, 2, 1.0, 1.5), lambda: smc_sample(walk, total, X, 2, 1.0, populations=3), lambda: smc_sample(walk, lambda x, i: total(x, i) * math.nan, X, 2, 1.0), lambda: smc_sample(walk, lambda x, i: x, X, 2, 1.0),
]


@pytest.mark.parametrize("call", REFUSED)
def test_bad_input_is_refused_at_the_door(call):
    with pytest.raises(ValueError): call()


def test_a_bad_value_is_named_with_its_step():
    with pytest.raises(ValueError, match="step 1"): svdd_sample(walk, lambda x, i: total(x, i) / (1 - i) if i else total(x, i), X, 3, 2, 1.0)
