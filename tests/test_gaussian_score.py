"""One Gaussian as a diffusion model: shapes, doors, and agreement with other ways to the same numbers."""
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from amortlit.core.densities import GaussianMixture
from amortlit.core.schedules import EDM, timesteps
from amortlit.core.solvers import ddim, dpmpp_multistep, heun
from amortlit.diffusion.gaussian_score import GaussianModel, KernelModel, LowRankMixture, hybrid_sample, residual_variance


def seed(k=0): return torch.Generator().manual_seed(k)


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 30), st.sampled_from([(3,), (1, 2, 2), (5,)]), st.integers(1, 3), st.sampled_from([torch.float32, torch.float64]), st.integers(0, 99))
def test_shapes_and_dtypes_are_those_of_the_input(n, shape, rank, dtype, k):
    X = torch.randn(n, *shape, generator=seed(k))
    model = GaussianModel.from_data(X, rank=rank)
    x = torch.randn(4, *shape, generator=seed(k + 1)).to(dtype)
    for value in (model.score(x, 0.5), model.denoise(x, torch.rand(4) + 0.1), model.teleport(x, 80.0, 2.0), model.trajectory(x, 80.0, [3.0, 1.0])[1]):
        assert value.shape == x.shape and value.dtype == dtype and value.isfinite().all()
    assert model.eigval.shape == (rank,) and (model.eigval.diff() <= 0).all() and (model.eigval >= 0).all() and model.eigvec.dtype == torch.float64


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 5), st.floats(0.01, 20), st.integers(0, 99))
def test_it_is_the_mixture_with_one_component(d, sigma, k):
    A = torch.randn(d, d, generator=seed(k)).double()
    mean, cov = torch.randn(d, generator=seed(k + 1)).double(), A @ A.T
    one, model = GaussianMixture(torch.ones(1).double(), mean[None], cov[None]), GaussianModel(mean, cov)
    x = 3 * torch.randn(6, d, generator=seed(k + 2)).double()
    assert torch.allclose(model.score(x, sigma), one.score(x, 1.0, sigma), rtol=1e-6, atol=1e-8) and torch.allclose(model.denoise(x, sigma), one.denoise(x, 1.0, torch.tensor(sigma).double()), rtol=1e-6, atol=1e-6)


def test_levels_may_differ_between_samples():
    model, x, s = GaussianModel.from_data(torch.randn(20, 4, generator=seed())), torch.randn(3, 4, generator=seed(1)), torch.tensor([0.1, 1.0, 10.0])
    for f in (model.score, model.denoise, KernelModel(torch.randn(5, 4, generator=seed(2))).score):
        assert torch.allclose(f(x, s), torch.cat([f(x[i:i + 1], s[i].item()) for i in range(3)]), rtol=1e-5)


def test_directions_without_variance_shrink_with_the_noise():
    flat = GaussianModel(torch.zeros(2), torch.diag(torch.tensor([1.0, 0.0])))
    x = torch.ones(1, 2).double()
    assert torch.allclose(flat.teleport(x, 80.0, 4.0)[0, 1], torch.tensor(4 / 80).double()) and flat.denoise(x, 1e-3)[0, 1] == 0


def test_rank_shrinks_the_rest_by_their_mean():
    cov = torch.diag(torch.tensor([9.0, 4.0, 2.0]))
    model, x = GaussianModel(torch.zeros(3), cov, rank=1), torch.ones(1, 3).double()
    assert torch.allclose(model.teleport(x, 80.0, 1.0)[0, 1:], torch.tensor((3 + 1) / (3 + 6400)).double().sqrt().expand(2))


def test_from_data_shrinks_towards_a_sphere():
    X = torch.randn(50, 3, generator=seed()).double()
    round_one = GaussianModel.from_data(X, shrink=1.0)
    assert torch.allclose(round_one.eigval, X.T.cov().diagonal().mean().expand(3)) and torch.allclose(round_one.mean, X.mean(0))


def test_bad_input_is_refused():
    X = torch.randn(10, 3, generator=seed())
    model = GaussianModel.from_data(X)
    grid = timesteps(EDM(), 6, "karras")
    eps = lambda x, t: -t * model.score(x, t)
    bad = [lambda: GaussianModel.from_data(X[:1]), lambda: GaussianModel.from_data(X, rank=0), lambda: GaussianModel.from_data(X, rank=4), lambda: GaussianModel.from_data(X, shrink=2.0), lambda: GaussianModel.from_data(X * float("nan")),
           lambda: GaussianModel(torch.zeros(2), torch.eye(3)), lambda: model.score(X, 0.0), lambda: model.score(X, -1.0), lambda: model.score(X[:, :2], 1.0), lambda: model.denoise(X, torch.ones(3)), lambda: model.teleport(X, 5.0, 6.0),
           lambda: model.trajectory(X, 5.0, [1.0, 0.0]), lambda: KernelModel(X, -1.0), lambda: KernelModel(X[:0]), lambda: LowRankMixture(X, 11, 1), lambda: LowRankMixture(X, 1, 3), lambda: residual_variance(model.score, model.score, X, [1.0], n_noise=0),
           lambda: residual_variance(model.score, model.score, X, [0.0]), lambda: hybrid_sample(eps, X, model, grid, 81.0), lambda: hybrid_sample(eps, X, model, grid, 0.001), lambda: hybrid_sample(eps, X, model, grid.flip(0), 5.0), lambda: hybrid_sample(eps, X, model, torch.cat([grid, torch.zeros(1)]), 5.0)]
    for call in bad:
        with pytest.raises(ValueError): call()


def test_residual_variance_is_zero_for_the_same_and_one_for_nothing():
    model, x0 = GaussianModel.from_data(torch.randn(30, 2, generator=seed())), torch.randn(40, 2, generator=seed(1))
    zero = lambda x, s: torch.zeros_like(x)
    assert (residual_variance(model.score, model.score, x0, [0.1, 3.0]) == 0).all()
    assert torch.allclose(residual_variance(zero, model.score, x0, [0.1, 3.0], seed(2), n_noise=3), torch.ones(2).double())


@pytest.mark.parametrize("solver, cost", [(heun, 2), (ddim, 1), (dpmpp_multistep, 1)])
@pytest.mark.parametrize("regrid", [True, False])
def test_hybrid_is_a_jump_and_then_the_solver(solver, cost, regrid):
    model, x = GaussianModel.from_data(torch.randn(30, 2, generator=seed()).double()), 80 * torch.randn(5, 2, generator=seed(1)).double()
    eps, grid = lambda x, t: -t * model.score(x, t), timesteps(EDM(), 12, "karras")
    got, spent = hybrid_sample(eps, x, model, grid, 5.0, solver, regrid)
    below = grid[grid < 5.0]
    rest = timesteps(EDM(grid[-1].item(), 5.0), len(below), "karras") if regrid else torch.cat([torch.tensor([5.0]).double(), below])
    assert torch.equal(got, solver(eps, model.teleport(x, 80.0, 5.0), rest)) and spent == cost * len(below)
