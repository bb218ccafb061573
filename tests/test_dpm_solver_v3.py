"Properties of amortlit.diffusion.dpm_solver_v3 that do not fit its page: shapes, dtypes, refusals, exactness for Gaussians, the integrals, agreement with diffusers."
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from amortlit.core.densities import GaussianMixture
from amortlit.core.mixtures import MixtureModel, random_mixture
from amortlit.core.schedules import EDM, VPDiscrete, VPLinear, ddpm_betas, timesteps
from amortlit.core.solvers import ddim, dpmpp_multistep
from amortlit.diffusion.dpm_solver_v3 import EMS, dpm_solver_v3, estimate_ems

quick = settings(max_examples=8, deadline=None)
dtypes = st.sampled_from([torch.float32, torch.float64])
shapes = st.sampled_from([(), (1,), (3,), (1, 2, 2)])


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def in_lam(model, schedule):
    return lambda x, lam: model(x, schedule.t_of_lam(lam))


def linear(x, lam):
    return torch.sigmoid(lam) * x + torch.cos(lam)


def random_ems(n, shape, seed=0):
    lam = torch.linspace(-2, 2, n + 1, dtype=torch.float64)
    return EMS(lam, torch.sigmoid(draw(n + 1, *shape, seed=seed)), 0.3 * draw(n + 1, *shape, seed=seed + 1), 0.3 * draw(n + 1, *shape, seed=seed + 2))


def gaussian(mean, variance, schedule):
    return MixtureModel(GaussianMixture(torch.ones(1).double(), torch.tensor([mean], dtype=torch.float64), torch.diag(torch.tensor(variance, dtype=torch.float64))[None]), schedule)


def paths(model, n, k, shape, seed=0):
    ts = timesteps(model.schedule, n)
    return dpmpp_multistep(model, model.schedule.sigma(ts[0]) * draw(k, *shape, seed=seed), ts, return_trajectory=True), model.schedule.lam(ts)


@quick
@given(shape=shapes, batch=st.integers(1, 4), steps=st.integers(1, 4), order=st.integers(1, 3), dtype=dtypes, switches=st.tuples(*4 * [st.booleans()]))
def test_solver_keeps_shape_and_dtype_and_counts_its_calls(shape, batch, steps, order, dtype, switches):
    calls = []
    def model(x, lam):
        assert lam.ndim == 0 and lam.dtype == x.dtype
        calls.append(lam.item())
        return linear(x, lam)
    x, nfe = dpm_solver_v3(model, VPLinear(), draw(batch, *shape, dtype=dtype), random_ems(4, shape), steps, order, *switches)
    assert x.shape == (batch, *shape) and x.dtype == dtype and x.isfinite().all()
    assert nfe == steps == len(calls) and calls == sorted(calls)


@quick
@given(shape=shapes, k=st.integers(1, 4), n=st.integers(1, 5), dtype=dtypes, probes=st.integers(0, 2), width=st.integers(1, 3))
def test_estimate_shapes_dtypes_and_reproducibility(shape, k, n, dtype, probes, width):
    lam, x = torch.linspace(-1, 1, n + 1), draw(n + 1, k, *shape, dtype=dtype)
    make = lambda: estimate_ems(linear, VPLinear(), x, lam, probes, torch.Generator().manual_seed(1), levels_at_once=width)
    one, two = make(), make()
    for name, value in vars(one).items():
        assert value.dtype == torch.float64 and value.isfinite().all() and torch.equal(value, getattr(two, name))
        assert value.shape == ((n + 1,) if name == "lam" else (n + 1, *shape))
    expected = VPLinear().sigma(VPLinear().t_of_lam(lam.double())) * torch.sigmoid(lam.double())
    assert torch.allclose(one.l, expected.view(-1, *[1] * len(shape)).expand_as(one.l), atol=1e-5)


@quick
@given(shape=shapes, n=st.integers(2, 20))
def test_integrals_and_files(shape, n, tmp_path_factory):
    ems, path = random_ems(n, shape), tmp_path_factory.mktemp("ems") / "ems.safetensors"
    integral = lambda y: torch.stack([torch.trapezoid(y[:j + 1], ems.lam[:j + 1], dim=0) for j in range(n + 1)])
    assert torch.allclose(ems.L, integral(ems.l)) and torch.allclose(ems.S, integral(ems.s))
    assert torch.allclose(ems.I, integral((ems.L + ems.S).exp())) and torch.allclose(ems.B, integral((-ems.S).exp() * ems.b))
    assert torch.allclose(ems.C, integral((ems.L + ems.S).exp() * ems.B))
    ems.save(path)
    again = EMS.load(path)
    assert all(torch.equal(getattr(again, name), value) for name, value in vars(ems).items())


def test_degenerate():
    ems = random_ems(4, (2,))
    for kind, level, slope in (("data", 1.0, 0.0), ("noise", 0.0, -1.0)):
        made = ems.degenerate(kind)
        assert (made.l == level).all() and (made.s == slope).all() and not made.b.any() and torch.equal(made.lam, ems.lam)
    assert (ems.l != 1).any()


@pytest.mark.parametrize("schedule", [VPLinear(), EDM(), VPDiscrete(ddpm_betas())], ids=["VP", "EDM", "discrete"])
@pytest.mark.parametrize("kind", ["data", "noise"])
def test_first_order_of_both_ancestors_is_ddim(schedule, kind):
    model, x = MixtureModel(random_mixture(2, 3), schedule), draw(20, 2)
    ts = timesteps(schedule, 10)
    ends = schedule.lam(ts[[0, -1]]).tolist()
    ems = EMS(torch.linspace(*ends, 961, dtype=torch.float64), *torch.zeros(3, 961, 2)).degenerate(kind)
    ours, _ = dpm_solver_v3(in_lam(model, schedule), schedule, x, ems, 10, 1)
    assert torch.allclose(ours, ddim(model, x, ts), atol=1e-3 * max(1, ours.abs().max().item()))


@pytest.mark.parametrize("schedule", [VPLinear(), EDM(), VPDiscrete(ddpm_betas())], ids=["VP", "EDM", "discrete"])
def test_one_step_solves_a_gaussian(schedule):
    model = gaussian([0.7, -1.0], [0.3, 2.0], schedule)
    discrete = isinstance(schedule, VPDiscrete)
    trajectories, lam = paths(model, 480 if isinstance(schedule, EDM) else 120 if discrete else 240, 8, (2,))
    width = 1 if discrete else 121
    ems = estimate_ems(in_lam(model, schedule), schedule, trajectories, lam, levels_at_once=width)
    alpha, sigma = schedule.alpha(schedule.t_of_lam(lam)), schedule.sigma(schedule.t_of_lam(lam))
    deviation = (alpha[:, None] ** 2 * torch.tensor([0.3, 2.0]).double() + sigma[:, None] ** 2).sqrt()
    assert torch.allclose(ems.l, sigma[:, None] ** 2 / deviation**2, atol=1e-7)
    x, mean = sigma[0] * draw(10, 2, seed=5), torch.tensor([0.7, -1.0]).double()
    exact = alpha[-1] * mean + deviation[-1] / deviation[0] * (x - alpha[0] * mean)
    assert torch.allclose(dpm_solver_v3(in_lam(model, schedule), schedule, x, ems, 1, 1)[0], exact, atol=5e-3 if discrete else 1e-3)


def test_l_of_an_exact_score_lies_between_the_ancestors():
    for seed in range(2):
        model = MixtureModel(random_mixture(3, 4, seed=seed), EDM())
        ems = estimate_ems(in_lam(model, EDM()), EDM(), *paths(model, 40, 256, (3,), seed), levels_at_once=41)
        assert ems.l.min() > -1e-3 and ems.l.max() < 1 + 1e-3


def test_many_steps_converge_to_the_solution_and_higher_orders_faster():
    model = MixtureModel(random_mixture(2, 2, seed=3), VPLinear())
    field, schedule = in_lam(model, VPLinear()), VPLinear()
    trajectories, lam = paths(model, 240, 32, (2,))
    ems, x = estimate_ems(field, schedule, trajectories, lam, levels_at_once=241), draw(30, 2, seed=9)
    end = dpmpp_multistep(model, x, timesteps(schedule, 500), 3)
    error = lambda steps, order, **kw: (dpm_solver_v3(field, schedule, x, ems, steps, order, **kw)[0] - end).abs().mean()
    assert error(80, 1) < error(20, 1) / 2.5 and error(80, 2) < error(80, 1) / 3 and error(80, 3, corrector=True) < error(80, 1) / 3


def test_large_exponents_do_not_overflow():
    lam = torch.linspace(-4, 4, 201, dtype=torch.float64)
    ems = EMS(lam, torch.full((201, 1), 120.0), torch.zeros(201, 1), torch.ones(201, 1))
    assert ems.shift > 0 and all(v.isfinite().all() for v in vars(ems).values())
    assert dpm_solver_v3(linear, VPLinear(), draw(3, 1), ems, 20)[0].isfinite().all()


def test_vanishing_variance_gives_no_slope():
    ems = estimate_ems(linear, EDM(), torch.ones(3, 4, 2).double(), torch.linspace(-1, 1, 3))
    assert not ems.s.any() and ems.b.isfinite().all()


def test_data_prediction_agrees_with_diffusers():
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DPMSolverMultistepScheduler(1000, 1e-4, 0.02, solver_order=2, solver_type="heun", algorithm_type="dpmsolver++", final_sigmas_type="sigma_min")
    scheduler.set_timesteps(8)
    schedule = VPDiscrete(ddpm_betas())
    model, start = MixtureModel(random_mixture(2, 3), schedule), draw(16, 2)
    x = start
    for t in scheduler.timesteps: x = scheduler.step(model(x, t), t, x).prev_sample
    knots = schedule.lam(torch.cat([scheduler.timesteps, torch.zeros(1)]).double())
    lam = torch.cat([*(torch.linspace(a, b, 101, dtype=torch.float64)[:-1] for a, b in zip(knots[:-1], knots[1:])), knots[-1:]])
    ems = EMS(lam, *torch.zeros(3, len(lam), 2)).degenerate("data")
    assert torch.allclose(dpm_solver_v3(in_lam(model, schedule), schedule, start, ems, 8, 2)[0], x, atol=2e-3)


EMS_OK, X, LAM = random_ems(6, (2,)), draw(5, 2), torch.linspace(-2, 2, 3).double()
PATHS, NAN = draw(3, 4, 2), torch.full((5, 2), math.nan).double()
rounded = lambda x, lam: linear(x, lam.round())
detached = lambda x, lam: linear(x, torch.tensor(float(lam.detach())))
REFUSED = [
    *[lambda steps=steps: dpm_solver_v3(linear, VPLinear(), X, EMS_OK, steps) for steps in (0, -1, 7, 2.0)],
    *[lambda order=order: dpm_solver_v3(linear, VPLinear(), X, EMS_OK, 4, order) for order in (0, 4)],
    *[lambda x=x: dpm_solver_v3(linear, VPLinear(), x, EMS_OK, 4) for x in (X[:, :1], X[0], X[..., None], NAN)],
    lambda: EMS(LAM.flip(0), *torch.zeros(3, 3, 2)), lambda: EMS(torch.zeros(3), *torch.zeros(3, 3, 2)), lambda: EMS(LAM[:1], *torch.zeros(3, 1, 2)), lambda: EMS(LAM[None], *torch.zeros(3, 3, 2)),
    lambda: EMS(LAM, torch.zeros(3, 2), torch.zeros(3, 2), torch.zeros(3, 1)), lambda: EMS(LAM, *torch.zeros(3, 4, 2)), lambda: EMS(LAM, *torch.full((3, 3, 2), math.nan)), lambda: EMS_OK.degenerate("score"),
    lambda: estimate_ems(linear, VPLinear(), PATHS, LAM.flip(0)), lambda: estimate_ems(linear, VPLinear(), PATHS, LAM[:2]), lambda: estimate_ems(linear, VPLinear(), PATHS[:, :0], LAM), lambda: estimate_ems(linear, VPLinear(), PATHS * math.nan, LAM),
    lambda: estimate_ems(linear, VPLinear(), PATHS, LAM * math.nan), lambda: estimate_ems(linear, VPLinear(), PATHS, LAM, -1), lambda: estimate_ems(linear, VPLinear(), PATHS, LAM, levels_at_once=0),
    lambda: estimate_ems(rounded, VPLinear(), PATHS, LAM), lambda: estimate_ems(detached, VPLinear(), PATHS, LAM),
]


@pytest.mark.parametrize("call", REFUSED)
def test_bad_input_is_refused_at_the_door(call):
    with pytest.raises(ValueError): call()
