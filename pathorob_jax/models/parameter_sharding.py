"""How the parameters of a network are laid over devices, and gathered while a layer is computed.

Parameters are replicated on all devices or, where one device cannot hold them, split.
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

# Parameters may fill this part of a device; the rest is for tiles and activations.
PARAMETER_SHARE = 0.4
_SPLIT_OVER: ContextVar[Mesh | None] = ContextVar("split_over", default=None)

ShardingOf = Callable[[tuple[int, ...]], Sharding]
"""Shape of a parameter -> its sharding."""


def parameter_sharding(mesh: Mesh, *, split: bool) -> ShardingOf:
    """Shardings of a network's parameters by shape.

    Replicated; or, with ``split``, stacks of matrices [layers, in, out] split along the longer of
    their last two axes that the mesh divides. Layers are never split: a scan takes one at a time,
    and it is gathered then (``gathered``).
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
    """Within it ``gathered`` gathers, if any of these parameters is split over devices."""
    leaves = jax.tree.leaves(params)
    split = [x.sharding for x in leaves if not x.sharding.is_fully_replicated]
    token = _SPLIT_OVER.set(split[0].mesh if split else None)
    try:
        yield
    finally:
        _SPLIT_OVER.reset(token)


def gathered(params: Any) -> Any:
    """A layer's parameters, whole on each device while it is computed (see ``gathering``).

    Said explicitly because XLA, left alone, splits the activations instead, and sends them around.
    """
    mesh = _SPLIT_OVER.get()
    if mesh is None:
        return params
    return lax.with_sharding_constraint(params, replicated_sharding(mesh))


def parameters_fit(n_bytes: int, mesh: Mesh) -> bool:
    """Whether parameters of that size may be held whole by each device of a mesh.

    True where a device does not tell its memory (CPU).
    """
    limits = [(d.memory_stats() or {}).get("bytes_limit", math.inf) for d in mesh.devices.flat]
    return n_bytes <= PARAMETER_SHARE * float(np.min(limits))
