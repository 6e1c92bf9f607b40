"""One mesh, one axis: how arrays are laid over devices.

Enters: devices. Leaves: a mesh and the shardings that everything uses: split along the first axis,
replicated, or (parameters of networks that one device cannot hold) split where it fits.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

DATA_AXIS = "data"
ROWS = PartitionSpec(DATA_AXIS)
REPLICATED = PartitionSpec()
# Parameters may fill this part of a device; the rest is for tiles and activations.
PARAMETER_SHARE = 0.4
ALIGNMENT = 64
_SPLIT_OVER: ContextVar[Mesh | None] = ContextVar("split_over", default=None)

ShardingOf = Callable[[tuple[int, ...]], Sharding]
"""Shape of a parameter -> its sharding."""


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A one-axis mesh over ``devices`` (None: all of them)."""
    devices = list(jax.devices() if devices is None else devices)
    return jax.make_mesh((len(devices),), (DATA_AXIS,), (AxisType.Auto,), devices=devices)


def row_sharding(mesh: Mesh) -> NamedSharding:
    """First axis split over the mesh."""
    return NamedSharding(mesh, ROWS)


def to_device(values: Any, sharding: Sharding | None = None) -> jax.Array:
    """float32 values on the device, in one copy: ``jnp.asarray`` takes two of what numpy holds.

    None on CPU, where rows of ``empty_aligned`` are used as they are.
    """
    if not isinstance(values, jax.Array):
        values = np.asarray(values, np.float32)
    return jax.device_put(values, sharding).astype(np.float32)


def empty_aligned(shape: tuple[int, ...]) -> np.ndarray:
    """float32 of that shape on the host, not filled, which CPU devices take without a copy.

    XLA shares memory with NumPy from addresses that are multiples of 64; those that NumPy and
    TensorStore give for large arrays are not. An array that is on a device must not be changed.
    """
    n_bytes = math.prod(shape) * np.dtype(np.float32).itemsize
    raw = np.empty(n_bytes + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + n_bytes].view(np.float32).reshape(shape)


def replicated_sharding(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, REPLICATED)


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
