"""CORAL: align the covariance of every centre, not only its location and scale."""

import numpy as np

from pathorob_jax.core.checks import InputError
from pathorob_jax.core.typing import Float
from pathorob_jax.robustify.moments import Moments
from pathorob_jax.robustify.transform import CenterMaps

# Ridge on every covariance, as a share of its mean eigenvalue.
RIDGE = 1e-3


def fit_coral(moments: Moments, *, reference: int | None = None) -> CenterMaps:
    """Whiten the rows of a centre and give them the common covariance (arXiv:1511.05547).

    x' = (x - mean_m) S_m^(-1/2) S^(1/2) + mean, each covariance S with a ridge.

    Args:
        moments: moments with the scatter of each ``center``.
        reference: centre whose mean and covariance are the target; None: the mean of all rows, and
            the pooled covariance within centres.

    Raises:
        InputError: the moments have no scatter by centre.
    """
    n_centers = moments.n.shape[1]
    if moments.scatter is None or len(moments.scatter) != n_centers:
        raise InputError("moments: expected products by centre; measure them with scatter=center.")
    centers = moments.of_centers()
    n, mean = centers.n[0], centers.mean[0]
    covariances = [s / max(1, k - 1) for s, k in zip(moments.scatter, n, strict=True)]
    if reference is None:
        target_mean = moments.overall_mean
        target = moments.scatter.sum(0) / (n.sum() - n_centers)
    else:
        target_mean, target = mean[reference], covariances[reference]
    color = _power(target, 0.5)
    matrix = np.stack([_power(c, -0.5) @ color for c in covariances])
    if reference is not None:
        matrix[reference] = np.eye(len(color))
    shift = target_mean[None, :] - np.einsum("md,mde->me", mean, matrix)
    return CenterMaps(shift=shift[None], matrix=matrix)


def _power(covariance: Float[np.ndarray, "D D"], exponent: float) -> Float[np.ndarray, "D D"]:
    """A power of a covariance with its ridge."""
    dim = len(covariance)
    ridge = RIDGE * np.trace(covariance) / dim
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    # Constant rows have no covariance; the smallest positive number keeps the power finite.
    values = np.maximum(np.maximum(values, 0) + ridge, np.finfo(float).tiny)
    return (vectors * values**exponent) @ vectors.T
