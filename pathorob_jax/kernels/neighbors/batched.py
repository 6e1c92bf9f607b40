"""Exact neighbours inside each of many subsets of equal size, in one call.

The input is the rows and, for each subset, the positions and groups of its rows. The result for
each subset is bit for bit the one that ``search.find_neighbors`` returns for its rows alone.

The subsets are distributed over the devices. Each device gathers the rows of one subset at a time,
so the copies of rows that lie in several subsets never exist together. All subsets share one trace.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh

from pathorob_jax.core import checks, devices
from pathorob_jax.core.checks import InputError
from pathorob_jax.core.typing import Array, ArrayLike, Float, Int
from pathorob_jax.kernels.neighbors import near_ties, tiles
from pathorob_jax.kernels.neighbors.exact_rows import Rows
from pathorob_jax.kernels.neighbors.tiles import (
    DEFAULT_BUDGET_BYTES,
    PADDING_GROUP,
    Block,
    Lists,
    Neighbors,
)


def search(
    embeddings: Float[ArrayLike, "N D"],
    row_idx: Int[ArrayLike, "S n"],
    labels: Int[np.ndarray, "L S n"],
    ks: tuple[int, ...],
    *,
    budget_bytes: int = DEFAULT_BUDGET_BYTES,
    mesh: Mesh | None = None,
) -> list[Neighbors]:
    """Find exact neighbours inside each subset: one list per row, or three.

    Args:
        embeddings: float32[N, D], with the requirements of ``search.find_neighbors``.
        row_idx: int32[S, n] rows of each subset, in [0, N). A smaller subset is padded with any
            rows of group ``PADDING_GROUP``.
        labels: int32[1, S, n] groups; or int32[3, S, n] groups and the two labels that define the
            types.
        ks: lengths of the lists: (k,), or (k, m, m) with types.
        budget_bytes: memory for a device's pair of tiles, in addition to the rows of one subset.
        mesh: devices, all of this process; None: the first device only.

    Returns:
        For each list ``Neighbors`` with a leading axis of subsets, [S, n, K]; indices are positions
        in the subset.

    Raises:
        InputError: shapes differ, a row does not exist, or has no direction in float32.
        TypeError: rows or labels are not of integer dtype.
    """
    row_idx = np.asarray(row_idx)
    n_rows = np.shape(embeddings)[0]
    n_subsets, n = row_idx.shape
    checks.check_integer(row_idx, name="row_idx")
    checks.check_integer(labels, name="group_id")
    checks.check_shape(labels.shape[1:], row_idx.shape, name="group_id", why="to match row_idx")
    if row_idx.size and not 0 <= row_idx.min() <= row_idx.max() < n_rows:
        raise InputError(
            f"row_idx: expected rows in [0, {n_rows}), found {row_idx.min()} to {row_idx.max()}."
        )
    rows = np.asarray(embeddings)
    used = np.zeros(n_rows, bool)
    used[row_idx[labels[0] != PADDING_GROUP]] = True
    Rows(rows).check_directions(used)
    mesh = mesh or devices.make_mesh(jax.local_devices()[:1])
    platform = mesh.devices.flat[0].platform
    depths = tuple(map(near_ties.fetched, ks))
    tile = tiles.tile_rows(n, k=max(depths), budget_bytes=budget_bytes, platform=platform)
    n_padding = -n_subsets % mesh.size
    idx = np.pad(row_idx.astype(np.int32), ((0, n_padding), (0, 0)))
    ids = np.pad(
        labels.astype(np.int32), ((0, 0), (0, n_padding), (0, 0)), constant_values=PADDING_GROUP
    )
    whole, split = devices.replicated_sharding(mesh), devices.row_sharding(mesh)
    lists_on_devices = _make_search(mesh, tile, tuple(min(k, n) for k in depths))(
        devices.to_device(embeddings, whole),
        jax.device_put(idx, split),
        jax.device_put(ids.swapaxes(0, 1), split),
    )
    flat = jax.tree.map(
        lambda a: np.asarray(a)[:n_subsets].reshape(n_subsets * n, -1), lists_on_devices
    )
    lists = [tiles.to_host(f, k) for f, k in zip(flat, depths, strict=True)]
    parts = [Neighbors(*(a.reshape(n_subsets, n, -1) for a in found)) for found in lists]
    settled = [
        near_ties.settle_near_ties(
            Rows(rows[row_idx[s]]),
            labels[:, s],
            [Neighbors(*(a[s] for a in part)) for part in parts],
            ks,
            budget_bytes=budget_bytes,
        )
        for s in range(n_subsets)
    ]
    return [
        Neighbors(*(np.stack(a) for a in zip(*found, strict=True)))
        for found in zip(*settled, strict=True)
    ]


@functools.cache
def _make_search(mesh: Mesh, tile: int, ks: tuple[int, ...]) -> jax.stages.Wrapped:
    """Jitted function (float32[N, D], rows int32[S, n], labels int32[S, L, n]) -> lists."""

    def on_device(x: Array, idx: Array, labels: Array) -> Lists:
        n = idx.shape[1]
        pairs = np.stack(np.triu_indices(-(-n // tile)), axis=1).astype(np.int32)

        def search_subset(subset: tuple[Array, Array]) -> Lists:
            rows, ids = subset
            x_subset = x[rows]
            block = Block(
                x_subset, ids, tiles.inverse_norms(x_subset), jnp.arange(n, dtype=jnp.int32)
            )
            nothing = tuple(tiles.nothing_found(n, k) for k in ks)
            return tiles.search_within(block, nothing, pairs, tile=tile)

        return lax.map(search_subset, (idx, labels))

    split, whole = devices.ROWS, devices.REPLICATED
    return jax.jit(
        jax.shard_map(
            on_device,
            mesh=mesh,
            in_specs=(whole, split, split),
            out_specs=split,
            check_vma=False,
        )
    )
