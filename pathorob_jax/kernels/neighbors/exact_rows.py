"""Rows in float64, and distances of pairs of rows at two precisions above float32's.

The input is rows in float32 and pairs of them. ``Rows.distances`` returns the cosine distance in
float64: 1 - cos, and |u - v|^2 / 2 of unit rows where it is small, which keeps its digits there.
``distance_error`` bounds its error. ``Rows.cosines`` returns cosines in double-double arithmetic
(two float64, about 32 digits), for pairs that float64 cannot tell apart.

Products of two float32 numbers are exact in float64, so the only errors of a double-double cosine
are those of the sums, the root and the quotient, about 2^-101 together.
"""

import hashlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, lru_cache
from typing import Any

import jax
import numpy as np

from pathorob_jax.core import aligned, checks
from pathorob_jax.core.checks import InputError
from pathorob_jax.core.devices import to_device
from pathorob_jax.core.hosts import n_cores
from pathorob_jax.core.typing import Array, ArrayLike, Bool, Float, Int
from pathorob_jax.kernels.neighbors.device_distances import (
    CPU_CALL_PAIRS,
    LEAST_PAIRS,
    cpu_distances,
    gpu_distances,
)
from pathorob_jax.kernels.neighbors.distinct_pairs import find_distinct
from pathorob_jax.kernels.neighbors.row_source import RowSource

UNIT64 = 2.0**-53
# Cosines that differ by less are equal. Rows of floats with 24 bits cannot lie that near each other
# without being equal, unless their entries span many orders of magnitude.
TIE = 2.0**-96
# Distances below this are those of differences, which take 2.5 times as long: 1 - cos errs by 1e-13
# whatever its size.
NEAR = 2.0**-5
BLOCK_ROWS, CHUNK_PAIRS, EXACT_PAIRS = 1024, 256, 32
# Entries of a row that are compared before all of them are.
COMPARED_COLUMNS = 16

Pair = tuple[np.ndarray, np.ndarray]  # a double-double number: its value, and what float64 lost


class Rows:
    """Rows [N, D], read in slices and converted to float64 where they are needed.

    Args:
        source: float[N, D], an array, a ``RowSource``, or any object with ``shape`` and slices of
            rows.
        budget_bytes: memory for the parts of a source that is not an array.
        placed: float32[N, D] the rows of an array on a device that measures many pairs of them
            (``measures_pairs``); None: the host measures them.
    """

    def __init__(
        self, source: Any, *, budget_bytes: int = 2**28, placed: Array | None = None
    ) -> None:
        self.n, self.dim = source.shape
        self._array = source if isinstance(source, np.ndarray) else None
        self._source = source if isinstance(source, RowSource) else None
        self._placed = placed
        self._lock = threading.Lock()

        n = self.n  # not of ``self``, which would then be freed only with the garbage

        def read(start: int) -> np.ndarray:
            return _as_float32(source[start : min(start + BLOCK_ROWS, n)])

        # Scattered rows of a source are taken one by one; its blocks are read in order.
        n_kept = 2 if self._source else max(1, budget_bytes // (4 * BLOCK_ROWS * self.dim))
        self._read: Callable[[int], np.ndarray] = (
            read if self._array is not None else lru_cache(n_kept)(read)
        )

    def take(self, idx: Int[np.ndarray, " P"]) -> Float[np.ndarray, "P D"]:
        """float32[P, D] of rows in any order."""
        if self._array is not None:
            return self._array[idx].astype(np.float32, copy=False)
        if self._source is not None:
            return self._source.take(idx)
        out = np.empty((len(idx), self.dim), np.float32)
        with self._lock:
            for block in np.unique(idx // BLOCK_ROWS):
                at = np.flatnonzero(idx // BLOCK_ROWS == block)
                out[at] = self._read(int(block) * BLOCK_ROWS)[idx[at] - block * BLOCK_ROWS]
        return out

    def units(self, idx: Int[np.ndarray, " P"]) -> Float[np.ndarray, "P D"]:
        """float64[P, D] of rows at unit length; a row of zeros stays."""
        return self.take(idx) * self.inverse_norms[idx, None]

    def unit_block(self, start: int) -> Float[np.ndarray, "B D"]:
        """float64[B, D] of ``BLOCK_ROWS`` unit rows from ``start``, a multiple of it."""
        with self._lock:
            block = self._read(start)
        return block * self.inverse_norms[start : start + len(block), None]

    @cached_property
    def norms2(self) -> Float[np.ndarray, " N"]:
        """float64[N] of squared lengths."""
        norm2 = np.empty(self.n)

        def measure(start: int, block: np.ndarray) -> None:
            block = block.astype(np.float64)
            norm2[start : start + len(block)] = np.einsum("nd,nd->n", block, block)

        array = self._array
        if array is None:  # a source is read in order
            for start in range(0, self.n, BLOCK_ROWS):
                measure(start, self._read(start))
            return norm2

        def measure_part(start: int) -> None:
            measure(start, _as_float32(array[start : start + CHUNK_PAIRS]))

        # Few rows at a time, as each core holds its own in float64.
        with ThreadPoolExecutor(n_cores()) as pool:
            for _ in pool.map(measure_part, range(0, self.n, CHUNK_PAIRS)):
                pass
        return norm2

    @cached_property
    def inverse_norms(self) -> Float[np.ndarray, " N"]:
        """float64[N]; 0 for a row of zeros."""
        return np.where(self.norms2 > 0, 1 / np.sqrt(np.where(self.norms2 > 0, self.norms2, 1)), 0)

    @cached_property
    def _shared(self) -> tuple[Array, Array] | None:
        """The rows and ``inverse_norms`` as a CPU device shares them; None if it would copy."""
        x = self._array
        if x is None or x.dtype != np.float32 or not aligned.is_aligned(x):
            return None
        if jax.default_backend() != "cpu":
            return None
        with jax.enable_x64(True):
            return to_device(x), to_device(self.inverse_norms, dtype=np.float64)

    @cached_property
    def _placed_scale(self) -> Float[Array, " N"]:
        """``inverse_norms`` where the placed rows are: once, not for each call."""
        place = None if self._placed is None else self._placed.sharding
        with jax.enable_x64(True):
            return to_device(self.inverse_norms, place, dtype=np.float64)

    def check_directions(self, wanted: Bool[np.ndarray, " N"]) -> None:
        """Raise InputError if one of the wanted rows has no direction in float32."""
        usable = (self.norms2 >= checks.MIN_NORM2) & (self.norms2 <= checks.MAX_NORM2)
        bad = np.flatnonzero(wanted & ~usable)
        if bad.size:
            raise InputError(
                f"embeddings: {bad.size} of {self.n} rows have no direction in float32: NaN, "
                f"infinite, or of a length outside 1e-15 ... 1e15; the first is row {bad[0]}, of "
                f"length {np.sqrt(self.norms2[bad[0]]):.3g}. Leave such rows out, or scale rows "
                "(cosines do not depend on lengths)."
            )

    @cached_property
    def first_equal(self) -> Int[np.ndarray, " N"]:
        """int64[N] first row that equals each row, or is a power of two times it.

        Other rows of equal direction have numbers of their own.
        """
        out = np.arange(self.n)
        seen: dict[bytes, int] = {}
        alike = self._find_alike()
        for start in range(0, self.n, BLOCK_ROWS):
            wanted = alike[(alike >= start) & (alike < start + BLOCK_ROWS)]
            if not wanted.size:
                continue
            bits = _bits_of(self._read(start)[wanted - start])
            exponents = bits & np.int32(0x7F800000)
            # Scaled so that the largest entry has float32's largest exponent, if all are normal.
            shift = np.int32(0x7F000000) - exponents.max(1, keepdims=True)
            shift *= ((exponents > 0) | (bits == 0)).all(1, keepdims=True)
            bits = np.where(bits == 0, 0, bits + shift)
            for i, row in zip(wanted, bits, strict=True):
                digest = hashlib.blake2b(row, digest_size=16).digest()
                out[i] = seen.setdefault(digest, int(i))
        return out

    def _find_alike(self) -> Int[np.ndarray, " A"]:
        """Rows, ascending, that may equal another: some mantissas of theirs do. Reads all rows."""
        columns = np.unique(np.linspace(0, self.dim - 1, COMPARED_COLUMNS).astype(np.int64))
        mantissas = np.empty((self.n, len(columns)), np.int32)
        for start in range(0, self.n, BLOCK_ROWS):
            bits = _bits_of(self._read(start)[:, columns])
            mantissas[start : start + len(bits)] = bits & np.int32(0x7FFFFF)
        _, place, counts = np.unique(mantissas, axis=0, return_inverse=True, return_counts=True)
        return np.flatnonzero(counts[place.reshape(-1)] > 1)

    def distances(
        self, first: Int[np.ndarray, " P"], second: Int[np.ndarray, " P"]
    ) -> Float[np.ndarray, " P"]:
        """float64[P] cosine distances.

        Memory: the rows of ``CHUNK_PAIRS`` pairs for each core; none where a CPU device reads them
        in place.

        Many pairs of a ``RowSource`` are measured block by block, with two blocks in memory.
        """
        if self._source is not None and len(first) > self._source.block_rows:
            return self._distances_by_blocks(self._source, first, second)
        if self._placed is not None and len(first) >= LEAST_PAIRS:
            return gpu_distances(self._placed, self._placed_scale, first, second, near=NEAR)
        if len(first) > self.n:  # many pairs: those of equal rows are measured once
            return self._once(self._measure, first, second)[0]
        return self._measure(first, second)[0]

    def _measure(self, first: np.ndarray, second: np.ndarray) -> Float[np.ndarray, "1 P"]:
        """``distances`` by the host."""
        if self._shared is not None and len(first) >= CPU_CALL_PAIRS:
            return cpu_distances(*self._shared, first, second, near=NEAR)[None]

        def measure(a: np.ndarray, b: np.ndarray) -> np.ndarray:
            scale = self.inverse_norms
            return _measure(self.take(a), self.take(b), scale[a], scale[b])

        return _in_chunks(measure, first, second, CHUNK_PAIRS, n_values=1)

    def _distances_by_blocks(
        self, source: RowSource, first: np.ndarray, second: np.ndarray
    ) -> Float[np.ndarray, " P"]:
        """``distances`` that reads blocks in order: rows one by one would take most of the time."""
        out = np.empty(len(first))
        size = source.block_rows
        own, place = np.unique(first, return_inverse=True)
        place = place.reshape(-1)
        borders = np.arange(1, -(-self.n // size))
        for begin in range(0, len(own), size):
            held = self.take(own[begin : begin + size])
            held_scale = self.inverse_norms[own[begin : begin + size]]
            pairs = np.flatnonzero((place >= begin) & (place < begin + size))
            pairs = pairs[np.argsort(second[pairs] // size, kind="stable")]
            parts = np.split(pairs, np.searchsorted(second[pairs] // size, borders))
            for number, part in enumerate(parts):
                if len(part):
                    start = number * size
                    block = source[start : min(start + size, self.n)]
                    scale = self.inverse_norms[start : start + size]
                    sides = (held, held_scale), (block, scale)
                    out[part] = measure_sides(sides, place[part] - begin, second[part] - start)
        return out

    def cosines(self, first: Int[np.ndarray, " P"], second: Int[np.ndarray, " P"]) -> Pair:
        """Cosine of each pair as a double-double number; neither row is all zero."""

        def measure(a: np.ndarray, b: np.ndarray) -> np.ndarray:
            x, y = self.take(a).astype(np.float64), self.take(b).astype(np.float64)
            scaled = _divide(_dot(x, y), _root(_dot(x, x)))
            return np.stack(_divide(scaled, _root(_dot(y, y))))

        def measure_all(a: np.ndarray, b: np.ndarray) -> np.ndarray:
            return _in_chunks(measure, a, b, EXACT_PAIRS, n_values=2)

        high, low = self._once(measure_all, first, second)
        return high, low

    def _once(
        self,
        measure: Callable[[np.ndarray, np.ndarray], np.ndarray],
        first: np.ndarray,
        second: np.ndarray,
    ) -> np.ndarray:
        """Measure pairs of equal directions once."""
        equal = self.first_equal
        pairs = find_distinct(equal[first], equal[second], self.n)
        return measure(pairs.first, pairs.second)[:, pairs.place]


def _bits_of(x: Float[np.ndarray, "R D"]) -> Int[np.ndarray, "R D"]:
    """int32 of the bits of float32 numbers, -0 as 0."""
    return np.ascontiguousarray(x + np.float32(0)).view(np.int32)


def _as_float32(rows: ArrayLike) -> Float[np.ndarray, "R D"]:
    with np.errstate(over="ignore"):  # infinite rows are refused by ``check_directions``
        return np.asarray(rows, np.float32)


def measures_pairs(device: jax.Device) -> bool:
    """Whether a device has float64 and measures pairs faster than the host: GPUs.

    TPUs put float64 together from float32, which has not all of its digits.
    """
    return device.platform == "gpu"


def measure_sides(
    sides: tuple[Pair, Pair], first: np.ndarray, second: np.ndarray
) -> Float[np.ndarray, " P"]:
    """Distances of rows of two sides: each float32[R, D] and its inverse lengths."""
    (x, x_scale), (y, y_scale) = sides

    def measure(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return _measure(x[a], y[b], x_scale[a], y_scale[b])

    return _in_chunks(measure, first, second, CHUNK_PAIRS, n_values=1)[0]


def _measure(
    x: Float[np.ndarray, "P D"],
    y: Float[np.ndarray, "P D"],
    x_scale: Float[np.ndarray, " P"],
    y_scale: Float[np.ndarray, " P"],
) -> Float[np.ndarray, " P"]:
    """float64[P] distances of float32 rows with their inverse lengths."""
    # Products of float32 numbers are exact in float64.
    out = 1 - np.einsum("pd,pd->p", x, y, dtype=np.float64) * (x_scale * y_scale)
    near = np.flatnonzero(out < NEAR)
    if near.size:
        difference = x[near] * x_scale[near, None] - y[near] * y_scale[near, None]
        out[near] = 0.5 * np.einsum("pd,pd->p", difference, difference)
    return np.asarray(out)


def distance_error(distance: ArrayLike, dim: int) -> Float[np.ndarray, " P"]:
    """Bound of the error of ``Rows.distances``, proven for any order of the sums.

    With g = D 2^-53: lengths of unit rows err by g / 2 each and the last sum by g, relative to the
    distance; the entries of unit rows and their differences by 2^-53 each, which the difference
    multiplies with its length sqrt(2 d); two unit rows of different length differ by up to g^2.
    From ``NEAR`` on, the sum of products errs by g and both lengths by g / 2 each.
    """
    gamma = (dim + 16) * UNIT64
    d = np.asarray(distance, np.float64)
    sums = 2 * gamma * np.where(d < NEAR, d, np.maximum(d, 1))
    entries = 4 * UNIT64 * np.sqrt(2 * np.maximum(d, 0))
    return np.asarray(sums + entries + gamma**2)


def _in_chunks(
    measure: Callable[[np.ndarray, np.ndarray], np.ndarray],
    first: np.ndarray,
    second: np.ndarray,
    size: int,
    *,
    n_values: int,
) -> Float[np.ndarray, "V P"]:
    out = np.empty((n_values, len(first)))

    def run(start: int) -> None:
        part = slice(start, start + size)
        out[:, part] = measure(first[part], second[part])

    with ThreadPoolExecutor(n_cores()) as pool:
        for _ in pool.map(run, range(0, len(first), size)):
            pass
    return out


def _two_sum(a: np.ndarray, b: np.ndarray) -> Pair:
    """A + b and its rounding error (Knuth)."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def _two_product(a: np.ndarray, b: np.ndarray) -> Pair:
    """A product and its rounding error (Dekker, with Veltkamp's splitting)."""
    product = a * b
    (a_high, a_low), (b_high, b_low) = _split(a), _split(b)
    error = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
    return product, error


def _split(a: np.ndarray) -> Pair:
    scaled = a * (2.0**27 + 1)
    high = scaled - (scaled - a)
    return high, a - high


def _dot(x: Float[np.ndarray, "P D"], y: Float[np.ndarray, "P D"]) -> Pair:
    """Sums of products of float32 numbers, as pairs float64[P]."""
    high = x * y  # exact
    low = np.zeros_like(high)
    while high.shape[1] > 1:
        if high.shape[1] % 2:
            high, low = (np.pad(a, ((0, 0), (0, 1))) for a in (high, low))
        half = high.shape[1] // 2
        high, error = _two_sum(high[:, :half], high[:, half:])
        low = low[:, :half] + low[:, half:] + error
    return _two_sum(high[:, 0], low[:, 0])


def _root(a: Pair) -> Pair:
    root = np.sqrt(a[0])
    square, error = _two_product(root, root)
    rest = ((a[0] - square) - error) + a[1]
    return _two_sum(root, rest / (2 * root))


def _divide(a: Pair, b: Pair) -> Pair:
    quotient = a[0] / b[0]
    product, error = _two_product(quotient, b[0])
    rest = (((a[0] - product) - error) + a[1]) - quotient * b[1]
    return _two_sum(quotient, rest / b[0])
