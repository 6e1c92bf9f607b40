"""What a fitted method does to embeddings: an affine map for each centre.

    x' = x * scale[m] + shift[c, m] - ((x - origin) right) left

With M centres and C classes; a method uses only some of the terms. ``matrix[m]`` takes the place of
``scale[m]`` where whole covariances are aligned. Computed in float64, returned as float32.
"""

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh

from pathorob_jax.core import checks, devices
from pathorob_jax.core.checks import InputError
from pathorob_jax.core.typing import Array, Float, Int

# float32 rows of a block on one device. The shape does not depend on the number of devices, so that
# products round alike on any of them.
BLOCK_BYTES = 2**24


@dataclass(frozen=True, eq=False)
class CenterMaps:
    """The map of every centre. A term that is None is left out.

    Attributes:
        shift: float64[C, M, D]; C = 1 where the map needs no class.
        scale: float64[M, D].
        matrix: float64[M, D, D], in place of ``scale``.
        origin: float64[D]; with ``right`` and ``left``.
        right: float64[D, R] coordinates that are read.
        left: float64[R, D] directions that are taken out.
    """

    shift: Float[np.ndarray, "C M D"] | None = None
    scale: Float[np.ndarray, "M D"] | None = None
    matrix: Float[np.ndarray, "M D D"] | None = None
    origin: Float[np.ndarray, " D"] | None = None
    right: Float[np.ndarray, "D R"] | None = None
    left: Float[np.ndarray, "R D"] | None = None

    def as_arrays(self) -> dict[str, np.ndarray]:
        """The terms that are there, by name."""
        terms = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {name: value for name, value in terms.items() if value is not None}

    @property
    def is_identity(self) -> bool:
        """Whether the map changes nothing."""
        return not self.as_arrays()

    @property
    def needs_class(self) -> bool:
        """Whether the map of a row depends on its class."""
        return self.shift is not None and self.shift.shape[0] > 1

    @property
    def needs_center(self) -> bool:
        """Whether the map of a row depends on its centre."""
        return any(term is not None for term in (self.shift, self.scale, self.matrix))


def apply_maps(
    maps: CenterMaps,
    x: Float[np.ndarray, "N D"],
    center_id: Int[np.ndarray, " N"],
    class_id: Int[np.ndarray, " N"] | None = None,
    *,
    mesh: Mesh | None = None,
    block_bytes: int = BLOCK_BYTES,
) -> Float[np.ndarray, "N D"]:
    """Map every row by the map of its centre; centre -1 leaves a row as it is.

    Args:
        maps: fitted maps.
        x: float32[N, D].
        center_id: int[N] in [-1, M).
        class_id: int[N] in [0, C), needed where ``maps.needs_class``.
        mesh: devices that share the rows; None: the first device.
        block_bytes: memory for the float32 rows of a block, on each device.

    Returns:
        float32[N, D]; ``x`` itself, unchanged, where the map is the identity.

    Raises:
        InputError: the maps are of another dimension, or need a class and there is none.
    """
    if maps.is_identity:
        return x
    terms = maps.as_arrays()
    for name, axis in (("shift", 2), ("scale", 1), ("matrix", 1), ("origin", 0)):
        if name in terms:
            dim = terms[name].shape[axis]
            checks.check_shape(x.shape, (None, dim), name="x", why="as the robustifier was fitted")
    if maps.needs_class and class_id is None:
        raise InputError(
            "class_id: this robustifier was fitted with the class as a covariate and changes "
            "scales, so that its map depends on the class of a row; give the classes, or fit it "
            "without covariates or with class_adjusted_means."
        )
    mesh = mesh or devices.make_mesh(jax.local_devices()[:1])
    n, dim = x.shape
    size = max(1, min(block_bytes // (4 * dim), n)) * mesh.size
    out = np.empty((n, dim), np.float32)
    classes = np.zeros(n, np.int32) if class_id is None else np.asarray(class_id, np.int32)
    split, whole = devices.row_sharding(mesh), devices.replicated_sharding(mesh)
    with jax.enable_x64(True):
        on_device = jax.device_put({k: np.asarray(v, np.float64) for k, v in terms.items()}, whole)
        for start in range(0, n, size):
            rows = slice(start, start + size)
            n_rows = len(x[rows])
            pad = size - n_rows
            block = jax.device_put(
                (
                    np.pad(np.asarray(x[rows], np.float32), ((0, pad), (0, 0))),
                    np.pad(np.asarray(center_id[rows], np.int32), (0, pad)),
                    np.pad(classes[rows], (0, pad)),
                ),
                split,
            )
            out[rows] = np.asarray(_map_block(on_device, *block))[:n_rows]
    return out


@jax.jit
def _map_block(
    terms: dict[str, Array], x: Array, center: Array, class_id: Array
) -> Float[Array, "B D"]:
    wide = x.astype(jnp.float64)
    known = jnp.maximum(center, 0)
    y = wide
    if "scale" in terms:
        y = y * terms["scale"][known]
    if "matrix" in terms:
        y = _by_center(terms["matrix"], wide, known)
    if "shift" in terms:
        shift = terms["shift"]
        y = y + (shift[0, known] if shift.shape[0] == 1 else shift[class_id, known])
    if "right" in terms:
        coordinates = _dot(wide - terms["origin"][None, :], terms["right"])
        y = y - _dot(coordinates, terms["left"])
    # A projection is the same for all centres; other terms leave an unknown centre alone.
    changed = jnp.where((center < 0)[:, None], wide, y) if "right" not in terms else y
    return changed.astype(jnp.float32)


def _by_center(matrix: Array, x: Array, center: Array) -> Array:
    """x[i] @ matrix[center[i]], with one product per centre and no copy of a matrix per row."""

    def add(total: Array, m: Array) -> tuple[Array, None]:
        mine = jnp.where((center == m)[:, None], x, 0)
        return total + _dot(mine, matrix[m]), None

    return lax.scan(add, jnp.zeros_like(x), jnp.arange(matrix.shape[0]))[0]


def _dot(a: Array, b: Array) -> Array:
    return lax.dot(a, b, precision=lax.Precision.HIGHEST)
