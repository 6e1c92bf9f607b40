"""Similarity of sets of rows by their best matches, and the nearest sets.

The similarity of two sets is the mean, over the rows of one, of the largest cosine with a row of
the other, averaged over both ways. ``match_sets`` computes it for all pairs of sets with one pass
of products, N^2 D operations for N rows. ``find_nearest_sets`` ranks the sets.

Rows are packed into blocks of whole sets, and each pair of blocks is multiplied once, for both
ways. A set that is larger than a block takes several blocks of its own. Sets are padded to a
multiple of ``unit`` rows with copies of their own rows, which change no maximum; so maxima over
columns are taken over units of equal size first, and over the few units of a set after that. What
leaves the device are the maxima [rows, sets] of a pair of blocks, so that neither the N x N scores
nor N x S maxima ever exist.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh

from pathorob_jax.core import checks, devices
from pathorob_jax.core.typing import Array, ArrayLike, Bool, Float, Int
from pathorob_jax.kernels.neighbors import tiles
from pathorob_jax.kernels.neighbors.exact_order import number_runs
from pathorob_jax.kernels.neighbors.exact_rows import Rows
from pathorob_jax.kernels.neighbors.near_ties import UNIT32
from pathorob_jax.kernels.neighbors.tiles import DEFAULT_BUDGET_BYTES, MIN_TILE_ROWS, Neighbors

# Similarities that differ by no more are equal: above the rounding of float64, far below what
# differs between sets of images.
TIE = 2.0**-40
# Bytes per score of a pair of blocks: the score, its scaled copy, and maxima.
BYTES_PER_SCORE = 16
CPU_BLOCK_ROWS, LARGE_BLOCK_ROWS = 1344, 4096
PAIRS_PER_CALL = 8
# Padding that larger units may cost, as a share of the rows.
PADDING_SHARE = 0.03
UNITS = (16, 8, 4, 2, 1)


class Blocks(NamedTuple):
    """Rows in blocks of T.

    Attributes:
        rows: int32[B, T] rows of each block; the padding repeats rows of the block.
        unit_set: int32[B, T / unit] place, within the block, of the set of each unit; ascending.
        is_row: bool[B, T] False for padding.
        sets: numbers of the sets of each block, in their places.
        groups: int[B] number of the group of blocks that hold whole sets together.
    """

    rows: Int[np.ndarray, "B T"]
    unit_set: Int[np.ndarray, "B U"]
    is_row: Bool[np.ndarray, "B T"]
    sets: list[Int[np.ndarray, " P"]]
    groups: Int[np.ndarray, " B"]


def find_nearest_sets(
    embeddings: Float[np.ndarray, "N D"],
    set_id: Int[np.ndarray, " N"],
    group_id: Int[np.ndarray, " S"],
    *,
    k: int,
    budget_bytes: int = DEFAULT_BUDGET_BYTES,
    mesh: Mesh | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Neighbors:
    """Find the k most similar sets of other groups for every set.

    Where float32 cannot tell two similarities apart, both are computed again in float64. Those that
    then differ by at most ``TIE`` are equal, and the lower set comes first.

    Args:
        embeddings: float32[N, D], each row with a direction in float32.
        set_id: int[N] set of each row, in [0, S); no set is empty.
        group_id: int[S] group of each set; sets of one group are never neighbours.
        k: sets wanted.
        budget_bytes: see ``match_sets``.
        mesh: see ``match_sets``.
        on_progress: see ``match_sets``.

    Returns:
        ``Neighbors`` [S, k]; distances are 1 - similarity.
    """
    similarity = match_sets(
        embeddings, set_id, budget_bytes=budget_bytes, mesh=mesh, on_progress=on_progress
    )
    rows = Rows(embeddings)
    members = list_members(set_id, len(group_id))
    error = 2 * (4 + rows.dim**0.5) * UNIT32
    near: set[tuple[int, int]] = set()
    for query in range(len(group_id)):
        order = _sort(similarity[query], group_id, query)
        if not order.size:
            continue
        run = _find_runs(similarity[query, order], 2 * error)
        wanted = (run <= run[min(k, len(run)) - 1]) & (np.bincount(run)[run] > 1)
        near |= {(min(query, s), max(query, s)) for s in order[wanted].tolist()}
    for a, b in sorted(near):
        similarity[a, b] = similarity[b, a] = _match_pair(rows, members[a], members[b])
    out = Neighbors(
        np.full((len(group_id), k), -1, np.int32), np.full((len(group_id), k), np.inf, np.float32)
    )
    for query in range(len(group_id)):
        order = _sort(similarity[query], group_id, query)
        run = _find_runs(similarity[query, order], TIE)
        nearest = order[np.lexsort((order, run))][:k]
        out.indices[query, : len(nearest)] = nearest
        out.distances[query, : len(nearest)] = 1 - similarity[query, nearest]
    return out


def _sort(
    similarity: Float[np.ndarray, " S"], group_id: Int[np.ndarray, " S"], query: int
) -> Int[np.ndarray, " E"]:
    """Sets of other groups than that of the query, the most similar first."""
    others = np.flatnonzero(group_id != group_id[query])
    return others[np.argsort(-similarity[others], kind="stable")]


def _find_runs(ordered: Float[np.ndarray, " E"], apart: float) -> Int[np.ndarray, " E"]:
    """Number of the run of each value, in which neighbours differ by at most ``apart``."""
    if not len(ordered):
        return np.zeros(0, np.int64)
    return number_runs(-np.diff(ordered) <= apart)


def _match_pair(rows: Rows, a: Int[np.ndarray, " A"], b: Int[np.ndarray, " B"]) -> float:
    """Similarity of two sets in float64."""
    cosine = rows.units(a) @ rows.units(b).T
    return float((cosine.max(1).mean() + cosine.max(0).mean()) / 2)


def list_members(set_id: Int[np.ndarray, " N"], n_sets: int) -> list[Int[np.ndarray, " n"]]:
    """Rows of each set, ascending."""
    order = np.argsort(set_id, kind="stable")
    return np.split(order, np.searchsorted(set_id[order], np.arange(1, n_sets)))


def match_sets(
    embeddings: Float[ArrayLike, "N D"],
    set_id: Int[np.ndarray, " N"],
    *,
    budget_bytes: int = DEFAULT_BUDGET_BYTES,
    mesh: Mesh | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Float[np.ndarray, "S S"]:
    """Similarity of all pairs of sets, from cosines in float32.

    Args:
        embeddings: float32[N, D]; every device holds them.
        set_id: int[N] set of each row, in [0, S); no set is empty.
        budget_bytes: memory on each device for the scores of a pair of blocks.
        mesh: devices, over which pairs of blocks are distributed; None: the first device. The
            result does not depend on them.
        on_progress: called with a number of rows; the numbers sum to N.

    Returns:
        float64[S, S], symmetric, in [-1, 1]. The diagonal is 1 and is not computed.
    """
    shape = np.shape(embeddings)
    checks.check_shape(set_id.shape, shape[:1], name="set_id", why="to match embeddings")
    mesh = mesh or devices.make_mesh(jax.local_devices()[:1])
    members = list_members(set_id, int(set_id.max(initial=-1)) + 1)
    largest = CPU_BLOCK_ROWS if mesh.devices.flat[0].platform == "cpu" else LARGE_BLOCK_ROWS
    fitting = int((budget_bytes / BYTES_PER_SCORE) ** 0.5)
    blocks = pack_blocks(members, largest=min(largest, max(fitting, MIN_TILE_ROWS)))
    pairs = _list_pairs(blocks)
    per_device = min(PAIRS_PER_CALL, -(-len(pairs) // mesh.size))
    step = per_device * mesh.size
    whole, split = devices.replicated_sharding(mesh), devices.row_sharding(mesh)
    x = devices.to_device(embeddings, whole)
    data = (x, _inverse_norms(x), *(jax.device_put(a, whole) for a in blocks[:2]))
    most = max(map(len, blocks.sets))
    reduce_pairs = _make_reduction(mesh, most)
    sums = _Sums(blocks, np.array([len(rows) for rows in members]))
    for start in range(0, len(pairs), step):
        part = pairs[start : start + step]
        dealt = np.pad(part, ((0, step - len(part)), (0, 0)))
        maxima = reduce_pairs(*data, jax.device_put(dealt, split))
        for (a, b), of_a, of_b in zip(part, *map(np.asarray, maxima), strict=False):
            sums.add(int(a), int(b), of_a)
            if blocks.groups[a] != blocks.groups[b]:
                sums.add(int(b), int(a), of_b)
        if on_progress is not None:
            done = (start + len(part)) * shape[0] // len(pairs)
            on_progress(done - start * shape[0] // len(pairs))
    return sums.similarity()


_inverse_norms = jax.jit(tiles.inverse_norms)


def pack_blocks(members: list[Int[np.ndarray, " n"]], *, largest: int) -> Blocks:
    """Pack sets into blocks of at most ``largest`` rows, such that little is padded.

    Args:
        members: rows of each set.
        largest: rows of a block, a multiple of ``MIN_TILE_ROWS`` or rounded down to one.
    """
    sizes = np.array([len(rows) for rows in members])
    unit = next(u for u in UNITS if _round(sizes, u).sum() <= (1 + PADDING_SHARE) * sizes.sum())
    top = largest // MIN_TILE_ROWS * MIN_TILE_ROWS
    needed = int(_round(sizes.sum(keepdims=True), MIN_TILE_ROWS)[0])
    low = min(max(top // 2, MIN_TILE_ROWS), needed)
    steps = range(low, max(top, low) + 1, MIN_TILE_ROWS)
    plans = {rows: _plan(_round(sizes, unit), rows) for rows in steps}
    tile = min(plans, key=lambda rows: (rows * len(plans[rows]), -rows))
    rows, unit_set, is_row, sets, groups = [], [], [], [], []
    for group, (names, n_blocks) in enumerate(_group(plans[tile])):
        padded = [np.resize(members[s], _round(sizes[s : s + 1], unit)[0]) for s in names]
        true = [np.arange(len(p)) < sizes[s] for p, s in zip(padded, names, strict=True)]
        # The rest of the last block repeats the last row of the last set.
        rest = n_blocks * tile - sum(map(len, padded))
        idx = np.concatenate([*padded, np.full(rest, padded[-1][-1])])
        places = np.repeat(np.arange(len(names)), [len(p) for p in padded])
        places = np.concatenate([places, np.full(rest, len(names) - 1)])
        rows.append(idx.reshape(n_blocks, tile))
        unit_set.append(places.reshape(n_blocks, -1, unit)[:, :, 0])
        is_row.append(np.concatenate([*true, np.zeros(rest, bool)]).reshape(n_blocks, tile))
        sets += [np.array(names)] * n_blocks
        groups += [group] * n_blocks
    return Blocks(
        np.concatenate(rows).astype(np.int32),
        np.concatenate(unit_set).astype(np.int32),
        np.concatenate(is_row),
        sets,
        np.array(groups),
    )


def _round(sizes: Int[np.ndarray, " S"], unit: int) -> Int[np.ndarray, " S"]:
    out: np.ndarray = -(-sizes // unit) * unit
    return out


def _plan(sizes: Int[np.ndarray, " S"], tile: int) -> list[list[int]]:
    """Sets of each block in their order; a set of several blocks stands in each of them alone."""
    plan: list[list[int]] = []
    room = 0
    for number, size in enumerate(sizes.tolist()):
        if size > tile:
            plan += [[number]] * -(-size // tile)
            room = 0
        elif size > room:
            plan.append([number])
            room = tile - size
        else:
            plan[-1].append(number)
            room -= size
    return plan


def _group(plan: list[list[int]]) -> list[tuple[list[int], int]]:
    """Sets of each group of blocks, and the number of its blocks."""
    out: list[tuple[list[int], int]] = []
    for names in plan:
        if out and out[-1][0] == names:
            out[-1] = (names, out[-1][1] + 1)
        else:
            out.append((names, 1))
    return out


def _list_pairs(blocks: Blocks) -> Int[np.ndarray, "pairs 2"]:
    """Pairs of blocks (a <= b), those of two groups together; none within a set of many blocks."""
    a, b = np.triu_indices(len(blocks.groups))
    many = np.bincount(blocks.groups)[blocks.groups] > 1
    needed = (blocks.groups[a] != blocks.groups[b]) | ~many[a]
    pairs = np.stack([a, b], axis=1)[needed].astype(np.int32)
    order = np.lexsort((pairs[:, 1], pairs[:, 0], *(blocks.groups[pairs[:, i]] for i in (1, 0))))
    return pairs[order]


class _Sums:
    """Sums of the best matches of the rows of each set in each other set."""

    def __init__(self, blocks: Blocks, sizes: Int[np.ndarray, " S"]) -> None:
        self.blocks, self.sizes = blocks, sizes
        self.n_blocks = np.bincount(blocks.groups)
        self.total = np.zeros((len(sizes), len(sizes)))
        # Maxima of a block's rows over the blocks of a group so far, and how many these are.
        self.open: dict[tuple[int, int], tuple[np.ndarray, int]] = {}

    def add(self, block: int, other: int, best: Float[np.ndarray, "T P"]) -> None:
        """Add the maxima of a block's rows in the sets of another block."""
        group = int(self.blocks.groups[other])
        seen = 1
        if (block, group) in self.open:
            before, n = self.open.pop((block, group))
            best, seen = np.maximum(best, before), n + 1
        if seen < self.n_blocks[group]:
            self.open[block, group] = best, seen
            return
        sets, others = self.blocks.sets[block], self.blocks.sets[other]
        unit_set = self.blocks.unit_set[block]
        place = np.repeat(unit_set, len(best) // len(unit_set))
        is_in = (place == np.arange(len(sets))[:, None]) & self.blocks.is_row[block]
        part = is_in.astype(np.float64) @ best[:, : len(others)].astype(np.float64)
        self.total[np.ix_(sets, others)] += part

    def similarity(self) -> Float[np.ndarray, "S S"]:
        """The mean of both ways."""
        mean = self.total / self.sizes[:, None]
        out: np.ndarray = (mean + mean.T) / 2
        np.fill_diagonal(out, 1.0)
        return out


@functools.cache
def _make_reduction(mesh: Mesh, n_sets: int) -> jax.stages.Wrapped:
    """Jitted function (x, scale, rows, sets of units, pairs) -> maxima [pairs, T, n_sets] each way.

    The pairs int32[pairs, 2] and the maxima are split over the mesh.
    """

    def best(scores: Array, unit_set: Array) -> Array:
        """[T, n_sets] maxima over the columns of each set."""
        n_rows, n_units = len(scores), len(unit_set)
        units = scores.reshape(n_rows, n_units, -1).max(axis=2)
        found = jax.ops.segment_max(units.T, unit_set, num_segments=n_sets, indices_are_sorted=True)
        return found.T

    def on_device(x: Array, scale: Array, rows: Array, unit_set: Array, pairs: Array) -> Array:
        def reduce_pair(pair: Array) -> tuple[Array, Array]:
            a, b = rows[pair[0]], rows[pair[1]]
            product = lax.dot_general(
                x[a], x[b], (((1,), (1,)), ((), ())), precision=lax.Precision.HIGHEST
            )
            cosine = product * (scale[a][:, None] * scale[b][None, :])
            return best(cosine, unit_set[pair[1]]), best(cosine.T, unit_set[pair[0]])

        return lax.map(reduce_pair, pairs)

    split, whole = devices.ROWS, devices.REPLICATED
    return jax.jit(
        jax.shard_map(
            on_device,
            mesh=mesh,
            in_specs=(whole, whole, whole, whole, split),
            out_specs=split,
            check_vma=False,
        )
    )
