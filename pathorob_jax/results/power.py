"""How many slides tell two models apart: a power estimate from their paired draws.

Two models are told apart where the 95 % interval of their difference, which is the difference
+- Student's t times its standard error, excludes 0. With N times as many slides of the same kind,
the standard error shrinks by the square root of N. The number of slides at which a true difference
is then found with 80 % probability is, up to the rounding to whole slides, that of a t-test
(Guenther 1981): the normal formula ``n ((z.975 + z.80) error / difference) ** 2``, and about two
slides more, since the error is itself estimated.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from pathorob_jax.core.typing import Float
from pathorob_jax.kernels.bootstrap.draws import LEVEL, MAX_BLOCKS

POWER = 0.8
# Intervals and errors below it are rounding: no slide changes the number.
NO_WIDTH = 1e-9
_Z_LEVEL = float(special.ndtri((1 + LEVEL) / 2))
_Z_POWER = float(special.ndtri(POWER))


class Part(NamedTuple):
    """The error of a difference of two models on one dataset.

    Attributes:
        error: standard error of the difference on this dataset.
        n_slides: slides of the dataset.
    """

    error: float
    n_slides: int


class Plan(NamedTuple):
    """How many slides it takes to tell two models apart; None where no number is known to do.

    Attributes:
        slides: slides that there are, over all datasets.
        needed: slides at which the difference, were it the true one, is found in 80 % of cases.
        at_least: the same for the end of the difference's interval that is farther from 0.
    """

    slides: int
    needed: int | None
    at_least: int | None


def find_error(difference: Float[np.ndarray, "*S draws"], n_slides: int) -> Float[np.ndarray, "*S"]:
    """Standard errors that draws of differences stand for; NaN where too few are defined.

    The draws of a jackknife are as wide as Student's t asks (``Jackknife.spread``), which is taken
    back here.

    Args:
        difference: float64[..., draws], one model less the other.
        n_slides: slides that were drawn.
    """
    known = np.isfinite(difference)
    n = known.sum(-1)
    mean = np.where(known, difference, 0.0).sum(-1) / np.maximum(n, 1)
    squares = (np.where(known, difference - mean[..., None], 0.0) ** 2).sum(-1)
    blocks = min(n_slides, MAX_BLOCKS)
    if blocks < 2:
        return np.full(n.shape, np.nan)
    wider = special.stdtrit(blocks - 1, (1 + LEVEL) / 2) / _Z_LEVEL
    enough = (n > 1) & (2 * n >= difference.shape[-1])
    errors: np.ndarray = np.sqrt(squares / np.maximum(n - 1, 1)) / wider
    return np.where(enough, errors, np.nan)


def count_slides(difference: float, parts: Sequence[Part]) -> int | None:
    """Slides, over all datasets, at which a difference is found with 80 % probability.

    The datasets grow alike: each keeps its share of the slides.

    Args:
        difference: mean over the datasets of the true difference of two models.
        parts: its error on each dataset.

    Returns:
        At least two slides a dataset; None if the difference is 0, or an error is unknown or 0: a
        difference that no slide changes has an error that these slides don't show.
    """
    errors = np.array([part.error for part in parts], np.float64)
    slides = np.array([part.n_slides for part in parts], np.float64)
    if not parts or not math.isfinite(difference) or difference == 0 or np.isnan(errors).any():
        return None
    variances = (errors / len(parts)) ** 2
    total = float(variances.sum())
    if total < NO_WIDTH**2:
        return None
    shares = variances / total
    both = _Z_LEVEL + _Z_POWER
    growth = both**2 * total / difference**2
    # What Student's t and the error of the error ask beyond that; z ** 2 / 2 slides of one dataset.
    wider = _Z_LEVEL * (_Z_LEVEL**2 + 1) * float((shares / slides).sum())
    spread = (_Z_POWER * _Z_LEVEL**2 - _Z_LEVEL) * float((shares**2 / slides).sum())
    growth += (wider + spread) / (2 * both)
    return max(math.ceil(growth * slides.sum()), 2 * len(parts))


def plan(difference: float, ends: tuple[float, float], parts: Sequence[Part]) -> Plan:
    """How many slides tell two models apart, from what is known of their difference.

    Args:
        difference: the estimated difference.
        ends: its 95 % interval.
        parts: its error on each dataset.
    """
    farthest = max(map(abs, ends)) if all(map(math.isfinite, ends)) else math.nan
    return Plan(
        sum(part.n_slides for part in parts),
        count_slides(difference, parts),
        count_slides(farthest, parts),
    )
