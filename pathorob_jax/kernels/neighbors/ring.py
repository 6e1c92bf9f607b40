"""The neighbour search where no device holds all embeddings: shards that go round a ring.

Enters: each process's own rows. Leaves: the neighbours of those rows, found among all.

Device d keeps its shard and sees the others pass: in step s the shard of device d + s, with the
lists of that shard's rows. Scores of the two shards improve the lists of both, so that half a round
is enough: P // 2 + 1 steps multiply each pair of shards once, and a merge takes the lists home.

Ties need an order in which rows arrive. The shards that d sees ascend until they wrap round to the
first; the shards that a travelling one visits descend until they wrap to the last. Hence two lists
before and after the wrap, for each of both: what they hold lies in four ranges of rows, which
follow each other and are merged at the end. A device holds three shards (its own, the one that is
there, the one that arrives) and four lists: two of its own rows, two of the visitor's.
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
from pathorob_jax.kernels.neighbors import tiles as tiles
from pathorob_jax.kernels.neighbors.tiles import (
    DEFAULT_BUDGET_BYTES,
    PADDING_GROUP,
    Block,
    Found,
    Lists,
    Neighbors,
)

# Which of two stacked lists: of shards met before the wrap, or after it.
_BEFORE, _AFTER = 0, 1
# Trees of PartitionSpecs have the shape of what they lay out, not its types.
_SPLIT: Any = devices.ROWS
_SPLIT_COLUMNS: Any = PartitionSpec(None, devices.DATA_AXIS)
_BLOCK_SPECS = Block(x=_SPLIT, labels=_SPLIT_COLUMNS, scale=_SPLIT, rows=_SPLIT)


class _Ring(NamedTuple):
    """What a step leaves to the next.

    Attributes:
        visitor: the shard that is on this device.
        home: lists [2, R, K] of this device's rows: of shards met before the wrap, and after it.
        travelling: likewise, of the visitor's rows.
    """

    visitor: Block
    home: Lists
    travelling: Lists


_RING_SPECS = _Ring(_BLOCK_SPECS, _SPLIT_COLUMNS, _SPLIT_COLUMNS)


def process_rows(n: int, *, k: int, mesh: Mesh, budget_bytes: int = DEFAULT_BUDGET_BYTES) -> slice:
    """Rows of the whole set that this process gives to the search, and whose neighbours it gets.

    Shards are whole tiles, so that the last devices may have fewer rows or none.

    Args:
        n: rows of the whole set.
        k: the longest list wanted, as the search will be asked for it.
        mesh: devices of all processes.
        budget_bytes: as the search will be given it.

    Raises:
        InputError: a process's devices do not follow each other in the mesh.
    """
    size = _shard_rows(n, k, budget_bytes, mesh)
    mine = [i for i, d in enumerate(mesh.devices.flat) if d.process_index == jax.process_index()]
    if mine != list(range(mine[0], mine[0] + len(mine))):
        raise InputError(
            f"mesh: expected the devices of process {jax.process_index()} side by side, found "
            f"places {mine}; make it by sharding.make_mesh."
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
    """Exact neighbours of this process's rows among the rows of all processes.

    Every process of the mesh must call it at the same time, with the same n, ks and budget.

    Args:
        embeddings: float32 rows ``process_rows(n, k=max(ks), ...)`` of the whole set, as
            ``neighbors.find_neighbors`` takes them.
        labels: int32[1, n] groups of these rows; or int32[3, n] groups and the two labels of types.
        ks: lengths of the lists: (k,), or (k, m, m) with types.
        n: rows of the whole set.
        mesh: devices of all processes.
        budget_bytes: memory for a device's pair of tiles, beside shards and lists.
        on_progress: called with a number of this process's rows each time work is done.

    Returns:
        For each list ``Neighbors`` of this process's rows; indices are rows of the whole set. The
        same as ``neighbors.find_neighbors`` gives on one device, bit for bit.

    Raises:
        InputError: the rows are not those that this process must give.
    """
    mine = process_rows(n, k=max(ks), mesh=mesh, budget_bytes=budget_bytes)
    n_mine = mine.stop - mine.start
    checks.check_shape(
        np.shape(embeddings), (n_mine, None), name="embeddings", why="rows of process_rows"
    )
    checks.check_shape(labels.shape[1:], (n_mine,), name="group_id", why="to match embeddings")
    size = _shard_rows(n, max(ks), budget_bytes, mesh)
    tile = tiles.tile_rows(
        n, k=max(ks), budget_bytes=budget_bytes, platform=mesh.devices.flat[0].platform
    )
    own = _shard_block(embeddings, labels, mine, size, mesh)
    ring = _make_first_step(mesh, tile, size, tuple(min(k, n) for k in ks))(own)
    n_steps = mesh.size // 2
    for step in range(1, n_steps + 1):
        if on_progress is not None:
            jax.block_until_ready(ring)
            on_progress(n_mine * step // (n_steps + 1) - n_mine * (step - 1) // (n_steps + 1))
        # Only at half a ring of an even number do two devices meet the same pair of shards.
        halved = 2 * step == mesh.size
        ring = _make_step(mesh, tile, halved)(own, ring, np.int32(step))
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
    """This process's rows on its devices, the last shards filled up; no copy of all is made."""
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
            lacking = [(0, 0)] * array.ndim
            lacking[axis] = (0, size - (stop - start))
            return np.pad(part, lacking, constant_values=filler)

        return jax.make_array_from_callback(shape, NamedSharding(mesh, spec), shard)

    x = split(np.asarray(embeddings), 0, 0, np.float32)
    return Block(
        x=x,
        labels=split(labels, 1, PADDING_GROUP, np.int32),
        scale=_make_norms(mesh)(x),
        rows=split(np.arange(mine.start, mine.stop), 0, -1, np.int32),
    )


def _local(found: Found, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The first n of this process's rows of a list that is split over all devices."""
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
    """Jitted: float32[R, D] -> inverse norms float32[R], split over the mesh."""
    return jax.jit(_on_devices(tiles.inverse_norms, mesh, in_specs=_SPLIT, out_specs=_SPLIT))


@functools.cache
def _make_first_step(mesh: Mesh, tile: int, size: int, ks: tuple[int, ...]) -> jax.stages.Wrapped:
    """Jitted: own ``Block`` -> ``_Ring`` after each device has searched its own shard."""
    n_tiles = size // tile
    pairs = np.stack(np.triu_indices(n_tiles), axis=1).astype(np.int32)

    def on_device(own: Block) -> _Ring:
        nothing = tuple(tiles.nothing_found(size, k) for k in ks)
        found = tiles.search_within(own, nothing, pairs, tile=tile)
        stack = functools.partial(jax.tree.map, lambda *a: jnp.stack(a))
        return _Ring(
            visitor=_pass_on(own, mesh, 1),
            home=stack(found, nothing),
            travelling=stack(nothing, nothing),
        )

    return jax.jit(_on_devices(on_device, mesh, in_specs=(_BLOCK_SPECS,), out_specs=_RING_SPECS))


@functools.cache
def _make_step(mesh: Mesh, tile: int, halved: bool) -> jax.stages.Wrapped:
    """Jitted: (own ``Block``, ``_Ring`` donated, step int32[]) -> ``_Ring`` one device further.

    ``halved``: two devices meet the same pair of shards, and each takes half of the tiles: those
    whose rows keep the four ranges apart.
    """

    def on_device(own: Block, ring: _Ring, step: Array) -> _Ring:
        wrapped = lax.axis_index(devices.DATA_AXIS) + step >= mesh.size
        n_tiles = own.rows.shape[0] // tile
        half = n_tiles // 2 if halved else 0
        turn = wrapped.astype(jnp.int32)
        home, travelling = tiles.search_between(
            own,
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
            # Not after the products: the next shard may travel meanwhile.
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
    """Jitted: lists at home, travelling lists where the last step left them -> ``Lists``."""

    def on_device(home: Lists, travelling: Lists) -> Lists:
        # After the last step they lie P // 2 + 1 devices before their own.
        travelling = _pass_on(travelling, mesh, -(mesh.size // 2 + 1))
        out = []
        for mine, theirs in zip(home, travelling, strict=True):
            # In the order of the rows that they hold.
            ranges = [(mine, _AFTER), (theirs, _BEFORE), (mine, _BEFORE), (theirs, _AFTER)]
            merge = functools.partial(tiles.merge_lists, k=mine[0].shape[2])
            lists = [(closeness[i], rows[i]) for (closeness, rows), i in ranges]
            out.append(functools.reduce(merge, lists))
        return tuple(out)

    return jax.jit(
        _on_devices(on_device, mesh, in_specs=(_SPLIT_COLUMNS, _SPLIT_COLUMNS), out_specs=_SPLIT),
    )


def _pass_on(tree: Any, mesh: Mesh, n_devices: int) -> Any:
    """Send to the device that lies ``n_devices`` before this one in the ring."""
    pairs = [(d, (d - n_devices) % mesh.size) for d in range(mesh.size)]
    return lax.ppermute(tree, devices.DATA_AXIS, pairs)


def _on_devices(
    function: Callable[..., Any], mesh: Mesh, *, in_specs: Any, out_specs: Any
) -> Callable[..., Any]:
    return jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )
