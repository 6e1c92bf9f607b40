"""Exact cosine nearest neighbours outside one's own group.

Enters: embeddings [N, D] and a group id per row. Leaves: for every row the k nearest rows of other
groups, in the total order (distance, row index). Memory beside the embeddings and the result stays
under a stated budget: queries go in blocks against the whole database, and rows of the own group
are masked before the selection, so that nothing is fetched in excess.
"""

import functools
from collections import deque
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
# A block's scores, their masked copy and what the selection sorts: three float32 [block, N].
BYTES_PER_SCORE = 12
MAX_BLOCK_ROWS = 1024
BLOCKS_PER_CALL = 4
PADDING_GROUP = -1


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

    Products are float32 at ``Precision.HIGHEST``; d(i, j) = 1 - x_i.x_j / (|x_i| |x_j|), clipped at
    0. Queries are sharded over the mesh, the database is replicated; every device works on blocks
    of one shape, so that the answer does not depend on the number of devices.

    Args:
        embeddings: float32[N, D], finite, no row all zero, norms within float32's range.
        group_id: int32[N]. Rows of equal id are never each other's neighbours (a row thus never its
            own). ``PADDING_GROUP`` marks rows that are nobody's neighbour.
        k: neighbours wanted, at least 1.
        budget_bytes: memory for a device's block of scores, beside embeddings and result.
        mesh: devices to use; None: one device, the first.
        on_progress: called with the number of queries each time some are answered.

    Returns:
        ``Neighbors`` on the host. A row with fewer than k eligible rows gets them all, then -1.

    Raises:
        InputError: shapes differ, or the budget does not hold a block of 8 queries.
        TypeError: group_id is not of integer dtype.

    Reference: PathoROB fetches k + (rows of the largest slide) neighbours and drops own-slide ones
    afterwards; at every rank that all of its rows reach, the lists are the same.
    """
    n, _ = np.shape(embeddings)
    group_id = np.asarray(group_id)
    checks.check_shape(group_id.shape, (n,), name="group_id", why="to match embeddings")
    checks.check_integer(group_id, name="group_id")
    mesh = mesh or sharding.make_mesh(jax.local_devices()[:1])
    block = block_rows(n, budget_bytes=budget_bytes)
    # One compiled call takes BLOCKS_PER_CALL blocks a device; the next call is queued before the
    # last one's answer is fetched.
    per_call = BLOCKS_PER_CALL * mesh.size
    starts = np.arange(0, -(-n // (block * per_call)) * block * per_call, block)
    calls = np.minimum(starts, n - block).astype(np.int32).reshape(-1, per_call)
    whole, split = sharding.replicated_sharding(mesh), sharding.row_sharding(mesh)
    rows = jax.device_put(jnp.asarray(embeddings, jnp.float32), whole)
    groups = jax.device_put(np.asarray(group_id, np.int32), whole)
    out = Neighbors(np.full((n, k), -1, np.int32), np.full((n, k), np.inf, np.float32))
    queued: deque[tuple[np.ndarray, tuple[Array, Array]]] = deque()
    answered = 0
    for call in (*calls, None):
        if call is not None:
            starts_on_devices = jax.device_put(call, split)
            answer = _find_neighbors(
                rows, groups, starts_on_devices, k=min(k, n), block=block, mesh=mesh
            )
            queued.append((call, answer))
        if len(queued) == 2 or call is None:
            call_starts, answer = queued.popleft()
            _copy_blocks(out, call_starts, answer, block)
            if on_progress is not None:
                on_progress(min(per_call * block, n - answered))
            answered += per_call * block
    return out


def block_rows(n: int, *, budget_bytes: int) -> int:
    """Queries per block, so that their scores against n rows keep to the budget.

    Raises:
        InputError: not even 8 queries fit.
    """
    fitting = budget_bytes // (BYTES_PER_SCORE * n)
    if fitting < min(8, n):
        raise InputError(
            f"budget_bytes: {n} rows need at least {min(8, n) * BYTES_PER_SCORE * n} bytes for "
            f"their scores, found {budget_bytes}; raise it."
        )
    return min(n, MAX_BLOCK_ROWS, fitting // 8 * 8 if fitting >= 8 else fitting)


@functools.partial(jax.jit, static_argnames=("k", "block", "mesh"))
def _find_neighbors(
    embeddings: Float[Array, "N D"],
    group_id: Int[Array, " N"],
    starts: Int[Array, " blocks"],
    *,
    k: int,
    block: int,
    mesh: Mesh,
) -> tuple[Int[Array, "blocks block K"], Float[Array, "blocks block K"]]:
    """Blocks of queries at ``starts``, split over the mesh."""

    def on_device(x: Array, group: Array, starts: Array) -> tuple[Array, Array]:
        # Scaling products instead of rows saves a second copy of the embeddings, and leaves rows
        # whose products are exact in float32 (counts, one-hot) with exact ties.
        norm2 = jnp.sum(x * x, axis=1)
        inverse_norm = jnp.where(norm2 > 0, lax.rsqrt(norm2), 0.0)  # 0: a row of padding

        def search(start: Array) -> tuple[Array, Array]:
            rows = [lax.dynamic_slice_in_dim(a, start, block) for a in (x, group, inverse_norm)]
            queries, query_group, query_inverse_norm = rows
            product = lax.dot_general(
                queries,
                x,
                (((1,), (1,)), ((), ())),
                precision=lax.Precision.HIGHEST,
                preferred_element_type=jnp.float32,
            )
            cosine = product * query_inverse_norm[:, None] * inverse_norm[None, :]
            # top_k takes the lower index among equals. cosine - 1 is 0.0 at most, never -0.0
            # (which top_k would rank below 0.0).
            closeness = jnp.minimum(cosine - 1.0, 0.0)
            excluded = (query_group[:, None] == group[None, :]) | (group == PADDING_GROUP)[None, :]
            closeness, indices = lax.top_k(jnp.where(excluded, -jnp.inf, closeness), k)
            return jnp.where(closeness == -jnp.inf, -1, indices), -closeness

        return lax.map(search, starts)

    return jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(sharding.REPLICATED, sharding.REPLICATED, sharding.ROWS),
        out_specs=(sharding.ROWS, sharding.ROWS),
    )(embeddings, group_id, starts)


def _copy_blocks(
    out: Neighbors, starts: np.ndarray, answer: tuple[Array, Array], block: int
) -> None:
    """Copy one call's blocks [blocks, block, k'] to their rows of the answer on the host."""
    for target, blocks in zip(out, answer, strict=True):
        for start, values in zip(starts, np.asarray(blocks), strict=True):
            target[start : start + block, : values.shape[1]] = values
