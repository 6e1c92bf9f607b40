"""Settings of an evaluation; the defaults are those of the protocol."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from pathorob_jax.core import checks
from pathorob_jax.core.checks import UsageError
from pathorob_jax.core.privacy import file_name
from pathorob_jax.data.association_schedule import AssociationSchedule
from pathorob_jax.data.manifest import CENTER, SLIDE
from pathorob_jax.data.slide_table import SlideTable
from pathorob_jax.evaluation import early_checks
from pathorob_jax.kernels.bootstrap.draws import MIN_DRAWS
from pathorob_jax.kernels.clustering.kmeans_draws import Init
from pathorob_jax.kernels.clustering.kmeans_points import (
    DEFAULT_BUDGET_BYTES as KMEANS_BUDGET_BYTES,
)
from pathorob_jax.kernels.logistic.fit import Stopping
from pathorob_jax.kernels.neighbors.search import DEFAULT_BUDGET_BYTES, Precision
from pathorob_jax.metrics.clustering_score import Metric

DesignChoice = Literal["auto", "all", "paired"]
SearchChoice = Literal["auto", "memory", "ring", "stream"]
# Settings on which no number depends.
OF_NO_NUMBER = ("search",)
MIN_CELL_SIZE = 30
DEFAULT_K, AUTO_K = "default", "auto"


@dataclass(frozen=True)
class ApdSettings:
    """Choices of the average performance drop.

    Attributes:
        repetitions: how often the splits are drawn; None: the protocol's 20.
        seed: seed of the draws; None: the protocol's.
        stopping: stopping rule of the linear probe, ``reference`` (scikit-learn's, which gives the
            published numbers) or ``converged``.
        heads: other classifiers on the same splits, of ``metrics.apd.OTHER_HEADS``.
        classes: classes of a custom dataset; None: all.
        centers: in-domain centres of a custom dataset; None: chosen, see
            ``schedule_from_manifest``.
        slides_per_cell: training slides of every cell of the first split; None: as many as fit.
        rows_per_slide: patches of each slide; None: the number with the most training rows.
        test_slides: slides of every cell that only test; None: 2, or 1 where there are few.
        schedule: all training splits of a custom dataset, instead of the five settings above. Rows
            of centres that it does not name are out of domain.
        budget_bytes: memory on each device for the fits of a batch. In addition, the device holds
            the rows of one repetition, and the host the embeddings of the dataset; neither grows
            with the number of repetitions.
    """

    repetitions: int | None = None
    seed: int | None = None
    stopping: Stopping = "reference"
    heads: tuple[str, ...] = ()
    classes: tuple[str, ...] | None = None
    centers: tuple[str, ...] | None = None
    slides_per_cell: int | None = None
    rows_per_slide: int | None = None
    test_slides: int | None = None
    schedule: AssociationSchedule | None = None
    budget_bytes: int = 1 << 30


@dataclass(frozen=True)
class ClusteringSettings:
    """Choices of the clustering score.

    Attributes:
        trials: fits with the chosen number of clusters; None: the protocol's 50.
        k_min: smallest number of clusters tried; None: the protocol's 2.
        k_max: largest number of clusters tried; None: the protocol's 30. If it equals ``k_min``,
            nothing is chosen.
        metric: distance, ``cosine`` (the protocol's), ``euclidean`` or ``spherical``; see
            ``cluster_combination``.
        init: initial centres, ``random`` (the protocol's) or ``k-means++``.
        cluster_seed: seed of k-means; None: the protocol's 1337.
        group_column: rows that share its value are left out together for intervals; None: that of
            ``Settings``.
        seed: seed of the draws of groups; None: that of ``Settings``.
        draws: number of draws; None: that of ``Settings``.
        budget_bytes: memory on each device for a batch of runs. In addition, the device holds the
            inner products of a combination's rows, up to half as much (or, if they would be larger,
            the rows), and the host the embeddings of the dataset. None of this grows with the
            number of combinations; on a CPU, up to four small ones share the budget.
    """

    trials: int | None = None
    k_min: int | None = None
    k_max: int | None = None
    metric: Metric = "cosine"
    init: Init = "random"
    cluster_seed: int | None = None
    group_column: str | None = None
    seed: int | None = None
    draws: int | None = None
    budget_bytes: int = KMEANS_BUDGET_BYTES


@dataclass(frozen=True)
class RetrievalSettings:
    """Choices of case retrieval. Its schedule is that of ``ApdSettings``.

    Attributes:
        optimistic_vote: also report votes that count as right if the true class is among the most
            frequent ones (Patho-Bench).
    """

    optimistic_vote: bool = False


@dataclass(frozen=True)
class SlideSettings:
    """Choices of slide-level prediction; its schedule follows ``ApdSettings``.

    Attributes:
        presets: classifiers of bags, of ``metrics.slide_heads.PRESETS``. The headline is that of
            ``gated``, or of the first.
        epochs: epochs of the networks; None: each preset's own.
        seeds: networks of different starts for each split; their numbers are averaged.
        table: labels of slides (``data.slide_table``) or their file, in the place of the classes of
            patches; None: the classes of patches.
        added_centers: centres without which the classifiers are trained as well, to show what
            their slides add; needs a table with splits.
    """

    presets: tuple[str, ...] = ("mean", "gated")
    epochs: int | None = None
    seeds: int = 1
    table: str | SlideTable | None = None
    added_centers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Settings:
    """Choices of an evaluation: rows, neighbours, and one part for each other metric.

    Attributes:
        k: number of neighbours: ``default`` (the published k; for a custom dataset the same as
            ``auto``), ``auto`` (first maximum of the balanced accuracy over the k grid), or a
            number.
        design: ``auto`` (the protocol's), ``all`` or ``paired``.
        max_patches_per_combi: keep the first n patches of each (subset, class, centre) as samples
            and neighbours, after the protocol's shuffle; None keeps all.
        columns: our column name -> the manifest's, for class and centre.
        confounders: manifest columns that replace the centre one after the other, each with
            separate results (``<dataset>@<column>``); empty: only the centre.
        group_column: rows that share its value are never neighbours, never on both sides of a fold
            of a probe, and left out together for intervals.
        min_cell_size: patches in each cell of the 2 x 2 subsets that are derived from a custom
            manifest without subsets (design ``paired``); None: 30.
        neighbors: file of neighbours that other software found; None: search for them.
        precision: precision of the search, ``float32`` or ``fast`` (bfloat16 candidates, verified).
        seed: seed of the draws of groups and of permutations.
        draws: number of draws, at least ``MIN_DRAWS``; 0: no intervals and no comparisons.
        budget_bytes: memory for a pair of tiles of scores in the search.
        search: where the rows of the search lie, ``memory``, ``ring`` (in shards over devices) or
            ``stream`` (in a scratch file, read in blocks); ``auto``: as their size and the devices
            ask. The numbers are the same.
        apd: choices of the average performance drop.
        clustering_score: choices of the clustering score.
        retrieval: choices of case retrieval.
        slide_prediction: choices of slide-level prediction.
    """

    k: int | str = "default"
    design: DesignChoice = "auto"
    max_patches_per_combi: int | None = None
    columns: dict[str, str] | None = None
    confounders: tuple[str, ...] = ()
    group_column: str = SLIDE
    min_cell_size: int | None = None
    neighbors: str | None = None
    precision: Precision = "float32"
    seed: int = 0
    draws: int = 2000
    budget_bytes: int = DEFAULT_BUDGET_BYTES
    search: SearchChoice = "auto"
    apd: ApdSettings = field(default_factory=ApdSettings)
    clustering_score: ClusteringSettings = field(default_factory=ClusteringSettings)
    retrieval: RetrievalSettings = field(default_factory=RetrievalSettings)
    slide_prediction: SlideSettings = field(default_factory=SlideSettings)

    @property
    def renamed_columns(self) -> set[str]:
        """Our columns whose values come from a differently named column of the manifest."""
        return {ours for ours, theirs in (self.columns or {}).items() if ours != theirs}

    def with_confounder(self, column: str) -> "Settings":
        """The same settings, with a manifest column instead of the centre."""
        return dataclasses.replace(
            self, columns=(self.columns or {}) | {CENTER: column}, confounders=()
        )

    def of_neighbors(self) -> dict[str, Any]:
        """Settings that neighbour metrics depend on, as plain values."""
        chosen = dataclasses.asdict(self)
        parts = ("apd", "clustering_score", "retrieval", "slide_prediction")
        for name in (*parts, *OF_NO_NUMBER):
            del chosen[name]
        if self.neighbors is not None:
            chosen["neighbors"] = file_name(self.neighbors)
        return chosen

    def of_clustering_score(self) -> ClusteringSettings:
        """Choices of the clustering score; unset settings of draws are those of all metrics."""
        choices = self.clustering_score
        shared = {
            name: getattr(self, name)
            for name in ("group_column", "seed", "draws")
            if getattr(choices, name) is None
        }
        return dataclasses.replace(choices, **shared)

    def check(self) -> None:
        """Reject settings that would be ignored, numbers out of range, and too few draws.

        Raises:
            UsageError: two settings exclude each other, or a number is too small.
        """
        early_checks.check_k(self.k)
        checks.check_at_least(
            1,
            max_patches_per_combi=self.max_patches_per_combi,
            min_cell_size=self.min_cell_size,
            budget_bytes=self.budget_bytes,
        )
        checks.check_at_least(0, seed=self.seed)
        checks.check_known(self.design, get_args(DesignChoice), what="design")
        checks.check_known(self.precision, get_args(Precision), what="precision")
        checks.check_known(self.search, get_args(SearchChoice), what="search")
        early_checks.check_confounders(self.confounders)
        own, clustering = self.apd, self.clustering_score
        checks.check_at_least(
            1,
            repetitions=own.repetitions,
            slides_per_cell=own.slides_per_cell,
            rows_per_slide=own.rows_per_slide,
            test_slides=own.test_slides,
            trials=clustering.trials,
            k_min=clustering.k_min,
            k_max=clustering.k_max,
            epochs=self.slide_prediction.epochs,
            seeds=self.slide_prediction.seeds,
        )
        checks.check_at_least(
            0,
            seed=clustering.seed,
            apd_seed=own.seed,
            cluster_seed=clustering.cluster_seed,
        )
        for draws in (self.draws, self.clustering_score.draws):
            early_checks.check_draws(draws, MIN_DRAWS)
        if self.neighbors is not None and self.precision != "float32":
            raise UsageError(
                f"precision: {self.precision!r} is of a search, but neighbours are read from "
                f"{self.neighbors}; leave one of the two out."
            )
        center = (self.columns or {}).get(CENTER, CENTER)
        if self.confounders and center not in (CENTER, *self.confounders):
            raise UsageError(
                f"columns: {center!r} is given in the centre's place, and so are the confounders "
                f"{list(self.confounders)}; add it to the confounders, or leave it out."
            )
