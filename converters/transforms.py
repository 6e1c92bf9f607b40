"""Named pure functions from PyTorch's layout of tensors to ours.

Each takes a tensor of the file and the slot that it will fill, and returns an array of the shape of
the slot. The functions do not depend on keys; rule tables refer to them by name.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from pathorob_jax.models.positions import make_periods

from .resampling import RESAMPLERS


class Slot(NamedTuple):
    """What a transform can use about the place that its result fills.

    Attributes:
        shape: shape of the slot.
        config: configuration of the network.
        resample: the authors' rule for position embeddings of another grid; None: another grid is
            an error.
    """

    shape: tuple[int, ...]
    config: Any = None
    resample: str | None = None


Transform = Callable[[np.ndarray, Slot], np.ndarray]


def same(x: np.ndarray, slot: Slot) -> np.ndarray:
    """The tensor without changes."""
    return x


def squeeze(x: np.ndarray, slot: Slot) -> np.ndarray:
    """Drop leading axes of length 1, down to the number of axes of the slot."""
    while x.ndim > len(slot.shape) and x.shape[0] == 1:
        x = x[0]
    return x


def transpose(x: np.ndarray, slot: Slot) -> np.ndarray:
    """Weight [out, in] of a linear layer -> kernel [in, out]."""
    _check_ndim(x, 2)
    return x.T


def conv(x: np.ndarray, slot: Slot) -> np.ndarray:
    """Weight [out, in, row, column] of a convolution -> kernel [row, column, in, out]."""
    _check_ndim(x, 4)
    return x.transpose(2, 3, 1, 0)


def patch_kernel(x: np.ndarray, slot: Slot) -> np.ndarray:
    """Weight [out, channel, row, column] of a patch embedding -> kernel [patch values, out].

    The values of our patches are ordered by row, column, channel.
    """
    _check_ndim(x, 4)
    return x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0])


def without_two_rows(x: np.ndarray, slot: Slot) -> np.ndarray:
    """Position embedding as in Fairseq, whose first two rows are reserved and never used."""
    return x[2:]


def first_row(x: np.ndarray, slot: Slot) -> np.ndarray:
    """The first of several learned queries."""
    _check_ndim(x, 2)
    return x[0]


def register_first(x: np.ndarray, slot: Slot) -> np.ndarray:
    """Position embedding with the register's row before the class token's -> after it."""
    rows = _rows(x)
    return np.concatenate([rows[1:2], rows[:1], rows[2:]])


def pos_embed(x: np.ndarray, slot: Slot) -> np.ndarray:
    """Position embedding [1, rows, D] or [rows, D] -> [rows, D] of the network's grid.

    Rows of class token and registers come first and are kept. A grid of another side is resampled
    by the rule of the slot.
    """
    x = _rows(x)
    n_prefix = slot.config.n_pos_prefix
    grid = _resample(x[n_prefix:], slot.shape[0] - n_prefix, slot.resample)
    return x if grid is None else np.concatenate([x[:n_prefix].astype(np.float32), grid])


def pos_embed_of_patches(x: np.ndarray, slot: Slot) -> np.ndarray:
    """Position embedding of the patches alone -> rows of zeros for the other tokens before it.

    For files in which those tokens include their positions already.
    """
    x = _rows(x)
    n_prefix = slot.config.n_pos_prefix
    grid = _resample(x, slot.shape[0] - n_prefix, slot.resample)
    zeros = np.zeros((n_prefix, x.shape[1]), np.float32)
    return np.concatenate([zeros, x if grid is None else grid])


def _rows(x: np.ndarray) -> np.ndarray:
    """[1, rows, D] or [rows, D] -> [rows, D]."""
    if x.ndim == 3 and len(x) == 1:
        return np.asarray(x[0])
    _check_ndim(x, 2)
    return x


def _resample(rows: np.ndarray, n_rows: int, rule: str | None) -> np.ndarray | None:
    """Rows of a square grid on another one; None where it is the same."""
    if len(rows) == n_rows:
        return None
    old, new = math.isqrt(len(rows)), math.isqrt(n_rows)
    if old * old != len(rows):
        raise ValueError(f"{len(rows)} rows of patches are no square grid")
    if rule is None:
        raise ValueError(f"its grid is {old} x {old}, and the encoder names no rule to resample it")
    return RESAMPLERS[rule](rows.reshape(old, old, -1), new).reshape(n_rows, -1)


def mask_key_bias(x: np.ndarray, slot: Slot) -> np.ndarray:
    """Joint bias [3 D] of queries, keys and values with the third for keys set to zero."""
    _check_ndim(x, 1)
    out = np.array(x)
    third = len(out) // 3
    out[third : 2 * third] = 0
    return out


def _check_ndim(x: np.ndarray, ndim: int) -> None:
    if x.ndim != ndim:
        raise ValueError(f"expected {ndim} axes, found {x.ndim}")


TRANSFORMS: dict[str, Transform] = {
    function.__name__: function
    for function in (
        same,
        squeeze,
        transpose,
        conv,
        patch_kernel,
        pos_embed,
        pos_embed_of_patches,
        mask_key_bias,
        without_two_rows,
        first_row,
        register_first,
    )
}

# Values that are in no file, by name, computed from the slot.
FILLS: dict[str, Callable[[Slot], np.ndarray]] = {
    "rope_periods": lambda slot: make_periods(slot.config.head_dim, slot.config.rope_theta),
}
