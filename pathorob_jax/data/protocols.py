"""The PathoROB protocols as data: which rows and which settings each metric uses.

``PROTOCOLS`` has one frozen record per dataset of the article (arXiv:2507.17845; code:
github.com/bifold-pathomics/PathoROB). All facts about these datasets are in this module.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from pathorob_jax.data.association_schedule import AssociationSchedule

Design = Literal["all", "paired"]
OOD = "OOD"
CUSTOM_K_LIMIT = 600
SHUFFLE_SEED, PROBE_SEED = 123, 42


@dataclass(frozen=True)
class View:
    """Rows that a metric uses: one metadata file without some of its ``subset`` values."""

    metadata: str
    exclude_subsets: tuple[str, ...] = ()


@dataclass(frozen=True)
class NeighborProtocol:
    """How the robustness index and other metrics of neighbours are computed.

    Attributes:
        view: rows.
        design: ``all``: neighbours among all rows; ``paired``: within each ``subset`` of two
            classes and two centres, where every occurrence of a patch is a separate query.
        k: the published number of neighbours, the median of the best k of all models.
        k_limit: upper limit (exclusive) of the k grid.
        shuffle_seed: seed of the initial permutation of the rows, which only affects ties.
        probe_seed: seed of the folds of the logistic probes.
        probe_group_prefix: number of leading characters of the slide id that identify the unit that
            folds never split (a case); None: the slide.
    """

    view: View
    design: Design
    k: int
    k_limit: int
    shuffle_seed: int = SHUFFLE_SEED
    probe_seed: int = PROBE_SEED
    probe_group_prefix: int | None = None


@dataclass(frozen=True)
class ApdProtocol:
    """Average performance drop: rows, schedule and seeds.

    Attributes:
        in_domain: rows that are split into training, validation and test rows.
        out_of_domain: rows of other centres, all used for testing.
        schedule: training splits.
        case_splits: metadata file with, for each centre, the slides that a repetition keeps for
            testing, for datasets whose slides have several classes; None: slides have one class.
        seed: seed from which the seeds of the repetitions are drawn.
        repetitions: number of times that the splits are drawn.
        c_grid: values of C of the linear probe. The best on the validation rows is used; among
            equals, the first.
    """

    in_domain: View
    out_of_domain: View
    schedule: AssociationSchedule
    case_splits: str | None = None
    seed: int = 1000
    repetitions: int = 20
    c_grid: tuple[float, ...] = tuple(float(c) for c in 10 ** np.linspace(-8, 4, 15))


@dataclass(frozen=True)
class ClusteringProtocol:
    """Clustering score: rows, grid of K, numbers of runs and seed."""

    view: View
    k_min: int = 2
    k_max: int = 30
    selection_inits: int = 20
    trials: int = 50
    trial_inits: int = 5
    seed: int = 1337


@dataclass(frozen=True)
class Protocol:
    """The protocols of all metrics of a dataset, its images, their licence and tissue."""

    name: str
    images: str
    licence: str
    tissue: str
    robustness_index: NeighborProtocol
    apd: ApdProtocol
    clustering_score: ClusteringProtocol


def k_grid(limit: int) -> tuple[int, ...]:
    """Values of k in the reference: 1, 3, 5, 7, 9, 11, 21, 31, ... below ``limit``."""
    return tuple(k for k in (*range(1, 10, 2), *range(11, limit, 10)) if k < limit)


def _camelyon_slides() -> tuple[tuple[tuple[int, ...], ...], ...]:
    # Rows normal, tumor; columns RUMC, UMCU.
    return tuple(((7 - s, 7 + s), (7 + s, 7 - s)) for s in range(8))


def _tcga_slides() -> tuple[tuple[tuple[int, ...], ...], ...]:
    anti, rest = (2, 1, 2, 1, 0, 1, 0), (2, 2, 1, 1, 1, 0, 0)
    return tuple(
        tuple(
            tuple(s + 2 if i == j else anti[s] if i + j == 3 else rest[s] for j in range(4))
            for i in range(4)
        )
        for s in range(7)
    )


def _tolkach_slides() -> tuple[tuple[tuple[int, ...], ...], ...]:
    return tuple(
        tuple((3 - s, 3 + s) if i < 3 else (3 + s, 3 - s) for i in range(6)) for s in range(4)
    )


PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            name="camelyon",
            images="bifold-pathomics/PathoROB-camelyon",
            licence="CC0-1.0",
            tissue="lymph node",
            robustness_index=NeighborProtocol(
                View("camelyon.csv", exclude_subsets=(OOD,)), design="all", k=11, k_limit=600
            ),
            apd=ApdProtocol(
                in_domain=View("camelyon.csv", exclude_subsets=(OOD,)),
                out_of_domain=View("camelyon.csv", exclude_subsets=("ID",)),
                schedule=AssociationSchedule(
                    classes=("normal", "tumor"),
                    centers=("RUMC", "UMCU"),
                    slides=_camelyon_slides(),
                    rows_per_slide=300,
                ),
            ),
            clustering_score=ClusteringProtocol(View("camelyon_reduced.csv")),
        ),
        Protocol(
            name="tcga",
            images="bifold-pathomics/PathoROB-tcga",
            licence="CC-BY-NC-SA-4.0",
            tissue="many organs",
            robustness_index=NeighborProtocol(
                View("tcga_2x2.csv"), design="paired", k=61, k_limit=1200, probe_group_prefix=12
            ),
            apd=ApdProtocol(
                in_domain=View("tcga_4x4.csv", exclude_subsets=(OOD,)),
                out_of_domain=View("tcga_4x4.csv", exclude_subsets=("ID",)),
                schedule=AssociationSchedule(
                    classes=(
                        "Breast_invasive_carcinoma",
                        "Colon_adenocarcinoma",
                        "Lung_adenocarcinoma",
                        "Lung_squamous_cell_carcinoma",
                    ),
                    centers=(
                        "Asterand",
                        "Christiana Healthcare",
                        "Roswell Park",
                        "University of Pittsburgh",
                    ),
                    slides=_tcga_slides(),
                    rows_per_slide=30,
                ),
            ),
            clustering_score=ClusteringProtocol(View("tcga_4x4.csv", exclude_subsets=(OOD,))),
        ),
        Protocol(
            name="tolkach_esca",
            images="bifold-pathomics/PathoROB-tolkach_esca",
            licence="CC-BY-SA-4.0",
            tissue="oesophagus",
            robustness_index=NeighborProtocol(
                View("tolkach_esca_reduced.csv"), design="all", k=46, k_limit=1000
            ),
            apd=ApdProtocol(
                in_domain=View("tolkach_esca.csv", exclude_subsets=(OOD,)),
                out_of_domain=View("tolkach_esca.csv", exclude_subsets=("ID",)),
                schedule=AssociationSchedule(
                    classes=("TUMOR", "MUSC_PROP", "SH_OES", "SH_MAG", "REGR_TU", "ADVENT"),
                    centers=("VALSET2_WNS", "VALSET4_CHA_FULL"),
                    slides=_tolkach_slides(),
                    rows_per_slide=100,
                ),
                case_splits="tolkach_splits.json",
            ),
            clustering_score=ClusteringProtocol(View("tolkach_esca_reduced.csv")),
        ),
    )
}
