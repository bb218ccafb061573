"Properties of amortlit.bandits.groupwise_regret that do not fit its page: shapes, dtypes, invariants, refusals."
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from amortlit.bandits.groupwise_regret import adanormalhedge_weights, groupwise, hindsight_loss, online_ridge

quick = settings(max_examples=25, deadline=None)


def data(R=2, T=40, d=3, N=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    active = torch.rand(R, T, N, generator=g) < 0.5
    active[..., -1] = True
    return torch.randn(R, T, d, generator=g), torch.randn(R, T, generator=g), active


@quick
@given(R=st.integers(1, 3), T=st.integers(1, 70), d=st.integers(1, 5), N=st.integers(1, 4), mix=st.sampled_from(["loss", "prediction"]))
def test_shapes_and_accounts(R, T, d, N, mix):
    X, y, active = data(R, T, d, N, T)
    r = groupwise(X, y, active, mix=mix)
    assert r.loss.shape == r.baseline.shape == (R, T) and r.weights.shape == (R, T, N) and r.regret.shape == r.baseline_regret.shape == (R, N)
    assert {x.dtype for x in r} == {torch.float64} and all(x.isfinite().all() for x in r)
    assert torch.allclose(r.weights.sum(-1), torch.ones(R, T).double()) and (r.weights[~active] == 0).all()
    best = hindsight_loss(X, y, active)
    assert torch.allclose(r.regret, (active * r.loss[..., None]).sum(1) - best) and (best >= 0).all()


@quick
@given(N=st.integers(1, 6), seed=st.integers(0, 999), size=st.floats(0.1, 1e6))
def test_weights_are_probabilities_of_the_awake(N, seed, size):
    g = torch.Generator().manual_seed(seed)
    R, C, active = size * torch.randn(3, N, generator=g).double(), size * torch.rand(3, N, generator=g).double(), torch.rand(3, N, generator=g) < 0.6
    w = adanormalhedge_weights(R, C + R.abs(), active)
    assert w.isfinite().all() and torch.allclose(w.sum(-1), torch.ones(3).double())
    assert all((w[i][~active[i]] == 0).all() if active[i].any() else torch.allclose(w[i], torch.full((N,), 1 / N).double()) for i in range(3))


def test_more_regret_means_more_weight():
    w = adanormalhedge_weights(torch.tensor([0.0, 1.0, 2.0, -0.5]), torch.full((4,), 3.0), torch.ones(4, dtype=torch.bool))
    assert w.argsort().tolist() == [3, 0, 1, 2] and w.dtype == torch.float32


@pytest.mark.parametrize("T", [1, 31, 32, 33, 64, 100])
def test_blocks_do_not_show(T):
    X, y, active = data(T=100)
    whole, part = online_ridge(X, y, active), online_ridge(X[:, :T], y[:, :T], active[:, :T])
    assert torch.allclose(whole.prediction[:, :T], part.prediction, atol=1e-10)


def test_replications_do_not_mix():
    X, y, active = data(R=3)
    together = groupwise(X, y, active)
    for r in range(3):
        alone = groupwise(X[r:r + 1], y[r:r + 1], active[r:r + 1])
        assert torch.allclose(together.loss[r], alone.loss[0]) and torch.allclose(together.regret[r], alone.regret[0])


def test_strong_regularization_predicts_zero():
    X, y, active = data()
    assert online_ridge(X, y, active, l2=1e9).prediction.abs().max() < 1e-6


X, Y, A = data()


@pytest.mark.parametrize("call", [
    lambda: groupwise(X, Y, A[..., :2]), lambda: groupwise(X, Y, A, mix="other"), lambda: groupwise(X, Y, A, l2=0.0), lambda: groupwise(X * math.nan, Y, A), lambda: groupwise(X, Y / 0, A),
    lambda: online_ridge(X[0], Y, A), lambda: online_ridge(X, Y[:, :3], A), lambda: online_ridge(X, Y, A, l2=-1.0), lambda: online_ridge(X, Y, A, l2=math.inf), lambda: online_ridge(X[:, :0], Y[:, :0], A[:, :0]),
    lambda: hindsight_loss(X, Y, A[:1]), lambda: adanormalhedge_weights(Y, -Y.abs() - 1, Y > 0), lambda: adanormalhedge_weights(Y * math.nan, Y.abs(), Y > 0), lambda: adanormalhedge_weights(Y, Y.abs()[:, :2], Y > 0)])
def test_bad_input_is_refused(call):
    with pytest.raises(ValueError): call()
