"Properties of amortlit.transport.projektor that do not fit its page: shapes, dtypes, refusals, invariants, agreement with POT and scipy."
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment, minimize

from amortlit.core.ot import pairwise_cost
from amortlit.transport import projektor
from amortlit.transport.projektor import PerformanceModel, calibrated_gradient, dataset_distance, fit_performance, project_scale, select_mixture

sizes = st.integers(2, 9)
sources = st.integers(2, 5)
dtypes = st.sampled_from([torch.float32, torch.float64])
forms = st.sampled_from(["projektor", "projektor_nb", "linear", "pseudo_quadratic", "quadratic", "ot_linear"])
quick = settings(max_examples=25, deadline=None)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def labeled(n, classes=3, dim=2, seed=0, dtype=torch.float64):
    g = generator(seed)
    return torch.randn(n, dim, generator=g).to(dtype), torch.randint(classes, (n,), generator=g)


def simplex(R, m, seed=0, dtype=torch.float64):
    return torch.rand(R, m, generator=generator(seed)).to(dtype).clamp_min(1e-6).log().neg().softmax(-1)


def random_distances(*shape, seed=1, dtype=torch.float64):
    return 2 + 5 * torch.rand(*shape, generator=generator(seed)).to(dtype)


def ground_cost(x, y, x_val, y_val, label_weight):
    "The definition, written out with loops."
    cost = torch.cdist(x, x_val) ** 2
    for i in range(len(x)):
        for j in range(len(x_val)): cost[i, j] += label_weight * exact(torch.cdist(x[y == y[i]], x_val[y_val == y_val[j]]) ** 2)
    return cost


def exact(cost):
    "Uniform transport as an assignment problem between repeated points."
    n, k = cost.shape
    common = math.lcm(n, k)
    repeated = cost.repeat_interleave(common // n, 0).repeat_interleave(common // k, 1).numpy()
    row, column = linear_sum_assignment(repeated)
    return repeated[row, column].mean()


@quick
@given(n=sizes, k=sizes, classes=st.integers(1, 3), label_weight=st.sampled_from([0.0, 0.3, 1.0]))
def test_distance_is_the_definition(n, k, classes, label_weight):
    (x, y), (x_val, y_val) = labeled(n, classes), labeled(k, classes, seed=1)
    result, cost = dataset_distance(x, y, x_val, y_val, label_weight=label_weight), ground_cost(x, y, x_val, y_val, label_weight)
    assert abs(result.value - exact(cost)) < 1e-8
    assert (result.source_potential[:, None] + result.target_potential <= cost + 1e-8).all()
    assert abs(result.source_potential.mean() + result.target_potential.mean() - result.value) < 1e-8


@quick
@given(n=sizes, k=sizes, dtype=dtypes)
def test_distance_shapes_and_dtypes(n, k, dtype):
    result = dataset_distance(*labeled(n, dtype=dtype), *labeled(k, seed=1, dtype=dtype))
    assert [tuple(t.shape) for t in result] == [(), (n,), (k,)] and all(t.dtype == dtype and t.isfinite().all() for t in result)


@quick
@given(n=sizes, k=sizes)
def test_names_of_labels_do_not_matter_and_samples_of_weight_zero_are_not_there(n, k):
    (x, y), (x_val, y_val) = labeled(n), labeled(k, seed=1)
    plain = dataset_distance(x, y, x_val, y_val)
    assert torch.allclose(dataset_distance(x, 7 - 2 * y, x_val, y_val + 100).value, plain.value)
    more, more_y = labeled(3, 5, seed=2)
    weights = torch.cat([torch.full((n,), 1 / n, dtype=x.dtype), torch.zeros(3).double()])
    ghosts = dataset_distance(torch.cat([x, more]), torch.cat([y, more_y]), x_val, y_val, weights=weights)
    assert torch.allclose(ghosts.value, plain.value) and ghosts.source_potential.shape == (n + 3,) and ghosts.source_potential.isfinite().all()


@quick
@given(n=sizes)
def test_weights_of_repeated_samples_add_up(n):
    (x, y), (x_val, y_val) = labeled(n), labeled(5, seed=1)
    weights = torch.arange(1, n + 1).double()
    times = torch.arange(1, n + 1)
    repeated = dataset_distance(x.repeat_interleave(times, 0), y.repeat_interleave(times), x_val, y_val, label_weight=0)
    assert torch.allclose(dataset_distance(x, y, x_val, y_val, label_weight=0, weights=weights / weights.sum()).value, repeated.value)


@quick
@given(n=sizes, k=sizes)
def test_value_agrees_with_pot_and_without_it(n, k):
    ot = pytest.importorskip("ot")
    (x, y), (x_val, y_val) = labeled(n), labeled(k, seed=1)
    ours = dataset_distance(x, y, x_val, y_val, label_weight=0).value
    assert abs(ours - ot.emd2([], [], ot.dist(x.numpy(), x_val.numpy()))) < 1e-9
    cost, a, b = pairwise_cost(x, x_val).numpy(), np.full(n, 1 / n), np.full(k, 1 / k)
    f, g = projektor._linear_program(cost, a, b)
    assert abs(f @ a + g @ b - ours) < 1e-8 and (f[:, None] + g <= cost + 1e-8).all()


def test_page_runs_without_pot(monkeypatch):
    with_pot = dataset_distance(*labeled(9), *labeled(6, seed=1)).value
    monkeypatch.setattr(projektor, "find_spec", lambda name: None)
    monkeypatch.setattr(projektor, "_network_simplex", None)
    assert torch.allclose(dataset_distance(*labeled(9), *labeled(6, seed=1)).value, with_pot)


def test_large_sets_use_a_debiased_divergence(monkeypatch):
    far, near = labeled(60, seed=3), labeled(50, seed=4)
    shifted = (far[0] + 2, far[1])
    exactly = dataset_distance(*shifted, *near)
    monkeypatch.setattr(projektor, "_LARGEST", 20)
    entropic = dataset_distance(*shifted, *near)
    assert abs(entropic.value / exactly.value - 1) < 0.05
    assert abs(dataset_distance(*near, *near).value) < 1e-6
    assert torch.isclose(entropic.source_potential.mean() + entropic.target_potential.mean(), entropic.value)
    of = torch.arange(60) % 3
    assert torch.allclose(calibrated_gradient(entropic.source_potential, of, 3), calibrated_gradient(exactly.source_potential, of, 3), atol=0.3)


@quick
@given(n=st.sampled_from([5, 7, 11]), m=st.integers(2, 4), label_weight=st.sampled_from([0.0, 1.0]))
def test_gradient_is_a_central_difference(n, m, label_weight):
    (x, y), (x_val, y_val), source = labeled(n, seed=n), labeled(6, seed=1), torch.arange(n) % m
    counts = source.bincount()
    value = lambda p: dataset_distance(x, y, x_val, y_val, label_weight=label_weight, weights=(p / counts)[source]).value
    p, eye = counts / torch.tensor(float(n)).double(), torch.eye(m).double()
    slopes = calibrated_gradient(dataset_distance(x, y, x_val, y_val, label_weight=label_weight).source_potential, source, m)
    for i in range(m):
        step = 1e-5 * (eye[i] - p) / (1 - p[i])
        assert abs((value(p + step) - value(p - step)) / 2e-5 - slopes[i]) < 1e-3


@quick
@given(n=sizes, m=sources, shift=st.floats(-100, 100), dtype=dtypes)
def test_calibrated_gradient(n, m, shift, dtype):
    f, source = torch.randn(n, generator=generator(n)).to(dtype), torch.randint(m, (n,), generator=generator(m))
    slope = calibrated_gradient(f, source, m)
    expected = torch.stack([f[source == i].mean() - f[source != i].mean() if 0 < (source == i).sum() < n else f.new_zeros(()) for i in range(m)])
    order = torch.randperm(n, generator=generator(1))
    assert slope.shape == (m,) and slope.dtype == dtype and torch.allclose(slope, expected, atol=1e-5)
    assert torch.allclose(calibrated_gradient(f + shift, source, m), slope, atol=1e-4) and torch.allclose(calibrated_gradient(f[order], source[order], m), slope, atol=1e-5)
    assert torch.equal(calibrated_gradient(f, torch.zeros(n).long(), m), torch.zeros(m).to(dtype))


FEATURES = {
    "projektor": lambda q, ot: [q, q**2, ot, ot * q, ot * q**2], "projektor_nb": lambda q, ot: [q, ot, ot * q, ot * q**2], "linear": lambda q, ot: [q],
    "pseudo_quadratic": lambda q, ot: [q, q**2], "quadratic": lambda q, ot: [q, *[q[:, i:i + 1] * q[:, i:] for i in range(q.shape[1])]], "ot_linear": lambda q, ot: [ot],
}


@quick
@given(form=forms, m=sources, seed=st.integers(0, 50))
def test_fit_is_least_squares(form, m, seed):
    p, ot, performance = simplex(60, m, seed), random_distances(60), random_distances(60, seed=seed + 2)
    design = torch.cat([torch.ones(60, 1).double(), *FEATURES[form](p[:, :-1], ot[:, None])], 1)
    fitted = design @ torch.linalg.lstsq(design, performance, driver="gelsd").solution
    assert torch.allclose(fit_performance(p, ot, performance, form=form).predict(p, ot), fitted, atol=1e-6)


@quick
@given(form=forms, m=sources, dtype=dtypes)
def test_leading_axes_are_independent_fits(form, m, dtype):
    p, ot, performance = simplex(40, m, dtype=dtype), random_distances(3, 40, dtype=dtype), random_distances(3, 40, seed=5, dtype=dtype)
    predicted = fit_performance(p, ot, performance, form=form).predict(p, ot)
    assert predicted.shape == (3, 40) and predicted.dtype == dtype
    for i in range(3): assert torch.allclose(fit_performance(p, ot[i], performance[i], form=form).predict(p, ot[i]), predicted[i], atol=1e-4)


@quick
@given(form=forms, m=sources, seed=st.integers(0, 50))
def test_fit_recovers_its_class_and_interpolates(form, m, seed):
    p, ot = simplex(60, m, seed), random_distances(60)
    count = 1 + sum(f.shape[1] for f in FEATURES[form](p[:, :-1], ot[:, None]))
    member = PerformanceModel(form, torch.randn(count, generator=generator(seed)).double())
    assert torch.allclose(fit_performance(p, ot, member.predict(p, ot), form=form).predict(p, ot), member.predict(p, ot), atol=1e-6)
    few = [t[:count] for t in (p, ot, random_distances(60, seed=9))] if count > 1 else [p[:2], ot[:2], ot[:2]]
    assert torch.allclose(fit_performance(*few, form=form).predict(*few[:2]), few[2], atol=1e-4)


@quick
@given(form=forms, m=sources, seed=st.integers(0, 50))
def test_gradient_is_the_chain_rule(form, m, seed):
    p, ot, slope = simplex(60, m, seed), random_distances(60), torch.randn(m, generator=generator(seed)).double()
    model = fit_performance(p, ot, random_distances(60, seed=3), form=form)
    design = lambda p, ot: torch.cat([torch.ones(1, 1).double(), *FEATURES[form](p[None, :-1], ot.reshape(1, 1))], 1) @ model.coefficients
    point = p[0]
    for i in range(m):
        step = 1e-5 * torch.eye(m)[i].double()
        numeric = (design(point + step, ot[0] + 1e-5 * slope[i]) - design(point - step, ot[0] - 1e-5 * slope[i])) / 2e-5
        assert abs(model.gradient(point, ot[0], slope)[i] - numeric) < 1e-3 * (1 + numeric.abs())


@quick
@given(n0=st.integers(1, 500), more=st.integers(1, 500), n=st.integers(1, 10**6), a=st.floats(-10, 10), b=st.floats(-10, 10))
def test_projection_is_exact_for_a_line(n0, more, n, a, b):
    line = lambda n: torch.tensor([a + b * math.log(n), 2 * a], dtype=torch.float64)
    n1 = n0 + more
    assert torch.allclose(project_scale(line(n0), line(n1), n0, n1, n), line(n), rtol=1e-5, atol=1e-5)
    assert torch.allclose(project_scale(line(n0), line(n1), n0, n1, n0), line(n0)) and torch.allclose(project_scale(line(n0), line(n1), n0, n1, n1), line(n1))
    assert project_scale(line(n0).float(), line(n1).float(), n0, n1, n).dtype == torch.float32


@quick
@given(m=sources, seed=st.integers(0, 100), dtype=dtypes)
def test_ascent_stays_on_the_simplex_and_takes_the_announced_steps(m, seed, dtype):
    goal, p0 = torch.randn(m, generator=generator(seed)).to(dtype), simplex(1, m, seed, dtype)[0]
    path = select_mixture(lambda p: goal - p, p0, steps=7, lr=0.5, decay=0.8)
    assert path.shape == (8, m) and path.dtype == dtype and torch.equal(path[0], p0)
    assert (path >= 0).all() and torch.allclose(path.sum(1), torch.ones(8).to(dtype), atol=1e-5)
    for t in range(7): assert torch.allclose(projection(path[t] + 0.5 * 0.8**t * (goal - path[t])), path[t + 1].double(), atol=1e-4)


def projection(v):
    "The nearest point of the simplex, by a general solver."
    v = v.double().numpy()
    found = minimize(lambda p: ((p - v) ** 2).sum(), np.full(len(v), 1 / len(v)), jac=lambda p: 2 * (p - v), bounds=[(0, None)] * len(v),
                     constraints=dict(type="eq", fun=lambda p: p.sum() - 1, jac=lambda p: np.ones(len(p))), method="SLSQP", options=dict(ftol=1e-14, maxiter=200))
    return torch.as_tensor(found.x)


X, Y = labeled(6)
V, W = labeled(5, seed=1)
P, OT, A = simplex(8, 3), random_distances(8), random_distances(8, seed=2)
MODEL, NAN = fit_performance(P, OT, A), torch.full((6, 2), math.nan).double()
F, S = torch.arange(4).double(), torch.tensor([0, 1, 0, 1])
REFUSED = [
    *[lambda a=a: dataset_distance(*a) for a in (
        (X[:1], Y[:1], V, W), (X, Y, V[:1], W[:1]), (X[:0], Y[:0], V, W), (NAN, Y, V, W), (X, Y, NAN[:5], W), (X, Y[:-1], V, W), (X, Y, V, W[:-1]), (X, Y.double(), V, W), (X, Y[:, None], V, W),
        (X[:, :1], Y, V, W), (X[0], Y, V, W), (X.long(), Y, V, W), ("x", Y, V, W), (X, [0] * 6, V, W))],
    lambda: dataset_distance(X, Y, V, W, label_weight=-1.0), lambda: dataset_distance(X, Y, V, W, label_weight=math.nan),
    *[lambda w=w: dataset_distance(X, Y, V, W, weights=w) for w in (torch.ones(6), torch.ones(5) / 5, torch.tensor([1.5, -0.5, 0, 0, 0, 0]), torch.full((6,), math.nan))],
    *[lambda a=a: calibrated_gradient(*a) for a in ((F, S[:3], 2), (F, S, 1), (F, S - 1, 2), (F * math.nan, S, 2), (F[:0], S[:0], 2), (F, S.double(), 2), (F[None], S[None], 2))],
    *[lambda a=a: fit_performance(*a) for a in ((P * 1.01, OT, A), (P - 0.5, OT, A), (P[:1], OT[:1], A[:1]), (P[:0], OT[:0], A[:0]), (P * math.nan, OT, A), (P, OT * math.nan, A), (P, OT, A * math.nan), (P, OT[:5], A[:5]), (P, OT, A[:5]), (P[:, :1] * 0 + 1, OT, A), (P[0], OT, A))],
    lambda: fit_performance(P, OT, A, form="cubic"), lambda: MODEL.predict(P * 2, OT), lambda: MODEL.predict(P, OT[:3]), lambda: MODEL.predict(P, OT * math.nan), lambda: MODEL.predict(P, OT.long()),
    lambda: MODEL.gradient(P, OT, A), lambda: MODEL.gradient(P[0], OT[0], torch.zeros(2)), lambda: MODEL.gradient(P[0] * 2, OT[0], torch.zeros(3)), lambda: MODEL.gradient(P[0], OT[0], torch.full((3,), math.nan)),
    *[lambda n=n: project_scale(A, A, *n) for n in ((300, 200, 1000), (200, 200, 1000), (0, 200, 1000), (-1, 200, 1000), (100, 200, 0), (100, 200, -5), (100, 200, math.nan))], lambda: project_scale(A * math.nan, A, 100, 200, 300),
    *[lambda kw=kw: select_mixture(lambda p: p, P[0], **kw) for kw in (dict(steps=0), dict(lr=0.0), dict(lr=-1.0), dict(decay=0.0), dict(decay=1.5))], lambda: select_mixture(lambda p: p, P[0] * 2), lambda: select_mixture(lambda p: p, P),
    lambda: select_mixture(lambda p: p * math.nan, P[0]), lambda: select_mixture(lambda p: p[:2], P[0]),
]


@pytest.mark.parametrize("call", REFUSED)
def test_bad_input_is_refused_at_the_door(call):
    with pytest.raises(ValueError): call()
