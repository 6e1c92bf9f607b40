"""Checks of user input on the host, with uniform error messages.

Each check returns nothing or raises. The message says what was expected, what was found, and what
to do. Kernels never raise on data, so these checks run before them. Both exceptions take one string
argument, so that they can be pickled between processes.
"""

import difflib
from collections.abc import Iterable

import numpy as np

MIN_NORM2, MAX_NORM2 = 1e-30, 1e30


class InputError(ValueError):
    """Data or artefacts that cannot be used. Scripts print the message and exit with 1."""


class UsageError(InputError):
    """A name or combination of arguments that does not exist. Scripts exit with 2."""


def check_known(name: str, known: Iterable[str], *, what: str) -> None:
    """Raise UsageError unless ``name`` is in ``known``. The message suggests the nearest name."""
    known = sorted(known)
    if name in known:
        return
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise UsageError(f"{what}: unknown name {name!r}.{hint} Known: {', '.join(known)}.")


def check_at_least(least: int, **values: float | None) -> None:
    """Raise UsageError unless each value is None or ``least`` or more, and fits its type."""
    for name, value in values.items():
        bits = 62 if name.endswith("bytes") else 32 if name.endswith("seed") else 31
        if value is not None and not value >= least:
            raise UsageError(f"{name}: expected {least} or more, found {value}.")
        if value is not None and value >= 2**bits:
            raise UsageError(f"{name}: expected less than 2**{bits}, found {value}.")


def check_shape(
    found: tuple[int, ...], shape: tuple[int | None, ...], *, name: str, why: str
) -> None:
    """Raise InputError unless the two shapes are equal (None matches any size)."""
    if len(found) != len(shape) or any(
        want is not None and want != have for want, have in zip(shape, found, strict=False)
    ):
        want = "(" + ", ".join("any" if s is None else str(s) for s in shape) + ")"
        raise InputError(f"{name}: expected shape {want} {why}, found {found}.")


def check_integer(array: np.ndarray, *, name: str) -> None:
    """Raise TypeError unless ``array`` is of an integer dtype."""
    if not np.issubdtype(np.asarray(array).dtype, np.integer):
        raise TypeError(f"{name}: expected an integer dtype, found {np.asarray(array).dtype}.")


def find_bad_rows(
    embeddings: np.ndarray, *, need_direction: bool = True, block_rows: int = 4096
) -> tuple[np.ndarray, str]:
    """Find rows that have no direction in float32: not finite, all zero, or norm out of range.

    Args:
        embeddings: float[N, D].
        need_direction: if False, only rows that are not finite are bad.
        block_rows: rows checked at a time, so that no N x D mask is built.

    Returns:
        int64[n_bad] row positions, ascending, and a phrase for what is wrong with the first of
        them ("" if there are none).
    """
    bad: list[np.ndarray] = []
    word = ""
    for start in range(0, embeddings.shape[0], block_rows):
        block = np.asarray(embeddings[start : start + block_rows])
        if need_direction:
            with np.errstate(over="ignore", under="ignore", invalid="ignore"):
                norm2 = np.einsum("nd,nd->n", block, block, dtype=np.float64)
            # Squares must neither overflow nor lose their digits: cosines would become 0 or NaN.
            # Those of rows that are not finite are NaN or infinite.
            usable = (norm2 >= MIN_NORM2) & (norm2 <= MAX_NORM2)
        else:
            usable = np.isfinite(block).all(axis=1)
        rows = np.flatnonzero(~usable)
        if rows.size and not word:
            word = "a norm outside 1e-15 ... 1e15"
            word = "only zeros" if not block[rows[0]].any() else word
            word = word if np.isfinite(block[rows[0]]).all() else "NaN or infinite values"
        bad.append(rows + start)
    return np.concatenate(bad) if bad else np.zeros(0, np.int64), word
