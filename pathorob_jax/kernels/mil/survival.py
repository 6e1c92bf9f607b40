"""Survival in discrete time: bins of time, hazards, their likelihood, and risk.

The follow-up is cut into bins. The network has one logit per bin, and its sigmoid is the hazard
h_k: the probability that the event falls into bin k if it did not fall into an earlier one.
Survival beyond bin k is S_k = prod_{j <= k} (1 - h_j). The negative log likelihood of a bag is
-log h_y - log S_{y - 1} if its event fell into bin y, and -log S_y if it was censored there
(Zadeh and Schmid 2020, with their alpha at 0: all bags count alike).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pathorob_jax.core import checks
from pathorob_jax.core.checks import InputError
from pathorob_jax.core.typing import Array, Bool, Float, Int

N_BINS = 4


class SurvivalTarget(NamedTuple):
    """Outcomes of B bags, which ``train_mil`` takes in place of class labels.

    Attributes:
        bin_id: int[B] bin of the time of each bag, or int[F, B] by the bins of each fit.
        event: bool[B] whether the event was observed at that time; False: censored.
        time: float[B] times, for the concordance of validation bags.
    """

    bin_id: Int[np.ndarray, "*F B"]
    event: Bool[np.ndarray, " B"]
    time: Float[np.ndarray, " B"]


def find_bin_edges(
    time: Float[np.ndarray, " n"], event: Bool[np.ndarray, " n"], *, n_bins: int = N_BINS
) -> Float[np.ndarray, " E"]:
    """Inner edges of bins that hold equally many events: quantiles of the times of events.

    Args:
        time: float[n] times of the training bags, finite, not negative.
        event: bool[n] whether the event was observed.
        n_bins: number of bins.

    Returns:
        float64[n_bins - 1], ascending; equal edges leave a bin empty.

    Raises:
        InputError: no event was observed, or times are not finite or are negative.
    """
    time, event = check_times(time, event)
    if not event.any():
        raise InputError(
            f"event: none of {len(event)} training bags has an observed event, so that time cannot "
            "be cut into bins; use bags of which some have events."
        )
    return np.quantile(time[event], np.arange(1, n_bins) / n_bins)


def assign_bins(
    time: Float[np.ndarray, " n"], edges: Float[np.ndarray, " E"]
) -> Int[np.ndarray, " n"]:
    """int64[n] bin of each time, in [0, len(edges)]; a time on an edge is in the later bin."""
    return np.searchsorted(edges, np.asarray(time, np.float64), side="right")


def check_times(
    time: Float[np.ndarray, " n"], event: Bool[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Both as float64 and bool; InputError unless they match and times are finite and >= 0."""
    time, event = np.asarray(time, np.float64), np.asarray(event)
    checks.check_shape(event.shape, time.shape, name="event", why="(one per time)")
    checks.check_shape(time.shape, (None,), name="time", why="(one per bag)")
    if not np.isin(event, (0, 1)).all():
        raise InputError("event: expected 0 (censored) or 1 (observed), found other values.")
    bad = ~(np.isfinite(time) & (time >= 0))
    if bad.any():
        raise InputError(
            f"time: expected finite times of 0 or more, found {time[bad][0]} at place "
            f"{np.flatnonzero(bad)[0]} of {len(time)}."
        )
    return time, event.astype(bool)


def comparable_pairs(
    time: Float[np.ndarray, " n"], event: Bool[np.ndarray, " n"]
) -> Bool[np.ndarray, "n n"]:
    """Whether the first of two is known to have had its event before the second.

    It is if its event was observed, and the second has a later time, or the same time and was
    censored. Two events at one time are not comparable.
    """
    earlier = time[:, None] < time[None]
    return event[:, None] & (earlier | ((time[:, None] == time[None]) & ~event[None]))


def survival_loss(
    logits: Float[Array, "... K"], bin_id: Int[Array, "..."], event: Bool[Array, "..."]
) -> Float[Array, "..."]:
    """Negative log likelihood of each bag.

    Args:
        logits: float[..., K] logits of the hazards.
        bin_id: int[...] in [0, K).
        event: bool[...] whether the event was observed in that bin.
    """
    bins = jnp.arange(logits.shape[-1]).reshape((1,) * bin_id.ndim + (-1,))
    at, event = bins == bin_id[..., None], event[..., None]
    survived = (bins < bin_id[..., None]) | (at & ~event)
    # log h = -softplus(-logit), log (1 - h) = -softplus(logit)
    losses = jnp.where(survived, jax.nn.softplus(logits), 0)
    losses = losses + jnp.where(at & event, jax.nn.softplus(-logits), 0)
    return losses.sum(-1)


def survival_curve(logits: Float[np.ndarray, "... K"]) -> Float[np.ndarray, "... K"]:
    """float64[..., K] probability S_k that the event comes later than bin k."""
    logits = np.asarray(logits, np.float64)
    return np.exp(-np.cumsum(np.logaddexp(0, logits), axis=-1))


def risk(logits: Float[np.ndarray, "... K"]) -> Float[np.ndarray, "..."]:
    """float64[...] risk of each bag: -sum_k S_k, in [-K, 0]; larger means an earlier event."""
    return -survival_curve(logits).sum(-1)
