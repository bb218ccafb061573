"Properties of amortlit.bandits.succinct_paging that do not fit its page: plain-Python references, refusals, shapes, dtypes, invariances, published totals."
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from amortlit.bandits.succinct_paging import belady, flip_bits, phase_bits, prediction_errors, run_paging
from amortlit.core import data

POLICIES = ("lru", "fifo", "random", "marker", "mark0", "mark0_random", "mark_predict", "follow")
quick = settings(max_examples=30, deadline=None)
sequences = st.integers(1, 7).flatmap(lambda n: st.lists(st.lists(st.integers(0, n), min_size=25, max_size=25), min_size=1, max_size=4))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(B=20, T=80, pages=12, seed=0):
    return torch.randint(pages, (B, T), generator=generator(seed))


def reference_opt(row, k):
    "Faults and, by bookkeeping of evictions, the discard bits."
    cache, last, bits, faults = [], {}, [0] * len(row), 0
    def when(page, t):
        return next((s for s in range(t + 1, len(row)) if row[s] == page), None)
    for t, page in enumerate(row):
        if page not in cache:
            faults += 1
            if len(cache) == k:
                never = [p for p in cache if when(p, t) is None]
                gone = min(never, key=last.get) if never else max(cache, key=lambda p: when(p, t))
                cache.remove(gone)
                bits[last[gone]] = 1
            cache.append(page)
        last[page] = t
    for page in last: bits[last[page]] = 1
    return faults, bits


def reference_phases(row, k):
    index, seen, j = [], set(), 0
    for page in row:
        if page not in seen and len(seen) == k: seen, j = set(), j + 1
        seen.add(page)
        index.append(j)
    sets = [{p for p, i in zip(row, index) if i == phase} for phase in range(j + 1)] + [set()]
    return [int(page not in sets[i + 1]) for page, i in zip(row, index)], index


def reference_faults(policy, row, k, bits):
    "The deterministic policies, with an ordered dictionary from page to (bit, mark)."
    cache, faults = OrderedDict(), 0
    for page, bit in zip(row, bits):
        if page in cache:
            if policy == "fifo": continue
            cache.pop(page)
        else:
            faults += 1
            if len(cache) == k:
                if policy == "mark0":
                    if all(mark for _, mark in cache.values()):
                        for p in cache: cache[p] = (cache[p][0], False)
                    gone = next(p for p, (_, mark) in cache.items() if not mark)
                elif policy == "follow": gone = next((p for p, (b, _) in cache.items() if b), next(iter(cache)))
                else: gone = next(iter(cache))
                del cache[gone]
        cache[page] = (bit, bit == 0)
    return faults


@quick
@given(rows=sequences, k=st.integers(1, 6))
def test_belady_and_phases_against_plain_python(rows, k):
    requests = torch.tensor(rows)
    faults, bits = belady(requests, k)
    phase, index = phase_bits(requests, k)
    expected = [reference_opt(row, k) for row in rows]
    assert faults.tolist() == [f for f, _ in expected] and bits.tolist() == [b for _, b in expected]
    phases = [reference_phases(row, k) for row in rows]
    assert phase.tolist() == [b for b, _ in phases] and index.tolist() == [i for _, i in phases]
    assert all(x.dtype == torch.int64 for x in (faults, bits, phase, index))
    assert faults.shape == (len(rows),) and bits.shape == phase.shape == index.shape == requests.shape


@quick
@given(rows=sequences, k=st.integers(1, 6), seed=st.integers(0, 1000))
def test_policies_against_plain_python(rows, k, seed):
    requests = torch.tensor(rows)
    bits = torch.randint(2, requests.shape, generator=generator(seed))
    for policy in ("lru", "fifo", "mark0", "follow"):
        assert run_paging(policy, requests, k, bits).tolist() == [reference_faults(policy, row, k, b) for row, b in zip(rows, bits.tolist())]


@quick
@given(rows=sequences, k=st.integers(1, 6), seed=st.integers(0, 1000))
def test_bounds_on_every_row(rows, k, seed):
    requests = torch.tensor(rows)
    opt, discard = belady(requests, k)
    bits = torch.randint(2, requests.shape, generator=generator(seed))
    eta_0, eta_1 = prediction_errors(bits, discard)
    assert (run_paging("mark0", requests, k, bits) <= opt + (k - 1) * eta_0 + eta_1).all()
    distinct = torch.tensor([len(set(row)) for row in rows])
    for policy in POLICIES:
        faults = run_paging(policy, requests, k, bits, generator(seed))
        assert faults.dtype == torch.int64 and faults.shape == opt.shape
        assert (faults >= opt).all() and (faults >= distinct).all() and (faults <= requests.shape[1]).all()
    for policy in ("mark0", "mark0_random", "follow"): assert torch.equal(run_paging(policy, requests, k, discard, generator(seed)), opt)


def test_marking_stays_within_the_phases():
    requests = batch()
    phase, index = phase_bits(requests, 4)
    blocks = index[:, -1] + 1
    for policy in ("marker", "mark_predict"):
        assert (run_paging(policy, requests, 4, phase, generator()) <= 4 * blocks).all()
    assert (belady(requests, 4)[0] >= 4 + blocks - 2).all()


def test_mark_predict_with_perfect_phase_bits_is_within_twice_the_optimum():
    requests = batch(200, 200, 15)
    opt, _ = belady(requests, 5)
    assert (run_paging("mark_predict", requests, 5, phase_bits(requests, 5)[0], generator()) <= 2 * opt).all()


@pytest.mark.parametrize("policy", POLICIES)
def test_rows_are_independent_and_names_do_not_matter(policy):
    requests, k = batch(), 5
    bits = flip_bits(belady(requests, k)[1], 0.3, generator())
    faults = run_paging(policy, requests, k, bits, generator(1))
    names = torch.randperm(12, generator=generator(2)) + 2**40
    assert torch.equal(run_paging(policy, names[requests], k, bits, generator(1)), faults)
    assert torch.equal(run_paging(policy, requests.int(), k, bits.bool(), generator(1)), faults)
    assert torch.equal(run_paging(policy, requests, k, bits.double(), generator(1)), faults)
    if policy in ("lru", "fifo", "mark0", "follow"): assert torch.equal(run_paging(policy, requests[3:5], k, bits[3:5]), faults[3:5])
    else: assert not torch.equal(run_paging(policy, requests, k, bits, generator(7)), faults)


def test_rows_draw_their_own_chance():
    same = batch(1).expand(200, -1)
    for policy in ("random", "marker"): assert run_paging(policy, same, 5, generator=generator()).unique().numel() > 3


def test_large_ids_in_belady_and_phases():
    requests = batch()
    for f in (belady, phase_bits):
        for small, large in zip(f(requests, 4), f(requests * 2**50, 4)): assert torch.equal(small, large)


def test_lru_does_not_suffer_from_a_larger_cache():
    requests = batch()
    assert (torch.stack([run_paging("lru", requests, k) for k in range(1, 13)]).diff(dim=0) <= 0).all()
    assert (torch.stack([belady(requests, k)[0] for k in range(1, 13)]).diff(dim=0) <= 0).all()


def test_agreement_with_cachetools():
    cachetools = pytest.importorskip("cachetools")
    requests = batch()
    def faults(row):
        cache, count = cachetools.LRUCache(5), 0
        for page in row:
            if cache.get(page) is None: count, cache[page] = count + 1, True
        return count
    assert run_paging("lru", requests, 5).tolist() == [faults(row) for row in requests.tolist()]


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.float32])
def test_flips_and_errors(dtype):
    bits = (torch.rand(50, 400, generator=generator()) < 0.3).to(dtype)
    assert torch.equal(flip_bits(bits, 0.0), bits) and torch.equal(flip_bits(bits, 1.0), (bits == 0).to(dtype))
    flipped = flip_bits(bits, (0.1, 0.6), generator(1))
    assert flipped.dtype == dtype and flipped.shape == bits.shape
    eta_0, eta_1 = prediction_errors(flipped, bits)
    assert eta_0.shape == (50,) and eta_0.dtype == torch.int64
    assert abs(eta_0.sum() / (bits == 1).sum() - 0.6) < 0.03 and abs(eta_1.sum() / (bits == 0).sum() - 0.1) < 0.02
    assert (eta_0 + eta_1 == (flipped != bits).sum(1)).all() and torch.equal(flipped, flip_bits(bits, (0.1, 0.6), generator(1)))


BAD_REQUESTS = [torch.tensor([0, 1]), torch.zeros(0, 3, dtype=torch.long), torch.zeros(3, 0, dtype=torch.long), torch.tensor([[0, -1]]), torch.tensor([[0.0, 1.0]]),
                torch.tensor([[float("nan")]]), torch.tensor([[True]]), [[0, 1]]]


@pytest.mark.parametrize("requests", BAD_REQUESTS)
def test_bad_requests(requests):
    for f in (lambda: belady(requests, 2), lambda: phase_bits(requests, 2), lambda: run_paging("lru", requests, 2)):
        with pytest.raises(ValueError): f()


@pytest.mark.parametrize("k", [0, -1, 2.0, True, None])
def test_bad_k(k):
    for f in (belady, phase_bits, lambda requests, k: run_paging("lru", requests, k)):
        with pytest.raises(ValueError): f(batch(), k)


@pytest.mark.parametrize("policy", ["mark0", "mark0_random", "mark_predict", "follow"])
def test_bad_bits(policy):
    requests = batch(2, 5)
    for bits in (None, torch.ones(2, 4), torch.ones(5), 2 * torch.ones(2, 5), torch.full((2, 5), float("nan")), [[0] * 5] * 2):
        with pytest.raises(ValueError): run_paging(policy, requests, 2, bits)


def test_bad_policy_and_probabilities():
    bits = torch.ones(2, 5, dtype=torch.long)
    with pytest.raises(ValueError, match="unknown policy"): run_paging("clock", batch(), 2)
    for p in (-0.1, 1.1, float("nan"), (0.1,), (0.1, 2.0), "half", None):
        with pytest.raises(ValueError): flip_bits(bits, p)
    for bad in (bits + 1, torch.full((2, 5), float("nan")), torch.zeros(0), None):
        with pytest.raises(ValueError): flip_bits(bad, 0.5)
        with pytest.raises(ValueError): prediction_errors(bad, bits)
        with pytest.raises(ValueError): prediction_errors(bits, bad)
    with pytest.raises(ValueError): prediction_errors(bits, bits[:1])


def test_published_totals():
    try: path = data.load("paging_traces")["data"]
    except data.DataMissing: pytest.skip("the traces are not here")
    with zipfile.ZipFile(path) as archive:
        traces = torch.stack([torch.as_tensor(np.unique(archive.read(n).decode().split(), return_inverse=True)[1]) for n in archive.namelist() if n.startswith("data/bk")])
    opt, discard = belady(traces, 10)
    phase, _ = phase_bits(traces, 10)
    assert opt.sum() == 33990 and run_paging("lru", traces, 10).sum() == 43883
    assert torch.equal(run_paging("mark0", traces, 10, discard), opt)
    means = {policy: (run_paging(policy, traces.repeat(2, 1), 10, phase.repeat(2, 1), generator()).sum() / 2 / 33990).item() for policy in ("marker", "random", "mark_predict")}
    assert abs(means["marker"] - 1.333) < 0.005 and abs(means["random"] - 1.43) < 0.005 and abs(means["mark_predict"] - 1.225) < 0.003
