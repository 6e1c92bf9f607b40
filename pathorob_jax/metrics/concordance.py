"""Harrell's index of concordance: how often the one with the higher risk has the event first."""

from typing import NamedTuple

import numpy as np

from pathorob_jax.core import checks
from pathorob_jax.core.checks import InputError
from pathorob_jax.core.typing import Bool, Float
from pathorob_jax.kernels.mil.survival import comparable_pairs

# Risks that differ by no more are tied, as in scikit-survival.
TIED = 1e-8


class Concordance(NamedTuple):
    """Concordance and the pairs behind it.

    Attributes:
        value: (concordant + tied / 2) / (concordant + discordant + tied); NaN without such pairs.
        concordant: comparable pairs of which the earlier event has the higher risk.
        discordant: comparable pairs of which it has the lower risk.
        tied: comparable pairs of risks within 1e-8.
    """

    value: float
    concordant: int
    discordant: int
    tied: int


def concordance_index(
    time: Float[np.ndarray, " n"], event: Bool[np.ndarray, " n"], risk: Float[np.ndarray, " n"]
) -> Concordance:
    """Harrell's index.

    Two are comparable if the one with the earlier time has an observed event, or if times are equal
    and only one of them has an event (then the other one outlived it). Two events at one time are
    not comparable.

    Args:
        time: float[n] times of events or censoring.
        event: bool[n] whether the event was observed.
        risk: float[n], finite; higher means an earlier event (``survival.risk``).

    Raises:
        InputError: lengths differ, or values are not finite.

    Reference: sksurv.metrics.concordance_index_censored. Differs: without comparable pairs the
    value is NaN (there: an error).
    """
    time, risk = np.asarray(time, np.float64), np.asarray(risk, np.float64)
    event = np.asarray(event, bool)
    checks.check_shape(time.shape, (None,), name="time", why="(one per bag)")
    for name, values in (("event", event), ("risk", risk)):
        checks.check_shape(values.shape, time.shape, name=name, why="to match time")
    for name, numbers in (("time", time), ("risk", risk)):
        if not np.isfinite(numbers).all():
            raise InputError(f"{name}: expected finite numbers, found NaN or infinite values.")
    ahead = (risk[:, None] - risk[None, :])[comparable_pairs(time, event)]
    tied = int((np.abs(ahead) <= TIED).sum())
    concordant, discordant = int((ahead > TIED).sum()), int((ahead < -TIED).sum())
    total = concordant + discordant + tied
    value = (concordant + tied / 2) / total if total else float("nan")
    return Concordance(value, concordant, discordant, tied)
