"""The device mesh, the shardings of arrays, and the JAX settings to compute with.

The mesh has one axis. Arrays are either split along their first axis or replicated. Parameters of
networks are sharded separately (``models.parameter_sharding``).
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding
from numpy.typing import DTypeLike

DATA_AXIS = "data"
ROWS = PartitionSpec(DATA_AXIS)
REPLICATED = PartitionSpec()


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A one-axis mesh over ``devices`` (None: all devices)."""
    devices = list(jax.devices() if devices is None else devices)
    return jax.make_mesh((len(devices),), (DATA_AXIS,), (AxisType.Auto,), devices=devices)


def local_mesh(mesh: Mesh | None = None) -> Mesh:
    """The devices of a mesh (None: all devices) that belong to this process."""
    devices = jax.local_devices() if mesh is None else list(mesh.local_devices)
    return make_mesh(devices)


def row_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding that splits the first axis over the mesh."""
    return NamedSharding(mesh, ROWS)


def to_device(
    values: Any, sharding: Sharding | None = None, *, dtype: DTypeLike = np.float32
) -> jax.Array:
    """Put values on the device as float32 or another dtype, with a single copy.

    ``jnp.asarray`` would copy a NumPy array twice, and compile a program for each shape. On CPU,
    arrays from ``core.aligned`` are not copied at all.

    Raises:
        ValueError: a dtype of 64 bits without ``jax.enable_x64``.
    """
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValueError(f"{np.dtype(dtype)} needs jax.enable_x64")
    if not isinstance(values, jax.Array):
        values = np.asarray(values, dtype)
    placed = jax.device_put(values, sharding)
    return placed if placed.dtype == dtype and not placed.weak_type else placed.astype(dtype)


def replicated_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding that keeps the whole array on every device."""
    return NamedSharding(mesh, REPLICATED)


@contextlib.contextmanager
def default_modes() -> Iterator[None]:
    """Context with JAX's default settings, whatever the calling program has set.

    A training program may have changed them: 64-bit values would change the last bits of results;
    programs over one mesh refuse another mesh in context; and strict promotion, transfer guards and
    NaN checks would stop computations that are correct here (undefined values are NaN). JAX
    settings are per thread, so every thread that computes must enter this context.
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
