"""Neighbours in exact order, where float32 and float64 cannot tell distances apart."""

from fractions import Fraction

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import oracles
import pytest
from machine import DEVICES

from pathorob_jax.core import devices
from pathorob_jax.core.checks import InputError
from pathorob_jax.kernels.neighbors import (
    batched,
    equal_rows,
    exact_rows,
    exact_search,
    host,
    near_ties,
    search,
    stream,
    tiles,
)
from pathorob_jax.kernels.neighbors.exact_rows import Rows
from pathorob_jax.kernels.neighbors.search import PADDING_GROUP, Neighbors
from pathorob_jax.kernels.neighbors.tiles import Block

# Last bits decide here, and they depend on how XLA compiles.
pytestmark = pytest.mark.optimized

SMALL_BUDGET = tiles.MIN_TILE_ROWS**2 * host.BYTES_PER_SCORE
N, DIM, K, M = 360, 48, 7, 3


def labels_of(n):
    slide = np.arange(n) // 12
    return np.stack([slide, slide % 2, slide // 2 % 2]).astype(np.int32)


def make_rows(kind):
    """Rows whose distances lie within float32's rounding of each other, in many ways."""
    rng = np.random.default_rng(11)
    z = rng.normal(size=(N, DIM))
    _, bio, center = labels_of(N)
    z += 0.4 * rng.normal(size=(2, DIM))[bio] + 0.4 * rng.normal(size=(2, DIM))[center]
    one = rng.normal(size=DIM)
    name, _, size = kind.partition(" ")
    if name == "blank":  # tiles that are nearly one: a tenth or three tenths of all, 1e-4 ... 1e-8
        share, spread = map(float, size.split())
        blank = rng.random(N) < share
        z[blank] = one + spread * z[blank]
    elif name == "common":  # all rows near one direction
        z = one / np.abs(one).mean() * float(size) + z
    elif name == "jitter":  # rows that differ by float32's last bits
        z = z[rng.integers(0, 30, N)] * rng.uniform(0.5, 2, (N, 1))
    elif name == "lengths":  # rows that differ by powers of two alone
        z = z[rng.integers(0, 60, N)].astype(np.float32) * 2.0 ** rng.integers(-40, 40, (N, 1))
    return z.astype(np.float32)


KINDS = [
    "far",
    "blank 0.1 1.3e-3",
    "blank 0.1 4e-4",
    "blank 0.3 4e-4",
    "blank 0.3 1e-6",
    "common 100",
    "common 400",
    "common 3000",
    "common 100000",
    "jitter",
    "lengths",
]


def nearest(x, labels, k, kind=0):
    """Brute force: differences of unit rows in longdouble, which keep their digits when small."""
    unit = x.astype(np.longdouble)
    unit /= np.sqrt((unit * unit).sum(1, keepdims=True))
    group, first, second = labels
    out = np.full((len(x), k), -1)
    for i in range(len(x)):
        eligible = group != group[i]
        if kind:
            same, other = (first, second) if kind == 1 else (second, first)
            eligible &= (same == same[i]) & (other != other[i])
        idx = np.flatnonzero(eligible)
        distance = ((unit[idx] - unit[i]) ** 2).sum(1)
        best = idx[np.argsort(distance, kind="stable")[:k]]
        out[i, : len(best)] = best
    return out


@pytest.fixture(scope="module")
def cases():
    labels = labels_of(N)
    made = {kind: make_rows(kind) for kind in KINDS}
    return {
        kind: (x, labels, [nearest(x, labels, k, i) for i, k in enumerate((K, M, M))])
        for kind, x in made.items()
    }


def find(x, labels, **options):
    return search.find_typed_neighbors(x, *labels, k=K, m=M, budget_bytes=SMALL_BUDGET, **options)


def find_on(n_devices, **options):
    mesh = devices.make_mesh(jax.devices()[:n_devices])
    return lambda x, labels: find(x, labels, mesh=mesh, **options)


def find_batched(x, labels):
    order = np.arange(N)
    idx = np.stack([np.append(order, order[:8]), np.append(order, order[:8])])
    ids = labels[:, idx].copy()
    ids[0, :, N:] = PADDING_GROUP
    mesh = devices.make_mesh(jax.devices()[:2])
    found = batched.search(x, idx, ids, (K, M, M), budget_bytes=SMALL_BUDGET, mesh=mesh)
    return [Neighbors(*(a[1, :N] for a in one)) for one in found]


class Reader:
    """Rows that can only be read in slices."""

    def __init__(self, x):
        self.x, self.shape = x, x.shape

    def __getitem__(self, rows):
        assert isinstance(rows, slice)
        return self.x[rows]


def find_streamed(x, labels):
    found = stream.find_neighbors_streamed(
        Reader(x), labels[0], k=K, budget_bytes=SMALL_BUDGET, block_bytes=2**18
    )
    return [found]


SEARCHES = {
    "host": find_on(1),
    "fast": find_on(1, precision="fast"),
    "replicated, 2": find_on(2),
    "replicated, all": find_on(DEVICES),
    "ring, 2": find_on(2, layout="ring"),
    "ring, all": find_on(DEVICES, layout="ring"),
    "batched": find_batched,
    "streamed": find_streamed,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=[pytest.mark.campaign]
            * name.endswith((", 2", "streamed", "batched", "ring, all", "fast")),
        )
        for name in SEARCHES
    ],
)
def test_every_search_is_exact(cases, name):
    one = find_on(1)
    for kind, (x, labels, expected) in cases.items():
        found = SEARCHES[name](x, labels)
        for got, want in zip(found, expected, strict=False):
            np.testing.assert_array_equal(got.indices, want, err_msg=kind)
            assert (np.diff(got.distances, axis=1) >= 0).all()
        for got, same in zip(found, one(x, labels), strict=False):
            np.testing.assert_allclose(got.distances, same.distances, rtol=2e-7)


@pytest.mark.slow
def test_float32_alone_is_wrong_there(cases):
    wrong = {}
    for kind, (x, labels, expected) in cases.items():
        raw = search.search(x, labels, (K + 4, M, M), budget_bytes=SMALL_BUDGET)[0].indices
        lost = [
            not set(a) <= set(b) for a, b in zip(expected[0].tolist(), raw.tolist(), strict=True)
        ]
        wrong[kind] = np.mean(lost)
    assert wrong["far"] == 0
    assert wrong["blank 0.3 1e-6"] > 0.2
    assert wrong["common 3000"] > 0.5
    assert wrong["common 400"] > 0.05


@pytest.mark.slow
def test_the_bound_of_the_error_holds_and_is_not_idle():
    rng = np.random.default_rng(3)
    for dim in (64, 1536):
        x = (rng.normal(size=(400, dim)) + 3 * rng.normal(size=dim)).astype(np.float32)
        labels = np.arange(400)[None]
        [found] = search.search(x, labels, (30,))
        bound = near_ties.rounding_error(Rows(x), found, 30, np.ones(400, bool))
        unit = x.astype(np.longdouble)
        unit /= np.sqrt((unit * unit).sum(1, keepdims=True))
        error = [
            np.abs(found.distances[i] - ((unit[found.indices[i]] - unit[i]) ** 2).sum(1) / 2).max()
            for i in range(400)
        ]
        assert max(error) <= bound <= 10 * max(error)


def test_float64_bounds_hold():
    rng = np.random.default_rng(4)
    for spread in (1.0, 1e-3, 1e-6):
        x = (np.ones(200) + spread * rng.normal(size=(300, 200))).astype(np.float32)
        unit = x.astype(np.longdouble)
        unit /= np.sqrt((unit * unit).sum(1, keepdims=True))
        first, second = rng.integers(0, 300, (2, 500))
        exact = ((unit[first] - unit[second]) ** 2).sum(1) / 2
        got = Rows(x).distances(first, second)
        assert (np.abs(got - exact) <= exact_rows.distance_error(got, 200)).all()
        np.testing.assert_allclose(got, exact.astype(float), rtol=1e-8)
        blocks, error = exact_search._Blocks(Rows(x), keep=False).measure(np.arange(50))
        exact = ((unit[:50, None] - unit[None]) ** 2).sum(2) / 2
        assert (np.abs(blocks - exact) <= error[:, None]).all()
        assert error.max() < 1e-11 * max(blocks.max(), 1e-6)


@pytest.mark.parametrize("dim", [7, 1536, 3000, 8192])
def test_a_distance_does_not_depend_on_its_place_among_pairs(rng, dim):
    """Else streamed lists, whose pairs have another order, would differ in last bits.

    Beyond 8,192 dimensions NumPy splits a sum, and last bits do depend on the place.
    """
    x = rng.normal(size=(40, dim)).astype(np.float32)
    x[20:] = x[:20] + 0.1 * rng.normal(size=(20, dim)).astype(np.float32)
    first, second = rng.integers(0, 40, (2, 300))
    second[::3] = (first[::3] + 20) % 40  # near ones, measured by differences
    rows = Rows(x)
    whole = rows.distances(first, second)
    assert (whole < exact_rows.NEAR).any()
    assert (whole > exact_rows.NEAR).any()
    one_by_one = [rows.distances(first[i : i + 1], second[i : i + 1])[0] for i in range(300)]
    np.testing.assert_array_equal(whole, one_by_one)


def test_double_double_cosines_have_thirty_digits():
    rng = np.random.default_rng(5)
    x = (rng.normal(size=(20, 33)) * 10.0 ** rng.integers(-3, 3, (20, 1))).astype(np.float32)
    first, second = np.repeat(np.arange(20), 20), np.tile(np.arange(20), 20)
    high, low = Rows(x).cosines(first, second)
    numbers = [[Fraction(float(v)) for v in row] for row in x]
    for i, j, h, l in zip(first, second, high, low, strict=True):
        a, b = numbers[i], numbers[j]
        dot = sum(u * v for u, v in zip(a, b, strict=True))
        square = dot * dot / (sum(u * u for u in a) * sum(v * v for v in b))
        got = Fraction(float(h)) + Fraction(float(l))
        assert abs(got * got - square) <= Fraction(1, 2**97)
        assert (got > 0) == (dot > 0)


def exact_order(x, group, k):
    """Brute force in rational numbers: descending sign(p) p^2 / |b|^2."""
    rows = [[Fraction(float(v)) for v in row] for row in x]
    norm2 = [sum(v * v for v in row) for row in rows]
    out = np.full((len(x), k), -1)
    for i, row in enumerate(rows):
        dot = [sum(a * b for a, b in zip(row, other, strict=True)) for other in rows]
        idx = [j for j in range(len(x)) if group[j] != group[i]]
        idx.sort(key=lambda j: (-dot[j] * abs(dot[j]) / norm2[j], j))
        out[i, : len(idx[:k])] = idx[:k]
    return out


@pytest.mark.slow
@hypothesis.given(
    seed=st.integers(0, 2**32 - 1),
    dim=st.sampled_from([1, 2, 3]),
    kind=st.sampled_from(["integers", "multiples", "ulps", "wide"]),
)
@hypothesis.settings(max_examples=40, deadline=None)
def test_ties_and_what_only_looks_like_one_are_told_apart(seed, dim, kind):
    rng = np.random.default_rng(seed)
    x = rng.integers(-3, 4, (24, dim)).astype(np.float32)
    x[(x == 0).all(1)] = 1
    if kind == "multiples":
        x *= rng.integers(1, 9, (24, 1)).astype(np.float32)
    elif kind == "ulps":
        beside = np.nextafter(x, np.float32(9) * rng.choice([-1, 1], x.shape).astype(np.float32))
        x = np.where(x == 0, x, beside)
    elif kind == "wide":
        x *= (10.0 ** rng.integers(-6, 7, (24, 1))).astype(np.float32)
    group = rng.integers(0, 8, 24)
    found = search.find_neighbors(x, group, k=6)
    np.testing.assert_array_equal(found.indices, exact_order(x, group, 6))


def test_a_small_budget_changes_nothing(cases):
    x, labels, expected = cases["common 3000"]
    rows, queries = Rows(x), np.arange(0, N, 2)
    for budget in (1, 20 * N * exact_search.BYTES_PER_PAIR, 2**28):
        found = exact_search.search(rows, labels, queries, (K, M, M), budget_bytes=budget)
        for got, want in zip(found, expected, strict=True):
            np.testing.assert_array_equal(got.indices, want[queries])


@pytest.mark.campaign
@pytest.mark.slow
@pytest.mark.parametrize("scale", [pytest.param(1.0, marks=pytest.mark.campaign), 0.03])
def test_deep_lists_are_those_of_float64(rng, scale):
    # A common direction brings all rows near each other: float32 swaps many of them.
    x = (np.ones(128) + scale * rng.normal(size=(1500, 128))).astype(np.float32)
    slide = np.arange(1500) // 10
    expected, distances = oracles.nearest(x, slide, 200)
    [raw] = search.search(x, slide[None], (200,))
    assert (raw.indices != expected).any(1).mean() > (0.005 if scale == 1.0 else 0.9)
    got = search.find_neighbors(x, slide, k=200)
    np.testing.assert_array_equal(got.indices, expected)
    np.testing.assert_allclose(got.distances, distances, rtol=2e-6, atol=1e-6)
    assert (np.diff(got.distances, axis=1) >= 0).all()


def test_equal_rows_keep_the_order_of_rows_and_absent_ones_stay_last(rng):
    x = rng.normal(size=(30, 7)).astype(np.float32)[np.arange(30) % 3]
    group = np.arange(30) // 20  # rows of the first group have ten others, of the second twenty
    got = search.find_neighbors(x, group, k=12)
    expected, _ = oracles.nearest(x, group, 12)
    np.testing.assert_array_equal(got.indices, expected)
    np.testing.assert_array_equal(got.indices[:20, 10:], -1)
    assert np.isinf(got.distances[:20, 10:]).all()


def test_copies_of_a_row_leave_room_for_other_rows(rng):
    """Each query alone, in float64: only the first copies of each direction are candidates."""
    x = np.repeat(rng.normal(size=(2, 6)).astype(np.float32), [40, 2], axis=0)
    queries = np.array([0, 1, 41])
    [found] = exact_search.search(Rows(x), np.arange(42)[None], queries, (2,), budget_bytes=1)
    np.testing.assert_array_equal(found.indices, [[1, 2], [0, 2], [40, 0]])
    apart = oracles.nearest(x, np.arange(42), 2)[1][queries]
    np.testing.assert_allclose(found.distances, apart, rtol=1e-12, atol=1e-15)


def test_a_query_whose_group_holds_all_rows_finds_none(rng):
    x, labels = rng.normal(size=(9, 4)).astype(np.float32), np.zeros((1, 9), int)
    [found] = exact_search.search(Rows(x), labels, np.array([3, 5]), (2,), budget_bytes=2**20)
    np.testing.assert_array_equal(found.indices, np.full((2, 2), -1))
    assert np.isinf(found.distances).all()


def test_rows_without_a_direction_are_refused(rng):
    x = rng.normal(size=(12, 4)).astype(np.float32)
    labels = np.arange(12)
    for bad in (0.0, np.nan, np.inf, 1e-17, 1e18):
        rows = x.copy()
        rows[5] = bad
        with pytest.raises(InputError, match=r"1 of 12 rows have no direction.* row 5, of length"):
            search.find_neighbors(rows, labels, k=2)
        with pytest.raises(InputError, match="row 5"):
            stream.find_neighbors_streamed(rows, labels, k=2)
        with pytest.raises(InputError, match="row 5"):
            batched.search(rows, labels[None], labels[None, None], (2,))
        searched = search.find_neighbors(rows, np.where(labels == 5, PADDING_GROUP, labels), k=2)
        assert not (searched.indices[labels != 5] == 5).any()


@pytest.mark.slow
@pytest.mark.parametrize("size", [1e-14, 1e14])
def test_lengths_within_the_range_do_not_matter(rng, size):
    x = rng.normal(size=(40, 9)).astype(np.float32)
    group = np.arange(40) // 4
    got = search.find_neighbors(x * np.float32(size), group, k=5)
    np.testing.assert_array_equal(got.indices, search.find_neighbors(x, group, k=5).indices)


@pytest.mark.slow
def test_equal_directions_are_equal_rows(rng):
    x = rng.normal(size=(500, 40)).astype(np.float32)
    assert not equal_rows.find_equal(x).any()
    x[7] = np.float32(0.7) * x[3]  # rounded
    x[9], x[400] = 2 * x[8], -x[8]
    near = x[20] * (1 + 1e-5 * rng.normal(size=40))
    x[21] = near.astype(np.float32)
    np.testing.assert_array_equal(np.flatnonzero(equal_rows.find_equal(x)), [3, 7, 8, 9])
    assert equal_rows.find_equal(rng.normal(size=(9, 1))).all()
    assert equal_rows.have_one_direction(x[3] * rng.uniform(1, 2, (50, 1)).astype(np.float32))
    assert not equal_rows.have_one_direction(x)


def test_rows_are_equal_in_all_entries_or_by_a_power_of_two(rng, monkeypatch):
    """Also where the entries that are compared first do not tell rows apart."""
    x = rng.normal(size=(3000, 40)).astype(np.float32)
    x[2500:2503] = x[7] * np.float32([[1], [4], [2.0**-20]])
    x[1500], x[1501] = x[3], x[3]
    x[1501, 17] = np.nextafter(x[3, 17], np.float32(9))  # not among those compared first
    x[20, 5], x[21] = 0.0, x[20]
    x[21, 5] = -0.0
    x[22] = 3 * x[20]  # one direction, other mantissas
    x[2000] = x[2001] * np.float32(2.0**-126)  # entries that have lost digits
    x[30:34] = np.eye(40, dtype=np.float32)[[0, 1, 0, 1]]
    expected = np.arange(3000)
    expected[2500:2503], expected[1500], expected[21], expected[32:34] = 7, 3, 20, [30, 31]
    np.testing.assert_array_equal(Rows(x).first_equal, expected)
    monkeypatch.setattr("pathorob_jax.kernels.neighbors.exact_rows.COMPARED_COLUMNS", 1)
    np.testing.assert_array_equal(Rows(x).first_equal, expected)
    x[:, 0] = 1.0  # all rows are compared in all entries
    assert np.array_equal(Rows(x).first_equal[1500:1502], [3, 1501])


@pytest.mark.campaign
@pytest.mark.slow
@pytest.mark.parametrize("k", [11, 70])
def test_long_searches_with_ties_in_large_tiles(rng, k):
    """Tiles large enough for both forms of selection, and so many that few columns still enter."""
    n = 6144
    x = rng.normal(size=(n, 3)).astype(np.float32)
    x[rng.integers(0, n, 2000)] = x[rng.integers(0, n, 2000)]
    group = rng.integers(0, 700, n)
    budget = 512**2 * tiles.BYTES_PER_SCORE
    [found] = search.search(x, group[None], (k,), budget_bytes=budget)
    # Independent of the selection: the float32 scores of all pairs of tiles, sorted stably. Those
    # of another size may be rounded otherwise.
    scale = np.asarray(tiles.inverse_norms(x))
    block = Block(x, np.zeros((1, n), np.int32), scale, np.arange(n))
    cut = [tiles.cut_tile(block, number, 512) for number in range(n // 512)]
    score = jax.jit(tiles.score_tiles)
    rows = rng.choice(n, 300, replace=False)
    distance = -np.block([[np.asarray(score(a, b)) for b in cut] for a in cut])[rows]
    distance[group[rows][:, None] == group[None, :]] = np.inf
    expected = np.argsort(distance, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(found.indices[rows], expected)
    ties = np.diff(np.take_along_axis(distance, expected, axis=1), axis=1) == 0
    assert 0.02 < ties.mean() < 0.9
