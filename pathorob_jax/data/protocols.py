"""The PathoROB protocols as data: which rows each metric reads, and with which settings.

Enters: nothing. Leaves: ``PROTOCOLS``, one frozen record per dataset of the article
(arXiv:2507.17845; code: github.com/bifold-pathomics/PathoROB). Nothing about these datasets is
written anywhere else.
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
    """Rows that a metric reads: one metadata file, some of its ``subset`` values left out."""

    metadata: str
    exclude_subsets: tuple[str, ...] = ()


@dataclass(frozen=True)
class NeighborProtocol:
    """How the robustness index (and whatever else reads neighbours) is computed.

    Attributes:
        view: rows.
        design: ``all``: neighbours among all rows; ``paired``: inside each ``subset`` of two
            classes and two centres, every occurrence of a patch its own query.
        k: the published number of neighbours, the median of the models' best k.
        k_limit: the k grid stays below it.
        shuffle_seed: rows are permuted first, which decides ties only.
        probe_seed: of the folds of the logistic probes.
        probe_group_prefix: characters of the slide id that name what a fold never splits (a case);
            None: the slide.
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
        in_domain: rows that are split.
        out_of_domain: rows of other centres, all of them tested on.
        schedule: training splits.
        case_splits: metadata file that lists, per centre, slides which a repetition keeps for
            testing, where slides hold several classes; None: they do not.
        seed: of the repetitions' own seeds.
        repetitions: how often the splits are drawn.
        c_grid: strengths of the linear probe, the first best on the validation rows is taken.
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
    """Clustering score: rows, K grid, numbers of runs and seed."""

    view: View
    k_min: int = 2
    k_max: int = 30
    selection_inits: int = 20
    trials: int = 50
    trial_inits: int = 5
    seed: int = 1337


@dataclass(frozen=True)
class Protocol:
    """All of a dataset."""

    name: str
    images: str
    licence: str
    robustness_index: NeighborProtocol
    apd: ApdProtocol
    clustering_score: ClusteringProtocol


def k_grid(limit: int) -> tuple[int, ...]:
    """The reference's values of k: 1, 3, 5, 7, 9, 11, 21, 31, ... below ``limit``."""
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
