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
from pathorob_jax.typing import Array, ArrayLike, Float, Int

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


class Neighbors(NamedTuple):
    """The k nearest rows of other groups.

    Attributes:
        indices: int32[N, K] row positions, nearest first; -1 where a row has fewer than K eligible
            neighbours (trailing).
        distances: float32[N, K] cosine distance 1 - cos in [0, 2], ascending; inf where absent.
    """

    indices: Int[np.ndarray, "N K"]
    distances: Float[np.ndarray, "N K"]


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
    n, _ = np.shape(embeddings)
    group_id = np.asarray(group_id)
    checks.check_shape(group_id.shape, (n,), name="group_id", why="to match embeddings")
    checks.check_integer(group_id, name="group_id")
    mesh = mesh or sharding.make_mesh(jax.local_devices()[:1])
    platform = mesh.devices.flat[0].platform
    tile = tile_rows(n, k=k, budget_bytes=budget_bytes, platform=platform)
    calls = _deal_pairs(-(-n // tile), n_devices=mesh.size)
    whole, split = sharding.replicated_sharding(mesh), sharding.row_sharding(mesh)
    rows = jax.device_put(jnp.asarray(embeddings, jnp.float32), whole)
    groups = jax.device_put(group_id.astype(np.int32), whole)
    kept = min(k, n)
    found = _nothing_found(n, kept, mesh)
    search = _make_search(mesh, tile)
    for done, pairs in enumerate(calls):
        pairs = jax.device_put(pairs, split)
        found = search(rows, groups, *found, pairs)
        if on_progress is not None:
            jax.block_until_ready(found)
            on_progress(n * (done + 1) // len(calls) - n * done // len(calls))
    closeness, indices = (np.asarray(a) for a in _merge_devices(*found, k=kept))
    out = Neighbors(np.full((n, k), -1, np.int32), np.full((n, k), np.inf, np.float32))
    absent = np.isneginf(closeness)
    out.indices[:, :kept] = np.where(absent, -1, indices)
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

    (embeddings float32[N, D], group_id int32[N], closeness float32[devices, N, K], indices
    int32[devices, N, K], pairs int32[devices, pairs, 2]) -> (closeness, indices), both donated.
    """

    def on_device(
        x: Array, group: Array, best: Array, best_idx: Array, pairs: Array
    ) -> tuple[Array, Array]:
        n, k = best.shape[1:]
        # Scaling products instead of rows saves a second copy of the embeddings, and leaves rows
        # whose products are exact in float32 (counts, one-hot) with exact ties.
        norm2 = jnp.sum(x * x, axis=1)
        inverse_norm = jnp.where(norm2 > 0, lax.rsqrt(norm2), 0.0)  # 0: a row of padding

        def cut(array: Array, start: Array) -> Array:
            return lax.dynamic_slice_in_dim(array, start, tile)

        def improve(found: _Found, start: Array, scores: Array, columns: Array) -> _Found:
            """Merge scores [tile, tile] of the rows at ``start`` against ``columns``."""
            old, old_idx = cut(found[0], start), cut(found[1], start)
            # top_k takes the earlier among equals: what was found before has lower rows.
            new, at = lax.top_k(jnp.concatenate([old, scores], axis=1), k)
            earlier = jnp.take_along_axis(old_idx, jnp.minimum(at, k - 1), axis=1)
            new_idx = jnp.where(at < k, earlier, columns[jnp.maximum(at - k, 0)])
            return (
                lax.dynamic_update_slice_in_dim(found[0], new, start, 0),
                lax.dynamic_update_slice_in_dim(found[1], new_idx, start, 0),
            )

        def search(found: _Found, pair: Array) -> _Found:
            # The last tile overlaps the one before it; only rows that are its own count.
            starts = jnp.minimum(pair * tile, n - tile)
            rows = [start + jnp.arange(tile) for start in (starts[0], starts[1])]
            own = [r >= first * tile for r, first in zip(rows, (pair[0], pair[1]), strict=True)]
            groups = [cut(group, start) for start in (starts[0], starts[1])]
            scale = [cut(inverse_norm, start) for start in (starts[0], starts[1])]
            product = lax.dot_general(
                cut(x, starts[0]),
                cut(x, starts[1]),
                (((1,), (1,)), ((), ())),
                precision=lax.Precision.HIGHEST,
                preferred_element_type=jnp.float32,
            )
            # cosine - 1 is 0.0 at most, never -0.0 (which top_k would rank below 0.0).
            # The scales first, so that both sides of a pair see the same rounding.
            cosine = product * (scale[0][:, None] * scale[1][None, :])
            closeness = jnp.minimum(cosine - 1.0, 0.0)
            allowed = (groups[0][:, None] != groups[1][None, :]) & own[0][:, None] & own[1][None, :]
            forth = allowed & (groups[1] != PADDING_GROUP)[None, :]
            found = improve(found, starts[0], jnp.where(forth, closeness, -jnp.inf), rows[1])

            def turn(found: _Found) -> _Found:
                back = allowed & (groups[0] != PADDING_GROUP)[:, None]
                return improve(found, starts[1], jnp.where(back, closeness, -jnp.inf).T, rows[0])

            return lax.cond(pair[0] < pair[1], turn, lambda found: found, found)

        def step(found: _Found, pair: Array) -> tuple[_Found, None]:
            return lax.cond(pair[0] >= 0, search, lambda found, _: found, found, pair), None

        found, _ = lax.scan(step, (best[0], best_idx[0]), pairs[0])
        return found[0][None, :, :], found[1][None, :, :]

    split, whole = sharding.ROWS, sharding.REPLICATED
    search_on_devices = jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(whole, whole, split, split, split),
        out_specs=(split, split),
        check_vma=False,
    )
    # Stated, so that a call's answer goes into the next one without another compilation.
    out = sharding.row_sharding(mesh)
    return jax.jit(search_on_devices, donate_argnums=(2, 3), out_shardings=(out, out))


@functools.partial(jax.jit, static_argnames=("k",))
def _merge_devices(
    best: Float[Array, "devices N K"], best_idx: Int[Array, "devices N K"], *, k: int
) -> _Found:
    """The k best over devices, in the order (distance, row)."""
    if best.shape[0] == 1:
        return best[0], best_idx[0]
    flat = [a.swapaxes(0, 1).reshape(a.shape[1], -1) for a in (-best, best_idx)]
    distance, indices = lax.sort(flat, dimension=1, num_keys=2)
    return -distance[:, :k], indices[:, :k]
