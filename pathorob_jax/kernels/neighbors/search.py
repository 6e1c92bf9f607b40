"""Exact cosine nearest neighbours outside the query's group.

For embeddings [N, D] and a group id per row, the search returns the k nearest rows of other groups
for every row, in the total order (distance, row index).

Rows are cut into tiles, and each pair of tiles is multiplied once: its scores serve the rows of one
tile and, transposed, those of the other. This halves the products when a set is searched in itself.
Rows of the query's group are masked before the selection, so no excess neighbours are fetched. The
list so far comes first in the next selection, whose stable order keeps the lower row among equal
distances. The only memory in addition to embeddings and result is one pair of tiles, whose size
follows from a budget.

``find_neighbors`` keeps all embeddings on every device. Where they do not fit, the same search
passes shards round a ring of devices (``ring``) or streams blocks from outside the device
(``stream``). On a single CPU device the host keeps the lists (``host``). All give the same result.

These searches multiply in float32 and know distances to about 1e-6. ``find_neighbors`` fetches a
few ranks more than wanted and settles what lies nearer than that (``near_ties``), so that its lists
are exact.
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
from pathorob_jax.kernels.neighbors import fast, host, near_ties, ring, tiles
from pathorob_jax.kernels.neighbors.exact_rows import Rows, measures_pairs
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
    "search",
]

PAIRS_PER_CALL = 16
# Share of a device's memory that replicated embeddings may take. Tiles and lists use the rest.
REPLICATED_SHARE = 0.5

Layout = Literal["auto", "replicated", "ring"]
Precision = Literal["float32", "fast"]


class TypedNeighbors(NamedTuple):
    """Neighbours of any type, and the nearest of each of two types at any rank.

    Attributes:
        any: the K nearest rows of other groups.
        same_other: the M nearest of them that share the first label but not the second.
        other_same: the M nearest of them that share the second label but not the first.
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
    """Exact k nearest neighbours by cosine distance, excluding the query's group.

    d(i, j) = 1 - x_i.x_j / (|x_i| |x_j|). The lists are exact for the rows as given: in the order
    of their distances in exact arithmetic, the lower row first where these are equal. (Distances
    count as equal if they differ by less than 2^-96.) Products are in float32 at
    ``Precision.HIGHEST``; where float32 cannot tell neighbours apart, their distances are computed
    again (``near_ties``). All layouts multiply tiles of one shape, so the result does not depend on
    the layout or the number of devices (on GPUs: but for the last bit of distances that are
    computed again).

    Args:
        embeddings: float32[N, D], finite, norms from 1e-15 to 1e15.
        group_id: int32[N]. Rows with equal ids are never each other's neighbours, so a row is never
            its own neighbour. ``PADDING_GROUP`` marks rows that are no row's neighbour.
        k: neighbours wanted, at least 1.
        budget_bytes: memory for a device's pair of tiles, in addition to embeddings and result.
        mesh: devices to use, all of this process (``ring.search`` serves several processes); None:
            the first device only.
        layout: ``replicated``: all embeddings on every device, pairs of tiles distributed over the
            devices; ``ring``: every device holds a shard of the rows and passes it round; ``auto``:
            ``replicated`` unless the embeddings would take more than half of a device's memory.
        precision: ``float32``, or ``fast``: candidates from bfloat16 products, proven and re-ranked
            by the module ``fast``, with the same result. ``fast`` uses only the first device and
            keeps all rows on it.
        on_progress: called with the number of rows finished since the last call; the numbers sum
            to N.

    Returns:
        ``Neighbors`` on the host. A row with fewer than k eligible rows gets all of them, then -1.
        Distances err by float32's rounding, about 1e-6 at most; ``pair_distances`` has better ones.

    Raises:
        InputError: shapes differ, a row has no direction in float32, or the budget does not hold
            the smallest pair of tiles.
        UsageError: layout or precision is unknown, or they cannot be combined.
        TypeError: group_id is not of integer dtype.

    Reference: PathoROB fetches k + (rows of the largest slide) neighbours and drops those of the
    query's slide afterwards; at every rank that all of its rows reach, the lists are the same.
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
    """Like ``find_neighbors``, with the nearest of two types at any rank from the same products.

    Args:
        embeddings: see ``find_neighbors``.
        group_id: see ``find_neighbors``.
        first_id: int32[N] first label.
        second_id: int32[N] second label.
        k: neighbours of any type.
        m: neighbours of each of the two types.
        budget_bytes: see ``find_neighbors``.
        mesh: see ``find_neighbors``.
        layout: see ``find_neighbors``.
        precision: see ``find_neighbors``.
        on_progress: see ``find_neighbors``.
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
    """Find one exact list of neighbours for each of ``ks``: of any type, and of the two types."""
    _check_labels(embeddings, labels)
    mesh = mesh or devices.make_mesh(jax.local_devices()[:1])
    x, placed = np.asarray(embeddings), None
    is_held = layout != "ring" and fits(4 * int(np.prod(x.shape)), mesh)
    if is_held and measures_pairs(mesh.local_devices[0]):
        # Once, for the search and for its near ties.
        embeddings = devices.to_device(embeddings, devices.replicated_sharding(mesh))
        placed = embeddings.addressable_shards[0].data
    rows = Rows(x, placed=placed)
    rows.check_directions(labels[0] != PADDING_GROUP)
    found = search(
        embeddings,
        labels,
        tuple(map(near_ties.fetched, ks)),
        budget_bytes=budget_bytes,
        mesh=mesh,
        layout=layout,
        precision=precision,
        on_progress=on_progress,
    )
    return near_ties.settle_near_ties(rows, labels, found, ks, budget_bytes=budget_bytes)


def search(
    embeddings: Float[ArrayLike, "N D"],
    labels: Int[np.ndarray, "L N"],
    ks: tuple[int, ...],
    *,
    budget_bytes: int = DEFAULT_BUDGET_BYTES,
    mesh: Mesh | None = None,
    layout: Layout = "auto",
    precision: Precision = "float32",
    on_progress: Callable[[int], None] | None = None,
) -> list[Neighbors]:
    """Find one list of neighbours for each of ``ks``, in the order of the float32 distances.

    Args:
        embeddings: see ``find_neighbors``.
        labels: int32[1, N] groups; or int32[3, N] groups and the two labels that define the types.
        ks: lengths of the lists: (k,), or (k, m, m) with types.
        budget_bytes: see ``find_neighbors``.
        mesh: see ``find_neighbors``.
        layout: see ``find_neighbors``.
        precision: see ``find_neighbors``.
        on_progress: see ``find_neighbors``.
    """
    n, _ = np.shape(embeddings)
    _check_labels(embeddings, labels)
    checks.check_known(layout, ("auto", "replicated", "ring"), what="layout")
    checks.check_known(precision, ("float32", "fast"), what="precision")
    mesh = mesh or devices.make_mesh(jax.local_devices()[:1])
    if layout == "auto":
        held = precision == "fast" or fits(4 * int(np.prod(np.shape(embeddings))), mesh)
        layout = "replicated" if held else "ring"
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


def _check_labels(embeddings: Float[ArrayLike, "N D"], labels: Int[np.ndarray, "L N"]) -> None:
    shape = np.shape(embeddings)[:1]
    checks.check_shape(labels.shape[1:], shape, name="group_id", why="to match embeddings")
    checks.check_integer(labels, name="group_id")


def fits(n_bytes: float, mesh: Mesh) -> bool:
    """Whether embeddings fit on each device; true if its memory size is unknown (CPU)."""
    stats = mesh.local_devices[0].memory_stats()
    if not stats or "bytes_limit" not in stats:
        return True
    return n_bytes <= REPLICATED_SHARE * float(stats["bytes_limit"])


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
    improve = _make_search(mesh, tile)
    lists = tuple(_nothing_found(n, min(k, n), mesh) for k in ks)
    for i, pairs in enumerate(calls):
        lists = improve(block, lists, jax.device_put(pairs, split))
        if on_progress is not None:
            jax.block_until_ready(lists)
            on_progress(n * (i + 1) // len(calls) - n * i // len(calls))
    return [tiles.to_host(_merge_devices(f), k) for f, k in zip(lists, ks, strict=True)]


_inverse_norms = jax.jit(tiles.inverse_norms)


def _deal_pairs(n_tiles: int, *, n_devices: int) -> Int[np.ndarray, "calls devices pairs 2"]:
    """Distribute pairs of tiles (i <= j), in lexicographic order, over the devices in turn.

    Unused places hold (-1, -1). In this order every tile meets the others in ascending order, on
    each device too, so equal distances stay in the order of their rows.
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
    """Jitted function that improves each device's lists with its pairs of tiles.

    Its arguments are a ``Block`` of N rows, the donated lists, and pairs int32[devices, pairs, 2].
    It returns the lists: closeness float32[devices, N, K] and indices int32[devices, N, K] of each.
    """

    def on_device(block: Block, lists: Lists, pairs: Array) -> Lists:
        lists = jax.tree.map(lambda a: a[0], lists)
        lists = tiles.search_within(block, lists, pairs[0], tile=tile)
        return jax.tree.map(lambda a: a[None, :, :], lists)

    split, whole = devices.ROWS, devices.REPLICATED
    search_on_devices = jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(whole, split, split),
        out_specs=split,
        check_vma=False,
    )
    # Explicit shardings, so that the result of a call enters the next one without recompilation.
    out = devices.row_sharding(mesh)
    return jax.jit(search_on_devices, donate_argnums=1, out_shardings=out)


@jax.jit
def _merge_devices(found: Found) -> Found:
    """Merge [devices, N, K] lists into the K best of each row, in the order (distance, row)."""
    best, best_idx = found
    n_devices, _, k = best.shape
    if n_devices == 1:
        return best[0], best_idx[0]
    flat = [a.swapaxes(0, 1).reshape(a.shape[1], -1) for a in (-best, best_idx)]
    distance, indices = lax.sort(flat, dimension=1, num_keys=2)
    return -distance[:, :k], indices[:, :k]
