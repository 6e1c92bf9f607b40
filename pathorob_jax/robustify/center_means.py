"""Centre means: shift every centre to the common mean, with or without regard to its classes."""

import numpy as np

from pathorob_jax.core.checks import InputError
from pathorob_jax.core.typing import Float
from pathorob_jax.robustify.moments import Moments
from pathorob_jax.robustify.transform import CenterMaps


def fit_center_means(moments: Moments, *, reference: int | None = None) -> CenterMaps:
    """Shift the mean of every centre to the mean of all rows, or to that of a reference centre.

    x' = x - mean(centre) + mean(all). A centre with more rows of one class loses a part of that
    class's direction; ``fit_class_adjusted_means`` keeps it.

    Args:
        moments: moments of C x M cells.
        reference: centre that stays as it is; None: none.
    """
    centers = moments.of_centers()
    mean = centers.mean[0]
    target = moments.overall_mean if reference is None else mean[reference]
    return CenterMaps(shift=(target[None, :] - mean)[None])


def fit_class_adjusted_means(moments: Moments, *, reference: int | None = None) -> CenterMaps:
    """Shift every centre by its own effect, with the effect of its classes held apart.

    Least squares of the model mean(class, centre) = centre effect + class effect over all rows;
    x' = x - effect(centre) + the mean effect. The class effect cancels, so that no label is needed
    to transform a row. This is limma's ``removeBatchEffect`` with the class in the design.

    Args:
        moments: moments of C x M cells.
        reference: centre that stays as it is; None: none.

    Raises:
        InputError: the cells do not tell the centre's effect from the class's.
    """
    effect = center_effects(moments, with_classes=True)
    weight = moments.n.sum(0)
    target = weight @ effect / weight.sum() if reference is None else effect[reference]
    return CenterMaps(shift=(target[None, :] - effect)[None])


def center_effects(moments: Moments, *, with_classes: bool) -> Float[np.ndarray, "M D"]:
    """float64[M, D] effects of the centres: their means, or those of ``fit_effects``."""
    if not with_classes:
        return moments.of_centers().mean[0]
    return fit_effects(moments)[0]


def fit_effects(
    moments: Moments,
) -> tuple[Float[np.ndarray, "M D"], Float[np.ndarray, "C D"]]:
    """Least squares of cell means by centre and class, each cell weighted by its rows.

    Equal to least squares over the rows, as the design is the same for all rows of a cell.

    Returns:
        float64[M, D] effects of the centres, and float64[C, D] effects of the classes, of which the
        first is 0.

    Raises:
        InputError: the cells that have rows do not tell the two effects apart.
    """
    n_classes, n_centers = moments.n.shape
    classes, centers = np.nonzero(moments.n)
    design = np.zeros((len(classes), n_centers + n_classes - 1))
    design[np.arange(len(centers)), centers] = 1
    later = classes > 0
    design[np.flatnonzero(later), n_centers + classes[later] - 1] = 1
    root = np.sqrt(moments.n[classes, centers])[:, None]
    effects, _, rank, _ = np.linalg.lstsq(
        design * root, moments.mean[classes, centers] * root, rcond=None
    )
    if rank < design.shape[1]:
        raise InputError(
            "the class is determined by the centre in these rows: centre and class effects cannot "
            "be told apart"
        )
    return effects[:n_centers], np.vstack([np.zeros((1, effects.shape[1])), effects[n_centers:]])
