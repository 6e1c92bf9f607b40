"""Arrays on the host that CPU devices share."""

import math

import numpy as np
from numpy.typing import DTypeLike

ALIGNMENT = 64


def empty_aligned(shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> np.ndarray:
    """An uninitialised array on the host that CPU devices can use without a copy.

    XLA shares memory with NumPy if the address is a multiple of 64. NumPy and TensorStore do not
    align large arrays that way. Do not change the array once it is on a device.
    """
    kind = np.dtype(dtype)
    n_bytes = math.prod(shape) * kind.itemsize
    raw = np.empty(n_bytes + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + n_bytes].view(kind).reshape(shape)


def is_aligned(array: np.ndarray) -> bool:
    """Whether CPU devices can use an array without a copy."""
    return bool(array.flags.c_contiguous and array.ctypes.data % ALIGNMENT == 0)
