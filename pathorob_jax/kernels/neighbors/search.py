"""Exact cosine nearest neighbours outside one's own group.

Enters: embeddings [N, D] and a group id per row. Leaves: for every row the k nearest rows of other
groups, in the total order (distance, row index).

Rows are cut into tiles, and each pair of tiles is multiplied once: its scores serve the rows of one
tile and, turned, those of the other, which halves the products of a search of a set in itself. Rows
of the own group are masked before the selection, so that nothing is fetched in excess; what has
been found so far goes first into the next selection, whose stable order keeps the lower row among
equals. Memory beside embeddings and result is one pair of tiles, whose size follows from a budget.

``find_neighbors`` keeps all embeddings on every device; where they do not fit, the same search goes
round a ring of devices (``neighbors_ring``) or streams blocks from outside (``neighbors_stream``).
On one CPU device the host keeps the lists (``neighbors_host``), with the same answer.
"""

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax import lax
from jax.sharding import Mesh

from pathorob_jax.core import checks, devices
from pathorob_jax.core.checks import UsageError
from pathorob_jax.core.typing import Array, ArrayLike, Float, Int
from pathorob_jax.kernels.neighbors import fast, host, ring
from pathorob_jax.kernels.neighbors import tiles as tiles
from pathorob_jax.kernels.neighbors.tiles import (
    DEFAULT_BUDGET_BYTES,
    PADDING_GROUP,
    Block,
    Found,
    Lists,
    Neighbors,
)

__all__ = [
    "DEFAULT_BUDGET_BYTES",
    "PADDING_GROUP",
    "Neighbors",
    "TypedNeighbors",
    "find_neighbors",
    "find_typed_neighbors",
]

PAIRS_PER_CALL = 16
# Share of a device's memory that replicated embeddings may take; the rest is for tiles and lists.
REPLICATED_SHARE = 0.5

Layout = Literal["auto", "replicated", "ring"]
Precision = Literal["float32", "fast"]


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
    layout: Layout = "auto",
    precision: Precision = "float32",
    on_progress: Callable[[int], None] | None = None,
) -> Neighbors:
    """Exact k nearest neighbours by cosine distance, own group excluded.

    d(i, j) = 1 - x_i.x_j / (|x_i| |x_j|), clipped at 0, of products in float32 at
    ``Precision.HIGHEST``. All layouts multiply tiles of one shape, so that the answer depends
    neither on the layout nor on the number of devices.

    Args:
        embeddings: float32[N, D], finite, no row all zero, norms within float32's range.
        group_id: int32[N]. Rows of equal id are never each other's neighbours (a row thus never its
            own). ``PADDING_GROUP`` marks rows that are nobody's neighbour.
        k: neighbours wanted, at least 1.
        budget_bytes: memory for a device's pair of tiles, beside embeddings and result.
        mesh: devices to use, all of this process (``neighbors_ring.search`` serves several
            processes); None: one device, the first.
        layout: ``replicated``: embeddings on every device, pairs of tiles dealt to the devices;
            ``ring``: every device holds its share of the rows and passes it round; ``auto``: the
            first unless the embeddings would take more than half of a device's memory.
        precision: ``float32``, or ``fast``: candidates from bfloat16 products, proven and re-ranked
            by ``neighbors_fast``, with the same answer. It keeps all rows on one device, the first.
        on_progress: called with a number of rows each time work is done; they sum to N.

    Returns:
        ``Neighbors`` on the host. A row with fewer than k eligible rows gets them all, then -1.

    Raises:
        InputError: shapes differ, or the budget does not hold the smallest pair of tiles.
        UsageError: layout or precision is unknown, or the two do not go together.
        TypeError: group_id is not of integer dtype.

    Reference: PathoROB fetches k + (rows of the largest slide) neighbours and drops own-slide ones
    afterwards; at every rank that all of its rows reach, the lists are the same.
    """
    labels = np.asarray(group_id)[None, :]
    [found] = _find(embeddings, labels, (k,), budget_bytes, mesh, layout, precision, on_progress)
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
    layout: Layout = "auto",
    precision: Precision = "float32",
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
        layout: likewise.
        precision: likewise.
        on_progress: likewise.
    """
    labels = np.stack([np.asarray(a) for a in (group_id, first_id, second_id)])
    return TypedNeighbors(
        *_find(embeddings, labels, (k, m, m), budget_bytes, mesh, layout, precision, on_progress)
    )


def _find(
    embeddings: Float[ArrayLike, "N D"],
    labels: Int[np.ndarray, "L N"],
    ks: tuple[int, ...],
    budget_bytes: int,
    mesh: Mesh | None,
    layout: Layout,
    precision: Precision,
    on_progress: Callable[[int], None] | None,
) -> list[Neighbors]:
    """One list of neighbours for each of ``ks``: of any type, and of the two types."""
    n, _ = np.shape(embeddings)
    checks.check_shape(labels.shape[1:], (n,), name="group_id", why="to match embeddings")
    checks.check_integer(labels, name="group_id")
    checks.check_known(layout, ("auto", "replicated", "ring"), what="layout")
    checks.check_known(precision, ("float32", "fast"), what="precision")
    mesh = mesh or devices.make_mesh(jax.local_devices()[:1])
    if layout == "auto":
        fits = precision == "fast" or _fits(embeddings, mesh)
        layout = "replicated" if fits else "ring"
    if precision == "fast":
        if layout == "ring":
            raise UsageError("precision: 'fast' needs layout 'replicated', found 'ring'.")
        lists, n_unproven = fast.search(
            embeddings,
            labels,
            ks,
            budget_bytes=budget_bytes,
            device=mesh.devices.flat[0],
            on_progress=on_progress,
        )
        logging.info("fast search: %d of %d rows were searched again in float32", n_unproven, n)
        return lists
    if layout == "ring":
        return ring.search(
            embeddings,
            labels,
            ks,
            n=n,
            budget_bytes=budget_bytes,
            mesh=mesh,
            on_progress=on_progress,
        )
    return _search_replicated(embeddings, labels, ks, budget_bytes, mesh, on_progress)


def _fits(embeddings: Float[ArrayLike, "N D"], mesh: Mesh) -> bool:
    """Whether all embeddings fit on each device; true where its memory is not known (CPU)."""
    stats = mesh.devices.flat[0].memory_stats()
    if not stats or "bytes_limit" not in stats:
        return True
    return int(np.prod(np.shape(embeddings))) * 4 <= REPLICATED_SHARE * stats["bytes_limit"]


def _search_replicated(
    embeddings: Float[ArrayLike, "N D"],
    labels: Int[np.ndarray, "L N"],
    ks: tuple[int, ...],
    budget_bytes: int,
    mesh: Mesh,
    on_progress: Callable[[int], None] | None,
) -> list[Neighbors]:
    n, _ = np.shape(embeddings)
    first = mesh.devices.flat[0]
    if mesh.size == 1 and first.platform == "cpu":
        return host.search(
            embeddings, labels, ks, budget_bytes=budget_bytes, device=first, on_progress=on_progress
        )
    tile = tiles.tile_rows(n, k=max(ks), budget_bytes=budget_bytes, platform=first.platform)
    calls = _deal_pairs(-(-n // tile), n_devices=mesh.size)
    whole, split = devices.replicated_sharding(mesh), devices.row_sharding(mesh)
    x = devices.to_device(embeddings, whole)
    block = Block(
        x=x,
        labels=jax.device_put(labels.astype(np.int32), whole),
        scale=_inverse_norms(x),
        rows=jax.device_put(np.arange(n, dtype=np.int32), whole),
    )
    search = _make_search(mesh, tile)
    found = tuple(_nothing_found(n, min(k, n), mesh) for k in ks)
    for i, pairs in enumerate(calls):
        found = search(block, found, jax.device_put(pairs, split))
        if on_progress is not None:
            jax.block_until_ready(found)
            on_progress(n * (i + 1) // len(calls) - n * i // len(calls))
    return [tiles.to_host(_merge_devices(f), k) for f, k in zip(found, ks, strict=True)]


_inverse_norms = jax.jit(tiles.inverse_norms)


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


def _nothing_found(n: int, k: int, mesh: Mesh) -> Found:
    """Closeness [devices, n, k] of -inf and indices of -1."""
    split = devices.row_sharding(mesh)
    shape = (mesh.size, n, k)
    return (
        jnp.full(shape, -jnp.inf, jnp.float32, device=split),
        jnp.full(shape, -1, jnp.int32, device=split),
    )


@functools.cache
def _make_search(mesh: Mesh, tile: int) -> jax.stages.Wrapped:
    """Jitted: each device's best so far, improved by its pairs of tiles.

    (``Block`` of N rows, found, pairs int32[devices, pairs, 2]) -> found, donated: for each list
    closeness float32[devices, N, K] and indices int32[devices, N, K].
    """

    def on_device(block: Block, found: Lists, pairs: Array) -> Lists:
        found = jax.tree.map(lambda a: a[0], found)
        found = tiles.search_within(block, found, pairs[0], tile=tile)
        return jax.tree.map(lambda a: a[None, :, :], found)

    split, whole = devices.ROWS, devices.REPLICATED
    search_on_devices = jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(whole, split, split),
        out_specs=split,
        check_vma=False,
    )
    # Stated, so that a call's answer goes into the next one without another compilation.
    out = devices.row_sharding(mesh)
    return jax.jit(search_on_devices, donate_argnums=1, out_shardings=out)


@jax.jit
def _merge_devices(found: Found) -> Found:
    """The K best over devices [devices, N, K], in the order (distance, row)."""
    best, best_idx = found
    n_devices, _, k = best.shape
    if n_devices == 1:
        return best[0], best_idx[0]
    flat = [a.swapaxes(0, 1).reshape(a.shape[1], -1) for a in (-best, best_idx)]
    distance, indices = lax.sort(flat, dimension=1, num_keys=2)
    return -distance[:, :k], indices[:, :k]
