"Properties of amortlit.bandits.optimistic_omd that do not fit its page: shapes, dtypes, refusals, invariants."
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from amortlit.bandits.optimistic_omd import OnlineRun, SEAQuadratics, optimistic_ftrl, optimistic_omd, project_ball

quick = settings(max_examples=25, deadline=None)
modes = st.sampled_from([("convex", None), ("strongly_convex", 0.5), ("exp_concave", 0.2)])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@quick
@given(mode=modes, R=st.integers(1, 4), T=st.integers(1, 20), d=st.integers(1, 4), radius=st.floats(0.1, 10), seed=st.integers(0, 99))
def test_runs_stay_in_the_ball(mode, R, T, d, radius, seed):
    pulls = torch.randn(T, R, d, generator=generator(seed), dtype=torch.float64)
    for run in (optimistic_omd(lambda t, x: pulls[t] + x, d, T, R, radius, 5.0, 1.0, mode=mode[0], modulus=mode[1]), optimistic_ftrl(lambda t, x: pulls[t] + x, d, T, R, radius, 5.0, 1.0)):
        assert isinstance(run, OnlineRun) and run.points.shape == run.gradients.shape == (R, T, d) and run.step_sizes.shape == (R, T)
        assert (run.points.norm(dim=-1) <= radius * (1 + 1e-9)).all() and (run.step_sizes.diff(dim=1) <= 1e-12).all()
        assert torch.allclose(run.gradients, pulls.transpose(0, 1) + run.points) and run.points.dtype == torch.float64


def test_one_round_plays_the_start_projected():
    x0 = torch.tensor([[3.0, 4.0], [0.1, 0.2]], dtype=torch.float64)
    for method in (optimistic_omd, optimistic_ftrl):
        run = method(lambda t, x: x, 2, 1, 2, 1.0, 1.0, x0=x0)
        assert torch.allclose(run.points[:, 0], project_ball(x0, 1.0))


def test_single_precision_and_replications_stay_apart():
    pulls = torch.randn(30, 3, 2, generator=generator())
    run = optimistic_omd(lambda t, x: pulls[t], 2, 30, 3, 1.0, 3.0, x0=torch.zeros(2))
    alone = [optimistic_omd(lambda t, x, r=r: pulls[t, r:r + 1], 2, 30, 1, 1.0, 3.0, x0=torch.zeros(2)).points for r in range(3)]
    assert run.points.dtype == torch.float32 and torch.allclose(run.points, torch.cat(alone))


@pytest.mark.parametrize("kind", ["fixed", "alternating", "rotating", "switch"])
def test_no_point_beats_the_best_one(kind):
    world = SEAQuadratics(60, 3, 5, 0.7, 0.4, kind, generator())
    anywhere = project_ball(3 * torch.randn(50, 5, 1, 3, generator=generator(1), dtype=torch.float64), 1.0).expand(50, 5, 60, 3)
    assert min(world.regret(p).min() for p in anywhere) >= -1e-9
    assert world.sigma2.shape == world.Sigma2.shape == (5,) and (world.Sigma2 > 0).all() == (kind != "fixed")
    t, x = 7, torch.randn(5, 3, generator=generator(2), dtype=torch.float64, requires_grad=True)
    loss = (world.q * (x - world.centers[:, t]) ** 2 / 2 + world.noise[:, t] * x).sum()
    assert torch.allclose(torch.autograd.grad(loss, x)[0], world.grad(t, x.detach())) and world.grad(t, project_ball(x.detach(), 1.0)).norm(dim=-1).max() <= world.G


def test_strong_convexity_gives_a_logarithm():
    world = SEAQuadratics(4096, 3, 64, 0.5, 0.0, "fixed", generator(), smallest=0.5)
    points = optimistic_omd(world.grad, 3, 4096, 64, 1.0, world.G, world.L, mode="strongly_convex", modulus=0.5).points
    regret = [world.regret(points[:, :n]).mean() for n in (256, 1024, 4096)]
    assert 0.5 < (regret[2] - regret[1]) / (regret[1] - regret[0]) < 1.7


G2 = lambda t, x: x


@pytest.mark.parametrize("call", [
    lambda: optimistic_omd(G2, 2, 5, 1, 0.0, 1.0), lambda: optimistic_omd(G2, 2, 5, 1, 1.0, 0.0), lambda: optimistic_omd(G2, 2, 5, 1, 1.0, 1.0, L=-1.0), lambda: optimistic_omd(G2, 0, 5, 1, 1.0, 1.0), lambda: optimistic_omd(G2, 2, 0, 1, 1.0, 1.0),
    lambda: optimistic_omd(G2, 2, 5, 1, 1.0, 1.0, mode="other"), lambda: optimistic_omd(G2, 2, 5, 1, 1.0, 1.0, mode="strongly_convex"), lambda: optimistic_omd(G2, 2, 5, 1, 1.0, 1.0, mode="exp_concave", modulus=0.0),
    lambda: optimistic_omd(G2, 2, 5, 1, 1.0, 1.0, delta=-1.0), lambda: optimistic_omd(G2, 2, 5, 1, 1.0, 1.0, x0=torch.zeros(3)), lambda: optimistic_omd(G2, 2, 5, 1, 1.0, 1.0, x0=torch.full((2,), math.nan)),
    lambda: optimistic_ftrl(G2, 2, 5, 1, -1.0, 1.0), lambda: optimistic_ftrl(lambda t, x: x[0], 2, 5, 1, 1.0, 1.0),
    lambda: SEAQuadratics(5, 2, 1, 0.1, 0.1, "other"), lambda: SEAQuadratics(5, 1, 1, 0.1, 0.1, "rotating"), lambda: SEAQuadratics(5, 2, 1, 0.1, -0.1, "fixed"), lambda: SEAQuadratics(0, 2, 1, 0.1, 0.1, "fixed"), lambda: SEAQuadratics(5, 2, 1, 0.1, 0.1, "fixed", smallest=0.0),
    lambda: SEAQuadratics(5, 2, 1, 0.1, 0.1, "fixed").regret(torch.zeros(1, 6, 2)), lambda: project_ball(torch.zeros(2), -1.0)])
def test_bad_input_is_refused(call):
    with pytest.raises(ValueError): call()


def test_a_bad_gradient_names_its_round():
    with pytest.raises(ValueError, match="round 3"): optimistic_omd(lambda t, x: x if t < 3 else x * math.nan, 2, 9, 1, 1.0, 1.0)
    with pytest.raises(ValueError, match="round 2"): optimistic_omd(lambda t, x: x if t < 2 else x[:, :1], 2, 9, 1, 1.0, 1.0)
