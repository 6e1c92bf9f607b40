"""Exact neighbours against a float64 brute force."""

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import oracles
import pytest

from pathorob_jax.core import devices as sharding
from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.kernels.neighbors import host as neighbors_host
from pathorob_jax.kernels.neighbors import search as neighbors
from pathorob_jax.kernels.neighbors import tiles
from pathorob_jax.kernels.neighbors.search import (
    PADDING_GROUP,
    find_neighbors,
)
from pathorob_jax.kernels.neighbors.tiles import Block, tile_rows

# Cosines of unit vectors in float32: errors of a few 2^-24, summed over up to 64 dimensions.
ATOL = 2e-6


# Room for the smallest tiles, so that even small cases need several.
SMALL_BUDGET = tiles.MIN_TILE_ROWS**2 * neighbors_host.BYTES_PER_SCORE


def signs(rng, n, dim=16):
    """Rows of +-1: products and norms are exact in float32, so that ties are exact ties."""
    return rng.choice([-1.0, 1.0], (n, dim)).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 7, 33, 64, 130, 257])
@pytest.mark.parametrize("k", [1, 5, 40])
def test_equals_brute_force(rng, n, k):
    x = rng.normal(size=(n, 24)).astype(np.float32)
    group = rng.integers(0, max(n // 4, 2), n)
    found = find_neighbors(x, group, k=k, budget_bytes=SMALL_BUDGET)
    indices, distances = oracles.nearest(x, group, k)
    np.testing.assert_array_equal(found.indices, indices)
    np.testing.assert_allclose(found.distances, distances, atol=ATOL)


@pytest.mark.slow
@pytest.mark.parametrize("n", [9, 65, 201])
def test_ties_are_ordered_by_row(rng, n, mesh):
    x = signs(rng, n, dim=4)  # sixteen directions at most: nearly every distance is a tie
    group = rng.integers(0, n // 3, n)
    indices, distances = oracles.nearest(x, group, 20)
    assert np.mean(distances[:, 1:4] == distances[:, :3]) > 0.3
    found = find_neighbors(x, group, k=20, budget_bytes=SMALL_BUDGET, mesh=mesh)
    np.testing.assert_array_equal(found.indices, indices)
    np.testing.assert_array_equal(found.distances, distances.astype(np.float32))


@pytest.mark.slow
@pytest.mark.parametrize(("n", "budget"), [(60, SMALL_BUDGET), (777, SMALL_BUDGET), (1500, 2**28)])
def test_equal_rows_are_exact_ties_whatever_their_values(rng, n, budget):
    # One row is a query of some pairs of tiles and a neighbour in others: both must round alike.
    x = rng.normal(size=(n // 10, 300)).astype(np.float32)
    x = x[rng.integers(0, n // 10, n)]
    _, copy = np.unique(x, axis=0, return_inverse=True)
    found = find_neighbors(x, np.arange(n), k=40, budget_bytes=budget)
    same = np.diff(copy[found.indices], axis=1) == 0
    assert same.mean() > 0.5
    assert (np.diff(found.indices, axis=1)[same] > 0).all()
    assert (np.diff(found.distances, axis=1)[same] == 0).all()


def test_opposite_rows_are_at_distance_two_and_equal_ones_at_zero():
    x = np.array([[3.0, 4.0], [6.0, 8.0], [-3.0, -4.0], [4.0, -3.0]], np.float32)
    found = find_neighbors(x, np.arange(4), k=3)
    np.testing.assert_array_equal(found.indices[0], [1, 3, 2])
    np.testing.assert_allclose(found.distances[0], [0, 1, 2], atol=ATOL)


def test_single_row_and_single_group_have_no_neighbours(rng):
    for n in (1, 12):
        found = find_neighbors(rng.normal(size=(n, 5)), np.zeros(n, int), k=3)
        np.testing.assert_array_equal(found.indices, np.full((n, 3), -1))
        assert np.isinf(found.distances).all()


def test_absent_neighbours_trail(rng):
    x = rng.normal(size=(6, 8)).astype(np.float32)
    group = np.array([0, 0, 0, 0, 1, 2])
    found = find_neighbors(x, group, k=9)
    np.testing.assert_array_equal((found.indices >= 0).sum(1), [2, 2, 2, 2, 5, 5])
    np.testing.assert_array_equal(found.indices, oracles.nearest(x, group, 9)[0])


def test_padding_is_nobodys_neighbour(rng):
    x = rng.normal(size=(20, 8)).astype(np.float32)
    group = rng.integers(0, 5, 20)
    padded = np.concatenate([x, np.zeros((13, 8), np.float32)])
    groups = np.concatenate([group, np.full(13, PADDING_GROUP)])
    found = find_neighbors(padded, groups, k=20)
    np.testing.assert_array_equal(found.indices[:20], oracles.nearest(x, group, 20)[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "k"),
    [
        (50, 50),
        pytest.param(1037, 7, marks=pytest.mark.campaign),
        pytest.param(1050, 31, marks=pytest.mark.campaign),
    ],
)
def test_answer_does_not_depend_on_the_number_of_devices(rng, n, k):
    x = rng.normal(size=(n, 19)).astype(np.float32)
    group = rng.integers(0, 9, n)
    one, *others = (
        find_neighbors(
            x,
            group,
            k=k,
            budget_bytes=SMALL_BUDGET,
            mesh=sharding.make_mesh(jax.devices()[:count]),
        )
        for count in (1, 2, 8)
    )
    for other in others:
        np.testing.assert_array_equal(one.indices, other.indices)
        np.testing.assert_array_equal(one.distances, other.distances)


@pytest.mark.slow
@hypothesis.given(seed=st.integers(0, 2**32 - 1), n=st.integers(3, 40))
@hypothesis.example(seed=33, n=8)  # where a score was once rounded in two ways
@hypothesis.settings(max_examples=15, deadline=None)
def test_neighbours_follow_permutation_rotation_and_scaling(seed, n):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 6))
    group = rng.integers(0, 3, n)
    base = find_neighbors(x.astype(np.float32), group, k=4).indices
    turn, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    turned = (x @ turn * rng.uniform(0.1, 10, (n, 1))).astype(np.float32)
    np.testing.assert_array_equal(find_neighbors(turned, group, k=4).indices, base)
    order = rng.permutation(n)
    place = np.argsort(order)
    moved = find_neighbors(x[order].astype(np.float32), group[order], k=4).indices
    np.testing.assert_array_equal(np.where(moved < 0, -1, order[moved])[place], base)


@pytest.mark.parametrize("k", [11, 300])
def test_memory_keeps_to_the_budget(k):
    n, dim, budget = 3000, 64, 3 * 2**20
    tile = tile_rows(n, k=k, budget_bytes=budget, platform="cpu")
    assert tile == 320
    search = neighbors._make_search(sharding.make_mesh(jax.devices()[:1]), tile)

    def shape(dtype, *sizes):
        return jax.ShapeDtypeStruct(sizes, dtype)

    found = ((shape(np.float32, 1, n, k), shape(np.int32, 1, n, k)),)
    block = Block(
        shape(np.float32, n, dim), shape(np.int32, 1, n), shape(np.float32, n), shape(np.int32, n)
    )
    compiled = search.lower(block, found, shape(np.int32, 1, 16, 2)).compile()
    # Beside the pair of tiles: their rows, what they found before and after, vectors of n.
    slack = 4 * (2 * tile * dim + 8 * tile * k + 4 * n)
    # The best so far is carried from tile to tile; donated, it is not copied as a whole.
    carried = 8 * n * k
    assert compiled.memory_analysis().temp_size_in_bytes <= budget + slack + carried


@pytest.mark.slow
@pytest.mark.parametrize("n", [12, pytest.param(150, marks=pytest.mark.slow)])
def test_typed_neighbours_are_found_however_deep(rng, n, mesh):
    x = rng.normal(size=(n, 12)).astype(np.float32)
    first, second = rng.integers(0, 3, n), rng.integers(0, 2, n)
    # Classes far apart: the nearest of another class lies beyond all of the own.
    x += 4 * np.eye(12, dtype=np.float32)[first]
    group = second * 5 + rng.integers(0, 5, n)
    found = neighbors.find_typed_neighbors(
        x, group, first, second, k=4, m=5, budget_bytes=SMALL_BUDGET, mesh=mesh
    )
    indices, distances = oracles.nearest(x, group, n)
    np.testing.assert_array_equal(found.any.indices, indices[:, :4])
    for kind, same_first in (("same_other", True), ("other_same", False)):
        got = getattr(found, kind)
        for i in range(n):
            typed = [
                (j, d)
                for j, d in zip(indices[i], distances[i], strict=True)
                if j >= 0
                and (first[j] == first[i]) == same_first
                and (second[j] == second[i]) != same_first
            ][:5]
            np.testing.assert_array_equal(
                got.indices[i], [j for j, _ in typed] + [-1] * (5 - len(typed))
            )
            np.testing.assert_allclose(
                got.distances[i, : len(typed)], [d for _, d in typed], atol=ATOL
            )


@pytest.mark.slow
def test_one_trace_serves_all_calls_of_a_shape(rng):
    two = sharding.make_mesh(jax.local_devices()[:2])
    of_mesh = {None: neighbors_host._find_entering, two: neighbors._make_search(two, 64)}
    for mesh, program in of_mesh.items():
        program.clear_cache()
        for _ in range(3):
            x = rng.normal(size=(701, 5))
            find_neighbors(x, rng.integers(0, 9, 701), k=3, budget_bytes=SMALL_BUDGET, mesh=mesh)
        assert program._cache_size() == 1


def test_tiles_keep_to_the_class_that_rounds_alike_and_cut_evenly():
    def tile(n, k=11, budget=2**28):
        return tile_rows(n, k=k, budget_bytes=budget, platform="cpu")

    assert [tile(n) for n in (1, 63, 64, 65, 100, 1000, 1024)] == [1, 63, 64, 64, 64, 512, 1024]
    assert [tile(n) for n in (1025, 1200, 20400)] == [576, 640, 1024]
    assert tile(20400, k=600) == 2944  # of 3,344 that fit
    assert tile(20400, budget=24 * 700**2) == 640


@pytest.mark.slow
@pytest.mark.parametrize("dim", [19, 300])
def test_a_score_does_not_depend_on_tile_or_place(rng, dim):
    """What all layouts rely on; it fails where a backend's products round otherwise."""
    x = rng.normal(size=(512, dim)).astype(np.float32)
    base, score = None, jax.jit(tiles.score_tiles)
    for tile in (64, 192, 512):
        order = rng.permutation(512)
        back = np.argsort(order)
        block = Block(
            x[order], np.zeros((1, 512), np.int32), np.ones(512, np.float32), np.arange(512)
        )
        scores = np.zeros((512, 512), np.float32)
        for i in range(0, 512, tile):
            for j in range(0, 512, tile):
                a, b = (tiles.cut_tile(block, r // tile, tile) for r in (i, j))
                at = np.ix_(np.asarray(a.block.rows), np.asarray(b.block.rows))
                scores[at] = score(a, b)
        scores = scores[np.ix_(back, back)]
        norms = tiles.inverse_norms(block.x)[back]
        base = (scores, norms) if base is None else base
        np.testing.assert_array_equal(scores, base[0])
        np.testing.assert_array_equal(scores, scores.T)
        np.testing.assert_array_equal(norms, base[1])
    np.testing.assert_allclose(norms, 1 / np.linalg.norm(x.astype(float), axis=1), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 63, 64, 100, 191])
def test_inverse_norms(rng, n):
    x = rng.normal(size=(n, 7)).astype(np.float32)
    x[n // 2] = 0
    norm = np.linalg.norm(x.astype(float), axis=1)
    expected = np.divide(1, norm, where=norm > 0, out=np.zeros(n))
    np.testing.assert_allclose(tiles.inverse_norms(x), expected, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("k", [1, 2, 5, 16, 17])
def test_block_maxima_select_as_a_stable_sort(rng, k):
    scores = rng.integers(0, 200, (40, 1024)).astype(np.float32)
    scores[3] = -np.inf
    scores[4, :-1] = -np.inf
    best, at = tiles.select(scores, k)
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(best, np.take_along_axis(scores, expected, axis=1))
    finite = np.isfinite(best)
    np.testing.assert_array_equal(np.where(finite, at, -1), np.where(finite, expected, -1))


def test_unknown_choices_are_named(rng):
    x, group = rng.normal(size=(9, 4)), np.arange(9)
    with pytest.raises(UsageError, match="layout: unknown name 'rings'. Did you mean 'ring'"):
        find_neighbors(x, group, k=1, layout="rings")
    with pytest.raises(UsageError, match="precision: unknown name 'bf16'"):
        find_neighbors(x, group, k=1, precision="bf16")
    with pytest.raises(UsageError, match="precision: 'fast' needs layout 'replicated'"):
        find_neighbors(x, group, k=1, precision="fast", layout="ring")


def test_every_pair_of_tiles_is_dealt_once_and_in_order():
    for n_tiles, n_devices in ((1, 1), (1, 8), (5, 2), (40, 3)):
        calls = neighbors._deal_pairs(n_tiles, n_devices=n_devices)
        assert calls.shape[1] == n_devices
        pairs = [tuple(p) for p in calls.reshape(-1, 2).tolist() if p[0] >= 0]
        assert sorted(pairs) == [(i, j) for i in range(n_tiles) for j in range(i, n_tiles)]
        for device in range(n_devices):
            mine = [tuple(p) for p in calls[:, device].reshape(-1, 2).tolist() if p[0] >= 0]
            assert mine == sorted(mine)
            assert abs(len(mine) - len(pairs) / n_devices) <= neighbors.PAIRS_PER_CALL


def test_progress_sums_to_the_rows(rng):
    seen = []
    find_neighbors(
        rng.normal(size=(701, 5)),
        np.arange(701),
        k=2,
        budget_bytes=SMALL_BUDGET,
        on_progress=seen.append,
    )
    assert sum(seen) == 701
    assert len(seen) > 3


def test_bad_arguments_are_named(rng):
    x = rng.normal(size=(20, 4))
    with pytest.raises(InputError, match=r"group_id: expected shape \(20\).*found \(19,\)"):
        find_neighbors(x, np.zeros(19, int), k=1)
    with pytest.raises(TypeError, match="group_id: expected an integer dtype"):
        find_neighbors(x, np.zeros(20), k=1)
    with pytest.raises(InputError, match="budget_bytes: a pair of tiles of 20 rows needs"):
        find_neighbors(x, np.zeros(20, int), k=1, budget_bytes=100)


@pytest.mark.slow
@pytest.mark.parametrize("lanes", [pytest.param(2, marks=pytest.mark.campaign), 3])
def test_lanes_of_one_device_change_nothing(rng, lanes, monkeypatch):
    n = 1500
    x = signs(rng, n, dim=8)  # many equal rows and ties
    group, first, second = np.arange(n) // 7, np.arange(n) % 3, np.arange(n) % 2
    found = {}
    for n_cores in (1, lanes):
        monkeypatch.setattr(neighbors_host, "n_cores", lambda n_cores=n_cores: n_cores)
        told = []
        assert neighbors_host.choose_lanes(n, budget_bytes=2**22) == n_cores
        found[n_cores] = neighbors.search(
            x,
            np.stack([group, first, second]),
            (30, 4, 4),
            budget_bytes=2**22,
            on_progress=told.append,
        )
        assert sum(told) == n
    for one, other in zip(found[1], found[lanes], strict=True):
        np.testing.assert_array_equal(one.indices, other.indices)
        np.testing.assert_array_equal(one.distances, other.distances)
