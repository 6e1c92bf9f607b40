"""From a store to records: which metric reads which rows, and what is shared between metrics.

A ``Request`` holds what a user asks for. For each confounder of the request there is one
``Evaluation``, which a metric's function takes and answers with an ``Outcome``.
"""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from jax.sharding import Mesh

from pathorob_jax.core import checks, files
from pathorob_jax.core.checks import UsageError
from pathorob_jax.data import protocols, row_views
from pathorob_jax.data.manifest import SUBSET, Manifest, as_manifest, read_manifest
from pathorob_jax.embeddings.store import Store, open_store
from pathorob_jax.evaluation.embedding_maps import MapSettings, make_maps
from pathorob_jax.evaluation.neighborhood import Neighborhood, find_neighborhood
from pathorob_jax.evaluation.settings import Settings
from pathorob_jax.results import registry
from pathorob_jax.results.margins import MarginsResult
from pathorob_jax.results.metric_kind import resolve
from pathorob_jax.results.record import Outcome
from pathorob_jax.results.result_files import read_result, write_outcome
from pathorob_jax.results.result_set import Results
from pathorob_jax.results.robustness_index import RobustnessIndexResult
from pathorob_jax.results.write_summaries import write_summaries

DEFAULT_METRICS = (RobustnessIndexResult.metric,)
# Several metrics read the same embeddings: each is read from disk once, up to this many bytes.
CACHE_BYTES = 2**33
# Neighbours of each decisive type that CRoMa reads.
CROMA_M = 5


@dataclass(frozen=True, eq=False)
class Request:
    """What is asked of one store.

    Attributes:
        model: name that the results carry.
        dataset: a protocol's name (``camelyon``, ``tcga``, ``tolkach_esca``), or any other for a
            custom dataset.
        metrics: names of ``results.registry.KINDS``.
        settings: choices of the user.
        metadata_dir: folder of the protocol's metadata files.
        manifest: rows and labels of a custom dataset, or their file; None: the store's.
        output: folder of all results; None: nothing is written or kept.
        mesh: devices; None: all local ones.
        keep_graph: whether neighbours are kept beside the store, and taken from there.
    """

    model: str
    dataset: str
    metrics: tuple[str, ...] = DEFAULT_METRICS
    settings: Settings = Settings()
    metadata_dir: str | None = None
    manifest: str | Manifest | None = None
    output: str | None = None
    mesh: Mesh | None = None
    keep_graph: bool = True

    @property
    def protocol(self) -> protocols.Protocol | None:
        """Of the dataset; None for a custom one."""
        return protocols.PROTOCOLS.get(self.dataset)

    def check(self) -> None:
        """Refuse what cannot be meant, before any work.

        Raises:
            UsageError: an unknown metric, a name that is no folder's, or arguments that would be
                ignored, so that a number of other rows would come out.
        """
        for name in self.metrics:
            registry.get_kind(name)
        checks.check_folder_name(self.model, what="model")
        checks.check_folder_name(self.dataset, what="dataset")
        self.settings.check()
        if self.protocol is not None:
            self._check_protocol()
        elif self.metadata_dir is not None:
            near = difflib.get_close_matches(self.dataset, protocols.PROTOCOLS, n=1)
            hint = f" Did you mean --dataset={near[0]}?" if near else ""
            raise UsageError(
                f"metadata_dir: dataset {self.dataset!r} is none of "
                f"{', '.join(protocols.PROTOCOLS)}, whose metadata it would hold.{hint} For a "
                "custom dataset give --manifest."
            )

    def _check_protocol(self) -> None:
        if self.manifest is not None:
            raise UsageError(
                f"manifest: dataset {self.dataset} has a protocol that names its rows; evaluate "
                "your own rows under another --dataset."
            )
        if self.settings.min_cell_size is not None:
            raise UsageError(
                f"min_cell_size: dataset {self.dataset} has a protocol that names its subsets; "
                "none are derived. Leave --min_cell_size out."
            )


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One store under one protocol; what several metrics read is made once, when first needed.

    Attributes:
        store: embeddings.
        request: what is asked, with the settings of this confounder.
        dataset: name that the results carry; with several confounders ``<dataset>@<column>``.
    """

    store: Store
    request: Request
    dataset: str

    @property
    def settings(self) -> Settings:
        """Choices of the user."""
        return self.request.settings

    @property
    def protocol(self) -> protocols.Protocol | None:
        """Of the dataset; None for a custom one."""
        return self.request.protocol

    def compute(self, metric: str) -> Outcome:
        """The record of a metric, and its draws."""
        outcome: Outcome = resolve(registry.get_kind(metric).evaluate)(self)
        return outcome

    def task_folder(self, metric: str) -> str | None:
        """Where a metric of many tasks keeps the finished ones."""
        if self.request.output is None:
            return None
        return files.join(self.request.output, self.request.model, self.dataset, "tasks", metric)

    def read_view(self, view: protocols.View) -> Manifest:
        """Rows of a protocol's view, in file order."""
        return row_views.read_view(
            view,
            metadata_dir=self.request.metadata_dir,
            dataset=self.dataset,
            columns=self.settings.columns,
        )

    @cached_property
    def custom_rows(self) -> Manifest:
        """Rows of a custom dataset, in file order."""
        manifest = self.request.manifest
        if isinstance(manifest, str):
            return read_manifest(manifest, columns=self.settings.columns)
        rows = self.store.manifest if manifest is None else manifest
        if not self.settings.renamed_columns:
            return rows
        return as_manifest(rows.table, source=rows.source, columns=self.settings.columns)

    @property
    def clustering_rows(self) -> Manifest:
        """Rows of the clustering score, in file order."""
        if self.protocol is not None:
            return self.read_view(self.protocol.clustering_score.view)
        return self.custom_rows

    @cached_property
    def neighborhood(self) -> Neighborhood:
        """Neighbours, sought once for all metrics that need them."""
        protocol = self.protocol.robustness_index if self.protocol else None
        rows = self.read_view(protocol.view) if protocol else self.custom_rows
        seed = protocol.shuffle_seed if protocol else protocols.SHUFFLE_SEED
        return find_neighborhood(
            self.store,
            row_views.shuffle(rows, seed),
            protocol=protocol,
            settings=self.settings,
            n_typed=CROMA_M if MarginsResult.metric in self.request.metrics else 0,
            mesh=self.request.mesh,
            keep_graph=self.request.keep_graph,
        )


def evaluate_store(
    store: Store | str,
    *,
    model: str | None = None,
    dataset: str | None = None,
    metrics: Sequence[str] = DEFAULT_METRICS,
    settings: Settings | None = None,
    metadata_dir: str | None = None,
    manifest: str | Manifest | None = None,
    output: str | None = None,
    maps: MapSettings | None = None,
    mesh: Mesh | None = None,
) -> Results:
    """Compute metrics of a store, and write them where ``output`` is given.

    Args:
        store: embeddings, or the folder ``<root>/<model>/<dataset>`` of a store.
        model: name that the results carry; None: that of the folder.
        dataset: a protocol's name (``camelyon``, ``tcga``, ``tolkach_esca``), or any other for a
            custom dataset; None: that of the folder.
        metrics: names of ``results.registry.KINDS``; neighbours are sought once for all of them.
        settings: your choices.
        metadata_dir: folder of the protocol's metadata files.
        manifest: rows and labels of a custom dataset, or their file; None: the store's.
        output: folder of all results, ``<output>/<model>/<dataset>/<metric>.json``. Finished parts
            of long metrics are kept there, so that a killed run goes on.
        maps: also lay the rows of the clustering score out in the plane; needs ``output``.
        mesh: devices; None: all local ones.

    Returns:
        The record of each metric by its name; with several confounders by ``<metric>@<column>``.

    Raises:
        FileNotFoundError: no store in that folder.
        UsageError: an unknown metric, a protocol without its metadata folder, or settings that
            would be ignored.
        InputError: rows, labels or embeddings that a metric cannot work with.

    >>> import numpy as np, pathorob_jax as pr
    >>> rows = {"slide_id": np.arange(48) // 4, "patch_id": np.arange(48)}
    >>> rows |= {"biological_class": ["tumor", "normal"] * 24}
    >>> rows |= {"medical_center": ["A"] * 24 + ["B"] * 24}
    >>> np.save("x.npy", np.random.default_rng(0).normal(size=(48, 8)))
    >>> store = pr.import_embeddings("x.npy", rows, root="embeddings", model="mine", dataset="ours")
    >>> results = pr.evaluate_store("embeddings/mine/ours", settings=pr.Settings(k=5))
    >>> results.robustness_index.k, results.robustness_index.model
    (5, 'mine')
    """
    opened = open_store(store) if isinstance(store, str) else store
    folders = opened.path.rstrip("/").split("/")
    request = Request(
        model=model or (folders[-2] if len(folders) > 1 else folders[-1]),
        dataset=dataset or folders[-1],
        metrics=as_names(metrics),
        settings=settings or Settings(),
        metadata_dir=metadata_dir,
        manifest=manifest,
        output=output,
        mesh=mesh,
    )
    if maps is not None and output is None:
        raise UsageError("output: maps are written as files; give the folder of all results.")
    if len(request.metrics) > 1:
        opened = opened.caching(CACHE_BYTES)
    return run_request(opened, request, maps=maps)


def run_request(store: Store, request: Request, *, maps: MapSettings | None = None) -> Results:
    """Compute what is asked of a store, metric by metric, and write each as soon as it is there.

    Args:
        store: embeddings.
        request: what to compute.
        maps: also write maps; None: do not.

    Raises:
        UsageError: as ``Request.check``.
        InputError: rows, labels or embeddings that a metric cannot work with.
    """
    request.check()
    records, paths = {}, []
    for evaluation in plan_evaluations(store, request):
        suffix = evaluation.dataset.removeprefix(request.dataset)
        for metric in request.metrics:
            outcome = evaluation.compute(metric)
            records[metric + suffix] = outcome.record
            if request.output is not None:
                paths.append(write_outcome(request.output, outcome))
        if maps is not None and request.output is not None:
            make_maps(
                store,
                model=request.model,
                dataset=evaluation.dataset,
                view=evaluation.clustering_rows,
                root=request.output,
                settings=maps,
            )
    if request.output is not None:
        for path in write_summaries(request.output, request.model):
            record = read_result(path)
            records[record.metric] = record
            paths.append(path)
    return Results(records, tuple(paths))


def as_names(metrics: Sequence[str]) -> tuple[str, ...]:
    """Names of metrics.

    Raises:
        UsageError: one string, or none.
    """
    if isinstance(metrics, str) or not metrics:
        raise UsageError(f"metrics: expected a list of names, found {metrics!r}; put it in one.")
    return tuple(metrics)


def plan_evaluations(store: Store, request: Request) -> Iterator[Evaluation]:
    """One ``Evaluation`` for each confounder of a request."""
    confounders = request.settings.confounders
    if not confounders:
        yield Evaluation(store, request, request.dataset)
    for column in confounders:
        settings = request.settings.with_confounder(column)
        name = f"{request.dataset}@{column}"
        yield Evaluation(store, replace(request, settings=settings), name)


def has_own_subsets(rows: Manifest, dataset: str) -> bool:
    """Whether rows of a custom dataset come with subsets, which a store does not keep."""
    return SUBSET in rows and dataset not in protocols.PROTOCOLS
