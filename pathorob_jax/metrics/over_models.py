"""Statistics over models: rank correlation, Pareto front, and two kinds of models compared.

The unit is a model. All functions take one number per model and leave out models without it.
"""

import functools
import itertools
import math
from typing import NamedTuple

import numpy as np
from scipy import special

from pathorob_jax.core.typing import Bool, Float
from pathorob_jax.kernels.bootstrap.intervals import SIGNED, find_ends
from pathorob_jax.metrics.robustness_index import ratio

# With fewer, no order of models has a two-sided probability below 5 %: 2 / 4! = 8 %.
MIN_MODELS = 5
# Permutations are all tried up to this many, and drawn otherwise.
MAX_EXACT = 50_000
N_PERMUTATIONS = 99_999
# A statistic of a permutation that is this near to the observed one equals it.
NEAR = 1e-12


class Correlation(NamedTuple):
    """Spearman's rank correlation over models; NaN and None with fewer than ``MIN_MODELS``.

    Attributes:
        n: models that have both numbers.
        rho: the correlation; NaN if either number is the same for all.
        p_value: two-sided, by permutation of the models.
        p_rule: ``exact`` (all permutations) or ``drawn``; "" where undefined.
        p_value_t: two-sided, by Student's t with n - 2 degrees of freedom.
        ci95: rho +- 1.96 standard deviations over draws of models, within [-1, 1].
    """

    n: int
    rho: float
    p_value: float
    p_rule: str
    p_value_t: float
    ci95: list[float] | None


class Contrast(NamedTuple):
    """Difference of two kinds of models in y at equal x; NaN and None where undefined.

    Attributes:
        n_a: models of the first kind.
        n_b: models of the second.
        difference: coefficient of the first kind in the regression of y on x and the kind.
        p_value: two-sided, by permutation of what x alone leaves of y.
        p_rule: ``exact`` or ``drawn``; "" where undefined.
        ci95: difference +- 1.96 standard deviations over draws of models of either kind.
        slope: of y on x within kinds.
    """

    n_a: int
    n_b: int
    difference: float
    p_value: float
    p_rule: str
    ci95: list[float] | None
    slope: float


def rank_correlation(
    x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], *, seed: int, draws: int
) -> Correlation:
    """Spearman's rank correlation with ties, its probability by chance, and its interval.

    The probability is twice the smaller tail, as of ``scipy.stats.permutation_test``; drawn
    permutations count the observed order among themselves.

    Args:
        x: float[n], NaN where unknown.
        y: float[n], the same.
        seed: seed of permutations and draws.
        draws: draws of models with replacement; 0: no interval.
    """
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    n = len(x)
    rho = float(_correlate_ranks(x[None, :], y[None, :])[0]) if n >= MIN_MODELS else np.nan
    if not math.isfinite(rho):
        return Correlation(n, np.nan, np.nan, "", np.nan, None)
    ranks, others = (_standardise(_rank(v)[None, :])[0] for v in (x, y))
    permutations, is_exact = _permute(n, seed)
    permuted = ranks[permutations] @ others
    p_value = _two_sided(permuted, float(ranks @ others), is_exact=is_exact)
    p_value_t = 0.0
    if abs(rho) < 1:
        p_value_t = float(2 * special.stdtr(n - 2, -abs(rho) * math.sqrt((n - 2) / (1 - rho**2))))
    drawn = np.random.default_rng(seed).integers(n, size=(draws, n))
    ends = find_ends(rho, _correlate_ranks(x[drawn], y[drawn]), SIGNED)
    return Correlation(n, rho, p_value, "exact" if is_exact else "drawn", p_value_t, ends)


def find_front(
    x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]
) -> tuple[Bool[np.ndarray, " n"], list[list[int]]]:
    """Which models no other one beats in both numbers, more of which is better.

    A model beats another if it is not below it in either number and above it in one.

    Returns:
        bool[n] on the front; False without both numbers. For each model, those that beat it.
    """
    known = np.isfinite(x) & np.isfinite(y)
    no_less = (x[:, None] >= x[None, :]) & (y[:, None] >= y[None, :])
    more = (x[:, None] > x[None, :]) | (y[:, None] > y[None, :])
    beats = no_less & more & known[:, None] & known[None, :]
    beaten_by = [np.flatnonzero(column).tolist() for column in beats.T]
    return known & ~beats.any(0), beaten_by


def share_on_front(
    x: Float[np.ndarray, " n"],
    y: Float[np.ndarray, " n"],
    deviations: tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]],
    *,
    seed: int,
    draws: int,
) -> Float[np.ndarray, " n"]:
    """How often each model is on the front when its numbers are drawn within their errors.

    The numbers are drawn from independent normal distributions.

    Args:
        x: float[n], NaN where unknown.
        y: float[n], the same.
        deviations: standard deviations of x and of y, NaN where unknown.
        seed: seed of the draws.
        draws: number of draws.

    Returns:
        float64[n]; NaN for a model without both numbers, and for all if an error of one of the
        others is unknown, or there are no draws.
    """
    known = np.isfinite(x) & np.isfinite(y)
    shares = np.full(len(x), np.nan)
    errors = np.stack(deviations)[:, known]
    if not draws or not np.isfinite(errors).all() or not known.any():
        return shares
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((draws, *errors.shape)) * errors
    on_front = [find_front(x[known] + dx, y[known] + dy)[0] for dx, dy in noise]
    shares[known] = np.mean(on_front, axis=0)
    return shares


def compare_at_equal(
    x: Float[np.ndarray, " n"],
    y: Float[np.ndarray, " n"],
    is_a: Bool[np.ndarray, " n"],
    is_b: Bool[np.ndarray, " n"],
    *,
    seed: int,
    draws: int,
) -> Contrast:
    """How much more of y models of kind a have than those of kind b at equal x.

    The difference is c in y = a + b x + c [kind a] (least squares). The permutation is that of
    Freedman and Lane (1983): the residuals of y = a + b x are permuted over the models.

    Args:
        x: float[n], NaN where unknown.
        y: float[n], the same.
        is_a: bool[n] models of kind a.
        is_b: bool[n] models of kind b; others are left out.
        seed: seed of permutations and draws.
        draws: draws of models with replacement within their kind; 0: no interval.

    Returns:
        Undefined with fewer than two models of a kind or ``MIN_MODELS`` together, or if x is the
        same for all of a kind.
    """
    known = np.isfinite(x) & np.isfinite(y) & (is_a | is_b)
    x, y, is_a = x[known], y[known], is_a[known]
    order = np.argsort(~is_a, kind="stable")
    x, y, is_a = x[order], y[order], is_a[order]
    n_a, n = int(is_a.sum()), len(x)
    enough = min(n_a, n - n_a) >= 2 and n >= MIN_MODELS
    found, slope = np.nan, np.nan
    if enough:
        found, slope = (float(v[0]) for v in _differences(x[None, :], y[None, :], n_a))
    if not math.isfinite(found):
        return Contrast(n_a, n - n_a, np.nan, np.nan, "", None, np.nan)
    residuals, apart = (_take_out(x, v) for v in (y, is_a.astype(float)))
    permutations, is_exact = _permute(n, seed)
    permuted = residuals[permutations] @ apart
    # In units of the difference, of which nearness is told.
    p_value = _two_sided(permuted / (apart @ apart), found, is_exact=is_exact)
    rng = np.random.default_rng(seed)
    drawn = np.concatenate(
        [
            rng.integers(n_a, size=(draws, n_a)),
            n_a + rng.integers(n - n_a, size=(draws, n - n_a)),
        ],
        axis=1,
    )
    differences, _ = _differences(x[drawn], y[drawn], n_a)
    rule = "exact" if is_exact else "drawn"
    return Contrast(n_a, n - n_a, found, p_value, rule, find_ends(found, differences), slope)


def _differences(
    x: Float[np.ndarray, "R n"], y: Float[np.ndarray, "R n"], n_a: int
) -> tuple[Float[np.ndarray, " R"], Float[np.ndarray, " R"]]:
    """Coefficient of the first kind, the first n_a, and the slope within kinds."""
    parts = [(x[:, own], y[:, own]) for own in (slice(n_a), slice(n_a, None))]
    products = [
        ((a - a.mean(1, keepdims=True)) * (b - b.mean(1, keepdims=True))).sum(1)
        for u, v in parts
        for a, b in ((u, v), (u, u))
    ]
    slope = ratio(products[0] + products[2], products[1] + products[3])
    of_x, of_y = (parts[0][i].mean(1) - parts[1][i].mean(1) for i in (0, 1))
    return of_y - slope * of_x, slope


def _take_out(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """What a constant and x leave of y."""
    slope = _slopes(x[None, :], y[None, :])[0]
    return y - y.mean() - np.nan_to_num(slope) * (x - x.mean())


def find_slope(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> float:
    """Slope of the least-squares line of y on x over models with both; NaN without one."""
    known = np.isfinite(x) & np.isfinite(y)
    return float(_slopes(x[None, known], y[None, known])[0]) if known.any() else np.nan


def _rank(values: Float[np.ndarray, "*R n"]) -> Float[np.ndarray, "*R n"]:
    """Ranks along the last axis, ties averaged."""
    from scipy import stats  # half a second, which one model does not need

    return np.asarray(stats.rankdata(values, axis=-1))


def _standardise(values: Float[np.ndarray, "R n"]) -> Float[np.ndarray, "R n"]:
    """Rows of mean 0 and length 1; NaN if all values of a row are equal."""
    apart = values - values.mean(1, keepdims=True)
    out: np.ndarray = ratio(apart, np.sqrt((apart**2).sum(1, keepdims=True)))
    return out


def _correlate_ranks(
    x: Float[np.ndarray, "R n"], y: Float[np.ndarray, "R n"]
) -> Float[np.ndarray, " R"]:
    pairs = (_standardise(_rank(v)) if v.size else v for v in (x, y))
    first, second = pairs
    return np.clip((first * second).sum(1), -1.0, 1.0)


@functools.lru_cache(maxsize=4)  # the same for all numbers of the same models
def _permute(n: int, seed: int) -> tuple[np.ndarray, bool]:
    """Permutations int64[P, n], and whether they are all."""
    if math.factorial(n) <= MAX_EXACT:
        return np.array(list(itertools.permutations(range(n)))), True
    rng = np.random.default_rng(seed)
    return rng.permuted(np.tile(np.arange(n), (N_PERMUTATIONS, 1)), axis=1), False


def _two_sided(permuted: np.ndarray, found: float, *, is_exact: bool) -> float:
    """Twice the smaller tail, at most 1; drawn permutations count the observed one too."""
    one = 0 if is_exact else 1
    tails = ((permuted >= found - NEAR).sum(), (permuted <= found + NEAR).sum())
    return float(min(1.0, 2 * (min(tails) + one) / (len(permuted) + one)))


def _slopes(x: Float[np.ndarray, "R n"], y: Float[np.ndarray, "R n"]) -> Float[np.ndarray, " R"]:
    apart = x - x.mean(1, keepdims=True)
    return ratio((apart * y).sum(1), (apart**2).sum(1))
