"""The record of MaRI and CRoMa, and their ``MetricKind``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pathorob_jax.kernels.bootstrap.intervals import SIGNED
from pathorob_jax.results.metric_kind import Headline, MetricKind
from pathorob_jax.results.record import ListsRepr, Record


@dataclass(frozen=True, repr=False)
class MarginsCurve(ListsRepr):
    """MaRI as a function of k, at the temperature of the operating k."""

    shapes: ClassVar[Mapping[str, str]] = {"k": "points", "mari": "points"}

    k: list[int]
    mari: list[float]


@dataclass(frozen=True, repr=False)
class MarginsResult(Record):
    """``margins.json``: MaRI and CRoMa (arXiv:2607.25497) of one model on one dataset.

    ``mari_tau`` is the median distance of the SO and OS neighbours at k. ``croma`` is the median of
    the samples' margins (with subsets: the median of their medians), ``croma_f0`` the share of
    margins at most 0, ``croma_q10`` the 10 % quantile, and ``croma_ltm10`` the mean of the margins
    up to it.
    """

    metric: ClassVar[str] = "margins"
    headline: ClassVar[str] = "croma"

    model: str
    dataset: str
    design: str
    k: int
    k_rule: str
    k_available: int
    mari: float
    mari_tau: float
    mari_support: float
    mari_ci95: list[float] | None
    croma: float
    croma_m: int
    croma_f0: float
    croma_q10: float
    croma_ltm10: float
    croma_support: float
    croma_ci95: list[float] | None
    croma_f0_ci95: list[float] | None
    croma_q10_ci95: list[float] | None
    croma_ltm10_ci95: list[float] | None
    n_samples: int
    n_slides: int
    curve: MarginsCurve
    warnings: list[str]
    provenance: dict[str, Any]

    @property
    def ci95(self) -> list[float] | None:
        """Interval of the headline number, CRoMa."""
        return self.croma_ci95

    @property
    def support(self) -> float:
        """Support of the headline number, CRoMa."""
        return self.croma_support

    def describe(self) -> str:
        """Describe MaRI and CRoMa with their supports."""
        return (
            f"{self.where}: MaRI {self.mari:.4f} at k = {self.k}, support {self.mari_support:.0%}; "
            f"CRoMa {self.croma:+.4f}, at most 0 in {self.croma_f0:.0%}, support "
            f"{self.croma_support:.0%}"
        )


KIND = MetricKind(
    record=MarginsResult,
    title="margins",
    headlines=(
        Headline(
            "croma",
            "CRoMa",
            compared_as="CRoMa",
            in_overview=False,
            in_summary=False,
            bounds=SIGNED,
        ),
    ),
    evaluate="pathorob_jax.evaluation.margins:make_margins",
    section="pathorob_jax.report.page_margins:build_section",
)
