"""What a user may choose of an evaluation; the defaults are the protocol's."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from pathorob_jax.core.checks import UsageError
from pathorob_jax.data.association_schedule import AssociationSchedule
from pathorob_jax.data.manifest import CENTER, SLIDE
from pathorob_jax.kernels.clustering.kmeans import DEFAULT_BUDGET_BYTES as KMEANS_BUDGET_BYTES
from pathorob_jax.kernels.clustering.kmeans import Init
from pathorob_jax.kernels.logistic.fit import Stopping
from pathorob_jax.kernels.neighbors.search import DEFAULT_BUDGET_BYTES, Precision
from pathorob_jax.metrics.clustering_score import Metric

DesignChoice = Literal["auto", "all", "paired"]
MIN_CELL_SIZE = 30


@dataclass(frozen=True)
class ApdSettings:
    """Choices of the average performance drop.

    Attributes:
        repetitions: how often the splits are drawn; None: the protocol's 20.
        seed: of the draws; None: the protocol's.
        stopping: of the linear probe, ``reference`` (scikit-learn's, which the published numbers
            come from) or ``converged``.
        heads: other classifiers on the same splits, of ``metrics.apd.OTHER_HEADS``.
        classes: of a custom dataset; None: all.
        centers: in domain, of a custom dataset; None: chosen, see ``schedule_from_manifest``.
        slides_per_cell: training slides of every cell of the first split; None: as many as fit.
        rows_per_slide: patches of each slide; None: what gives the most training rows.
        schedule: all training splits of a custom dataset, in place of the four above. Rows of
            centres that it does not name are out of domain.
        budget_bytes: memory on each device for the fits of a batch. The rows of one repetition lie
            beside it, and the dataset's embeddings on the host; neither grows with the repetitions.
    """

    repetitions: int | None = None
    seed: int | None = None
    stopping: Stopping = "reference"
    heads: tuple[str, ...] = ()
    classes: tuple[str, ...] | None = None
    centers: tuple[str, ...] | None = None
    slides_per_cell: int | None = None
    rows_per_slide: int | None = None
    schedule: AssociationSchedule | None = None
    budget_bytes: int = 1 << 30


@dataclass(frozen=True)
class ClusteringSettings:
    """Choices of the clustering score.

    Attributes:
        trials: fits at the chosen number of clusters; None: the protocol's 50.
        k_min: least number of clusters tried; None: the protocol's 2.
        k_max: largest; None: the protocol's 30. Equal to ``k_min``: nothing is chosen.
        metric: distance, ``cosine`` (the protocol's), ``euclidean`` or ``spherical``; see
            ``cluster_combination``.
        init: first centres, ``random`` (the protocol's) or ``k-means++``.
        cluster_seed: of k-means; None: the protocol's 1337.
        group_column: rows that share its value are drawn together by the bootstrap; None: that of
            ``Settings``.
        seed: of the bootstrap over groups; None: that of ``Settings``.
        draws: of the bootstrap; None: those of ``Settings``.
        budget_bytes: memory on each device for a batch of runs. The inner products of a
            combination's rows lie beside it, up to half as much (or, where they would be larger,
            the rows), and the dataset's embeddings on the host. None of it grows with the
            combinations.
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
class Settings:
    """Choices of an evaluation: of the rows, of neighbours, and a part for each other metric.

    Attributes:
        k: number of neighbours: ``default`` (the published k; for a custom dataset the same as
            ``auto``), ``auto`` (first maximum of the balanced accuracy over the k grid), or a
            number.
        design: ``auto`` (the protocol's), ``all`` or ``paired``.
        max_patches_per_combi: keep the first n patches of each (subset, class, centre) as samples
            and neighbours, after the protocol's shuffle; None keeps all.
        columns: our column name -> the manifest's, for class and centre.
        confounders: manifest columns that take the centre's place one after the other, each with
            results of its own (``<dataset>@<column>``); empty: the centre alone.
        group_column: rows that share its value are never neighbours, never on both sides of a fold
            of a probe, and drawn together by the bootstrap.
        min_cell_size: patches in each cell of the 2 x 2 subsets that are derived from a custom
            manifest without subsets (design ``paired``); None: 30.
        neighbors: file of neighbours found elsewhere; None: search for them.
        precision: of the search, ``float32`` or ``fast`` (bfloat16 candidates, verified).
        seed: of the bootstrap over groups and of permutations.
        draws: of the bootstrap.
        budget_bytes: memory for a pair of tiles of scores in the search.
        apd: choices of the average performance drop.
        clustering_score: choices of the clustering score.
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
    apd: ApdSettings = field(default_factory=ApdSettings)
    clustering_score: ClusteringSettings = field(default_factory=ClusteringSettings)

    @property
    def renamed_columns(self) -> set[str]:
        """Our columns whose values come from another column of the manifest."""
        return {ours for ours, theirs in (self.columns or {}).items() if ours != theirs}

    def with_confounder(self, column: str) -> "Settings":
        """The same settings with a manifest column in the centre's place."""
        return dataclasses.replace(
            self, columns=(self.columns or {}) | {CENTER: column}, confounders=()
        )

    def of_neighbors(self) -> dict[str, Any]:
        """What metrics of neighbours depend on, as plain values."""
        chosen = dataclasses.asdict(self)
        del chosen["apd"], chosen["clustering_score"]
        return chosen

    def of_clustering_score(self) -> ClusteringSettings:
        """Choices of the clustering score, with the bootstrap of all metrics unless given."""
        own = self.clustering_score
        shared = {
            name: getattr(self, name)
            for name in ("group_column", "seed", "draws")
            if getattr(own, name) is None
        }
        return dataclasses.replace(own, **shared)

    def check(self) -> None:
        """Refuse what would be ignored.

        Raises:
            UsageError: two settings exclude each other.
        """
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
