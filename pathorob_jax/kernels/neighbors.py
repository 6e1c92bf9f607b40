"""Exact cosine nearest neighbours outside one's own group.

Enters: embeddings [N, D] and a group id per row. Leaves: for every row the k nearest rows of other
groups, in the total order (distance, row index).

Rows are cut into tiles, and each pair of tiles is multiplied once: its scores serve the rows of one
tile and, turned, those of the other, which halves the products of a search of a set in itself. Rows
of the own group are masked before the selection, so that nothing is fetched in excess; what has
been found so far goes first into the next selection, whose stable order keeps the lower row among
equals. Memory beside embeddings and result is one pair of tiles, whose size follows from a budget.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh

from pathorob_jax import checks, sharding
from pathorob_jax.checks import InputError
from pathorob_jax.typing import Array, ArrayLike, Bool, Float, Int

DEFAULT_BUDGET_BYTES = 256 * 2**20
# A pair of tiles: scores, masked, turned, with what was found before; a byte each for three masks.
BYTES_PER_SCORE = 24
# Measured on CPU: small tiles stay in cache, but long selections are cheaper in large ones.
# Accelerators want large products; not measured there.
CPU_TILE_ROWS, LARGE_TILE_ROWS, LONG_K = 1024, 4096, 256
# Smaller products are compiled in ways that need not round both sides of a pair alike.
MIN_TILE_ROWS = 64
PAIRS_PER_CALL = 16
PADDING_GROUP = -1

_Found = tuple[Array, Array]  # closeness and indices of the best so far
_Lists = tuple[_Found, ...]


class Neighbors(NamedTuple):
    """The k nearest rows of other groups.

    Attributes:
        indices: int32[N, K] row positions, nearest first; -1 where a row has fewer than K eligible
            neighbours (trailing).
        distances: float32[N, K] cosine distance 1 - cos in [0, 2], ascending; inf where absent.
    """

    indices: Int[np.ndarray, "N K"]
    distances: Float[np.ndarray, "N K"]


class TypedNeighbors(NamedTuple):
    """Neighbours of any type, and the nearest of two types, however deep they lie.

    Attributes:
        any: the K nearest rows of other groups.
        same_other: the M nearest that share the first label and not the second.
        other_same: the M nearest that share the second label and not the first.
    """

    any: Neighbors
    same_other: Neighbors
    other_same: Neighbors


def find_neighbors(
    embeddings: Float[ArrayLike, "N D"],
    group_id: Int[ArrayLike, " N"],
    *,
    k: int,
    budget_bytes: int = DEFAULT_BUDGET_BYTES,
    mesh: Mesh | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Neighbors:
    """Exact k nearest neighbours by cosine distance, own group excluded.

    Products are float32 at ``Precision.HIGHEST``; d(i, j) = 1 - x_i.x_j / (|x_i| |x_j|), clipped
    at 0. Embeddings are replicated, pairs of tiles are dealt to the devices, and what each has
    found is merged at the end; all multiply tiles of one shape, so that the answer does not depend
    on the number of devices.

    Args:
        embeddings: float32[N, D], finite, no row all zero, norms within float32's range.
        group_id: int32[N]. Rows of equal id are never each other's neighbours (a row thus never its
            own). ``PADDING_GROUP`` marks rows that are nobody's neighbour.
        k: neighbours wanted, at least 1.
        budget_bytes: memory for a device's pair of tiles, beside embeddings and result.
        mesh: devices to use; None: one device, the first.
        on_progress: called with a number of rows each time work is done; they sum to N.

    Returns:
        ``Neighbors`` on the host. A row with fewer than k eligible rows gets them all, then -1.

    Raises:
        InputError: shapes differ, or the budget does not hold the smallest pair of tiles.
        TypeError: group_id is not of integer dtype.

    Reference: PathoROB fetches k + (rows of the largest slide) neighbours and drops own-slide ones
    afterwards; at every rank that all of its rows reach, the lists are the same.
    """
    labels = np.asarray(group_id)[None, :]
    [found] = _find(embeddings, labels, (k,), budget_bytes, mesh, on_progress)
    return found


def find_typed_neighbors(
    embeddings: Float[ArrayLike, "N D"],
    group_id: Int[ArrayLike, " N"],
    first_id: Int[ArrayLike, " N"],
    second_id: Int[ArrayLike, " N"],
    *,
    k: int,
    m: int,
    budget_bytes: int = DEFAULT_BUDGET_BYTES,
    mesh: Mesh | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> TypedNeighbors:
    """``find_neighbors`` and, from the same products, the nearest of two types at any depth.

    Args:
        embeddings: as ``find_neighbors`` takes them.
        group_id: likewise.
        first_id: int32[N] first label.
        second_id: int32[N] second label.
        k: neighbours of any type.
        m: neighbours of each of the two types.
        budget_bytes: as ``find_neighbors`` takes it.
        mesh: likewise.
        on_progress: likewise.
    """
    labels = np.stack([np.asarray(a) for a in (group_id, first_id, second_id)])
    return TypedNeighbors(*_find(embeddings, labels, (k, m, m), budget_bytes, mesh, on_progress))


def _find(
    embeddings: Float[ArrayLike, "N D"],
    labels: Int[np.ndarray, "L N"],
    ks: tuple[int, ...],
    budget_bytes: int,
    mesh: Mesh | None,
    on_progress: Callable[[int], None] | None,
) -> list[Neighbors]:
    """One list of neighbours for each of ``ks``: of any type, and of the two types."""
    n, _ = np.shape(embeddings)
    checks.check_shape(labels.shape[1:], (n,), name="group_id", why="to match embeddings")
    checks.check_integer(labels, name="group_id")
    mesh = mesh or sharding.make_mesh(jax.local_devices()[:1])
    platform = mesh.devices.flat[0].platform
    tile = tile_rows(n, k=max(ks), budget_bytes=budget_bytes, platform=platform)
    calls = _deal_pairs(-(-n // tile), n_devices=mesh.size)
    whole, split = sharding.replicated_sharding(mesh), sharding.row_sharding(mesh)
    rows = jax.device_put(jnp.asarray(embeddings, jnp.float32), whole)
    ids = jax.device_put(labels.astype(np.int32), whole)
    kept = [min(k, n) for k in ks]
    found = tuple(_nothing_found(n, k, mesh) for k in kept)
    search = _make_search(mesh, tile)
    for done, pairs in enumerate(calls):
        found = search(rows, ids, found, jax.device_put(pairs, split))
        if on_progress is not None:
            jax.block_until_ready(found)
            on_progress(n * (done + 1) // len(calls) - n * done // len(calls))
    return [_to_host(_merge_devices(f), k) for f, k in zip(found, ks, strict=True)]


def _to_host(found: _Found, k: int) -> Neighbors:
    closeness, indices = (np.asarray(a) for a in found)
    n, kept = indices.shape
    out = Neighbors(np.full((n, k), -1, np.int32), np.full((n, k), np.inf, np.float32))
    out.indices[:, :kept] = np.where(np.isneginf(closeness), -1, indices)
    out.distances[:, :kept] = -closeness
    return out


def tile_rows(n: int, *, k: int, budget_bytes: int, platform: str) -> int:
    """Rows of a tile, so that a pair of tiles keeps to the budget.

    Raises:
        InputError: not even ``MIN_TILE_ROWS`` fit.
    """
    fitting = int((budget_bytes / BYTES_PER_SCORE) ** 0.5)
    least = min(MIN_TILE_ROWS, n)
    if fitting < least:
        raise InputError(
            f"budget_bytes: a pair of tiles of {least} rows needs {BYTES_PER_SCORE * least**2} "
            f"bytes, found {budget_bytes}; raise it."
        )
    largest = CPU_TILE_ROWS if platform == "cpu" and k <= LONG_K else LARGE_TILE_ROWS
    return min(n, largest, max(fitting // 8 * 8, least))


def _deal_pairs(n_tiles: int, *, n_devices: int) -> Int[np.ndarray, "calls devices pairs 2"]:
    """Pairs of tiles (i <= j) in lexicographic order, dealt in turn to devices; (-1, -1) is none.

    In that order every tile meets the others in ascending order, on each device too: equals then
    stay in the order of their rows.
    """
    pairs = np.stack(np.triu_indices(n_tiles), axis=1).astype(np.int32)
    per_call = n_devices * min(PAIRS_PER_CALL, -(-len(pairs) // n_devices))
    out = np.full((-(-len(pairs) // per_call) * per_call, 2), -1, np.int32)
    out[: len(pairs)] = pairs
    return out.reshape(-1, per_call // n_devices, n_devices, 2).swapaxes(1, 2)


def _nothing_found(n: int, k: int, mesh: Mesh) -> tuple[Array, Array]:
    """Closeness [devices, n, k] of -inf and indices of -1."""
    split = sharding.row_sharding(mesh)
    shape = (mesh.size, n, k)
    return (
        jnp.full(shape, -jnp.inf, jnp.float32, device=split),
        jnp.full(shape, -1, jnp.int32, device=split),
    )


@functools.cache
def _make_search(mesh: Mesh, tile: int) -> jax.stages.Wrapped:
    """Jitted: each device's best so far, improved by its pairs of tiles.

    (embeddings float32[N, D], labels int32[1 or 3, N], found, pairs int32[devices, pairs, 2]) ->
    found, donated: for each list closeness float32[devices, N, K] and indices int32[devices, N, K].
    """

    def on_device(x: Array, labels: Array, found: _Lists, pairs: Array) -> _Lists:
        n = x.shape[0]
        # Scaling products instead of rows saves a second copy of the embeddings, and leaves rows
        # whose products are exact in float32 (counts, one-hot) with exact ties.
        norm2 = jnp.sum(x * x, axis=1)
        inverse_norm = jnp.where(norm2 > 0, lax.rsqrt(norm2), 0.0)  # 0: a row of padding

        def search(found: _Lists, pair: Array) -> _Lists:
            # The last tile overlaps the one before it; only rows that are its own count.
            starts = jnp.minimum(pair * tile, n - tile)
            a, b = (
                _Tile(
                    start=start,
                    rows=start + jnp.arange(tile),
                    own=start + jnp.arange(tile) >= first,
                    labels=lax.dynamic_slice_in_dim(labels, start, tile, axis=1),
                    scale=lax.dynamic_slice_in_dim(inverse_norm, start, tile),
                )
                for start, first in zip((starts[0], starts[1]), (pair * tile), strict=True)
            )
            product = lax.dot_general(
                lax.dynamic_slice_in_dim(x, a.start, tile),
                lax.dynamic_slice_in_dim(x, b.start, tile),
                (((1,), (1,)), ((), ())),
                precision=lax.Precision.HIGHEST,
                preferred_element_type=jnp.float32,
            )
            # The scales first, so that both sides of a pair see the same rounding.
            cosine = product * (a.scale[:, None] * b.scale[None, :])
            # cosine - 1 is 0.0 at most, never -0.0 (which top_k would rank below 0.0).
            closeness = jnp.minimum(cosine - 1.0, 0.0)
            found = _improve(found, a, b, closeness)
            return lax.cond(
                pair[0] < pair[1],
                lambda found: _improve(found, b, a, closeness.T),
                lambda found: found,
                found,
            )

        def step(found: _Lists, pair: Array) -> tuple[_Lists, None]:
            return lax.cond(pair[0] >= 0, search, lambda found, _: found, found, pair), None

        found = jax.tree.map(lambda a: a[0], found)
        found, _ = lax.scan(step, found, pairs[0])
        return jax.tree.map(lambda a: a[None, :, :], found)

    split, whole = sharding.ROWS, sharding.REPLICATED
    search_on_devices = jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(whole, whole, split, split),
        out_specs=split,
        check_vma=False,
    )
    # Stated, so that a call's answer goes into the next one without another compilation.
    out = sharding.row_sharding(mesh)
    return jax.jit(search_on_devices, donate_argnums=2, out_shardings=out)


class _Tile(NamedTuple):
    """Rows of a tile: where it starts, which are its own, their labels and inverse norms."""

    start: Array
    rows: Int[Array, " tile"]
    own: Bool[Array, " tile"]
    labels: Int[Array, "L tile"]
    scale: Float[Array, " tile"]


def _improve(found: _Lists, queries: _Tile, columns: _Tile, closeness: Array) -> _Lists:
    """Merge closeness [tile, tile] of queries and columns into the lists of the queries."""
    same = queries.labels[:, :, None] == columns.labels[:, None, :]
    allowed = ~same[0] & queries.own[:, None] & columns.own[None, :]
    allowed &= (columns.labels[0] != PADDING_GROUP)[None, :]
    types = [allowed]
    if len(found) > 1:
        types += [allowed & same[1] & ~same[2], allowed & ~same[1] & same[2]]
    return tuple(
        _improve_list(one, queries.start, jnp.where(mask, closeness, -jnp.inf), columns.rows)
        for one, mask in zip(found, types, strict=True)
    )


def _improve_list(found: _Found, start: Array, scores: Array, columns: Array) -> _Found:
    """Merge scores [tile, tile] of the rows at ``start`` against ``columns``."""
    tile, k = scores.shape[0], found[0].shape[1]
    old, old_idx = (lax.dynamic_slice_in_dim(a, start, tile) for a in found)
    # top_k takes the earlier among equals: what was found before has lower rows.
    new, at = lax.top_k(jnp.concatenate([old, scores], axis=1), k)
    earlier = jnp.take_along_axis(old_idx, jnp.minimum(at, k - 1), axis=1)
    new_idx = jnp.where(at < k, earlier, columns[jnp.maximum(at - k, 0)])
    return (
        lax.dynamic_update_slice_in_dim(found[0], new, start, 0),
        lax.dynamic_update_slice_in_dim(found[1], new_idx, start, 0),
    )


@jax.jit
def _merge_devices(found: _Found) -> _Found:
    """The K best over devices [devices, N, K], in the order (distance, row)."""
    best, best_idx = found
    n_devices, _, k = best.shape
    if n_devices == 1:
        return best[0], best_idx[0]
    flat = [a.swapaxes(0, 1).reshape(a.shape[1], -1) for a in (-best, best_idx)]
    distance, indices = lax.sort(flat, dimension=1, num_keys=2)
    return -distance[:, :k], indices[:, :k]
