"""Errors that follow the centre: rows called what their centre stood for in training.

When class and centre are associated in training, a classifier that reads the centre calls a row of
another class what most training slides of the row's centre were. The share of such rows, and how
much it exceeds its value without association (the pull), show errors of this direction.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pathorob_jax.core import checks
from pathorob_jax.core.checks import InputError
from pathorob_jax.core.typing import ArrayLike, Float, Int
from pathorob_jax.metrics.apd import interval_of_mean

# Of a centre whose training slides have no single most frequent class.
NO_CLASS = -1


class DirectionalErrors(NamedTuple):
    """Errors towards the class that the centre stood for, at every split.

    NaN for the rows of that class itself, for a centre that stood for no class, and where a centre
    has no row of a class.

    Attributes:
        share: float64[S, M, C] share of the rows of a centre and class called so.
        pull: float64[S, M, C] that share minus the share at the first split.
    """

    share: Float[np.ndarray, "S M C"]
    pull: Float[np.ndarray, "S M C"]


def stood_for(slides: Int[ArrayLike, "S C M"] | Sequence[object]) -> Int[np.ndarray, " M"]:
    """The class that each centre stands for in the last split of a schedule.

    Args:
        slides: int[S, C, M] training slides of each split, class and centre.

    Returns:
        int64[M] the class with the most slides of a centre in the last split, where class and
        centre are associated the most; ``NO_CLASS`` where classes tie.
    """
    last = np.asarray(slides, np.int64)[-1]
    most = last.max(axis=0)
    single = (last == most).sum(axis=0) == 1
    return np.where(single, last.argmax(axis=0), NO_CLASS)


def directional_errors(
    calls: Int[ArrayLike, "S R M C C"], stood_for: Int[ArrayLike, " M"]
) -> DirectionalErrors:
    """Share of the rows of each centre and class called what the centre stood for, and the pull.

    Args:
        calls: int[S, R, M, C, C] counts by split, repetition, centre, true and called class
            (``metrics.apd.count_calls``); the first split has no association. Repetitions are
            pooled. Rows may be patches, slides or searches.
        stood_for: int[M] the class of each centre (``stood_for``), or ``NO_CLASS``.

    Raises:
        InputError: shapes differ, or a class is out of range.
    """
    counts, towards = np.asarray(calls), np.asarray(stood_for, np.int64)
    if counts.ndim != 5 or counts.shape[3] != counts.shape[4]:
        raise InputError(
            "calls: expected shape (splits, repetitions, centres, classes, classes), found "
            f"{counts.shape}."
        )
    n_centers, n_classes = counts.shape[2:4]
    checks.check_shape(towards.shape, (n_centers,), name="stood_for", why="to match calls")
    if towards.size and not (towards.min() >= NO_CLASS and towards.max() < n_classes):
        raise InputError(
            f"stood_for: expected classes in [0, {n_classes}), or {NO_CLASS}, found "
            f"{towards.tolist()}."
        )
    pooled = counts.sum(axis=1)  # [S, M, C, C]
    rows = pooled.sum(axis=-1)
    called = np.take_along_axis(pooled, np.maximum(towards, 0)[None, :, None, None], axis=-1)
    is_error = (towards[:, None] != NO_CLASS) & (np.arange(n_classes) != towards[:, None])
    share = np.full(rows.shape, np.nan)
    np.divide(called[..., 0], rows, out=share, where=(rows > 0) & is_error)
    return DirectionalErrors(share, share - share[:1])


def pull_intervals(
    calls: Int[ArrayLike, "S R M C C"],
    stood_for: Int[ArrayLike, " M"],
    *,
    n_training: int,
    n_test: int,
) -> Float[np.ndarray, "S M C 2"]:
    """95 % intervals of the pull, for other slides of the same centres.

    Repetitions draw from one pool of slides and share many; their spread is widened for that
    (``metrics.apd.drop_interval``). An interval has the pull over all repetitions in its middle.

    Args:
        calls: as of ``directional_errors``, of test rows in domain.
        stood_for: as of ``directional_errors``.
        n_training: training rows of a split.
        n_test: test rows.

    Returns:
        Low and high, within [-1, 1]; NaN for a single repetition, and where the pull is undefined
        in one of them.
    """
    counts = np.asarray(calls)
    pooled = directional_errors(counts, stood_for).pull
    single = [
        directional_errors(counts[:, r : r + 1], stood_for).pull for r in range(counts.shape[1])
    ]
    pulls = np.stack(single, axis=-1)  # [S, M, C, R]
    out = np.full((*pooled.shape, 2), np.nan)
    for place in np.ndindex(pooled.shape):
        ends = interval_of_mean(pulls[place], n_training=n_training, n_test=n_test, in_domain=True)
        if ends is not None:
            half = (ends[1] - ends[0]) / 2
            out[place] = np.clip([pooled[place] - half, pooled[place] + half], -1, 1)
    return out
