"""What extraction may do to tiles before an encoder sees them: the interface of stain methods."""

import enum
from collections.abc import Callable
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from pathorob_jax.core.typing import Int
from pathorob_jax.data.manifest import CENTER, Manifest
from pathorob_jax.data.tileset import Tileset

# In the settings of a store: what was done to its tiles.
STAIN = "stain"


class Outcome(enum.IntEnum):
    """What became of a tile."""

    BLANK = 0
    """Left as it is: too little tissue."""
    PLAIN = 1
    """Left as it is: it, or its slide or centre, shows one stain or colour alone."""
    NORMALIZED = 2
    BY_SLIDE = 3
    """Too little tissue for numbers of its own; normalised by those of its slide."""


LEFT = (Outcome.BLANK, Outcome.PLAIN)

Normalize = Callable[[np.ndarray, np.ndarray, Mesh], tuple[jax.Array, jax.Array]]
"""Tiles uint8[B, H, W, 3], their rows int64[B] (``NO_ROW`` for padding) and a mesh of which B is a
multiple -> the tiles anew, and uint8[B] the ``Outcome`` of each, both split over the mesh. A tile's
bytes depend on the tile and its row alone."""


class TileTransform(Protocol):
    """A fitted method for images, such as ``robustify.stain.StainRobustifier``."""

    @property
    def method(self) -> str:
        """Its name, which becomes part of the store's folder."""

    def describe(self) -> dict[str, Any]:
        """What it is: ``method``, ``target``, ``scope``, and ``sha256`` over all of it."""

    def bind(self, rows: Manifest) -> Normalize:
        """A function for the tiles of a manifest; InputError if it does not know all of them."""

    def write_examples(
        self, folder: str, tileset: Tileset, counts: dict[str, dict[str, int]]
    ) -> None:
        """Write tiles of every centre before and after into a folder, with ``count_outcomes``."""


def count_outcomes(outcomes: Int[np.ndarray, " N"], rows: Manifest) -> dict[str, dict[str, int]]:
    """Tiles of each centre by what became of them.

    Args:
        outcomes: int[N] ``Outcome`` of each tile; -1 where there is none.
        rows: of the N tiles.
    """
    centers = rows.factorize(CENTER)
    return {
        name: {
            outcome.name.lower(): int((outcomes[centers.ids == i] == outcome).sum())
            for outcome in Outcome
        }
        for i, name in enumerate(centers.names)
    }


def count_left(counts: dict[str, dict[str, int]]) -> int:
    """How many tiles were left as they are."""
    return sum(by_outcome[left.name.lower()] for by_outcome in counts.values() for left in LEFT)
