"""Neighbour search over the devices of several processes, possibly on several hosts.

Every process can read all rows, and holds those of its own devices. Shards travel round the ring of
all devices (``ring``); then each process settles what float32 cannot tell apart for its own rows,
and all get all lists. They are those of ``search.find_neighbors`` bit for bit.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from jax.sharding import Mesh

from pathorob_jax.core import checks, hosts
from pathorob_jax.core.typing import Int
from pathorob_jax.kernels.neighbors import near_ties, ring
from pathorob_jax.kernels.neighbors.exact_rows import Rows
from pathorob_jax.kernels.neighbors.tiles import DEFAULT_BUDGET_BYTES, PADDING_GROUP, Neighbors


def find_neighbors_over_hosts(
    embeddings: Any,
    labels: Int[np.ndarray, "L N"],
    ks: tuple[int, ...],
    *,
    mesh: Mesh,
    budget_bytes: int = DEFAULT_BUDGET_BYTES,
    on_progress: Callable[[int], None] | None = None,
) -> list[Neighbors]:
    """Find one exact list of neighbours per row for each of ``ks``.

    Every process of the mesh must call it at the same time, with the same rows and arguments.

    Args:
        embeddings: float32[N, D] as of ``search.find_neighbors``, an array, a ``RowSource`` or any
            object with ``shape`` and slices of rows.
        labels: int32[1, N] groups; or int32[3, N] groups and the two labels that define the types.
        ks: lengths of the lists: (k,), or (k, m, m) with types.
        mesh: devices of all processes.
        budget_bytes: memory for a device's pair of tiles, in addition to shards and lists.
        on_progress: called with the number of this process's rows finished since the last call.

    Returns:
        ``Neighbors`` of all rows, for each of ``ks``, on every process.

    Raises:
        InputError: shapes differ, or a row has no direction in float32.
        TypeError: labels are not of integer dtype.
    """
    n = embeddings.shape[0]
    checks.check_integer(labels, name="group_id")
    checks.check_shape(labels.shape[1:], (n,), name="group_id", why="to match embeddings")
    rows = Rows(embeddings, budget_bytes=budget_bytes)
    with hosts.together("rows of the neighbour search"):
        rows.check_directions(labels[0] != PADDING_GROUP)
    depths = tuple(map(near_ties.fetched, ks))
    mine = ring.process_rows(n, k=max(depths), mesh=mesh, budget_bytes=budget_bytes)
    found = ring.search(
        embeddings[mine],
        labels[:, mine],
        depths,
        n=n,
        mesh=mesh,
        budget_bytes=budget_bytes,
        on_progress=on_progress,
    )
    lists = [_gather(part, mine) for part in found]
    settled = near_ties.settle_near_ties(
        rows, labels, lists, ks, budget_bytes=budget_bytes, part=mine
    )
    return [_gather(Neighbors(*(a[mine] for a in part)), mine) for part in settled]


def _gather(part: Neighbors, mine: slice) -> Neighbors:
    """Lists of all rows from those of each process, in whatever order the processes have them."""
    row = hosts.gather(np.arange(mine.start, mine.stop))
    order = np.argsort(row, kind="stable")
    return Neighbors(*(hosts.gather(a)[order] for a in part))
