"""Case retrieval of a store: searches among patches and slides, and the record with intervals."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from absl import logging

from pathorob_jax.core import checks
from pathorob_jax.core.progress import Progress
from pathorob_jax.data import protocols, row_views
from pathorob_jax.data.manifest import SLIDE
from pathorob_jax.evaluation import retrieval_schedule
from pathorob_jax.evaluation.neighborhood import Neighborhood, choose_design, find_neighborhood
from pathorob_jax.evaluation.slide_intervals import warn_missing
from pathorob_jax.kernels.bootstrap.draws import Jackknife
from pathorob_jax.kernels.bootstrap.intervals import SHARE, find_ends
from pathorob_jax.kernels.neighbors import set_matches
from pathorob_jax.kernels.neighbors.search import PADDING_GROUP, find_neighbors
from pathorob_jax.metrics import retrieval as metric
from pathorob_jax.metrics.retrieval import DEPTH, K_GRID, Lists
from pathorob_jax.results.record import Outcome
from pathorob_jax.results.retrieval import LEVELS, RetrievalLevel, RetrievalResult

if TYPE_CHECKING:
    from pathorob_jax.evaluation.run import Evaluation

OPTIMISTIC = metric.NAMES[-1]
# Numbers whose draws are kept for comparisons of models.
KEPT_DRAWS = ("patch_accuracy", "slide_accuracy")


class Slides(NamedTuple):
    """Bags of patches: the patches of one class on one slide.

    Attributes:
        members: positions of the patches of each bag.
        bag_id: int[N] bag of each patch.
        label_id: int[S] class of each bag.
        group_id: int32[S] group of each bag.
    """

    members: list[np.ndarray]
    bag_id: np.ndarray
    label_id: np.ndarray
    group_id: np.ndarray


class Level(NamedTuple):
    """A level of the record, and the draws of its headline number."""

    record: RetrievalLevel
    draws: np.ndarray


def make_retrieval(evaluation: Evaluation) -> Outcome:
    """Search each case among all others, and in databases that associate class and centre.

    The patches are those of the robustness index, each once. Its neighbours serve where it searches
    all of them together.

    Raises:
        InputError: the rows, labels or embeddings cannot be searched.
        UsageError: a setting of the schedule is fixed by the dataset's protocol.
    """
    hood = find_patches(evaluation)
    [found] = hood.scopes
    x, classes = hood.embeddings(found.scope), list(found.scope.classes)
    slides = find_slides(evaluation, hood)
    nearest = [found.any.indices[:, :DEPTH]]
    if hood.collapsed:  # no neighbour is nearer than another
        nearest += [np.full((len(slides.members), K_GRID[-1]), -1)] * 2
    else:
        nearest += [search(x, slides, evaluation) for search in (search_means, _search_sets)]
    labels = [(found.scope.bio_id, found.group_id), *[slides[2:]] * 2]
    lists = {
        name: Lists(idx, *part) for name, idx, part in zip(LEVELS, nearest, labels, strict=True)
    }
    optimistic = evaluation.settings.retrieval.optimistic_vote
    levels = {
        name: measure_level(part, hood.jackknife, len(classes), optimistic=optimistic)
        for name, part in lists.items()
    }
    schedule = retrieval_schedule.make_schedule(evaluation)
    values = {
        f"{name}_accuracy": part.record.balanced_vote_accuracy[0] for name, part in levels.items()
    }
    ends = {
        f"{name}_accuracy": part.record.intervals["balanced_vote_accuracy"][0]
        for name, part in levels.items()
    }
    warnings = [
        *hood.embedding_warnings,
        *_warn_of_single_slides(lists["slide"], classes),
        *_warn_of_slides_without_direction(lists["slide"]),
        *schedule.warnings,
    ]
    for text in warnings:
        logging.warning("%s", text)
    numbers: dict[str, Any] = {**values, **{f"{name}_ci95": e for name, e in ends.items()}}
    provenance = hood.provenance
    record = RetrievalResult(
        model=evaluation.request.model,
        dataset=evaluation.dataset,
        k=list(K_GRID),
        classes=classes,
        n_samples=len(found.scope.rows),
        n_slides=hood.n_slides,
        patch=levels["patch"].record,
        slide=levels["slide"].record,
        slide_set=levels["slide_set"].record,
        schedule=schedule.record,
        warnings=warnings + warn_missing(values, ends, hood.draws),
        provenance=provenance
        | {
            "settings": provenance["settings"]
            | {"retrieval": asdict(evaluation.settings.retrieval)}
            | schedule.facts
        },
        **numbers,
    )
    draws = {name: levels[name.removesuffix("_accuracy")].draws for name in KEPT_DRAWS}
    return Outcome(record, hood.draws_key, draws)


def find_patches(evaluation: Evaluation) -> Neighborhood:
    """Neighbours of the patches of the robustness index, each patch once, among all of them."""
    settings = evaluation.settings
    protocol = evaluation.protocol.robustness_index if evaluation.protocol else None
    view = evaluation.read_view(protocol.view) if protocol else evaluation.custom_rows
    rows = view.unique_patches()
    is_shared = (
        choose_design(settings, protocol) == "all"
        and settings.neighbors is None
        and len(rows) == len(view)
        and (isinstance(settings.k, str) or settings.k >= K_GRID[-1])
    )
    if is_shared:
        hood = evaluation.neighborhood
        if hood.grid[-1] >= K_GRID[-1]:
            return hood
    rows = row_views.shuffle(rows, protocol.shuffle_seed if protocol else protocols.SHUFFLE_SEED)
    if settings.max_patches_per_combi is not None:
        rows = row_views.first_of_each_cell(rows, settings.max_patches_per_combi)
    return find_neighborhood(
        evaluation.store,
        rows,
        protocol=protocol,
        settings=replace(
            settings,
            design="all",
            k=max(1, min(DEPTH, len(rows) - 1)),
            min_cell_size=None,
            max_patches_per_combi=None,
            neighbors=None,
        ),
        mesh=evaluation.request.mesh,
        keep_graph=evaluation.request.keep_graph,
    )


def find_slides(evaluation: Evaluation, hood: Neighborhood) -> Slides:
    """Bags of patches, in the order of the names of slide, class and centre."""
    [found] = hood.scopes
    slide = evaluation.store.manifest.take(hood.store_rows).factorize(SLIDE).ids
    columns = np.stack([slide, found.scope.bio_id, found.scope.center_id], axis=1)
    _, first, bag_id = np.unique(columns, axis=0, return_index=True, return_inverse=True)
    bag_id = bag_id.reshape(-1)
    return Slides(
        set_matches.list_members(bag_id, len(first)),
        bag_id,
        found.scope.bio_id[first],
        found.group_id[first],
    )


def search_means(x: np.ndarray, slides: Slides, evaluation: Evaluation) -> np.ndarray:
    """int32[S, k] nearest slides of other groups by their mean embeddings.

    A slide whose mean is zero has no direction: it finds none, and none finds it.
    """
    means = metric.pool_rows(x, slides.members)
    norm2 = np.einsum("sd,sd->s", means, means, dtype=np.float64)
    group_id = np.where(norm2 >= checks.MIN_NORM2, slides.group_id, PADDING_GROUP)
    found = find_neighbors(
        means,
        group_id.astype(np.int32),
        k=max(1, min(DEPTH, len(means) - 1)),
        budget_bytes=evaluation.settings.budget_bytes,
        mesh=evaluation.mesh,
    )
    return np.where(group_id[:, None] == PADDING_GROUP, -1, found.indices)


def _search_sets(x: np.ndarray, slides: Slides, evaluation: Evaluation) -> np.ndarray:
    """int32[S, k] nearest slides of other groups by their sets of patches."""
    with Progress("slides as sets", total=len(x), unit="sample") as progress:
        return set_matches.find_nearest_sets(
            x,
            slides.bag_id,
            slides.group_id,
            k=max(1, min(DEPTH, len(slides.members) - 1)),
            budget_bytes=evaluation.settings.budget_bytes,
            mesh=evaluation.mesh,
            on_progress=progress.update,
        ).indices


def measure_level(lists: Lists, jackknife: Jackknife, n_classes: int, *, optimistic: bool) -> Level:
    """Means over queries with their intervals, from lists whose blocks are groups."""
    label_id, group_id = lists.label_id, lists.block_id
    labels = lists.labels()[:, : K_GRID[-1]]
    scores = metric.score_queries(labels, label_id, K_GRID, n_classes=n_classes)
    means = metric.average(scores, label_id, n_classes=n_classes)
    draws = np.full((2, len(metric.NAMES), len(K_GRID), len(jackknife.weights)), np.nan)
    if len(jackknife.weights):
        blocks = lists._replace(block_id=jackknife.block_of[group_id])
        without = metric.leave_out(blocks, K_GRID, n_classes=n_classes, n_blocks=jackknife.n_blocks)
        for at in np.ndindex(draws.shape[:3]):
            draws[at] = jackknife.spread(float(means[at[0]][at[1:]]), without[at[0]][at[1:]])
    numbers: dict[str, Any] = {}
    intervals: dict[str, list[list[float] | None]] = {}
    for side, prefix in enumerate(("", "balanced_")):
        for i, name in enumerate(metric.NAMES):
            if name != OPTIMISTIC or optimistic:
                values = means[side][i]
                numbers[prefix + name] = values.tolist()
                intervals[prefix + name] = [
                    find_ends(float(v), d, SHARE)
                    for v, d in zip(values, draws[side, i], strict=True)
                ]
    record = RetrievalLevel(
        k=list(K_GRID),
        intervals=intervals,
        n_queries=len(label_id),
        n_without_neighbors=int((labels < 0).all(axis=1).sum()),
        **numbers,
    )
    return Level(record, draws[1, 0, 0])


def _warn_of_single_slides(lists: Lists, classes: list[str]) -> list[str]:
    """A warning that names the classes of which no other group has a case."""
    alone = [
        name
        for i, name in enumerate(classes)
        if len(np.unique(lists.block_id[lists.label_id == i])) == 1
    ]
    if not alone:
        return []
    return [
        f"retrieval: all rows of {', '.join(alone)} are of one slide (or group); a query of such a "
        "class can find none of its class, and every answer is wrong. Leave the class out, or add "
        "slides."
    ]


def _warn_of_slides_without_direction(lists: Lists) -> list[str]:
    lost = int((lists.neighbor_idx < 0).all(axis=1).sum())
    if not lost or lost == len(lists.label_id):
        return []
    return [
        f"retrieval: {lost} of {len(lists.label_id)} slides have no neighbour: the mean of their "
        "embeddings is zero, or all other slides are of their group. They are left out of the "
        "means over slides."
    ]
