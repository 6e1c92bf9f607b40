"""Linear projections: take the directions that tell centres apart out of all embeddings alike."""

import numpy as np

from pathorob_jax.core.checks import InputError
from pathorob_jax.core.typing import Float
from pathorob_jax.robustify.center_means import center_effects, fit_effects
from pathorob_jax.robustify.moments import Moments
from pathorob_jax.robustify.transform import CenterMaps

# Singular values of the whitened cross covariance of rows and centres below this are noise; the
# value of the package concept-erasure.
LEACE_TOLERANCE = 0.01


def fit_mean_projection(moments: Moments, *, with_classes: bool = False) -> CenterMaps:
    """Project orthogonally off the differences between the means of centres.

    Args:
        moments: moments of C x M cells.
        with_classes: use the centres' effects with those of the classes held apart.

    Raises:
        InputError: ``with_classes``, and the class is determined by the centre.
    """
    effects = center_effects(moments, with_classes=with_classes)
    u, s, _ = np.linalg.svd((effects - effects.mean(0)).T, full_matrices=False)
    directions = u[:, s > s.max(initial=0) * max(effects.shape) * np.finfo(float).eps]
    return CenterMaps(origin=moments.overall_mean, right=directions, left=directions.T)


def fit_leace(moments: Moments, *, with_classes: bool = False) -> CenterMaps:
    """Least-squares concept erasure (LEACE, arXiv:2306.03819) of the centre, without shrinkage.

    x' = x - W+ U U' W (x - mean), W the inverse root of the covariance of x and U the left singular
    vectors of W cov(x, z), z the centre as one-hot vector. Afterwards no linear probe reads the
    centre out of the rows of the fit, and the rows change as little as possible.

    Args:
        moments: moments with the ``total`` scatter.
        with_classes: z less its mean in the row's class, so that what centres share with their
            classes stays.

    Raises:
        InputError: the moments have no scatter.
    """
    covariance = _total_scatter(moments) / (moments.n_rows - 1)
    n = moments.n.astype(np.float64)
    if with_classes:
        fit_effects(moments)  # refuses classes that their centre determines
        of_class = np.einsum("cm,cmd->cd", n, moments.mean) / np.maximum(n.sum(1), 1)[:, None]
        deviation = moments.mean - of_class[:, None]
    else:
        deviation = moments.mean - moments.overall_mean
    cross = np.einsum("cm,cmd->dm", n, deviation) / (moments.n_rows - 1)
    values, vectors = np.linalg.eigh(covariance)
    real = values > values[-1] * len(values) * np.finfo(float).eps
    root = np.sqrt(np.where(real, np.maximum(values, 0), 0))
    whiten = (vectors * np.where(real, 1 / np.where(real, root, 1), 0)) @ vectors.T
    u, s, _ = np.linalg.svd(whiten @ cross, full_matrices=False)
    u = u[:, s > LEACE_TOLERANCE]
    return CenterMaps(
        origin=moments.overall_mean,
        right=whiten @ u,
        left=((vectors * root) @ vectors.T @ u).T,
    )


def fit_pca_removal(moments: Moments, *, rank: int) -> CenterMaps:
    """Project off the first principal components; a control that knows nothing of centres.

    Args:
        moments: moments with the ``total`` scatter.
        rank: number of components.

    Raises:
        InputError: the moments have no scatter, or ``rank`` is out of range.
    """
    directions = _first_directions(_total_scatter(moments), rank)
    return CenterMaps(origin=moments.overall_mean, right=directions, left=directions.T)


def fit_paired_subspace(moments: Moments, *, rank: int) -> CenterMaps:
    """Project off the directions in which the same tissue differs between its acquisitions.

    Args:
        moments: moments with the ``total`` scatter whose cells are tissues in place of centres (the
            same tissue under several stains or scanners).
        rank: number of directions, those of the largest spread within tissues.

    Raises:
        InputError: the moments have no scatter, or ``rank`` is out of range.
    """
    tissues = moments.of_centers()
    deviation = (tissues.mean[0] - moments.overall_mean) * np.sqrt(tissues.n[0])[:, None]
    within = _total_scatter(moments) - deviation.T @ deviation
    directions = _first_directions(within, rank)
    return CenterMaps(origin=moments.overall_mean, right=directions, left=directions.T)


def _total_scatter(moments: Moments) -> Float[np.ndarray, "D D"]:
    if moments.scatter is None or len(moments.scatter) != 1:
        raise InputError("moments: expected products of all rows; measure them with scatter=total.")
    return (moments.scatter[0] + moments.scatter[0].T) / 2


def _first_directions(scatter: Float[np.ndarray, "D D"], rank: int) -> Float[np.ndarray, "D R"]:
    """Eigenvectors of the largest eigenvalues, each with its largest entry positive."""
    if not 1 <= rank < len(scatter):
        raise InputError(f"rank: expected 1 to {len(scatter) - 1} directions, found {rank}.")
    vectors = np.linalg.eigh(scatter)[1][:, ::-1][:, :rank]
    largest = np.abs(vectors).argmax(0)
    return vectors * np.sign(vectors[largest, np.arange(rank)])
