"""Pseudo numerical methods: doors, invariants, and agreement with DDIM and with diffusers."""
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from amortlit.core.mixtures import MixtureModel, random_mixture
from amortlit.core.schedules import VPDiscrete, ddpm_betas
from amortlit.diffusion.pndm import PNDMScheduler, fon_sample, pndm_sample, transfer

ABAR = (1 - ddpm_betas()).cumprod(0)


def seed(k=0): return torch.Generator().manual_seed(k)


@settings(deadline=None, max_examples=40)
@given(st.floats(1e-4, 1.0), st.floats(1e-4, 1.0), st.integers(0, 99), st.sampled_from([torch.float32, torch.float64]))
def test_transfer_carries_a_noised_point_along_its_own_noise(a, b, k, dtype):
    x0, e = torch.randn(3, 1, 2, generator=seed(k)).to(dtype), torch.randn(3, 1, 2, generator=seed(k + 1)).to(dtype)
    at = lambda share: share**0.5 * x0 + (1 - share) ** 0.5 * e
    out = transfer(at(a), e, a, b)
    assert out.dtype == dtype and out.shape == x0.shape and torch.allclose(out, at(b), atol=1e-3 if dtype == torch.float32 else 1e-9)
    each = transfer(at(a), e, torch.full((3,), a, dtype=torch.float64), torch.full((3,), b, dtype=torch.float64))
    assert torch.allclose(each, out)


@pytest.mark.parametrize("order, spent", [(1, 20), (2, 21), (4, 29)])
def test_a_constant_answer_is_transferred_exactly(order, spent):
    e, x0 = torch.randn(4, 3, generator=seed()).double(), torch.randn(4, 3, generator=seed(1)).double()
    x = ABAR[950].sqrt() * x0 + (1 - ABAR[950]).sqrt() * e
    times = []
    out, asked = pndm_sample(lambda x, t: times.append(t) or e, x, ABAR, 20, order)
    assert torch.allclose(out, x0, atol=1e-10) and asked == spent == len(times)
    assert all(t.shape == (4,) and t.dtype == torch.float64 and (0 <= t).all() and (t < 1000).all() for t in times)


def test_trajectories_begin_at_the_start_and_end_at_the_sample():
    model, x = MixtureModel(random_mixture(2, 3, seed=1), VPDiscrete(ddpm_betas())), torch.randn(6, 2, generator=seed()).double()
    for run in (lambda **k: pndm_sample(model, x, ABAR, 10, 4, **k), lambda **k: fon_sample(model, x, ABAR, 10, **k)):
        path, last = run(return_trajectory=True)[0], run()[0]
        assert path.shape == (11, 6, 2) and torch.equal(path[0], x) and torch.equal(path[-1], last)


def test_bad_input_is_refused():
    x, model = torch.randn(2, 2, generator=seed()), lambda x, t: x
    for call in (lambda: pndm_sample(model, x, ABAR, 7), lambda: pndm_sample(model, x, ABAR, 2), lambda: pndm_sample(model, x, ABAR, 10, 3), lambda: pndm_sample(model, x, ABAR.flip(0), 10), lambda: pndm_sample(model, x * float("inf"), ABAR, 10),
                 lambda: pndm_sample(model, x, torch.ones(10), 10), lambda: fon_sample(model, x, ABAR, 2), lambda: fon_sample(model, x, ABAR, 30), lambda: transfer(x, x, 0.0, 1.0), lambda: transfer(x, x, 0.5, 1.1), lambda: PNDMScheduler(ABAR, 3).set_timesteps(10)):
        with pytest.raises(ValueError): call()
    scheduler = PNDMScheduler(ABAR)
    scheduler.set_timesteps(10)
    with pytest.raises(ValueError, match="next time"): scheduler.step(x, 0.0, x)
    with pytest.raises(ValueError): scheduler.step(x * float("nan"), scheduler.timesteps[0], x)


def test_a_scheduler_can_begin_anew():
    model, x = MixtureModel(random_mixture(2, 3, seed=1), VPDiscrete(ddpm_betas())), torch.randn(6, 2, generator=seed()).double()
    scheduler, ends = PNDMScheduler(ABAR), []
    for _ in range(2):
        scheduler.set_timesteps(10)
        y = x
        for t in scheduler.timesteps: y = scheduler.step(model(y, torch.tensor(t).double()), t, y)
        ends.append(y)
    assert torch.equal(*ends) and torch.equal(ends[0], pndm_sample(model, x, ABAR, 10)[0])
    with pytest.raises(ValueError, match="none"): scheduler.step(x, 0.0, x)


def test_diffusers_takes_the_same_steps():
    "Its table is shifted by one index; with ours shifted likewise, all steps but the last agree."
    diffusers = pytest.importorskip("diffusers")
    mixture = random_mixture(3, 4, seed=2)
    schedule = VPDiscrete(ddpm_betas())
    model, x = MixtureModel(mixture, schedule), torch.randn(8, 3, generator=seed()).double()
    scheduler = diffusers.PNDMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear", skip_prk_steps=False, set_alpha_to_one=True)
    scheduler.set_timesteps(50)
    y = x
    for t in scheduler.timesteps: y = scheduler.step(model(y, t.double()), t, y).prev_sample
    ours = pndm_sample(model, x, ABAR, 50, 4)[0]
    assert (ours - y).norm(dim=1).median() < 0.02 and (ours - y).norm(dim=1).median() < 0.2 * (pndm_sample(model, x, ABAR, 10, 1)[0] - y).norm(dim=1).median()
