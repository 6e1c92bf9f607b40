"""ComBat: location and scale of every centre, shrunk across dimensions by empirical Bayes.

Johnson, Li and Rabinovic (2007), with the semantics of the R package sva: the pooled variance
divides by n, the variances of a centre by n - 1. Everything is computed from the moments of the
cells (class and centre), in float64.
"""

from typing import Literal, NamedTuple

import numpy as np
from scipy import special

from pathorob_jax.core.checks import InputError
from pathorob_jax.core.typing import Bool, Float, Int
from pathorob_jax.robustify.center_means import fit_effects
from pathorob_jax.robustify.moments import Moments
from pathorob_jax.robustify.transform import CenterMaps

Prior = Literal["parametric", "nonparametric", "mean_only"]
# Relative change at which the iteration for location and scale ends; reference packages take 1e-4.
TOLERANCE = 1e-10
MAX_ITERATIONS = 1000
# A dimension whose variance is below this share of its squared mean is constant: 24 digits.
CONSTANT = 1e-24
# float64 entries of a block of log weights [dimensions, dimensions].
BLOCK_ENTRIES = 2**23


class Standardised(NamedTuple):
    """Moments of the standardised rows z = (x - base) / sigma.

    Attributes:
        base: float64[C, D] expected value of each class; C = 1 without covariates.
        sigma: float64[D] pooled standard deviation; 1 where a dimension is constant.
        varies: bool[D] dimensions that are not constant; the others are left as they are.
        n: int64[M] rows of each centre.
        mean: float64[M, D] mean of z in each centre.
        variance: float64[M, D] its variance in each centre, divisor n - 1.
    """

    base: Float[np.ndarray, "C D"]
    sigma: Float[np.ndarray, " D"]
    varies: Bool[np.ndarray, " D"]
    n: Int[np.ndarray, " M"]
    mean: Float[np.ndarray, "M D"]
    variance: Float[np.ndarray, "M D"]


class Priors(NamedTuple):
    """Distribution of a centre's effects over dimensions: means normal, variances inverse gamma.

    Attributes:
        mean: float64[M] mean of the dimensions' means.
        variance: float64[M] variance of the dimensions' means.
        shape: float64[M] shape of the inverse gamma distribution of the variances.
        rate: float64[M] its rate.
    """

    mean: Float[np.ndarray, " M"]
    variance: Float[np.ndarray, " M"]
    shape: Float[np.ndarray, " M"]
    rate: Float[np.ndarray, " M"]


def fit_combat(
    moments: Moments,
    *,
    prior: Prior = "parametric",
    with_classes: bool = False,
    reference: int | None = None,
) -> CenterMaps:
    """Fit ComBat with the centre as batch.

    x' = (z - g) / sqrt(d) * sigma + base, where g and d are a centre's shrunk mean and variance.

    Args:
        moments: moments of C x M cells; every centre has two rows or more.
        prior: ``parametric``; ``nonparametric``; or ``mean_only``, which leaves scales as they are
            and shrinks as sva does (as if a centre had one row).
        with_classes: the class is a covariate. The map of a row then depends on its class, unless
            ``prior`` is ``mean_only``.
        reference: centre that stays as it is, and to which the others are aligned; None: none.

    Raises:
        InputError: ``with_classes``, and the class is determined by the centre; or the dimensions
            are too few, or too much alike, for a prior over them.
    """
    parts = standardise(moments, with_classes=with_classes, reference=reference)
    if prior == "nonparametric":
        location, scale = _shrink_nonparametric(parts)
    elif prior == "mean_only":
        location, scale = _shrink_means(parts), np.ones_like(parts.mean)
    else:
        location, scale = shrink(parts, estimate_priors(parts))
    # Where a prior is undefined (one dimension, or equal variances in all), so is what it shrinks.
    if not (np.isfinite(location) & (scale > 0) & np.isfinite(scale))[:, parts.varies].all():
        raise InputError(
            f"the effects of a centre over {parts.varies.sum()} dimensions that vary do not tell a "
            "prior; use center_means or class_adjusted_means"
        )
    if reference is not None:
        location[reference], scale[reference] = 0, 1
    return make_maps(parts, location, scale)


def standardise(
    moments: Moments, *, with_classes: bool = False, reference: int | None = None
) -> Standardised:
    """Moments of the rows less their expected value, in units of the pooled deviation."""
    cells = moments if with_classes else moments.of_centers()
    if with_classes:
        centers, classes = fit_effects(moments)
    else:
        centers, classes = cells.mean[0], np.zeros((1, cells.mean.shape[2]))
    weight = cells.n.sum(0)
    if reference is None:
        pooled, level = slice(None), weight @ centers / weight.sum()
    else:
        pooled, level = slice(reference, reference + 1), centers[reference]
    base = level[None, :] + classes
    residual = cells.mean - centers[None] - classes[:, None]
    spread = cells.squares + cells.n[:, :, None] * residual**2
    variance = spread[:, pooled].sum((0, 1)) / cells.n[:, pooled].sum()
    varies = variance > CONSTANT * np.maximum((cells.mean**2).max((0, 1)), np.finfo(float).tiny)
    sigma = np.where(varies, np.sqrt(np.where(varies, variance, 1)), 1.0)
    z = (cells.mean - base[:, None]) / sigma
    mean = np.einsum("cm,cmd->md", cells.n, z) / weight[:, None]
    total = cells.squares / sigma**2 + cells.n[:, :, None] * (z - mean[None]) ** 2
    return Standardised(base, sigma, varies, weight, mean, total.sum(0) / (weight - 1)[:, None])


def estimate_priors(parts: Standardised) -> Priors:
    """Priors of every centre by the method of moments, over the dimensions that vary.

    NaN where fewer than two dimensions vary, or their variances are equal.
    """
    mean, variance = parts.mean[:, parts.varies], parts.variance[:, parts.varies]
    if mean.shape[1] < 2:
        return Priors(*(np.full(len(mean), np.nan) for _ in Priors._fields))
    m, s2 = variance.mean(1), variance.var(1, ddof=1)
    s2 = np.where(s2 > 0, s2, np.nan)
    return Priors(
        mean=mean.mean(1),
        variance=mean.var(1, ddof=1),
        shape=(2 * s2 + m**2) / s2,
        rate=(m * s2 + m**3) / s2,
    )


def shrink(
    parts: Standardised, priors: Priors
) -> tuple[Float[np.ndarray, "M D"], Float[np.ndarray, "M D"]]:
    """Posterior location and scale of every centre and dimension, float64[M, D] each.

    Their two equations are iterated until no value changes by more than ``TOLERANCE``. The
    reference packages stop at 1e-4 and look only at positive locations.

    Raises:
        InputError: they do not settle in ``MAX_ITERATIONS``.
    """
    n = parts.n[:, None].astype(np.float64)
    prior_mean, t2, shape, rate = (a[:, None] for a in priors)
    location, scale = parts.mean.copy(), parts.variance.copy()
    for _ in range(MAX_ITERATIONS):
        new = (n * t2 * parts.mean + scale * prior_mean) / (n * t2 + scale)
        squares = (n - 1) * parts.variance + n * (parts.mean - new) ** 2
        new_scale = (0.5 * squares + rate) / (n / 2 + shape - 1)
        change = max(
            np.abs(new - location)[:, parts.varies].max(initial=0),
            np.abs(new_scale / np.where(scale > 0, scale, 1) - 1)[:, parts.varies].max(initial=0),
        )
        location, scale = new, new_scale
        if not change >= TOLERANCE:  # or NaN: an undefined prior, which the caller refuses
            return location, scale
    raise InputError(f"ComBat's location and scale do not settle in {MAX_ITERATIONS} iterations")


def _shrink_means(parts: Standardised) -> Float[np.ndarray, "M D"]:
    """Locations with scale 1, as sva shrinks them: a centre counts as one row."""
    priors = estimate_priors(parts)
    t2 = priors.variance[:, None]
    return (t2 * parts.mean + priors.mean[:, None]) / (t2 + 1)


def _shrink_nonparametric(
    parts: Standardised,
) -> tuple[Float[np.ndarray, "M D"], Float[np.ndarray, "M D"]]:
    """Mean of the other dimensions' effects, weighted by the likelihood of a dimension's rows.

    Weights are kept as logarithms: with many rows, products of densities underflow in the reference
    packages. A dimension that is constant within a centre has no density there and is left out of
    the weights.
    """
    location, scale = parts.mean.copy(), parts.variance.copy()
    for m, n in enumerate(parts.n):
        pool = np.flatnonzero(parts.varies & (parts.variance[m] > 0))
        g, d = parts.mean[m, pool], parts.variance[m, pool]
        block = max(1, BLOCK_ENTRIES // max(1, len(pool)))
        wanted = np.flatnonzero(parts.varies)
        for start in range(0, len(wanted), block):
            rows = wanted[start : start + block]
            mean, squares = parts.mean[m, rows], (n - 1) * parts.variance[m, rows]
            distance = squares[:, None] + n * (mean[:, None] - g[None, :]) ** 2
            log_weight = -0.5 * distance / d[None, :] - 0.5 * n * np.log(d)[None, :]
            log_weight[rows[:, None] == pool[None, :]] = -np.inf
            log_weight[np.isneginf(log_weight).all(axis=1)] = np.nan  # no other dimension
            weight = special.softmax(log_weight, axis=1)
            location[m, rows], scale[m, rows] = weight @ g, weight @ d
    return location, scale


def make_maps(
    parts: Standardised, location: Float[np.ndarray, "M D"], scale: Float[np.ndarray, "M D"]
) -> CenterMaps:
    """The map of every centre with given location and scale; constant dimensions stay."""
    location = np.where(parts.varies, location, 0.0)
    factor = np.where(parts.varies, 1 / np.sqrt(scale), 1.0)
    shift = (1 - factor)[None] * parts.base[:, None] - (parts.sigma * location * factor)[None]
    if (factor == 1).all():
        return CenterMaps(shift=shift[:1])
    return CenterMaps(shift=shift, scale=factor)
