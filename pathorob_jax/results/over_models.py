"""The record of ``models.json``: analyses over all models of a folder of results."""

from dataclasses import dataclass
from typing import Any, ClassVar

from pathorob_jax.results.record import ListsRepr, Record, format_ci

FILE = "models.json"
INDEX, APD_ID, APD_OOD = "robustness_index", "apd_id", "apd_ood"
ALL, SELF_SUPERVISED = "all", "self-supervised"


@dataclass(frozen=True, repr=False)
class ModelRow(ListsRepr):
    """Numbers of one model, each the mean over datasets, with intervals, and what is known of it.

    ``facts`` has the value and the source of each fact; facts that no source states are absent.
    """

    model: str
    values: dict[str, float]
    ci95: dict[str, list[float] | None]
    facts: dict[str, dict[str, Any]]

    def fact(self, name: str) -> Any:
        """Value of a fact; None if it is unknown."""
        return self.facts.get(name, {}).get("value")


@dataclass(frozen=True, repr=False)
class RankCorrelation(ListsRepr):
    """Spearman's rank correlation of two numbers over ``n`` models.

    ``p_value`` is two-sided, by permutation of the models (``p_rule``: exact or drawn),
    ``p_value_t`` by Student's t. ``ci95`` is over draws of models.
    """

    ci95_of: ClassVar[str] = "rho"

    x: str
    y: str
    n: int
    rho: float
    p_value: float
    p_rule: str
    p_value_t: float
    ci95: list[float] | None


@dataclass(frozen=True, repr=False)
class Scaling(RankCorrelation):
    """Correlation of the robustness index with a size of the model or of its training.

    ``which`` models: all, or those of self-supervised vision alone (neither vision-language nor
    distilled nor supervised). ``slope`` is the change of the index per tenfold size.
    """

    which: str
    slope: float


@dataclass(frozen=True, repr=False)
class ParetoPoint(ListsRepr):
    """A model by two numbers of which more is better.

    ``front_share`` is how often it is on the front when all numbers are drawn within their errors.
    """

    model: str
    accuracy: float
    accuracy_ci95: list[float] | None
    robustness: float
    robustness_ci95: list[float] | None
    on_front: bool
    front_share: float
    beaten_by: list[str]


@dataclass(frozen=True, repr=False)
class Pareto(ListsRepr):
    """The front of accuracy by robustness: the models that no other beats in both."""

    accuracy: str
    robustness: str
    points: list[ParetoPoint]

    @property
    def front(self) -> list[ParetoPoint]:
        """Models on the front, the most accurate first."""
        return sorted((p for p in self.points if p.on_front), key=lambda p: -p.accuracy)


@dataclass(frozen=True, repr=False)
class LanguageContrast(ListsRepr):
    """Vision-language models less the others in one number, at equal accuracy.

    ``difference`` is the coefficient of the former in the regression of the number on accuracy and
    the kind; ``p_value`` permutes what accuracy alone leaves of the number (Freedman and Lane).
    """

    accuracy: str
    of: str
    n_language: int
    n_vision: int
    difference: float
    p_value: float
    p_rule: str
    ci95: list[float] | None


@dataclass(frozen=True, repr=False)
class OverModels(Record):
    """``models.json``: what holds over models, each model counting once.

    ``titles`` names the numbers. ``correlations`` are of the robustness index with every other
    number, and of every number with the performance drop. Analyses of fewer than ``min_models``
    models are null; ``warnings`` say so.
    """

    metric: ClassVar[str] = "models"
    headline: ClassVar[str] = "n_models"

    n_models: int
    min_models: int
    titles: dict[str, str]
    models: list[ModelRow]
    correlations: list[RankCorrelation]
    scaling: list[Scaling]
    pareto: Pareto | None
    language: list[LanguageContrast]
    seed: int
    draws: int
    warnings: list[str]
    provenance: dict[str, Any]

    def find(self, x: str, y: str) -> RankCorrelation | None:
        """Correlation of two numbers, in either order."""
        for found in self.correlations:
            if {found.x, found.y} == {x, y}:
                return found
        return None

    def describe(self) -> str:
        """Describe the number of models and how the index goes with the performance drop."""
        parts = []
        for name in (APD_ID, APD_OOD):
            found = self.find(INDEX, name)
            if found is not None and found.rho == found.rho:
                parts.append(
                    f"{self.titles[name]} {found.rho:+.3f}{format_ci(found.ci95)} (n = {found.n}, "
                    f"p = {found.p_value:.2g})"
                )
        text = f"{self.n_models} models"
        if parts:
            text += f": rank correlation of the robustness index with {', '.join(parts)}"
        return text
