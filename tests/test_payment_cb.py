"Properties of amortlit.bandits.payment_cb that do not fit its page: shapes, rows, refusals, repetition."
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from amortlit.bandits.payment_cb import HYPER, POLICIES, PaymentWorld, epsilon_greedy_probs, fit_interaction_logit, run_generations, squarecb_probs

quick = settings(max_examples=30, deadline=None)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def some_rows(shape, A, seed, dtype=torch.float64):
    g = generator(seed)
    scores, mask = torch.rand(*shape, A, generator=g, dtype=dtype), torch.rand(*shape, A, generator=g) < 0.5
    mask[..., seed % A] = True
    return scores, mask


@quick
@given(shape=st.sampled_from([(), (1,), (7,), (2, 3), (0,)]), A=st.integers(1, 9), seed=st.integers(0, 99), gamma=st.floats(0, 1e9), dtype=st.sampled_from([torch.float64, torch.float32]))
def test_squarecb_rows(shape, A, seed, gamma, dtype):
    scores, mask = some_rows(shape, A, seed, dtype)
    p = squarecb_probs(scores, mask, gamma)
    assert p.shape == scores.shape and p.dtype == dtype and (p[~mask] == 0).all() and (p >= 0).all()
    assert torch.allclose(p.sum(-1), torch.ones(shape, dtype=dtype))
    assert (p[mask] >= 1 / (A + gamma) * (1 - 1e-5)).all()
    best = torch.where(mask, scores, -1.0).argmax(-1, keepdim=True) if p.numel() else torch.zeros(*shape, 1, dtype=torch.int64)
    assert (p.gather(-1, best) >= p.amax(-1, keepdim=True) - 1e-6).all() if p.numel() else True


@quick
@given(A=st.integers(1, 9), seed=st.integers(0, 99), epsilon=st.floats(0, 1))
def test_epsilon_greedy_rows(A, seed, epsilon):
    scores, mask = some_rows((5,), A, seed)
    p = epsilon_greedy_probs(scores, mask, epsilon)
    assert torch.allclose(p.sum(-1), torch.ones(5).double()) and (p[~mask] == 0).all()
    assert torch.allclose(torch.where(mask, p, 1.0).amin(-1)[mask.sum(-1) > 1], (epsilon / mask.sum(-1))[mask.sum(-1) > 1].double())


def test_ties_go_to_the_lowest_index():
    scores, mask = torch.full((4, 6), 0.5), torch.ones(4, 6, dtype=torch.bool)
    mask[1, 0] = mask[2, :3] = False
    for ties in (scores, torch.zeros(4, 6)): assert epsilon_greedy_probs(ties, mask, 0.0).argmax(-1).tolist() == [0, 1, 3, 0]
    assert torch.allclose(squarecb_probs(scores, mask, 50.0), epsilon_greedy_probs(scores, mask, 1.0))


def test_gamma_may_differ_by_row():
    scores, mask = some_rows((6,), 5, 1)
    gamma = torch.tensor([0.0, 1, 5, 20, 100, 1e6], dtype=torch.float64)
    alone = torch.stack([squarecb_probs(s, m, float(g)) for s, m, g in zip(scores, mask, gamma, strict=True)])
    assert torch.allclose(squarecb_probs(scores, mask, gamma), alone)


def a_log(R=3, n=400, d=4, A=5, seed=0):
    g = generator(seed)
    x, a = torch.randn(R, n, d, generator=g, dtype=torch.float64), torch.randint(A, (R, n), generator=g)
    return x, a, torch.bernoulli(torch.sigmoid(0.5 + x[..., 0] * (a - 2)), generator=g)


def test_a_fit_is_a_stationary_point_and_does_not_mix_replications():
    x, a, r = a_log()
    w = torch.rand(3, 400, generator=generator(3), dtype=torch.float64)
    theta = fit_interaction_logit(x, a, r, 5, w, l2=0.7)
    assert theta.shape == (3, 5 * 5 + 4)
    onehot = torch.nn.functional.one_hot(a, 5).double()
    columns = torch.cat([(onehot[..., None] * torch.cat([torch.ones(3, 400, 1).double(), x], -1)[:, :, None]).flatten(2), x], -1)
    ridge = torch.full((29,), 0.7).double()
    ridge[:25:5] = 0
    residual = w * (torch.sigmoid((columns @ theta[..., None])[..., 0]) - r)
    assert ((columns.transpose(1, 2) @ residual[..., None])[..., 0] + ridge * theta).abs().max() < 1e-4
    alone = torch.cat([fit_interaction_logit(x[i : i + 1], a[i : i + 1], r[i : i + 1], 5, w[i : i + 1], l2=0.7) for i in range(3)])
    assert torch.allclose(theta, alone, atol=1e-6)
    order = torch.randperm(400, generator=generator(4))
    assert torch.allclose(theta, fit_interaction_logit(x[:, order], a[:, order], r[:, order], 5, w[:, order], l2=0.7), atol=1e-6)
    assert fit_interaction_logit(x.float(), a, r.float(), 5).dtype == torch.float32


def test_a_weight_of_two_is_a_payment_twice():
    x, a, r = a_log(n=100)
    twice = fit_interaction_logit(torch.cat([x, x[:, :30]], 1), torch.cat([a, a[:, :30]], 1), torch.cat([r, r[:, :30]], 1), 5)
    assert torch.allclose(twice, fit_interaction_logit(x, a, r, 5, 1.0 + (torch.arange(100) < 30).double().expand(3, 100)), atol=1e-5)


def test_the_world_is_as_described():
    world = PaymentWorld(replications=200, generator=generator())
    x, mask = world.sample(300, 4)
    assert x.shape == (200, 300, 10) and mask.shape == (200, 300, 12) and mask.dtype == torch.bool
    assert mask[..., 0].all() and mask.sum(-1).min() == 2 and abs(mask[..., 1:].double().mean() - 0.5) < 0.01
    assert torch.allclose(x.mean(1).norm(dim=-1).pow(2).mean(), torch.tensor(0.2**2 + 10 / 300).double(), rtol=0.1)
    assert (world.v[:, 0] == 0).all() and abs(world.B.std() - 0.15) < 0.01 and abs(world.C.std() - 0.5) < 0.01
    rate = torch.sigmoid(world.logits(x))
    assert 0.77 < rate[..., 0].mean() < 0.85 and 0.04 < torch.where(mask, rate, 0.0).amax(-1).mean() - rate[..., 0].mean() < 0.13
    again, other = (PaymentWorld(replications=200, generator=generator(s)) for s in (0, 1))
    assert torch.equal(again.sample(300, 4)[0], x) and not torch.equal(other.sample(300, 4)[0], x) and not torch.equal(world.sample(300, 5)[0], x)


SMALL = PaymentWorld(d=3, n_actions=4, replications=3, generator=generator(5))


@pytest.mark.parametrize("policy", POLICIES)
def test_runs_repeat_and_add_up(policy):
    a, b, c = (run_generations(SMALL, policy, 3, 150, generator=generator(s), holdout=80) for s in (1, 1, 2))
    assert set(a) == {"reward", "best", "base", "regret", "positives", "entropy", "effective", "auc", "log_loss", "calibration", "rank"}
    assert all(v.shape == (3, 3) and v.dtype == torch.float64 for v in a.values()) and all(torch.equal(a[k].nan_to_num(), b[k].nan_to_num()) for k in a)
    assert not torch.equal(a["positives"], c["positives"]) and torch.allclose(a["reward"] + a["regret"], a["best"]) and (a["regret"] > -1e-12).all()
    assert (a["effective"] >= 1 - 1e-9).all() and (a["effective"] <= 4).all() and (a["positives"] - a["reward"]).abs().max() < 0.2


def test_options():
    def run(policy, **options): return run_generations(SMALL, policy, 3, 200, generator=generator(7), holdout=80, **options)
    even = run("uniform")
    assert torch.allclose(run("squarecb", gamma_0=0.0)["reward"], even["reward"]) and torch.allclose(run("epsilon_greedy", epsilon=1.0)["reward"], even["reward"])
    assert torch.allclose(run("softmax", temperature=1e9)["reward"], even["reward"]) and torch.allclose(run("softmax", temperature=1e-9)["reward"], run("greedy")["reward"], atol=0.02)
    assert not torch.equal(run("squarecb", weighting="propensity")["reward"], run("squarecb")["reward"])
    assert torch.equal(run("squarecb", weighting="propensity", clip=1.0)["reward"], run("squarecb")["reward"])
    assert torch.allclose(run("squarecb", logging="uniform")["rank"][:, 1:], even["rank"][:, 1:]) and set(HYPER) >= {"epsilon", "gamma_0"}
    assert run("greedy", delay=5)["auc"].isnan().all()


def test_trees():
    pytest.importorskip("sklearn")
    run = run_generations(SMALL, "squarecb", 2, 300, generator=generator(), model="trees", holdout=80)
    assert run["rank"][:, 1].isfinite().all() and torch.equal(run["reward"], run_generations(SMALL, "squarecb", 2, 300, generator=generator(), model="trees", holdout=80)["reward"])


S, M = torch.full((2, 3), 0.5), torch.ones(2, 3, dtype=torch.bool)
X, ACT, R = a_log(R=2, n=6, d=2, A=3)


@pytest.mark.parametrize("call", [
    lambda: squarecb_probs(S, ~M, 1.0), lambda: squarecb_probs(S + 1, M, 1.0), lambda: squarecb_probs(S - 1, M, 1.0), lambda: squarecb_probs(S * math.nan, M, 1.0), lambda: squarecb_probs(S, M, -1.0), lambda: squarecb_probs(S, M, math.nan), lambda: squarecb_probs(S, M[:, :2], 1.0), lambda: squarecb_probs(S.long(), M, 1.0),
    lambda: epsilon_greedy_probs(S, ~M, 0.1), lambda: epsilon_greedy_probs(S + 1, M, 0.1), lambda: epsilon_greedy_probs(S, M, -0.1), lambda: epsilon_greedy_probs(S, M, 1.1), lambda: epsilon_greedy_probs(S, M, math.nan),
    lambda: fit_interaction_logit(X[0], ACT[0], R[0], 5), lambda: fit_interaction_logit(X, ACT[:, :3], R, 5), lambda: fit_interaction_logit(X, ACT, R[:1], 5), lambda: fit_interaction_logit(X, ACT + 5, R, 5), lambda: fit_interaction_logit(X, ACT - 5, R, 5), lambda: fit_interaction_logit(X, ACT.double(), R, 5),
    lambda: fit_interaction_logit(X, ACT, R + 2, 5), lambda: fit_interaction_logit(X * math.nan, ACT, R, 5), lambda: fit_interaction_logit(X, ACT, R, 5, -torch.ones(2, 6)), lambda: fit_interaction_logit(X, ACT, R, 5, l2=0.0), lambda: fit_interaction_logit(X, ACT, R, 5, steps=0), lambda: fit_interaction_logit(X[:, :0], ACT[:, :0], R[:, :0], 5),
    lambda: PaymentWorld(d=0), lambda: PaymentWorld(n_actions=1), lambda: PaymentWorld(replications=0), lambda: SMALL.sample(0, 0), lambda: SMALL.sample(5, -1), lambda: SMALL.logits(torch.zeros(3, 5, 4)), lambda: SMALL.logits(torch.full((3, 5, 3), math.nan)),
    lambda: run_generations(SMALL, "thompson", 2, 50), lambda: run_generations(SMALL, "greedy", 0, 50), lambda: run_generations(SMALL, "greedy", 2, 0), lambda: run_generations(SMALL, "greedy", 2, 50, window=0), lambda: run_generations(SMALL, "greedy", 2, 50, delay=-1),
    lambda: run_generations(SMALL, "greedy", 2, 50, gamma=3.0), lambda: run_generations(SMALL, "squarecb", 2, 50, gamma_0=-1.0), lambda: run_generations(SMALL, "epsilon_greedy", 2, 50, epsilon=2.0), lambda: run_generations(SMALL, "greedy", 2, 50, model="forest")])
def test_bad_input_is_refused(call):
    with pytest.raises(ValueError): call()


def test_vowpal_wabbit_has_the_same_rule():
    "Untrained, all costs are zero there: uniform; after a few payments of one action, the gap at its own pace."
    vw = pytest.importorskip("vowpalwabbit")
    model = vw.Workspace("--cb_explore_adf --squarecb --gamma_scale 30 --gamma_exponent 0 --cb_type mtr --noconstant --quiet")
    ask = "shared |S s\n|A a\n|B b\n|C c"
    assert np.allclose(model.predict(ask), 1 / 3)
    for _ in range(20): model.learn("shared |S s\n0:1:0.3 |A a\n|B b\n|C c")
    p = np.array(model.predict(ask))
    costs = (1 / p - 3) / 30
    costs[p.argmax()] = 0
    ours = squarecb_probs(torch.as_tensor(1 - costs).clamp(0, 1), torch.ones(3, dtype=torch.bool), 30.0)
    model.finish()
    assert p[0] < 0.2 and np.allclose(ours.numpy(), p, atol=1e-5)
