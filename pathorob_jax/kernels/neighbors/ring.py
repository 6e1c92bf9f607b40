"""Neighbour search when no device can hold all embeddings: shards travel round a ring of devices.

Each process passes its rows and gets their neighbours among the rows of all processes.

Device d keeps its home shard. In step s it receives the shard of device d + s together with the
lists of that shard's rows. The scores of the two shards improve the lists of both, so half a round
is enough: P // 2 + 1 steps multiply each pair of shards once, and a merge brings the lists home.

Ties are broken by row, so the order in which rows arrive matters. The shards that d receives ascend
until they wrap round to the first; the shards that a travelling shard visits descend until they
wrap round to the last. Both therefore keep two lists, one for before the wrap and one for after it.
The four lists cover four consecutive ranges of rows and are merged at the end. A device holds three
shards (its home shard, the current visitor, and the one arriving) and four lists: two of its home
rows, two of the visitor's rows.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pathorob_jax.core import checks, devices
from pathorob_jax.core.checks import InputError
from pathorob_jax.core.typing import Array, ArrayLike, Float, Int
from pathorob_jax.kernels.neighbors import tiles
from pathorob_jax.kernels.neighbors.tiles import (
    DEFAULT_BUDGET_BYTES,
    PADDING_GROUP,
    Block,
    Found,
    Lists,
    Neighbors,
)

# Index into two stacked lists: shards met before the wrap, or after it.
_BEFORE, _AFTER = 0, 1
# Trees of PartitionSpecs have the structure of the data that they lay out, but not its types.
_SPLIT: Any = devices.ROWS
_SPLIT_COLUMNS: Any = PartitionSpec(None, devices.DATA_AXIS)
_BLOCK_SPECS = Block(x=_SPLIT, labels=_SPLIT_COLUMNS, scale=_SPLIT, rows=_SPLIT)


class _Ring(NamedTuple):
    """State between two steps.

    Attributes:
        visitor: the shard that is visiting this device.
        home: lists [2, R, K] of this device's rows: shards met before the wrap, and after it.
        travelling: lists [2, R, K] of the visitor's rows, split in the same way.
    """

    visitor: Block
    home: Lists
    travelling: Lists


_RING_SPECS = _Ring(_BLOCK_SPECS, _SPLIT_COLUMNS, _SPLIT_COLUMNS)


def process_rows(n: int, *, k: int, mesh: Mesh, budget_bytes: int = DEFAULT_BUDGET_BYTES) -> slice:
    """Rows of the whole set that this process passes to ``search`` and whose neighbours it gets.

    Shards are whole tiles, so the last devices may have fewer rows or none.

    Args:
        n: number of rows of the whole set.
        k: the longest list wanted, max(ks) of ``search``.
        mesh: devices of all processes.
        budget_bytes: the budget passed to ``search``.

    Raises:
        InputError: the devices of a process are not adjacent in the mesh.
    """
    size = _shard_rows(n, k, budget_bytes, mesh)
    mine = [i for i, d in enumerate(mesh.devices.flat) if d.process_index == jax.process_index()]
    if mine != list(range(mine[0], mine[0] + len(mine))):
        raise InputError(
            f"mesh: expected the devices of process {jax.process_index()} side by side, found "
            f"places {mine}; create the mesh with devices.make_mesh."
        )
    return slice(min(mine[0] * size, n), min((mine[-1] + 1) * size, n))


def _shard_rows(n: int, k: int, budget_bytes: int, mesh: Mesh) -> int:
    tile = tiles.tile_rows(
        n, k=k, budget_bytes=budget_bytes, platform=mesh.devices.flat[0].platform
    )
    n_tiles = -(-n // tile)
    return tile * -(-n_tiles // mesh.size)


def search(
    embeddings: Float[ArrayLike, "n D"],
    labels: Int[np.ndarray, "L n"],
    ks: tuple[int, ...],
    *,
    n: int,
    mesh: Mesh,
    budget_bytes: int = DEFAULT_BUDGET_BYTES,
    on_progress: Callable[[int], None] | None = None,
) -> list[Neighbors]:
    """Neighbours of this process's rows among the rows of all processes, by float32 distance.

    ``find_neighbors`` settles what float32 cannot tell apart, for which it needs all rows; a caller
    of several processes does that with ``near_ties`` where all rows can be read.

    Every process of the mesh must call it at the same time, with the same n, ks and budget.

    Args:
        embeddings: float32 rows ``process_rows(n, k=max(ks), ...)`` of the whole set, with the
            requirements of ``find_neighbors``.
        labels: int32[1, n] groups of these rows; or int32[3, n] groups and the two labels that
            define the types.
        ks: lengths of the lists: (k,), or (k, m, m) with types.
        n: number of rows of the whole set.
        mesh: devices of all processes.
        budget_bytes: memory for a device's pair of tiles, in addition to shards and lists.
        on_progress: called with the number of this process's rows finished since the last call.

    Returns:
        For each list ``Neighbors`` of this process's rows; indices are rows of the whole set. The
        result is bit for bit that of ``search.search`` on one device.

    Raises:
        InputError: the rows are not those of ``process_rows``.
    """
    local_rows = process_rows(n, k=max(ks), mesh=mesh, budget_bytes=budget_bytes)
    n_mine = local_rows.stop - local_rows.start
    checks.check_shape(
        np.shape(embeddings), (n_mine, None), name="embeddings", why="rows of process_rows"
    )
    checks.check_shape(labels.shape[1:], (n_mine,), name="group_id", why="to match embeddings")
    size = _shard_rows(n, max(ks), budget_bytes, mesh)
    tile = tiles.tile_rows(
        n, k=max(ks), budget_bytes=budget_bytes, platform=mesh.devices.flat[0].platform
    )
    home = _shard_block(embeddings, labels, local_rows, size, mesh)
    ring = _make_first_step(mesh, tile, size, tuple(min(k, n) for k in ks))(home)
    n_steps = mesh.size // 2
    for step in range(1, n_steps + 1):
        if on_progress is not None:
            jax.block_until_ready(ring)
            on_progress(n_mine * step // (n_steps + 1) - n_mine * (step - 1) // (n_steps + 1))
        # Two devices meet the same pair of shards only after half a ring of even size.
        halved = 2 * step == mesh.size
        ring = _make_step(mesh, tile, halved)(home, ring, np.int32(step))
    merged = _make_merge(mesh)(ring.home, ring.travelling)
    if on_progress is not None:
        jax.block_until_ready(merged)
        on_progress(n_mine - n_mine * n_steps // (n_steps + 1))
    return [tiles.to_host(_local(f, n_mine), k) for f, k in zip(merged, ks, strict=True)]


def _shard_block(
    embeddings: Float[ArrayLike, "n D"],
    labels: Int[np.ndarray, "L n"],
    mine: slice,
    size: int,
    mesh: Mesh,
) -> Block:
    """Put this process's rows on its devices and pad the last shards, without copying all rows."""
    n_all = size * mesh.size

    def split(array: np.ndarray, axis: int, filler: int, dtype: type) -> Array:
        shape = array.shape[:axis] + (n_all,) + array.shape[axis + 1 :]
        spec = PartitionSpec(*[None] * axis, devices.DATA_AXIS)

        def shard(index: tuple[slice, ...] | None) -> np.ndarray:
            start, stop, _ = (index or ())[axis].indices(n_all)
            start, stop = (min(row, mine.stop) - mine.start for row in (start, stop))
            part: np.ndarray = np.asarray(
                array[(slice(None),) * axis + (slice(start, stop),)], dtype
            )
            padding = [(0, 0)] * array.ndim
            padding[axis] = (0, size - (stop - start))
            return np.pad(part, padding, constant_values=filler)

        return jax.make_array_from_callback(shape, NamedSharding(mesh, spec), shard)

    x = split(np.asarray(embeddings), 0, 0, np.float32)
    return Block(
        x=x,
        labels=split(labels, 1, PADDING_GROUP, np.int32),
        scale=_make_norms(mesh)(x),
        rows=split(np.arange(mine.start, mine.stop), 0, -1, np.int32),
    )


def _local(found: Found, n: int) -> tuple[np.ndarray, np.ndarray]:
    """This process's first n rows of a list that is split over all devices."""
    closeness, indices = (
        np.concatenate(
            [
                np.asarray(shard.data)
                for shard in sorted(a.addressable_shards, key=lambda s: s.index[0].start or 0)
            ]
        )[:n]
        for a in found
    )
    return closeness, indices


@functools.cache
def _make_norms(mesh: Mesh) -> jax.stages.Wrapped:
    """Jitted function float32[R, D] -> inverse norms float32[R], split over the mesh."""
    return jax.jit(_on_devices(tiles.inverse_norms, mesh, in_specs=_SPLIT, out_specs=_SPLIT))


@functools.cache
def _make_first_step(mesh: Mesh, tile: int, size: int, ks: tuple[int, ...]) -> jax.stages.Wrapped:
    """Jitted function home ``Block`` -> ``_Ring`` after each device has searched its home shard."""
    n_tiles = size // tile
    pairs = np.stack(np.triu_indices(n_tiles), axis=1).astype(np.int32)

    def on_device(home: Block) -> _Ring:
        nothing = tuple(tiles.nothing_found(size, k) for k in ks)
        lists = tiles.search_within(home, nothing, pairs, tile=tile)
        stack = functools.partial(jax.tree.map, lambda *a: jnp.stack(a))
        return _Ring(
            visitor=_pass_on(home, mesh, 1),
            home=stack(lists, nothing),
            travelling=stack(nothing, nothing),
        )

    return jax.jit(_on_devices(on_device, mesh, in_specs=(_BLOCK_SPECS,), out_specs=_RING_SPECS))


@functools.cache
def _make_step(mesh: Mesh, tile: int, halved: bool) -> jax.stages.Wrapped:
    """Jitted function (home ``Block``, donated ``_Ring``, step int32[]) -> the next ``_Ring``.

    ``halved``: two devices meet the same pair of shards, and each processes half of the tiles,
    chosen so that the four ranges of rows stay apart.
    """

    def on_device(home_block: Block, ring: _Ring, step: Array) -> _Ring:
        wrapped = lax.axis_index(devices.DATA_AXIS) + step >= mesh.size
        n_tiles = home_block.rows.shape[0] // tile
        half = n_tiles // 2 if halved else 0
        turn = wrapped.astype(jnp.int32)
        home, travelling = tiles.search_between(
            home_block,
            ring.visitor,
            jax.tree.map(lambda a: a[turn], ring.home),
            jax.tree.map(lambda a: a[turn], ring.travelling),
            tile=tile,
            descending=True,
            first_a=jnp.where(wrapped, 0, half),
            stop_b=jnp.where(wrapped, half, n_tiles) if halved else n_tiles,
        )
        put = functools.partial(jax.tree.map, lambda lists, found: lists.at[turn].set(found))
        return _Ring(
            # Independent of the products, so that the next shard can travel meanwhile.
            visitor=_pass_on(ring.visitor, mesh, 1),
            home=put(ring.home, home),
            travelling=_pass_on(put(ring.travelling, travelling), mesh, 1),
        )

    specs = (_BLOCK_SPECS, _RING_SPECS, PartitionSpec())
    return jax.jit(
        _on_devices(on_device, mesh, in_specs=specs, out_specs=_RING_SPECS), donate_argnums=1
    )


@functools.cache
def _make_merge(mesh: Mesh) -> jax.stages.Wrapped:
    """Jitted function (home lists, travelling lists after the last step) -> merged ``Lists``."""

    def on_device(home: Lists, travelling: Lists) -> Lists:
        # After the last step they are P // 2 + 1 devices before their home device.
        travelling = _pass_on(travelling, mesh, -(mesh.size // 2 + 1))
        out = []
        for mine, theirs in zip(home, travelling, strict=True):
            # The four lists in the order of their ranges of rows.
            ranges = [(mine, _AFTER), (theirs, _BEFORE), (mine, _BEFORE), (theirs, _AFTER)]
            merge = functools.partial(tiles.merge_lists, k=mine[0].shape[2])
            lists = [(closeness[i], rows[i]) for (closeness, rows), i in ranges]
            out.append(functools.reduce(merge, lists))
        return tuple(out)

    return jax.jit(
        _on_devices(on_device, mesh, in_specs=(_SPLIT_COLUMNS, _SPLIT_COLUMNS), out_specs=_SPLIT),
    )


def _pass_on(tree: Any, mesh: Mesh, n_devices: int) -> Any:
    """Send a tree to the device ``n_devices`` before this one in the ring."""
    pairs = [(d, (d - n_devices) % mesh.size) for d in range(mesh.size)]
    return lax.ppermute(tree, devices.DATA_AXIS, pairs)


def _on_devices(
    function: Callable[..., Any], mesh: Mesh, *, in_specs: Any, out_specs: Any
) -> Callable[..., Any]:
    return jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )
