"""Lists that the host keeps: those of devices bit for bit; bounds are proven afterwards."""

import tracemalloc

import jax
import numpy as np
import pytest
import scipy.stats

from pathorob_jax.core import devices as sharding
from pathorob_jax.kernels.neighbors import host, search, tiles
from pathorob_jax.kernels.neighbors.host_lists import Bound, Lists, safe_ranks, to_keys
from pathorob_jax.kernels.neighbors.host_rows import HostRows

# Room for the smallest tiles, so that even small cases need several.
SMALL_BUDGET = tiles.MIN_TILE_ROWS**2 * host.BYTES_PER_SCORE


@pytest.mark.campaign
@pytest.mark.parametrize(
    "k",
    [
        pytest.param(11, marks=pytest.mark.campaign),
        pytest.param(300, marks=pytest.mark.campaign),
        1000,
    ],
)
def test_memory_keeps_to_the_budget(rng, k, monkeypatch):
    monkeypatch.setattr(host, "n_cores", lambda: 1)
    monkeypatch.setattr(Lists, "finish", lambda self, k, order: (None, np.zeros(0, np.int64)))
    n, dim, tile, ks = 3000, 16, 320, (k, 5, 5)
    budget = tile**2 * host.BYTES_PER_SCORE
    x, labels = rng.normal(size=(n, dim)).astype(np.float32), rng.integers(0, 9, (3, n))
    rows = HostRows(x, labels, tile, jax.devices()[0], n_kept=2)
    floor = np.full((3, tile), -np.inf, np.float32)
    a, b = rows.cut(0).tile, rows.cut(1).tile
    closeness = host._score(a, b)
    lowered = host._find_entering.lower(closeness, a, b, floor, floor)
    of_xla = lowered.compile().memory_analysis()
    tracemalloc.start()
    host.search(x, labels, ks, budget_bytes=budget, device=rows.device, on_progress=None)
    _, of_numpy = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Beside the pair of tiles: lists, labels, copies of the rows in their order, and two copies of
    # a tile's lists that are cut back.
    room = [depth + max(64, depth // 2) for depth in ks]
    held = n * (sum(8 * own + 12 for own in room) + 16 + 4 * dim) + 2 * tile * 8 * room[0]
    scores = 4 * tile**2 + of_xla.output_size_in_bytes
    taken = scores + of_xla.temp_size_in_bytes + (of_numpy - held)
    assert taken <= budget
    assert k > 11 or taken > 0.25 * budget  # the bound is not an idle one


def test_first_bounds_of_dense_lists_are_the_best_that_enter():
    closeness = -np.array([[1, 2, 2, 2, 5], [3, 1, 4, 1, 5], [5, 4, 3, 2, 1]], np.float32)
    enters = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 1, 1], [0, 0, 0, 1, 1]], np.uint8) | 2
    start = np.float32(-9)
    floors = [np.full((2, n), start, np.float32) for n in closeness.shape]
    assert host._raise_floors(closeness, enters, floors, [Bound(3, 9), Bound(5, 9)])
    # Ties at the third stay in; the last row has two that enter, and keeps its floor.
    np.testing.assert_array_equal(floors[0], [[-2, -3, start], [start] * 3])
    # Lists as long as a tile keep theirs: all three rows for columns at k = 3.
    np.testing.assert_array_equal(floors[1], np.full((2, 5), start))
    assert not host._raise_floors(closeness, enters, floors, [Bound(3, 9), Bound(5, 9)])
    floors[1][:] = start
    assert host._raise_floors(closeness, enters, floors, [Bound(2, 9), Bound(5, 9)])
    np.testing.assert_array_equal(floors[0][0], [-2, -1, -2])
    np.testing.assert_array_equal(floors[1][0], [-3, -2, -3, -2, -5])
    # The first two rows of the other tile alone.
    floors = [np.full((1, n), start, np.float32) for n in closeness.shape]
    assert host._raise_floors(closeness, enters, floors, [Bound(1, 2)])
    np.testing.assert_array_equal(floors[0][0], [-1, -1, start])
    np.testing.assert_array_equal(floors[1][0], [-1, -1, -2, -1, -5])


@pytest.mark.parametrize("k", [1, 13, 110])
@pytest.mark.parametrize("risk", [1e-3, 1e-9])
def test_ranks_are_as_safe_as_they_say_and_no_safer(k, risk):
    n, shares = 20_000, np.array([0, 0.01, 0.05, 0.3, 0.7, 1])
    ranks = safe_ranks(k, shares, risk)
    assert ranks[-1] == k  # of all rows, nothing is a guess
    for share, rank in zip(shares[:-1], ranks, strict=False):
        if rank < k:
            assert scipy.stats.binom.sf(rank - 1, k, share) <= risk
            assert scipy.stats.hypergeom.sf(rank - 1, n, k - 1, round(share * n)) <= risk
        if rank > 1:
            assert scipy.stats.binom.sf(rank - 2, k, share) > risk


@pytest.mark.slow
@pytest.mark.parametrize(
    "k",
    [
        3,
        pytest.param(50, marks=pytest.mark.slow),
        *(pytest.param(k, marks=pytest.mark.campaign) for k in (120, 700)),
    ],
)
@pytest.mark.parametrize("kind", ["random", "ties", "collapsed", "far_first"])
def test_lists_are_those_of_devices(rng, k, kind):
    # Lists that overflow, bounds that are ties, neighbours that come last: all by another path too.
    x, labels = _make_rows(rng, kind)
    _equals_devices(x, labels, (k, 5, 5))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "risk"),
    [("random", 1e9), ("random", 3000), ("ties", 1e9), ("ties", 3000), ("collapsed", 1e9)],
)
def test_rows_whose_bounds_were_too_early_are_searched_again(rng, kind, risk, monkeypatch):
    n_again = []
    again = host._search_again

    def count(rows, queries, found):
        n_again.append(len(queries))
        again(rows, queries, found)

    monkeypatch.setattr(host, "_search_again", count)
    monkeypatch.setattr(host, "RISK", risk)
    x, labels = _make_rows(rng, kind)
    _equals_devices(x, labels, (50, 5, 5))
    assert 0 < sum(n_again) <= len(x)
    assert risk < 1e9 or sum(n_again) > len(x) / 2


@pytest.mark.slow
def test_bounds_of_samples_let_few_rows_enter(rng, monkeypatch):
    n, k, n_offered, n_again = 3000, 60, [0], []
    offer = Lists.offer

    def count(self, tile, query, keys):
        n_offered[0] += len(keys)
        offer(self, tile, query, keys)

    monkeypatch.setattr(Lists, "offer", count)
    monkeypatch.setattr(host, "_search_again", lambda *args: n_again.append(args))
    x, labels = rng.normal(size=(n, 8)).astype(np.float32), np.arange(n)[None, :]
    x[:, 0] += np.linspace(0, 5, n)  # in their own order, tiles would be no samples
    offered = []
    for samples in (host.LEAST_SAMPLES, n):
        monkeypatch.setattr(host, "LEAST_SAMPLES", samples)
        n_offered[0] = 0
        search.search(x, labels, (k,), budget_bytes=9 * SMALL_BUDGET)
        offered.append(n_offered[0])
    assert offered[0] < 0.6 * offered[1]
    assert not n_again


@pytest.mark.slow
def test_a_list_holds_the_least_whatever_the_order(rng):
    n, k = 130, 7
    lists = Lists(n, k, 64, room=k + 5)
    rows = HostRows(np.ones((n, 2)), np.zeros((1, n)), 64, jax.devices()[0], n_kept=3)
    offered = [[] for _ in range(n)]
    for _ in range(40):
        number = int(rng.integers(0, 3))
        own = np.arange(number * 64, min(number * 64 + 64, n))
        query = np.sort(rng.choice(own, 5 * len(own)))
        closeness = -rng.integers(0, 5, len(query)).astype(np.float32)
        keys = to_keys(closeness, rng.integers(0, 2**31 - 1, len(query)))
        here = rows.cut(number)
        lists.offer(here, query - here.start, keys)
        for row, key in zip(query, keys, strict=True):
            offered[row].append(int(key))
    found, incomplete = lists.finish(k)
    assert not incomplete.size
    for row, keys in enumerate(offered):
        expected = [(key >> 32, key & 0xFFFFFFFF) for key in sorted(keys)[:k]]
        assert len(expected) == k
        np.testing.assert_array_equal(found.indices[row], [at for _, at in expected])
        bits = np.array([bits for bits, _ in expected], np.int32)
        np.testing.assert_array_equal(found.distances[row], bits.view(np.float32))


def _make_rows(rng, kind):
    n = 700
    # Rows of +-1: products and norms are exact in float32, so that ties are exact ties.
    x = rng.choice([-1.0, 1.0], (n, 4 if kind == "ties" else 64)).astype(np.float32)
    if kind == "collapsed":
        x = np.ones_like(x)
    if kind == "far_first":  # the nearer, the later: every tile overflows the lists of the first
        x = rng.normal(size=(n, 64)) + np.linspace(0, 9, n)[:, None]
    return x, np.stack([rng.integers(0, top, n) for top in (90, 2, 3)])


def _equals_devices(x, labels, ks):
    two = sharding.make_mesh(jax.local_devices()[:2])
    of_host, of_devices = (
        search.search(x, labels, ks, budget_bytes=4 * SMALL_BUDGET, mesh=mesh)
        for mesh in (None, two)
    )
    for own, other in zip(of_host, of_devices, strict=True):
        np.testing.assert_array_equal(own.indices, other.indices)
        np.testing.assert_array_equal(own.distances, other.distances)
