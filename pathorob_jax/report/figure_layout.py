"""Layout arithmetic of the figures: which points to draw, where labels go, what is stacked.

All functions map numbers to numbers; none of them draws.
"""

import math
import unicodedata
from collections.abc import Sequence

import numpy as np

from pathorob_jax.models.names import is_control
from pathorob_jax.report.palette import NEIGHBOR_TYPES
from pathorob_jax.results.robustness_index import Curve

# Controls, halves of pairs, private and unassigned characters, separators of lines.
_UNDRAWABLE = ("Cc", "Cs", "Co", "Cn", "Zl", "Zp")
_NICE_K = (1, 3, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)


def thin_points(k: Sequence[int], *, keep: int, max_points: int = 60) -> np.ndarray:
    """Positions in ``k`` that a figure draws: all, or evenly spaced on a log axis.

    Args:
        k: values, ascending.
        keep: a value of ``k`` that is always drawn.
        max_points: approximate number of points to draw.

    Returns:
        int64[n], ascending; always includes the first and the last point.
    """
    if len(k) <= max_points:
        return np.arange(len(k))
    values = np.asarray(k)
    targets = np.geomspace(max(values[0], 1), values[-1], max_points)
    nearest = np.abs(values[None, :] - targets[:, None]).argmin(axis=1)
    return np.unique(np.r_[0, nearest, np.flatnonzero(values == keep), len(values) - 1])


def stack_composition(curve: Curve, *, keep: int) -> tuple[np.ndarray, np.ndarray]:
    """Values that the composition figure stacks, in the order of ``NEIGHBOR_TYPES``.

    Args:
        curve: curve of one model on one dataset.
        keep: the operating k, which is always drawn.

    Returns:
        float64[n] of k and float64[4, n] of fractions; each column sums to 1. Values of k with an
        undefined fraction are left out. A single value of k is widened to two, so that it has an
        area.
    """
    fractions = np.array([getattr(curve, kind.key) for kind in NEIGHBOR_TYPES], np.float64)
    k = np.asarray(curve.k, np.float64)
    defined = np.isfinite(fractions).all(axis=0)
    k, fractions = k[defined], fractions[:, defined]
    index = thin_points(k.astype(int).tolist(), keep=keep)
    k, fractions = k[index], fractions[:, index]
    if k.size == 1:
        return np.r_[k / 1.5, k * 1.5], np.repeat(fractions, 2, axis=1)
    return k, fractions


def spread_labels(
    positions: Sequence[float], *, gap: float, low: float, high: float
) -> list[float]:
    """Move labels as little as possible (least squares) so that they do not overlap.

    Args:
        positions: preferred position of each label, in any order.
        gap: smallest distance between two labels; reduced if the labels would not fit.
        low: lowest position allowed.
        high: highest position allowed.
    """
    n = len(positions)
    if n > 1:
        gap = min(gap, (high - low) / (n - 1))
    order = np.argsort(positions, kind="stable")
    blocks: list[tuple[float, int]] = []
    for rank, i in enumerate(order):
        blocks.append((positions[i] - rank * gap, 1))
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
            (a, n_a), (b, n_b) = blocks[-2:]
            blocks[-2:] = [((a * n_a + b * n_b) / (n_a + n_b), n_a + n_b)]
    flat = [value for value, count in blocks for _ in range(count)]
    top = high - max(n - 1, 0) * gap
    placed = [0.0] * n
    for rank, i in enumerate(order):
        placed[i] = min(max(flat[rank], low), top) + rank * gap
    return placed


def k_limits(k: Sequence[float]) -> tuple[float, float]:
    """Ends of a log axis that shows every value of ``k``, never empty."""
    low, high = (min(k), max(k)) if k else (1, 10)
    return (low / 1.5, high * 1.5) if low == high else (low / 1.04, high * 1.04)


def k_ticks(limits: tuple[float, float], *, max_ticks: int = 10) -> list[int]:
    """Round values of k within ``limits``; the geometric middle if there are none."""
    ticks = [k for k in _NICE_K if limits[0] <= k <= limits[1]]
    if not ticks:
        return [max(round(math.sqrt(limits[0] * limits[1])), 1)]
    return ticks[:: math.ceil(len(ticks) / max_ticks)]


def name_model(model: str, *, length: int = 20) -> str:
    """Name of a model in a picture; a control is called one."""
    name = shorten(model, length=length)
    return f"{name} (control)" if is_control(model) else name


def shorten(name: str, *, length: int = 26) -> str:
    """Replace the middle of a long name by an ellipsis; tables show the whole name.

    Characters that no picture can hold (controls, line ends) become a replacement character.
    """
    drawable = "".join(
        "\N{REPLACEMENT CHARACTER}" if unicodedata.category(c) in _UNDRAWABLE else c for c in name
    )
    if width(drawable) <= length:
        return drawable
    left, right = 0, len(drawable)  # the kept ends grow in turn, the first one first
    while True:
        grow_left = left <= len(drawable) - right
        kept = drawable[: left + grow_left] + drawable[right - (not grow_left) :]
        if width(kept) > length - 1:
            return f"{drawable[:left]}…{drawable[right:]}"
        left, right = left + grow_left, right - (not grow_left)


def width(text: str) -> int:
    """Columns that a text takes: two for each wide character, as of Chinese, one for others."""
    return sum(1 + (unicodedata.east_asian_width(c) in "WF") for c in text)
