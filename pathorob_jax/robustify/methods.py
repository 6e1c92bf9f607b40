"""The methods for embeddings: name, what each is fitted from, and which options it takes."""

from collections.abc import Callable
from dataclasses import dataclass

from pathorob_jax.core import checks
from pathorob_jax.core.checks import UsageError
from pathorob_jax.robustify import center_means, combat, coral, projections
from pathorob_jax.robustify.moments import Moments, Scatter
from pathorob_jax.robustify.transform import CenterMaps

# Directions that pca_removal and paired_subspace take out.
DEFAULT_RANK = 8


@dataclass(frozen=True)
class FitOptions:
    """Choices of a fit.

    Attributes:
        with_classes: the biological class is a covariate.
        reference: centre that stays as it is; None: none.
        rank: number of directions; None: ``DEFAULT_RANK``.
    """

    with_classes: bool = False
    reference: int | None = None
    rank: int | None = None


@dataclass(frozen=True)
class Method:
    """One method.

    Attributes:
        summary: what it does, in one line.
        fit: moments and options -> maps.
        scatter: products of dimensions that the fit needs.
        takes: names of the fields of ``FitOptions`` that it obeys.
        uses_classes: whether the class enters the fit even without covariates.
        uses_centers: whether centres enter the fit, so that they must differ from classes.
    """

    summary: str
    fit: Callable[[Moments, FitOptions], CenterMaps]
    scatter: Scatter = "none"
    takes: frozenset[str] = frozenset()
    uses_classes: bool = False
    uses_centers: bool = True


def _combat(prior: combat.Prior) -> Callable[[Moments, FitOptions], CenterMaps]:
    def fit(moments: Moments, options: FitOptions) -> CenterMaps:
        return combat.fit_combat(
            moments, prior=prior, with_classes=options.with_classes, reference=options.reference
        )

    return fit


_COMBAT_OPTIONS = frozenset({"with_classes", "reference"})
METHODS: dict[str, Method] = {
    "identity": Method(
        "Changes nothing; the control of all others.",
        lambda moments, options: CenterMaps(),
        uses_centers=False,
    ),
    "center_means": Method(
        "Shifts the mean of every centre to the common mean.",
        lambda moments, options: center_means.fit_center_means(
            moments, reference=options.reference
        ),
        takes=frozenset({"reference"}),
    ),
    "class_adjusted_means": Method(
        "Shifts every centre by its effect, with that of the classes held apart.",
        lambda moments, options: center_means.fit_class_adjusted_means(
            moments, reference=options.reference
        ),
        takes=frozenset({"reference"}),
        uses_classes=True,
    ),
    "combat": Method(
        "Location and scale of every centre, shrunk by parametric empirical Bayes.",
        _combat("parametric"),
        takes=_COMBAT_OPTIONS,
    ),
    "combat_nonparametric": Method(
        "ComBat whose prior is the other dimensions' own effects.",
        _combat("nonparametric"),
        takes=_COMBAT_OPTIONS,
    ),
    "combat_mean_only": Method(
        "ComBat's location alone.", _combat("mean_only"), takes=_COMBAT_OPTIONS
    ),
    "mean_projection": Method(
        "Projects orthogonally off the differences between centre means.",
        lambda moments, options: projections.fit_mean_projection(
            moments, with_classes=options.with_classes
        ),
        takes=frozenset({"with_classes"}),
    ),
    "leace": Method(
        "Least-squares erasure of the centre from all linear probes.",
        lambda moments, options: projections.fit_leace(moments, with_classes=options.with_classes),
        scatter="total",
        takes=frozenset({"with_classes"}),
    ),
    "pca_removal": Method(
        "Projects off the first principal components; a control that knows no centre.",
        lambda moments, options: projections.fit_pca_removal(
            moments, rank=options.rank or DEFAULT_RANK
        ),
        scatter="total",
        takes=frozenset({"rank"}),
        uses_centers=False,
    ),
    "coral": Method(
        "Aligns the covariance of every centre.",
        lambda moments, options: coral.fit_coral(moments, reference=options.reference),
        scatter="center",
        takes=frozenset({"reference"}),
    ),
    "paired_subspace": Method(
        "Projects off the directions in which the same tissue differs between acquisitions.",
        lambda moments, options: projections.fit_paired_subspace(
            moments, rank=options.rank or DEFAULT_RANK
        ),
        scatter="total",
        takes=frozenset({"rank"}),
        uses_centers=False,
    ),
}
DEFAULT_METHOD = "class_adjusted_means"
PAIRED = "paired_subspace"


def get_method(name: str) -> Method:
    """The method of a name.

    Raises:
        UsageError: there is none.
    """
    checks.check_known(name, METHODS, what="method")
    return METHODS[name]


def check_options(name: str, options: FitOptions) -> None:
    """Refuse options that a method would ignore.

    Raises:
        UsageError: an option is given that the method does not take.
    """
    given = {
        "with_classes": (options.with_classes, "covariates"),
        "reference": (options.reference is not None, "reference"),
        "rank": (options.rank is not None, "rank"),
    }
    for option, (is_given, flag) in given.items():
        if is_given and option not in get_method(name).takes:
            raise UsageError(f"{flag}: method {name} does not use it; leave it out.")
