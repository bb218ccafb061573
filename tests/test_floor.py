"""Properties of the floor beyond its notebooks: shapes, dtypes, empty and NaN input, agreement with peers."""
import math
import os
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from amortlit.core import bench, claims, data, densities, mcmc, metrics, nets, online, ot, plots, record, show, stats, weights
from amortlit.core.study import Study

quick = settings(max_examples=30, deadline=None)
finite = st.floats(-1e6, 1e6)
vectors = st.lists(finite, min_size=1, max_size=30)
NAN = float("nan")


def stream(seed=0): return torch.Generator().manual_seed(seed)


# stats and claims --------------------------------------------------------------------------------------------------

@quick
@given(vectors, st.sampled_from([list, np.array, torch.tensor]))
def test_a_mean_lies_inside_its_interval(values, kind):
    interval = stats.mean_ci(kind(values))
    assert interval.low <= interval.estimate <= interval.high and interval.n == len(values)
    assert math.isinf(interval.low) == (len(values) == 1)


@quick
@given(st.lists(finite, min_size=2, max_size=30), st.floats(-1e3, 1e3))
def test_an_interval_moves_with_its_samples(values, shift):
    a, b = stats.mean_ci(values), stats.mean_ci(np.array(values) + shift)
    assert np.allclose([b.low, b.high], [a.low + shift, a.high + shift], atol=1e-6)


@quick
@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_stays_inside_the_unit_interval(kn):
    interval = stats.wilson_interval(*kn)
    assert 0 <= interval.low <= interval.estimate + 1e-12 and interval.estimate - 1e-12 <= interval.high <= 1


@quick
@given(arrays(float, st.integers(2, 40), elements=finite))
def test_the_bootstrap_is_reproducible_and_ordered(x):
    a, b = stats.bootstrap_ci(x, n_boot=50, generator=stream(1)), stats.bootstrap_ci(torch.tensor(x), n_boot=50, generator=stream(1))
    assert a == b and a.low <= a.high


@pytest.mark.parametrize("call", [
    lambda: stats.mean_ci([]), lambda: stats.mean_ci([NAN]), lambda: stats.mean_ci([[1.0]]), lambda: stats.mean_ci([1.0], level=1.0),
    lambda: stats.bootstrap_ci([]), lambda: stats.bootstrap_ci([NAN]), lambda: stats.paired_ci([1.0], [1.0, 2.0]),
    lambda: stats.wilson_interval(-1, 3), lambda: stats.wilson_interval(0, 0), lambda: stats.sign_test([1], [1, 2]), lambda: stats.wilcoxon_test([], []),
    lambda: stats.loglog_slope([1, 1], [1, 2]), lambda: stats.loglog_slope([1, 2], [0, 1]),
    lambda: claims.above(NAN), lambda: claims.between(1, 1), lambda: densities.point_set("donut", 3), lambda: densities.point_set("rings", 0),
    lambda: nets.mlp([1]), lambda: nets.mlp([1, 0]), lambda: nets.mlp([1, 1], members=0), lambda: nets.residual_mlp(0, 1, 1), lambda: nets.time_features(torch.zeros(1), 3),
    lambda: bench.compare({}), lambda: bench.time_call(print, repeats=0), lambda: plots.panels(0), lambda: data.entry("nothing"),
])
def test_bad_input_is_refused(call):
    with pytest.raises(ValueError): call()


@quick
@given(finite, finite, st.floats(0, 1e3), st.floats(0, 1e3))
def test_a_verdict_follows_from_the_rule_and_the_interval(bound, estimate, below, above):
    interval = stats.Interval(estimate, estimate - below, estimate + above, 3)
    verdict = claims.verdict(claims.above(bound), interval)
    assert (verdict == "reproduced") == (interval.low > bound)
    assert (verdict == "not reproduced") == (estimate <= bound)


# metrics and transport ---------------------------------------------------------------------------------------------

@quick
@given(st.integers(2, 40), st.integers(0, 10_000), st.sampled_from([torch.float32, torch.float64]))
def test_auc_agrees_with_scikit_learn(n, seed, dtype):
    from sklearn.metrics import roc_auc_score
    scores = torch.randint(0, 6, (n,), generator=stream(seed)).to(dtype)
    labels = torch.cat([torch.zeros(1), torch.ones(1), torch.randint(0, 2, (n - 2,), generator=stream(seed)).float()])
    assert math.isclose(metrics.roc_auc(scores, labels).item(), roc_auc_score(labels, scores), abs_tol=1e-9)


@quick
@given(st.integers(2, 10), st.integers(2, 10), st.integers(1, 4), st.integers(0, 1000))
def test_distances_are_symmetric_and_vanish_on_equals(n, m, d, seed):
    x, y = torch.randn(n, d, generator=stream(seed)).double(), torch.randn(m, d, generator=stream(seed + 1)).double()
    for distance in (metrics.energy_distance, metrics.mmd2): assert torch.isclose(distance(x, y), distance(y, x))
    there, back = (metrics.sliced_wasserstein(*pair, 16, generator=stream()) for pair in ((x, y), (y, x)))
    assert torch.isclose(there, back) and metrics.sliced_wasserstein(x, x, 16) == 0 and there.dtype == x.dtype
    p, q = torch.rand(2, n, generator=stream(seed)).softmax(-1)
    assert torch.isclose(metrics.total_variation(p, q), metrics.total_variation(q, p)) and metrics.total_variation(p, p) == 0
    c = torch.eye(d).double()
    assert ot.bures_wasserstein(x[0], c, x[0], c).abs() < 1e-9


@quick
@given(arrays(float, st.integers(1, 12), elements=st.floats(-50, 50)), arrays(float, st.integers(1, 12), elements=st.floats(-50, 50)), st.sampled_from([1, 2, 3.5]))
def test_wasserstein_on_the_line_is_the_cheapest_coupling(x, y, p):
    from scipy.optimize import linprog
    n, m = len(x), len(y)
    rows = np.concatenate([np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))])
    best = linprog((abs(x[:, None] - y) ** p).ravel(), A_eq=rows, b_eq=np.r_[np.full(n, 1 / n), np.full(m, 1 / m)]).fun
    assert math.isclose(metrics.wasserstein_1d(torch.tensor(x), torch.tensor(y), p).item(), max(best, 0) ** (1 / p), rel_tol=1e-5, abs_tol=1e-4)


@quick
@given(st.sampled_from([mcmc.mala, mcmc.hmc]), st.lists(st.integers(1, 3), max_size=2), st.integers(1, 4), st.integers(1, 3), st.sampled_from([torch.float32, torch.float64]))
def test_chains_keep_their_shape_and_repeat(sampler, targets, chains, d, dtype):
    x = torch.randn(*targets, chains, d, generator=stream()).to(dtype)
    a, b = (sampler(lambda x: -(x**2).sum(-1), x, 6, 0.3, adapt=2, thin=2, generator=stream(1)) for _ in range(2))
    assert a.samples.shape == (3, *x.shape) and a.samples.dtype == dtype and torch.equal(a.samples, b.samples)
    assert a.acceptance.shape == a.step_size.shape == tuple(targets) and not a.samples.requires_grad


@quick
@given(st.integers(1, 8), st.integers(1, 8), st.floats(0.05, 5.0), st.sampled_from([torch.float32, torch.float64]), st.sampled_from(["sqeuclidean", "euclidean", "arccos"]))
def test_a_sinkhorn_plan_has_its_marginals(n, m, epsilon, dtype, cost):
    x, y = torch.randn(2, n, 3, generator=stream()).to(dtype), torch.randn(2, m, 3, generator=stream(1)).to(dtype)
    result = ot.sinkhorn(ot.pairwise_cost(x, y, cost), epsilon, max_iter=5000, tol=1e-5)
    assert result.plan.shape == (2, n, m) and result.plan.dtype == dtype
    assert torch.allclose(result.plan.sum(-2), torch.full((2, m), 1 / m, dtype=dtype), atol=1e-4)
    assert result.error < 1e-5 or result.n_iter == 5000


@pytest.mark.parametrize("call", [
    lambda: metrics.roc_auc(torch.tensor([1.0, NAN]), torch.tensor([0.0, 1.0])), lambda: metrics.roc_auc(torch.zeros(0), torch.zeros(0)),
    lambda: metrics.roc_auc(torch.zeros(3), torch.tensor([0.0, 1.0, 2.0])), lambda: metrics.log_loss(torch.tensor([1.5]), torch.tensor([1.0])),
    lambda: metrics.brier(torch.tensor([NAN]), torch.tensor([1.0])), lambda: metrics.brier(torch.zeros(0), torch.zeros(0)),
    lambda: metrics.energy_distance(torch.zeros(2, 2), torch.zeros(2, 3)), lambda: metrics.energy_distance(torch.full((2, 2), NAN), torch.zeros(2, 2)),
    lambda: metrics.mmd2(torch.zeros(3, 2), torch.zeros(3, 2)), lambda: metrics.mmd2(torch.randn(3, 2), torch.randn(3, 2), 0.0), lambda: metrics.sliced_wasserstein(torch.zeros(2, 2), torch.zeros(2, 3)),
    lambda: metrics.wasserstein_1d(torch.zeros(0), torch.zeros(2)), lambda: metrics.wasserstein_1d(torch.zeros(2), torch.zeros(2), 0.5), lambda: metrics.wasserstein_1d(torch.tensor([NAN]), torch.zeros(2)),
    lambda: mcmc.mala(lambda x: x.sum(-1), torch.tensor([[NAN]]), 1, 0.1), lambda: mcmc.hmc(lambda x: x.sum(-1), torch.zeros(1, 1), 1, 0.1, leapfrog=0), lambda: mcmc.hmc(lambda x: x.sum(-1), torch.zeros(1, 1), 1, 0.1, thin=2),
    lambda: metrics.total_variation(torch.ones(2), torch.ones(2)), lambda: metrics.uv_percent(torch.zeros(2, 2), torch.zeros(3, 2)),
    lambda: ot.sinkhorn(torch.zeros(2, 2), -1.0), lambda: ot.sinkhorn(torch.full((2, 2), NAN), 1.0), lambda: ot.sinkhorn(torch.zeros(2), 1.0),
    lambda: ot.sinkhorn(torch.zeros(2, 2), 1.0, a=torch.tensor([-0.5, 1.5])), lambda: ot.pairwise_cost(torch.zeros(2, 2), torch.zeros(2, 3)),
    lambda: ot.pairwise_cost(torch.zeros(2, 2), torch.zeros(2, 2), "nonsense"),
])
def test_bad_tensors_are_refused(call):
    with pytest.raises(ValueError): call()


@quick
@given(st.sampled_from(sorted(densities._POINT_SETS)), st.integers(1, 50))
def test_point_sets_have_their_shape(name, n):
    points = densities.point_set(name, n, stream())
    assert points.shape == (n, 2) and points.isfinite().all() and torch.equal(points, densities.point_set(name, n, stream()))


@quick
@given(st.lists(st.integers(1, 6), min_size=2, max_size=4), st.integers(1, 3), st.lists(st.integers(1, 3), max_size=2))
def test_stacked_networks_are_networks(sizes, members, batch):
    stack, one = nets.mlp(sizes, members=members), nets.mlp(sizes)
    x = torch.randn(members, *batch, sizes[0])
    for i in range(members):
        one.load_state_dict({name: p[i] for name, p in stack.state_dict().items()})
        assert torch.allclose(stack(x)[i], one(x[i]), atol=1e-5)


# study, figures, records -------------------------------------------------------------------------------------------

@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.setenv("AMORTLIT_RUN_DIR", str(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield Study("a.b", scale="smoke", device="cpu")


@pytest.mark.parametrize("arguments", [
    dict(name="ab"), dict(name="a.b", scale="big"), dict(name="a.b", seed=1.5), dict(name="a.b", seed=True), dict(name="a.b", device="tpu"), dict(name="a.b", overrides=[1])])
def test_a_study_refuses(arguments, tmp_path, monkeypatch):
    monkeypatch.setenv("AMORTLIT_RUN_DIR", str(tmp_path))
    with pytest.raises(ValueError): Study(**arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("arguments", [dict(device="cuda"), dict(scale="gpu")])
def test_a_missing_gpu_is_said(arguments):
    with pytest.raises(ValueError, match="GPU"): Study("a.b", **arguments)


def test_scale_smoke_needs_embedded_data(study):
    with pytest.raises(ValueError, match="needs a default"): study.load("msci_cite_pca50")
    assert study.load("msci_cite_pca50", default=lambda: 1) == 1


def test_a_figure_needs_alt_text_and_data(study):
    figure = lambda: plots.panels()[0]
    with pytest.raises(ValueError, match="alt text"): study.figure(figure(), "f", data=pd.DataFrame({"x": [1]}), alt="short")
    with pytest.raises(ValueError, match="data it draws"): study.figure(figure(), "f", data=pd.DataFrame(), alt="a sentence of more than twenty characters")
    study.figure(figure(), "g", data=pd.DataFrame({"x": [1]}), alt="a sentence of more than twenty characters")
    assert sorted(p.name for p in (study.folder / "figures").iterdir()) == ["g.csv", "g.png"]
    with pytest.raises(ValueError, match="two figures"): study.figure(figure(), "g", data=pd.DataFrame({"x": [1]}), alt="a sentence of more than twenty characters")


def test_a_comparison_that_disagrees_stops_the_page(study):
    with pytest.raises(AssertionError, match="do not agree with theirs"):
        study.compare("sums", {"ours": lambda: 1, "theirs": lambda: 2}, agree=lambda a, b: a == b, repeats=1)


def test_what_comes_after_the_report_is_recorded(study):
    study.report()
    study.compare("sums", {"ours": lambda: 1, "theirs": lambda: 1, "absent": None}, agree=lambda a, b: a == b, repeats=2)
    study.departure("Something", because="of something")
    written = record.read_record(study.folder / "record.json")
    assert [c["name"] for c in written["comparisons"]] == ["sums: theirs"] and len(written["departures"]) == 1


def test_a_killed_write_leaves_the_old_record(study, monkeypatch):
    study.report()
    before = (study.folder / "record.json").read_text()
    monkeypatch.setattr(os, "replace", None)
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt): study.departure("Something", because="of something")
    assert (study.folder / "record.json").read_text() == before


def test_a_table_keeps_bars_and_newlines_in_their_cells():
    assert show.markdown_table(["a"], [["x|y\nz"]]).splitlines()[-1] == "| x\\|y z |"


def test_cifar_records_become_arrays(tmp_path, monkeypatch):
    import io
    import tarfile
    rng = np.random.default_rng(0)
    records = {name: rng.integers(0, 256, (2, 3073), dtype=np.uint8) for name in ("data_batch_1", "data_batch_2", "test_batch")}
    with tarfile.open(tmp_path / "cifar-10-binary.tar.gz", "w:gz") as archive:
        for name in ("test_batch", "data_batch_2", "data_batch_1"):
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}.bin")
            info.size = records[name].size
            archive.addfile(info, io.BytesIO(records[name].tobytes()))
    monkeypatch.setattr(data, "fetch", lambda name: {"cifar-10-binary": tmp_path / "cifar-10-binary.tar.gz"})
    found = data.load("cifar10")["cifar-10-binary"]
    assert found["x_train"].shape == (4, 3, 32, 32) and found["x_test"].dtype == np.uint8
    assert (found["y_train"] == np.concatenate([records["data_batch_1"], records["data_batch_2"]])[:, 0]).all()
    assert (found["x_test"][1, 2, 31, 31], found["x_train"][2, 0, 0, 1]) == (records["test_batch"][1, -1], records["data_batch_2"][0, 2])


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 12), st.integers(0, 10_000))
def test_kendall_tau_is_scipys_and_flips_sign(n, seed):
    from scipy.stats import kendalltau
    x, y = torch.randint(0, 4, (2, 3, n), generator=torch.Generator().manual_seed(seed))
    expected = torch.tensor([kendalltau(a, b).statistic for a, b in zip(x, y, strict=True)], dtype=torch.float64)
    assert torch.allclose(metrics.kendall_tau(x, y), expected, equal_nan=True) and torch.allclose(metrics.kendall_tau(-x, y), -expected, equal_nan=True)


@pytest.mark.parametrize("x, y", [(torch.ones(1), torch.ones(1)), (torch.ones(3), torch.ones(4)), (torch.tensor([1.0, float("nan")]), torch.ones(2))])
def test_kendall_tau_refuses(x, y):
    with pytest.raises(ValueError): metrics.kendall_tau(x, y)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 60), st.integers(0, 60), st.floats(0, 200), st.integers(1, 40))
def test_tails_are_scipys(k, more, x, df):
    from scipy.stats import binomtest, chi2
    expected = binomtest(k, k + more).pvalue if k + more else 1.0
    assert stats.binom_test(k, k + more).item() == pytest.approx(expected, rel=1e-9)
    assert stats.chi2_sf(torch.tensor([x, x], dtype=torch.float64), df)[1].item() == pytest.approx(chi2.sf(x, df), rel=1e-7, abs=1e-300)
    with pytest.raises(ValueError): stats.binom_test(k + more + 1, k + more)
    with pytest.raises(ValueError): stats.chi2_sf(x, 0)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 10_000), st.floats(0.1, 1.0), st.floats(0.0, 2.0))
def test_a_mixture_through_noise_is_the_noised_mixture(k, d, seed, alpha, sigma):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
    root = draw(k, d, d)
    mixture = densities.GaussianMixture(draw(k).softmax(0), draw(k, d), root @ root.mT + 0.1 * torch.eye(d))
    x = draw(3, d).requires_grad_()
    noised = mixture.noised(alpha, sigma)
    expected = torch.logsumexp(torch.stack([torch.distributions.MultivariateNormal(m, c).log_prob(x) for m, c in zip(noised.means, noised.covs, strict=True)], -1) + mixture.weights.log(), -1)
    assert torch.allclose(mixture.log_prob(x, alpha, sigma), expected)
    assert torch.allclose(mixture.score(x, alpha, sigma), torch.autograd.grad(expected.sum(), x)[0], atol=1e-7)
    levels = torch.full((3,), sigma, dtype=torch.float64)
    assert torch.allclose(mixture.eps(x, alpha, levels), -sigma * mixture.score(x, alpha, sigma)) and mixture.sample(5, generator).shape == (5, d)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(0, 10_000))
def test_systematic_resampling_rounds_up_or_down(n, seed):
    generator = torch.Generator().manual_seed(seed)
    logw = 5 * torch.randn(2, n, generator=generator)
    index = weights.systematic_resample(logw, generator)
    counts = torch.nn.functional.one_hot(index, n).sum(1)
    expected = n * logw.double().softmax(-1)
    assert index.shape == (2, n) and (counts >= (expected - 1e-9).floor()).all() and (counts <= (expected + 1e-9).ceil()).all()
    assert ((weights.ess(logw) <= 1 + 1e-6) & (weights.ess(logw) >= 1 / n - 1e-6)).all()


# online ------------------------------------------------------------------------------------------------------------

@quick
@given(arrays(float, st.tuples(st.integers(1, 4), st.integers(1, 9)), elements=st.floats(0, 1)), st.floats(0, 1e9), st.integers(0, 100))
def test_inverse_gap_weights_are_probabilities_on_the_mask(loss, gamma, seed):
    loss = torch.tensor(loss)
    mask = torch.rand(loss.shape, generator=stream(seed)) < 0.6
    mask[:, 0] |= ~mask.any(-1)
    p = online.inverse_gap_weights(loss, gamma, mask)
    best = torch.where(mask, loss, math.inf).argmin(-1)
    assert torch.allclose(p.sum(-1), torch.ones(len(loss), dtype=torch.float64)) and (p[~mask] == 0).all()
    assert (p.gather(-1, best[:, None])[:, 0] >= p.amax(-1) - 1e-12).all() and (p[mask] > 0).all()


@quick
@given(arrays(float, st.tuples(st.integers(1, 4), st.integers(1, 9)), elements=st.floats(-1e4, 1e4)), st.floats(1e-3, 1e3), st.floats(-100, 100))
def test_tsallis_weights_ignore_a_common_shift_and_prefer_small_losses(loss, eta, shift):
    p, moved = (online.tsallis_inf_weights(torch.tensor(loss + s), eta) for s in (0.0, shift))
    assert torch.allclose(p, moved, atol=1e-6) and (p.sum(-1) - 1).abs().max() < 1e-12
    loss = torch.tensor(loss)
    assert torch.allclose(loss.gather(-1, p.argmax(-1, keepdim=True)), loss.amin(-1, keepdim=True), atol=1e-9)


@quick
@given(arrays(float, st.tuples(st.integers(1, 4), st.integers(1, 9)), elements=st.floats(-1e3, 1e3)), st.floats(0.1, 10))
def test_projections_stay_where_they_are(x, radius):
    x = torch.tensor(x)
    simplex, ball = online.project_simplex(x), online.project_ball(x, radius)
    assert torch.allclose(simplex.sum(-1), torch.ones(len(x), dtype=torch.float64), atol=1e-9) and (simplex >= 0).all()
    assert torch.allclose(online.project_simplex(simplex), simplex, atol=1e-9) and (ball.norm(dim=-1) <= radius * (1 + 1e-12)).all()


def test_weights_keep_single_precision_and_draws_repeat():
    loss = torch.rand(3, 5, generator=stream())
    assert {f.dtype for f in (online.inverse_gap_weights(loss, 3.0), online.tsallis_inf_weights(loss, 0.5), online.exp_weights(loss), online.project_simplex(loss))} == {torch.float32}
    assert torch.equal(online.sample_rows(loss, stream(1)), online.sample_rows(loss, stream(1)))
    assert torch.equal(online.binomial_mean(loss, 1e7, stream(1)), online.binomial_mean(loss, 1e7, stream(1)))


def test_the_design_agrees_with_a_convex_solver():
    arms = torch.randn(40, 3, generator=stream(), dtype=torch.float64)
    information = lambda pi: torch.linalg.slogdet(arms.T @ (pi[:, None] * arms))[1]
    from scipy.optimize import minimize
    solved = minimize(lambda z: -float(information(torch.tensor(z).softmax(0))), np.zeros(40), method="BFGS", options=dict(maxiter=2000))
    assert abs(float(information(online.g_optimal_design(arms, tol=1e-6))) + solved.fun) < 1e-3
