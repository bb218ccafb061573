"""The samplers of the floor against the schedulers of the same names in diffusers."""
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from amortlit.core.schedules import EDM, VPDiscrete, VPLinear, ddpm_betas, timesteps
from amortlit.core.solvers import ddim, dpmpp_multistep, edm_stochastic, heun, unipc

BETAS = ddpm_betas()
SCHEDULE = VPDiscrete(BETAS)


def bent(x, t):
    "Some smooth field, in the place of a model."
    return torch.tanh(x.flip(-1) * 0.7 + t.to(x) / 1000) * 0.8 + 0.1 * x


def through(scheduler, x, ts):
    "What a scheduler of diffusers makes of the same field on the same times."
    for t in scheduler.timesteps: x = scheduler.step(bent(x, t), t, x, return_dict=False)[0]
    return x


def noise(seed=0, shape=(16, 4)):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


@pytest.mark.parametrize("steps", [1, 5, 20])
def test_ddim_agrees_with_diffusers(steps):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(1000, trained_betas=BETAS.numpy(), clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    ts = torch.cat([scheduler.timesteps, torch.tensor([-1])]).double()
    if steps == 1: assert ts[0] == 999
    assert torch.allclose(through(scheduler, noise(), ts), ddim(bent, noise(), ts, schedule=SCHEDULE), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("steps", [6, 20])
def test_dpmpp_agrees_with_diffusers(order, steps):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DPMSolverMultistepScheduler(1000, trained_betas=BETAS.numpy(), solver_order=order, algorithm_type="dpmsolver++", lower_order_final=True)
    scheduler.set_timesteps(steps)
    ts = torch.cat([scheduler.timesteps, torch.tensor([-1])]).double()
    assert torch.allclose(through(scheduler, noise(), ts), dpmpp_multistep(bent, noise(), ts, order, schedule=SCHEDULE), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("order, variant", [(1, "bh2"), (2, "bh2"), (3, "bh2"), (3, "bh1")])
@pytest.mark.parametrize("steps", [6, 20])
def test_unipc_agrees_with_diffusers(order, variant, steps):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.UniPCMultistepScheduler(1000, trained_betas=BETAS.numpy(), solver_order=order, solver_type=variant, predict_x0=True, lower_order_final=True, final_sigmas_type="sigma_min")
    scheduler.set_timesteps(steps)
    ts = torch.cat([scheduler.timesteps, torch.tensor([0])]).double()
    if (scheduler.timesteps.diff() >= 0).any() or scheduler.timesteps[-1] == 0: pytest.skip("the scheduler's own times do not fall")
    assert torch.allclose(through(scheduler, noise(), ts), unipc(bent, noise(), ts, order, variant, schedule=SCHEDULE), rtol=1e-3, atol=1e-3)


def test_heun_agrees_with_the_algorithm_by_hand():
    schedule, x = EDM(), 80 * noise()
    ts = timesteps(schedule, 9, "karras")
    by_hand = x
    for s, t in zip(ts[:-1], ts[1:]):
        d = bent(by_hand, s)
        there = by_hand + (t - s) * d
        by_hand = by_hand + (t - s) * (d + bent(there, t)) / 2
    assert torch.allclose(heun(bent, x, ts), by_hand, rtol=1e-10)
    assert torch.equal(edm_stochastic(bent, x, ts), heun(bent, x, ts))
    churned = [edm_stochastic(bent, x, ts, S_churn=5.0, generator=torch.Generator().manual_seed(k)) for k in (0, 0, 1)]
    assert torch.equal(churned[0], churned[1]) and not torch.allclose(churned[0], churned[2])
    assert torch.equal(edm_stochastic(bent, x, ts, S_churn=5.0, S_tmin=100.0), heun(bent, x, ts))


@given(st.floats(0.01, 1.0), st.floats(1.0, 30.0), st.floats(1e-4, 1.0))
@settings(max_examples=50, deadline=None)
def test_times_and_signal_to_noise_are_inverse(beta0, beta1, t):
    schedule = VPLinear(beta0, beta0 + beta1)
    t = torch.tensor(t).double()
    assert abs(schedule.t_of_lam(schedule.lam(t)) - t) < 1e-9


def test_states_on_the_way_and_precision():
    ts = timesteps(SCHEDULE, 5)
    for sampler in (ddim, heun, edm_stochastic, dpmpp_multistep, unipc):
        path = sampler(bent, noise().float(), ts, schedule=SCHEDULE, return_trajectory=True)
        assert path.shape == (6, 16, 4) and path.dtype == torch.float32 and torch.equal(path[0], noise().float())
        assert torch.equal(path[-1], sampler(bent, noise().float(), ts, schedule=SCHEDULE))
