"""Sharding of the parameters of a network, and gathering them while a layer is computed.

Parameters are replicated on all devices or, if one device cannot hold them, split.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from pathorob_jax.core.devices import DATA_AXIS, replicated_sharding

# Share of device memory that parameters may use; the rest is for tiles and activations.
PARAMETER_SHARE = 0.4
_SPLIT_OVER: ContextVar[Mesh | None] = ContextVar("split_over", default=None)

ShardingOf = Callable[[tuple[int, ...]], Sharding]
"""Shape of a parameter -> its sharding."""


def parameter_sharding(mesh: Mesh, *, split: bool) -> ShardingOf:
    """Shardings of the parameters of a network, by shape.

    Parameters are replicated. With ``split``, stacks of matrices [layers, in, out] are split along
    the longer of their last two axes that the mesh divides. Layers are never split: a scan takes
    one layer at a time, which is then gathered (``gathered``).
    """
    whole = replicated_sharding(mesh)

    def sharding_of(shape: tuple[int, ...]) -> NamedSharding:
        fitting = [axis for axis in (1, 2) if len(shape) == 3 and shape[axis] % mesh.size == 0]
        if not (split and fitting):
            return whole
        chosen = max(fitting, key=lambda axis: shape[axis])
        return NamedSharding(
            mesh, PartitionSpec(*(DATA_AXIS if a == chosen else None for a in range(3)))
        )

    return sharding_of


@contextlib.contextmanager
def gathering(params: Any) -> Iterator[None]:
    """Context in which ``gathered`` gathers, if any of these parameters is split over devices."""
    leaves = jax.tree.leaves(params)
    split = [x.sharding for x in leaves if not x.sharding.is_fully_replicated]
    token = _SPLIT_OVER.set(split[0].mesh if split else None)
    try:
        yield
    finally:
        _SPLIT_OVER.reset(token)


def gathered(params: Any) -> Any:
    """Parameters of a layer, replicated while the layer is computed (see ``gathering``).

    The constraint is explicit because XLA would otherwise split the activations and exchange those.
    """
    mesh = _SPLIT_OVER.get()
    if mesh is None:
        return params
    return lax.with_sharding_constraint(params, replicated_sharding(mesh))


def parameters_fit(n_bytes: int, mesh: Mesh) -> bool:
    """Whether each device of a mesh can hold all parameters of that size.

    True if a device does not report its memory (CPU).
    """
    limits = [(d.memory_stats() or {}).get("bytes_limit", math.inf) for d in mesh.devices.flat]
    return n_bytes <= PARAMETER_SHARE * float(np.min(limits))
