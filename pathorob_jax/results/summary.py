"""The record of ``summary.json``: PathoROB's headline of one model."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from pathorob_jax.core.plain import OMIT_EMPTY
from pathorob_jax.results.record import Record


@dataclass(frozen=True, repr=False)
class Summary(Record):
    """``summary.json``: PathoROB's three headline numbers of one model over its three datasets.

    ``robustness_index`` and ``clustering_score`` are unweighted means over datasets; their
    intervals average the draws of the datasets. ``apd_id`` and ``apd_ood`` are those of
    ``apd_aggregate.json``, with its interval (over repetitions). ``per_dataset`` has the values of
    the datasets. ``more`` has the means of further metrics that are in the summary, by number:
    value, ci95 and per_dataset.
    """

    metric: ClassVar[str] = "summary"
    headline: ClassVar[str] = "robustness_index"

    model: str
    datasets: list[str]
    robustness_index: float
    robustness_index_ci95: list[float] | None
    apd_id: float
    apd_id_ci95: list[float] | None
    apd_ood: float
    apd_ood_ci95: list[float] | None
    clustering_score: float
    clustering_score_ci95: list[float] | None
    per_dataset: dict[str, dict[str, float]]
    warnings: list[str]
    provenance: dict[str, Any]
    more: dict[str, dict[str, Any]] = field(default_factory=dict, metadata=OMIT_EMPTY)

    def describe(self) -> str:
        """Describe PathoROB's three headline numbers, then those of further metrics."""
        more = "".join(f", {name} {number['value']:.4f}" for name, number in self.more.items())
        return (
            f"{self.model}, all of PathoROB: robustness index {self.robustness_index:.4f}, "
            f"performance drop {self.apd_id:+.4f} and {self.apd_ood:+.4f}, clustering score "
            f"{self.clustering_score:+.4f}{more}"
        )
