"""Clustering score: whether clusters of embeddings follow biology or the medical centre.

For every combination of two classes and two centres, the module finds the number of clusters with
the largest silhouette, fits k-means many times with that number, and measures how well the clusters
agree with the class and with the centre.

    CS = ARI(clusters, biological class) - ARI(clusters, medical centre)   (arXiv:2507.17845)

The score is the mean over trials, then over combinations. It is about 1 where clusters are
classes and -1 where they are centres; a Rand index may lie below 0, so that a score may lie a
little beyond. The protocol's standard deviation is over trials, which differ only in the
seed of k-means, so it does not describe the variation over slides; ``weighted_score`` serves that.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from pathorob_jax.core import checks
from pathorob_jax.core.checks import InputError
from pathorob_jax.core.typing import ArrayLike, Float, Int
from pathorob_jax.kernels.clustering import kmeans, kmeans_points, label_agreement
from pathorob_jax.kernels.clustering.kmeans_draws import Init
from pathorob_jax.kernels.clustering.kmeans_points import DEFAULT_BUDGET_BYTES
from pathorob_jax.kernels.clustering.silhouette import silhouette_samples

Metric = Literal["cosine", "euclidean", "spherical"]
METRICS = ("cosine", "euclidean", "spherical")
# Cells of two classes and two centres: the columns of a table of counts.
N_CELLS = 4


class Combination(NamedTuple):
    """Rows of two classes and two centres, each of whose four cells has rows.

    Attributes:
        name: class-class-centre-centre.
        classes: names of the two classes, in order of first appearance.
        centers: names of the two centres, in order of first appearance.
        rows: int64[n] positions, sorted by cell (first class at the first and second centre, then
            the second class), ascending within a cell.
        cell_id: int32[n] in [0, 4), numbered in that order.
    """

    name: str
    classes: tuple[str, str]
    centers: tuple[str, str]
    rows: Int[np.ndarray, " n"]
    cell_id: Int[np.ndarray, " n"]


class Clustering(NamedTuple):
    """Clusters of one combination.

    Attributes:
        k: number of clusters with the largest mean silhouette; the smallest if several tie.
        k_grid: int64[G] numbers of clusters tried.
        silhouettes: float64[G] mean silhouette at each number; NaN where it is undefined.
        best: int32[n] labels of the selection fit with k clusters.
        trials: int32[T, n] labels of the trials with k clusters.
        trials_at_classes: int32[T, n] labels of trials with as many clusters as classes.
    """

    k: int
    k_grid: Int[np.ndarray, " G"]
    silhouettes: Float[np.ndarray, " G"]
    best: Int[np.ndarray, " n"]
    trials: Int[np.ndarray, "T n"]
    trials_at_classes: Int[np.ndarray, "T n"]


class Agreement(NamedTuple):
    """Agreement of the trials with the class and with the centre; float64[T] each."""

    ari_biology: Float[np.ndarray, " T"]
    ari_center: Float[np.ndarray, " T"]
    nmi_biology: Float[np.ndarray, " T"]
    nmi_center: Float[np.ndarray, " T"]
    ami_biology: Float[np.ndarray, " T"]
    ami_center: Float[np.ndarray, " T"]


class Score(NamedTuple):
    """Clustering score over combinations.

    Attributes:
        value: mean over trials, then over combinations.
        std: mean over combinations of the standard deviation over trials (ddof 1), i.e. of the
            effect of the k-means seed; NaN with a single trial.
    """

    value: float
    std: float


def find_combinations(bio: np.ndarray, center: np.ndarray) -> list[Combination]:
    """Find all pairs of classes and pairs of centres whose four cells have rows.

    Args:
        bio: object[N] or str[N] class of each row.
        center: object[N] or str[N] centre of each row.

    Returns:
        Combinations in the order of the reference: pairs of classes, then pairs of centres, by
        order of first appearance. Empty if there is no such combination.
    """
    classes, centers = list(dict.fromkeys(map(str, bio))), list(dict.fromkeys(map(str, center)))
    bios, hospitals = np.asarray(bio).astype(str), np.asarray(center).astype(str)
    cells = {
        (b, c): np.flatnonzero((bios == b) & (hospitals == c)) for b in classes for c in centers
    }
    out = []
    for class_pair, center_pair in itertools.product(
        itertools.combinations(classes, 2), itertools.combinations(centers, 2)
    ):
        rows = [cells[b, c] for b in class_pair for c in center_pair]
        if all(r.size for r in rows):
            cell_id = np.repeat(np.arange(N_CELLS, dtype=np.int32), [r.size for r in rows])
            name = "-".join((*class_pair, *center_pair))
            out.append(Combination(name, class_pair, center_pair, np.concatenate(rows), cell_id))
    return out


def cluster_combination(
    x: Float[ArrayLike, "n D"],
    *,
    metric: Metric,
    k_grid: Sequence[int],
    trials: int,
    seed: int,
    selection_inits: int,
    trial_inits: int,
    n_classes: int | None = 2,
    init: Init = "random",
    budget_bytes: int = DEFAULT_BUDGET_BYTES,
    on_progress: Callable[[int], None] | None = None,
) -> Clustering:
    """Choose the number of clusters by silhouette, then cluster with that number in every trial.

    Args:
        x: float32[n, D], finite, no row all zero; the rows of the combination in their order.
        metric: ``cosine``: rows of unit length, k-means, cosine silhouette (the protocol);
            ``euclidean``: rows unchanged, k-means, Euclidean silhouette; ``spherical``: rows of
            unit length, spherical k-means, cosine silhouette.
        k_grid: numbers of clusters to try, ascending; numbers of n or more are left out.
        trials: number of fits with the chosen number of clusters.
        seed: seed of every selection fit; trial t uses seed + t.
        selection_inits: runs of a selection fit.
        trial_inits: runs of a trial.
        n_classes: number of clusters of ``trials_at_classes``; None: no such trials.
        init: initial centres.
        budget_bytes: memory in addition to the embeddings.
        on_progress: called with the number of runs finished since the last call; the numbers sum to
            at most ``count_runs``.

    Raises:
        UsageError: unknown metric.
        InputError: no number of clusters is below n, or all rows are equal.
    """
    checks.check_known(metric, METRICS, what="metric")
    rows = np.asarray(x, np.float32)
    grid = np.array([k for k in k_grid if k < len(rows)], np.int64)
    if not grid.size:
        raise InputError(
            f"k_grid: expected a number of clusters below {len(rows)}, the rows of the "
            f"combination, found {list(k_grid)}; lower k_min."
        )
    if (rows == rows[0]).all():
        raise InputError(
            f"embeddings: all {len(rows)} rows of the combination are equal, so that there is "
            "nothing to cluster. Leave the combination out, or extract again."
        )
    if metric != "euclidean":
        rows = rows / np.sqrt((rows**2).sum(axis=1))[:, None]
    points = kmeans_points.prepare_points(
        rows, spherical=metric == "spherical", budget_bytes=budget_bytes
    )

    def fit(numbers: Sequence[int], seeds: Sequence[int], n_init: int) -> np.ndarray:
        return kmeans.fit_kmeans(
            points,
            numbers,
            seeds,
            n_init=n_init,
            init=init,
            budget_bytes=budget_bytes,
            on_progress=on_progress,
        ).labels

    selected = fit(grid.tolist(), [seed] * len(grid), selection_inits)
    closeness: Literal["cosine", "euclidean"] = "euclidean" if metric == "euclidean" else "cosine"
    samples = silhouette_samples(rows, selected, metric=closeness, budget_bytes=budget_bytes)
    silhouettes = samples.mean(axis=1)
    best = int(np.argmax(np.where(np.isnan(silhouettes), -np.inf, silhouettes)))
    k, seeds = int(grid[best]), [seed + t for t in range(trials)]
    labels = fit([k] * trials, seeds, trial_inits)
    if n_classes is None:
        at_classes = labels[:0]
    else:
        at_classes = labels if k == n_classes else fit([n_classes] * trials, seeds, trial_inits)
    return Clustering(k, grid, silhouettes, selected[best], labels, at_classes)


def count_runs(
    k_grid: Sequence[int], *, trials: int, selection_inits: int, trial_inits: int
) -> int:
    """Largest number of k-means runs of a combination (unless k = 2, trials run a second time)."""
    return len(k_grid) * selection_inits + 2 * trials * trial_inits


def count_clusters(
    labels: Int[ArrayLike, "T n"], cell_id: Int[ArrayLike, " n"], *, n_clusters: int
) -> Int[np.ndarray, "T K 2 2"]:
    """Count the rows of each cluster by class (third axis) and centre (fourth) per labeling."""
    tables = label_agreement.count_tables(
        np.atleast_2d(labels),
        np.asarray(cell_id),
        n_clusters=n_clusters,
        n_cells=N_CELLS,
    )
    return np.asarray(tables).reshape(-1, n_clusters, 2, 2)


def measure_agreement(tables: Int[np.ndarray, "T K 2 2"]) -> Agreement:
    """Adjusted Rand index, normalised and adjusted mutual information with class and centre."""
    by_class, by_center = tables.sum(3), tables.sum(2)
    biology = label_agreement.mutual_information(by_class)
    center = label_agreement.mutual_information(by_center)
    return Agreement(
        ari_biology=label_agreement.adjusted_rand(by_class),
        ari_center=label_agreement.adjusted_rand(by_center),
        nmi_biology=biology.normalized,
        nmi_center=center.normalized,
        ami_biology=biology.adjusted,
        ami_center=center.adjusted,
    )


def summarise_scores(
    biology: Sequence[Float[ArrayLike, " T"]], center: Sequence[Float[ArrayLike, " T"]]
) -> Score:
    """Clustering score over the trials of several combinations.

    Args:
        biology: for each combination, the agreement of every trial with the class.
        center: for each combination, the agreement of every trial with the centre.
    """
    scores = [
        np.asarray(b, np.float64) - np.asarray(c, np.float64)
        for b, c in zip(biology, center, strict=True)
    ]
    deviations = [s.std(ddof=1) if s.size > 1 else np.nan for s in scores]
    return Score(float(np.mean([s.mean() for s in scores])), float(np.mean(deviations)))


def weighted_score(
    weights: Int[np.ndarray, "R S"],
    labels: Int[np.ndarray, "T n"],
    cell_id: Int[np.ndarray, " n"],
    slide_id: Int[np.ndarray, " n"],
    *,
    n_clusters: int,
) -> Float[np.ndarray, " R"]:
    """Score of one combination with weighted slides, such as all but one, and fixed clusters.

    A patch of weight 2 counts twice in its cluster. The scores do not include the variation of the
    clusters themselves, which would be different for other slides.

    Args:
        weights: int32[R, S] how often the patches of each slide count.
        labels: int32[T, n] labels of the trials.
        cell_id: int32[n] in [0, 4).
        slide_id: int32[n] in [0, S).
        n_clusters: larger than all labels; calls with equal values share a compilation.

    Returns:
        float64[R], mean over trials; NaN where the slides with weight lack a class or a centre.
    """
    present, slide = np.unique(slide_id, return_inverse=True)
    cell = cell_id + N_CELLS * slide.reshape(-1).astype(np.int32)
    tables = label_agreement.count_tables(
        np.asarray(labels),
        cell.astype(np.int32),
        n_clusters=n_clusters,
        n_cells=N_CELLS * len(present),
    )
    by_slide = np.moveaxis(
        np.asarray(tables).reshape(len(labels), n_clusters, len(present), 2, 2), 2, 0
    )
    return label_agreement.drawn_rand_difference(weights[:, present], by_slide)
