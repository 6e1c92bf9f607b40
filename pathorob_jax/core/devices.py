"""One mesh, one axis: how arrays are laid over devices.

Enters: devices. Leaves: a mesh and the shardings that everything uses: split along the first axis,
replicated, or (parameters of networks that one device cannot hold) split where it fits.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding
from numpy.typing import DTypeLike

DATA_AXIS = "data"
ROWS = PartitionSpec(DATA_AXIS)
REPLICATED = PartitionSpec()
ALIGNMENT = 64


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


def empty_aligned(shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> np.ndarray:
    """An array on the host, not filled, which CPU devices take over without a copy.

    XLA shares memory with NumPy from addresses that are multiples of 64; those that NumPy and
    TensorStore give for large arrays are not. An array that is on a device must not be changed.
    """
    kind = np.dtype(dtype)
    n_bytes = math.prod(shape) * kind.itemsize
    raw = np.empty(n_bytes + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + n_bytes].view(kind).reshape(shape)


def replicated_sharding(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, REPLICATED)


@contextlib.contextmanager
def default_modes() -> Iterator[None]:
    """JAX's defaults: a training program may have set others for its own code.

    64-bit values would move last bits, a mesh in context is refused by programs over another one,
    strict promotion, transfer guards and NaN checks stop what is meant here (undefined is NaN).
    """
    with (
        jax.set_mesh(None),
        jax.default_matmul_precision(None),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        jax.enable_x64(False),
        jax.debug_nans(False),
        jax.debug_infs(False),
        jax.transfer_guard("allow"),
    ):
        yield
