"""Embedding stores -> results: which metric reads which rows, in one pass. Also the Python API.

Enters: a store, a dataset's protocol (or a manifest of one's own), metadata files. Leaves: one
result record per metric, written to ``<root>/<model>/<dataset>/<metric>.json``.
"""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from jax.sharding import Mesh

from pathorob_jax.core import checks, files
from pathorob_jax.core.checks import UsageError
from pathorob_jax.data import protocols, row_views
from pathorob_jax.data.manifest import CENTER, Manifest, as_manifest, read_manifest
from pathorob_jax.embeddings.store import Store
from pathorob_jax.evaluation import robustness_index
from pathorob_jax.evaluation.apd import ApdSettings, make_apd
from pathorob_jax.evaluation.clustering_score import ClusteringSettings, make_clustering
from pathorob_jax.evaluation.embedding_maps import MapSettings, make_maps
from pathorob_jax.evaluation.neighborhood import (
    Neighborhood,
    Settings,
    find_neighborhood,
    renamed_columns,
)
from pathorob_jax.results import over_datasets
from pathorob_jax.results.records import (
    ApdResult,
    ClusteringResult,
    MarginsResult,
    ProbesResult,
    RobustnessIndexResult,
)
from pathorob_jax.results.result_files import Outcome, write_outcome

# Several metrics read the same embeddings: each is read from disk once, up to this many bytes.
CACHE_BYTES = 2**33


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One store under one protocol; what several metrics read is made once, when first asked for.

    Attributes:
        store: embeddings.
        model: name that the results carry.
        dataset: name that the results carry; with several confounders ``<dataset>@<column>``.
        root: folder of all results; None: nothing is kept.
        protocol: of the dataset; None for a dataset of one's own.
        metrics: names of all that is computed.
        metadata_dir: folder of the protocol's metadata files.
        manifest: rows and labels for a dataset of one's own, or their file; None: the store's.
        settings: what a user may choose of neighbours.
        apd: of the performance drop.
        clustering: of the clustering score.
        mesh: devices; None: all local ones.
        keep_graph: neighbours are kept beside the store.
    """

    store: Store
    model: str
    dataset: str
    root: str | None
    protocol: protocols.Protocol | None
    metrics: tuple[str, ...]
    metadata_dir: str | None
    manifest: str | Manifest | None
    settings: Settings
    apd: ApdSettings
    clustering: ClusteringSettings
    mesh: Mesh | None
    keep_graph: bool

    def compute(self, metric: str) -> Outcome:
        """The record of one metric, and its draws."""
        return METRICS[metric](self)

    def work_dir(self, metric: str) -> str | None:
        """Where a metric of many tasks keeps the finished ones."""
        if self.root is None:
            return None
        return files.join(self.root, self.model, self.dataset, "tasks", metric)

    def read_view(self, view: protocols.View) -> Manifest:
        """Rows of a protocol's view, in file order."""
        return row_views.read_view(
            view,
            metadata_dir=self.metadata_dir,
            dataset=self.dataset,
            columns=self.settings.columns,
        )

    @cached_property
    def own_rows(self) -> Manifest:
        """Rows of a dataset of one's own, in file order."""
        if isinstance(self.manifest, str):
            return read_manifest(self.manifest, columns=self.settings.columns)
        kept = self.store.manifest if self.manifest is None else self.manifest
        if not renamed_columns(self.settings):
            return kept
        return as_manifest(kept.table, source=kept.source, columns=self.settings.columns)

    @property
    def clustering_rows(self) -> Manifest:
        """Rows of the clustering score, in file order."""
        if self.protocol is not None:
            return self.read_view(self.protocol.clustering_score.view)
        return self.own_rows

    @cached_property
    def neighborhood(self) -> Neighborhood:
        """Neighbours, sought once for all metrics that ask them."""
        chosen = self.protocol.robustness_index if self.protocol else None
        rows = self.read_view(chosen.view) if chosen else self.own_rows
        return find_neighborhood(
            self.store,
            row_views.shuffle(rows, chosen.shuffle_seed if chosen else protocols.SHUFFLE_SEED),
            protocol=chosen,
            settings=self.settings,
            typed=robustness_index.CROMA_M if MarginsResult.metric in self.metrics else 0,
            mesh=self.mesh,
            keep_graph=self.keep_graph,
        )


def evaluate(
    store: Store,
    *,
    model: str,
    dataset: str,
    root: str,
    metrics: Sequence[str] = (RobustnessIndexResult.metric,),
    metadata_dir: str | None = None,
    manifest: str | None = None,
    settings: Settings | None = None,
    apd: ApdSettings | None = None,
    clustering: ClusteringSettings | None = None,
    maps: MapSettings | None = None,
    mesh: Mesh | None = None,
) -> list[str]:
    """Compute metrics of one store and write them.

    Args:
        store: embeddings.
        model: name that the results carry.
        dataset: a protocol's name, or any other for a dataset of one's own.
        root: folder of all results.
        metrics: names of ``METRICS``; neighbours are sought once for all of them.
        metadata_dir: folder of the protocol's metadata files.
        manifest: rows and labels for a dataset of one's own; None: the store's.
        settings: what a user may choose of neighbours.
        apd: of the performance drop.
        clustering: of the clustering score.
        maps: draw the rows of the clustering score in the plane; None: do not.
        mesh: devices; None: all local ones.

    Returns:
        Paths of the records written: the metrics', then what they complete over datasets.

    Raises:
        UsageError: unknown metric, or a protocol without its metadata folder.
        InputError: rows, labels or embeddings that the metric cannot work with.
    """
    if len(metrics) > 1:
        store = store.caching(CACHE_BYTES)
    planned = plan_evaluations(
        store,
        model=model,
        dataset=dataset,
        root=root,
        metrics=metrics,
        metadata_dir=metadata_dir,
        manifest=manifest,
        settings=settings,
        apd=apd,
        clustering=clustering,
        mesh=mesh,
    )
    written = []
    for evaluation in planned:
        written += [write_outcome(root, evaluation.compute(name)) for name in metrics]
        if maps is not None:
            make_maps(
                store,
                model=model,
                dataset=evaluation.dataset,
                view=evaluation.clustering_rows,
                root=root,
                settings=maps,
            )
    return written + over_datasets.write_summaries(root, model)


def plan_evaluations(
    store: Store,
    *,
    model: str,
    dataset: str,
    root: str | None,
    metrics: Sequence[str],
    metadata_dir: str | None = None,
    manifest: str | Manifest | None = None,
    settings: Settings | None = None,
    apd: ApdSettings | None = None,
    clustering: ClusteringSettings | None = None,
    mesh: Mesh | None = None,
    keep_graph: bool = True,
) -> list[Evaluation]:
    """What is to be computed of one store: an ``Evaluation`` for each confounder.

    Args:
        store: embeddings.
        model: as ``evaluate`` takes it, like all that follow.
        dataset: likewise.
        root: likewise; None: nothing is kept.
        metrics: likewise.
        metadata_dir: likewise.
        manifest: likewise, or the rows themselves.
        settings: likewise.
        apd: likewise.
        clustering: likewise.
        mesh: likewise.
        keep_graph: neighbours are kept beside the store.

    Raises:
        UsageError: as ``check_request``.
    """
    check_request(metrics, dataset=dataset, metadata_dir=metadata_dir, manifest=manifest)
    settings = settings or Settings()
    planned = []
    for confounder in settings.confounders or (None,):
        own = settings
        if confounder is not None:
            own = replace(settings, columns=(settings.columns or {}) | {CENTER: confounder})
        evaluation = Evaluation(
            store=store,
            model=model,
            dataset=dataset if confounder is None else f"{dataset}@{confounder}",
            root=root,
            protocol=protocols.PROTOCOLS.get(dataset),
            metrics=tuple(metrics),
            metadata_dir=metadata_dir,
            manifest=manifest,
            settings=own,
            apd=apd or ApdSettings(),
            clustering=clustering or ClusteringSettings(),
            mesh=mesh,
            keep_graph=keep_graph,
        )
        planned.append(evaluation)
    return planned


def check_request(
    metrics: Sequence[str],
    *,
    dataset: str,
    metadata_dir: str | None,
    manifest: str | Manifest | None = None,
) -> None:
    """Refuse what cannot be meant, before any work.

    Raises:
        UsageError: an unknown metric, or arguments that would be ignored: a number of other rows
            would come out.
    """
    for name in metrics:
        checks.check_known(name, METRICS, what="metrics")
    protocol = protocols.PROTOCOLS.get(dataset)
    if protocol is not None and manifest is not None:
        raise UsageError(
            f"manifest: dataset {dataset} has a protocol that names its rows; evaluate rows of "
            "your own under another --dataset."
        )
    if protocol is None and metadata_dir is not None:
        near = difflib.get_close_matches(dataset, protocols.PROTOCOLS, n=1)
        hint = f" Did you mean --dataset={near[0]}?" if near else ""
        raise UsageError(
            f"metadata_dir: dataset {dataset!r} is none of {', '.join(protocols.PROTOCOLS)}, whose "
            f"metadata it would hold.{hint} For a dataset of your own give --manifest."
        )


def _of_neighbors(
    make: Callable[[Neighborhood, str, str], Outcome],
) -> Callable[[Evaluation], Outcome]:
    return lambda evaluation: make(evaluation.neighborhood, evaluation.model, evaluation.dataset)


def _evaluate_apd(evaluation: Evaluation) -> Outcome:
    protocol = evaluation.protocol
    record = make_apd(
        evaluation.store,
        model=evaluation.model,
        dataset=evaluation.dataset,
        protocol=protocol.apd if protocol else None,
        rows=None if protocol else evaluation.own_rows,
        metadata_dir=evaluation.metadata_dir,
        columns=evaluation.settings.columns,
        settings=evaluation.apd,
        work_dir=evaluation.work_dir(ApdResult.metric),
        mesh=evaluation.mesh,
    )
    return Outcome(record)


def _evaluate_clustering(evaluation: Evaluation) -> Outcome:
    settings = evaluation.settings
    return make_clustering(
        evaluation.store,
        model=evaluation.model,
        dataset=evaluation.dataset,
        protocol=evaluation.protocol.clustering_score if evaluation.protocol else None,
        view=evaluation.clustering_rows,
        settings=replace(
            evaluation.clustering,
            group_column=settings.group_column,
            seed=settings.seed,
            draws=settings.draws,
        ),
        work_dir=evaluation.work_dir(ClusteringResult.metric),
        mesh=evaluation.mesh,
    )


METRICS: dict[str, Callable[[Evaluation], Outcome]] = {
    RobustnessIndexResult.metric: _of_neighbors(robustness_index.make_robustness_index),
    MarginsResult.metric: _of_neighbors(robustness_index.make_margins),
    ProbesResult.metric: _of_neighbors(robustness_index.make_probes),
    ApdResult.metric: _evaluate_apd,
    ClusteringResult.metric: _evaluate_clustering,
}
