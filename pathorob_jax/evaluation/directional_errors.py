"""Counts of calls -> the errors that follow the centre, as records hold them."""

from collections.abc import Sequence

import numpy as np

from pathorob_jax.core.typing import ArrayLike, Int
from pathorob_jax.data.association_schedule import AssociationSchedule
from pathorob_jax.metrics import directional_errors as metric
from pathorob_jax.results.directional_errors import DirectionalError, DirectionalErrors


def list_directional_errors(
    calls: Int[ArrayLike, "S R M C C"] | None,
    *,
    centers: Sequence[str],
    schedule: AssociationSchedule,
    n_training: int,
    n_test: int,
) -> DirectionalErrors:
    """Errors towards the class that each centre stood for, of test rows of the training centres.

    Args:
        calls: counts by split, repetition, centre, true and called class; None: there are none.
        centers: names of the M centres.
        schedule: training slides of each split, and the names of the C classes.
        n_training: training rows of a split.
        n_test: test rows.

    Returns:
        Errors by centre and class, those that are defined at some split.
    """
    if calls is None:
        return {}
    counts = np.asarray(calls)
    known = dict(zip(schedule.centers, metric.stood_for(schedule.slides).tolist(), strict=True))
    towards = np.array([known.get(name, metric.NO_CLASS) for name in centers], np.int64)
    share, pull = metric.directional_errors(counts, towards)
    ends = metric.pull_intervals(counts, towards, n_training=n_training, n_test=n_test)
    out: DirectionalErrors = {}
    for m, center in enumerate(centers):
        for c, label in enumerate(schedule.classes):
            if np.isfinite(share[:, m, c]).any():
                last = np.flatnonzero(np.isfinite(pull[1:, m, c]))[-1:] + 1
                found = ends[last, m, c]
                out.setdefault(center, {})[label] = DirectionalError(
                    stood_for=schedule.classes[towards[m]],
                    share=share[:, m, c].tolist(),
                    pull=pull[:, m, c].tolist(),
                    pull_ci95=found[0].tolist() if np.isfinite(found).any() else None,
                )
    return out
