"Properties of amortlit.diffusion.olss that do not fit its page: shapes, dtypes, refusals, invariants, agreement with numpy and with the floor's solvers."
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from amortlit.core.mixtures import MixtureModel, random_mixture
from amortlit.core.schedules import EDM, VPDiscrete, VPLinear, ddpm_betas, timesteps
from amortlit.core.solvers import ddim
from amortlit.diffusion.olss import OLSSPlan, fit_weights, olss_sample, search_path, teacher_paths

SCHEDULE = VPDiscrete(ddpm_betas())
MODEL = MixtureModel(random_mixture(4, 3, seed=5), SCHEDULE)
quick = settings(max_examples=15, deadline=None)


def noise(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


T, XS, ES = teacher_paths(MODEL, SCHEDULE, noise(48, 4), steps=30)


def fields(plan):
    return plan.timesteps, plan.index, plan.w_x, plan.w_e, plan.fit_mse


@quick
@given(shape=st.sampled_from([(4,), (2, 2), (1, 2, 2)]), n=st.integers(1, 6), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_shapes_and_dtypes(shape, n, dtype):
    model = MixtureModel(random_mixture(4, 3, seed=5).to(dtype), SCHEDULE)
    t, xs, es = teacher_paths(model, SCHEDULE, noise(16, *shape, dtype=dtype), steps=12)
    assert t.shape == (12,) and xs.shape == (13, 16, *shape) and es.shape == (12, 16, *shape) and xs.dtype == es.dtype == dtype
    path, cap = search_path(xs, es, n)
    assert path[0] == 0 and len(path) <= n and all(a < b for a, b in zip(path, path[1:])) and path[-1] < 12 and isinstance(cap, float)
    plan = fit_weights(t, xs, es, path)
    assert [f.shape for f in fields(plan)] == [(len(path),)] * 3 + [(len(path),) * 2, (len(path),)]
    assert plan.w_e.dtype == plan.w_x.dtype == torch.float64 and torch.equal(plan.w_e, plan.w_e.tril()) and plan.index.tolist() == path
    sample, nfe = olss_sample(model, xs[0], plan)
    assert sample.shape == xs[0].shape and sample.dtype == dtype and nfe == len(path) and sample.isfinite().all()


def test_the_long_run_is_ddim():
    assert torch.equal(XS[-1], ddim(MODEL, XS[0], timesteps(SCHEDULE, 30, "uniform")))
    assert torch.allclose(ES[7], MODEL(XS[7], T[7]))


@pytest.mark.parametrize("schedule", [SCHEDULE, VPLinear(), EDM(sigma_max=10.0)])
def test_all_places_reproduce_the_long_run(schedule):
    model = MixtureModel(MODEL.mixture, schedule)
    t, xs, es = teacher_paths(model, schedule, noise(48, 4) * schedule.sigma(torch.tensor(schedule.t_max)), steps=20, kind="uniform")
    plan = fit_weights(t, xs, es, range(20))
    assert plan.fit_mse.max() < 1e-16 * xs.var()
    assert torch.allclose(olss_sample(model, xs[0], plan)[0], xs[-1], atol=1e-6)


@quick
@given(n=st.integers(1, 4), seed=st.integers(0, 5))
def test_rows_are_least_squares(n, seed):
    index = [0, *sorted(torch.randperm(28, generator=torch.Generator().manual_seed(seed))[: n - 1].add(1).tolist())]
    plan = fit_weights(T, XS, ES, index, rcond=0.0)
    for i, end in enumerate([*index[1:], 30]):
        A, y = torch.stack([XS[0], *ES[index[: i + 1]]]).flatten(1).T.numpy(), XS[end].flatten().numpy()
        best = np.linalg.lstsq(A, y, rcond=1e-15)[0]
        assert np.isclose(plan.fit_mse[i], ((A @ best - y) ** 2).mean(), rtol=1e-6, atol=1e-18)


def test_a_harder_cut_never_fits_better_nor_worse_than_the_chain():
    index = [0, 5, 10, 15, 20, 25]
    errors = torch.stack([fit_weights(T, XS, ES, index, rcond=r).fit_mse for r in (0.0, 1e-10, 1e-6, 1e-3, 1.0, 1e9)])
    assert (errors.diff(dim=0) >= -1e-12).all()
    ts = torch.cat([T[index], torch.zeros(1)])
    replies = iter(ES[index])
    states = ddim(lambda x, t: next(replies), XS[0], ts, schedule=SCHEDULE, return_trajectory=True)[1:]
    loss = (states - XS[[*index[1:], 30]]).square().flatten(1).mean(1)
    assert (errors[0] <= loss).all() and errors[-1, 0] <= loss[0]


def test_the_cut_is_a_share_of_the_largest_eigenvalue():
    index = [0, 15]
    values = torch.linalg.svdvals(torch.stack([XS[0], *ES[index]]).flatten(1)) ** 2
    share, full = float(values[-1] / values[0]), fit_weights(T, XS, ES, index, rcond=0.0).w_e[1]
    assert torch.allclose(fit_weights(T, XS, ES, index, rcond=0.99 * share).w_e[1], full)
    assert not torch.allclose(fit_weights(T, XS, ES, index, rcond=1.01 * share).w_e[1], full)


def test_a_point_in_front_never_hurts():
    few, many = fit_weights(T, XS, ES, [0, 12, 20, 26]), fit_weights(T, XS, ES, [0, 6, 12, 20, 26])
    assert (many.fit_mse[2:] <= few.fit_mse[1:] * (1 + 1e-9)).all()


def test_rotation_and_scale_of_pixels():
    Q, index = torch.linalg.qr(noise(4, 4, seed=3)).Q, [0, 10, 20]
    plan = fit_weights(T, XS, ES, index)
    for factor in (Q, 3 * Q):
        turned = fit_weights(T, XS @ factor, ES @ factor, index)
        assert torch.allclose(turned.w_e, plan.w_e, atol=1e-8) and torch.allclose(turned.w_x, plan.w_x, atol=1e-8)


def test_a_model_that_ignores_x_is_exact():
    blind = lambda x, t: torch.linspace(-1, 1, 4, dtype=x.dtype).expand_as(x)
    run = teacher_paths(blind, SCHEDULE, noise(8, 4), steps=25)
    for index in ([0], [0, 1], [0, 7, 13, 24]):
        plan = fit_weights(*run, index)
        assert torch.allclose(olss_sample(blind, noise(5, 4, seed=9), plan)[0], teacher_paths(blind, SCHEDULE, noise(5, 4, seed=9), steps=25)[1][-1], atol=1e-8)


def test_closed_loop_ends_where_its_fit_says():
    index = search_path(XS, ES, 4)[0]
    MODEL.reset()
    plan = fit_weights(T, XS, ES, index, closed_loop_model=MODEL)
    assert MODEL.nfe == len(index)
    assert torch.isclose((olss_sample(MODEL, XS[0], plan)[0] - XS[-1]).square().mean(), plan.fit_mse[-1])
    opened = fit_weights(T, XS, ES, index)
    assert plan.fit_mse[-1] < (olss_sample(MODEL, XS[0], opened)[0] - XS[-1]).square().mean()


def one_step(path, k):
    A, y = torch.stack([XS[path[k]], *ES[path[: k + 1]]]).flatten(1).T.numpy(), XS[[*path, 30][k + 1]].flatten().numpy()
    return ((A @ np.linalg.lstsq(A, y, rcond=1e-15)[0] - y) ** 2).mean()


@pytest.mark.parametrize("n", [1, 2, 4, 7])
def test_the_cap_is_the_paths_largest_step_and_tight(n):
    path, cap = search_path(XS, ES, n)
    assert np.isclose(max(one_step(path, k) for k in range(len(path))), cap, rtol=1e-3, atol=1e-12)
    with pytest.raises(ValueError): search_path(XS, ES, n, r_max=cap / 2)
    assert search_path(XS, ES, n, iters=0, r_max=cap * (1 + 1e-9))[0] == path


def test_caps_fall_with_n_and_few_points_may_do():
    caps = [search_path(XS, ES, n)[1] for n in range(1, 12)]
    assert all(a >= b for a, b in zip(caps, caps[1:]))
    assert len(search_path(XS, ES, 12, iters=0)[0]) < 12
    assert search_path(XS, ES, 30)[1] < 1e-6


def test_exhaustive_search_is_not_much_better():
    best = min(max(one_step([0, a, b], k) for k in range(3)) for a in range(1, 29) for b in range(a + 1, 30))
    assert best * (1 - 1e-6) <= search_path(XS, ES, 3)[1] <= 1.5 * best


def test_plans_are_kept(tmp_path):
    plan = fit_weights(T, XS, ES, [0, 10, 20])
    plan.save(tmp_path / "plan.pt")
    again = OLSSPlan.load(tmp_path / "plan.pt")
    assert all(torch.equal(a, b) for a, b in zip(fields(plan), fields(again)))
    assert torch.equal(olss_sample(MODEL, XS[0], plan)[0], olss_sample(MODEL, XS[0], again)[0])


def test_schedulers_of_diffusers_are_plans():
    diffusers = pytest.importorskip("diffusers")
    ts = torch.tensor([*range(900, -1, -100), -1], dtype=torch.float64)
    alpha, sigma = SCHEDULE.alpha(ts), SCHEDULE.sigma(ts)
    b = sigma[1:] - alpha[1:] / alpha[:-1] * sigma[:-1]
    plan = OLSSPlan(ts[:-1], torch.arange(10), alpha[1:] / alpha[0], (alpha[1:, None] / alpha[1:] * b).tril(), torch.zeros(10))
    scheduler, x = diffusers.DDIMScheduler(beta_start=1e-4, beta_end=0.02, clip_sample=False, set_alpha_to_one=True), XS[0]
    scheduler.set_timesteps(10)
    for t in scheduler.timesteps: x = scheduler.step(MODEL(x, t.to(x)), t, x).prev_sample
    assert torch.allclose(olss_sample(MODEL, XS[0], plan)[0], x, atol=1e-3)


PLAN = fit_weights(T, XS, ES, [0, 10])
REFUSED = [
    *[lambda i=i: fit_weights(T, XS, ES, i) for i in ([], [1, 2], [0, 5, 5], [0, 9, 3], [0, 30], [0, -1])],
    lambda: fit_weights(T, XS[:, :1, :2], ES[:, :1, :2], [0]), lambda: fit_weights(T[:5], XS, ES, [0]), lambda: fit_weights(T, XS[:-1], ES, [0]), lambda: fit_weights(T, XS * math.nan, ES, [0]),
    lambda: fit_weights(T, XS, ES * math.nan, [0]), lambda: fit_weights(T, XS, ES, [0], rcond=-1.0), lambda: fit_weights(T, XS[:, :0], ES[:, :0], [0]), lambda: fit_weights(T, XS, ES, [0], rcond=math.nan),
    *[lambda n=n: search_path(XS, ES, n) for n in (0, 31, -1, 2.0)], lambda: search_path(XS * math.nan, ES, 2), lambda: search_path(XS, ES * math.nan, 2), lambda: search_path(XS[:, :0], ES[:, :0], 2),
    lambda: search_path(XS[1:], ES, 2), lambda: search_path(XS, ES, 2, iters=-1), lambda: search_path(XS, ES, 2, r_max=0.0), lambda: search_path(XS, ES, 2, r_max=1e-9),
    lambda: teacher_paths(MODEL, SCHEDULE, XS[0], steps=0), lambda: teacher_paths(MODEL, SCHEDULE, XS[0] * math.nan), lambda: teacher_paths(MODEL, SCHEDULE, XS[0][:0]), lambda: teacher_paths(MODEL, SCHEDULE, XS[0], kind="other"),
    lambda: olss_sample(MODEL, XS[0] * math.nan, PLAN), lambda: olss_sample(MODEL, XS[0][:0], PLAN),
]


@pytest.mark.parametrize("call", REFUSED)
def test_bad_input_is_refused_at_the_door(call):
    with pytest.raises(ValueError): call()
