"""What extraction may do to tiles before an encoder sees them: the interface of stain methods."""

from collections.abc import Callable
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from pathorob_jax.data.manifest import Manifest

# In the settings of a store: what was done to its tiles.
STAIN = "stain"

Normalize = Callable[[np.ndarray, np.ndarray, Mesh], tuple[jax.Array, jax.Array]]
"""Tiles uint8[B, H, W, 3], their rows int64[B] (``NO_ROW`` for padding) and a mesh of which B is a
multiple -> the tiles anew, and bool[B] which have changed, both split over the mesh. A tile's bytes
depend on the tile and its row alone."""


class TileTransform(Protocol):
    """A fitted method for images, such as ``robustify.stain.StainRobustifier``."""

    @property
    def method(self) -> str:
        """Its name, which becomes part of the store's folder."""

    def describe(self) -> dict[str, Any]:
        """What it is: ``method``, ``target``, ``scope``, and ``sha256`` over all of it."""

    def bind(self, rows: Manifest) -> Normalize:
        """A function for the tiles of a manifest; InputError if it does not know all of them."""
