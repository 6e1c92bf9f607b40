"""Position embeddings on another grid, by the rules of the encoders' authors.

A ``Resampler`` maps the embeddings of one square grid of patches to another. The rules of different
authors differ by more than 1e-4, so each encoder has the rule that it was used with. The rule is
applied once, at conversion, in float64, like PyTorch's ``interpolate`` (align_corners=False).
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class Resampler:
    """A resampling rule.

    Attributes:
        mode: interpolation mode of PyTorch.
        antialias: whether the filter is wider if the grid shrinks.
        offset: added to the new side before the scale is formed (DINO's guard against rounding,
            which moves every sample point); 0: the scale is that of the sides.
    """

    mode: Literal["bicubic", "bilinear"]
    antialias: bool
    offset: float = 0.0

    def __call__(self, grid: np.ndarray, side: int) -> np.ndarray:
        """float32[S, S, D] -> float32[side, side, D]."""
        weights = self.weights(grid.shape[0], side)
        by_rows = np.tensordot(weights, grid.astype(np.float64), (1, 0))
        both = np.tensordot(weights, by_rows, (1, 1)).transpose(1, 0, 2)
        return both.astype(np.float32)

    def weights(self, size_in: int, size_out: int) -> np.ndarray:
        """float64[out, in]: weight of each old row in each new row."""
        scale = size_in / (size_out + self.offset)
        rows = np.zeros((size_out, size_in))
        for i in range(size_out):
            if self.antialias:
                _add_antialiased(rows[i], i, scale, self.mode)
            else:
                _add_plain(rows[i], i, scale, self.mode)
        return rows


def _add_plain(row: np.ndarray, i: int, scale: float, mode: str) -> None:
    """Add the weights of the taps next to the sample point; outer taps count for the border."""
    at = (i + 0.5) * scale - 0.5
    taps = range(2) if mode == "bilinear" else range(-1, 3)
    if mode == "bilinear":
        at = max(at, 0.0)
    low = math.floor(at)
    for tap in taps:
        x = abs(at - (low + tap))
        weight = 1 - x if mode == "bilinear" else _cubic(x, -0.75)
        row[min(max(low + tap, 0), len(row) - 1)] += weight


def _add_antialiased(row: np.ndarray, i: int, scale: float, mode: str) -> None:
    """Add the weights of a filter as wide as the step, clipped at the border, with sum 1."""
    widen = max(scale, 1.0)
    reach = (1.0 if mode == "bilinear" else 2.0) * widen
    centre = (i + 0.5) * scale
    first, stop = max(int(centre - reach + 0.5), 0), min(int(centre + reach + 0.5), len(row))
    for j in range(first, stop):
        x = abs((j + 0.5 - centre) / widen)
        row[j] = max(1 - x, 0.0) if mode == "bilinear" else _cubic(x, -0.5)
    row /= row.sum()


def _cubic(x: float, a: float) -> float:
    if x <= 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a if x < 2 else 0.0


RESAMPLERS: dict[str, Resampler] = {
    "timm": Resampler("bicubic", antialias=True),
    "dino": Resampler("bicubic", antialias=False, offset=0.1),
    "dinov2_reg": Resampler("bicubic", antialias=True),
    "hf": Resampler("bicubic", antialias=False),
    "conch": Resampler("bilinear", antialias=False),
}
