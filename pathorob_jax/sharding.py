"""One mesh, one axis: how arrays are laid over devices.

Enters: devices. Leaves: a mesh and the two shardings that everything uses: split along the first
axis, or replicated.
"""

from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA_AXIS = "data"
ROWS = PartitionSpec(DATA_AXIS)
REPLICATED = PartitionSpec()


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A one-axis mesh over ``devices`` (None: all of them)."""
    devices = list(jax.devices() if devices is None else devices)
    return jax.make_mesh((len(devices),), (DATA_AXIS,), (AxisType.Auto,), devices=devices)


def row_sharding(mesh: Mesh) -> NamedSharding:
    """First axis split over the mesh."""
    return NamedSharding(mesh, ROWS)


def replicated_sharding(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, REPLICATED)
