"""Evaluate a store: which metric uses which rows, and which data metrics share.

A ``Request`` describes what to compute. For each confounder of the request there is one
``Evaluation``; the function of a metric takes it and returns an ``Outcome``.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

from jax.sharding import Mesh

from pathorob_jax.core import cost, devices, digests, faults, files, folder_names, hosts
from pathorob_jax.core.checks import UsageError
from pathorob_jax.core.plain import as_plain
from pathorob_jax.core.privacy import without_folders
from pathorob_jax.core.progress import labelled
from pathorob_jax.core.provenance import make_provenance
from pathorob_jax.data import protocols, row_views
from pathorob_jax.data.manifest import SUBSET, Manifest, read_manifest, relabel
from pathorob_jax.embeddings import store_files
from pathorob_jax.embeddings.store import Store, open_store
from pathorob_jax.evaluation.embedding_maps import MapSettings, make_maps
from pathorob_jax.evaluation.neighborhood import Neighborhood, find_neighborhood
from pathorob_jax.evaluation.settings import OF_NO_NUMBER, Settings
from pathorob_jax.results import registry
from pathorob_jax.results.costs import add_cost
from pathorob_jax.results.margins import MarginsResult
from pathorob_jax.results.metric_kind import resolve
from pathorob_jax.results.record import Outcome
from pathorob_jax.results.result_files import read_result, write_outcome
from pathorob_jax.results.result_set import Results
from pathorob_jax.results.robustness_index import RobustnessIndexResult
from pathorob_jax.results.write_summaries import write_summaries

DEFAULT_METRICS = (RobustnessIndexResult.metric,)
# Several metrics use the same embeddings: they are read from disk once, up to this many bytes.
CACHE_BYTES = 2**33
# Neighbours of each of the types SO and OS that CRoMa uses.
CROMA_M = 5
# The part of an evaluation that is no metric.
MAPS = "maps"


@dataclass(frozen=True, eq=False)
class Request:
    """What to compute for one store.

    Attributes:
        model: name of the model in the results.
        dataset: a protocol's name (``camelyon``, ``tcga``, ``tolkach_esca``), or any other for a
            custom dataset.
        metrics: names of ``results.registry.KINDS``.
        settings: choices of the user.
        metadata_dir: folder of the protocol's metadata files.
        manifest: rows and labels of a custom dataset, or their file; None: those of the store.
        output: folder of all results; None: nothing is written or kept.
        mesh: devices; None: all local devices. With devices of several processes, all of them do
            the same request at the same time: neighbours are searched on all devices, metrics of
            many tasks are shared, and process 0 writes.
        keep_graph: whether to use neighbours cached in the store's folder, and to keep new ones.
        maps: also make maps of the rows of the clustering score; needs ``output``.
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
    maps: MapSettings | None = None

    @property
    def parts(self) -> tuple[str, ...]:
        """What is computed for each confounder: the metrics, and ``maps`` if they are wanted."""
        return (*self.metrics, MAPS) if self.maps is not None else self.metrics

    @property
    def protocol(self) -> protocols.Protocol | None:
        """Of the dataset; None for a custom one."""
        return protocols.PROTOCOLS.get(self.dataset)

    @property
    def mesh_here(self) -> Mesh:
        """Devices of this process."""
        return devices.local_mesh(self.mesh)

    def digest(self) -> str:
        """Hex sha256 of the choices that numbers depend on; "" where they are not plain values."""
        manifest = self.manifest
        rows = manifest.fingerprint() if isinstance(manifest, Manifest) else manifest
        try:
            chosen = as_plain(self.settings)
            for name in OF_NO_NUMBER:
                del chosen[name]
            return digests.digest_json(without_folders({"settings": chosen, "rows": rows}))
        except (TypeError, ValueError):
            return ""

    def check(self) -> None:
        """Reject invalid requests before any work.

        Raises:
            UsageError: a metric is unknown, a name cannot be a folder, or arguments would be
                ignored, so that the numbers would be of other rows.
            InputError: ``output`` cannot be written.
        """
        for name in self.metrics:
            registry.get_kind(name)
        folder_names.check_folder_name(self.model, what="model")
        folder_names.check_dataset_name(self.dataset)
        self.settings.check()
        for column in self.settings.confounders:
            folder_names.join_confounder(self.dataset, column)
        if self.output is not None:
            self._check_output(self.output)
        elif self.maps is not None:
            raise UsageError("output: maps are written as files; give the folder of all results.")
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

    def _check_output(self, output: str) -> None:
        faults.check_writable(output)
        folder = files.join(output, self.model, self.dataset)
        if files.exists(files.join(folder, store_files.INFO)):
            raise UsageError(
                f"output: {folder} is an embedding store, which the results would lie in; give "
                "another --output."
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
    """One store under one protocol. Data that several metrics use are computed once, when needed.

    Attributes:
        store: embeddings.
        request: the request, with the settings of this confounder.
        dataset: name of the dataset in the results; with several confounders
            ``<dataset>@<column>``.
        confounder: the column in the centre's place where the request has several; else "".
    """

    store: Store
    request: Request
    dataset: str
    confounder: str = ""

    @property
    def settings(self) -> Settings:
        """Choices of the user."""
        return self.request.settings

    @property
    def protocol(self) -> protocols.Protocol | None:
        """Of the dataset; None for a custom one."""
        return self.request.protocol

    @cached_property
    def mesh(self) -> Mesh:
        """Devices of this process that compute."""
        return self.request.mesh_here

    def finish(self, part: str) -> "Finished":
        """Compute a metric or the maps, and write what results if the request has an output."""
        name = f"{self.request.model} on {self.dataset}: {part}"
        with labelled(name), hosts.together_on(self.request.mesh, name):
            return self._finish(part)

    def _finish(self, part: str) -> "Finished":
        root = self.request.output
        writes = root is not None and hosts.leads(self.request.mesh)
        if part == MAPS:
            return Finished(part, None, tuple(self._make_maps(root or "") if writes else ()))
        with cost.measured(self.mesh) as took:
            outcome = self.compute(part)
        outcome = add_cost(outcome, took, self.extraction_costs)
        key = f"{part}@{self.confounder}" if self.confounder else part
        paths = (self._write(root, outcome),) if root is not None and writes else ()
        return Finished(key, outcome.record, paths)

    def _write(self, root: str, outcome: Outcome) -> str:
        return write_outcome(root, outcome, request_sha256=self.request.digest())

    def compute(self, metric: str) -> Outcome:
        """The record of a metric, and its draws."""
        outcome: Outcome = resolve(registry.get_kind(metric).evaluate)(self)
        return outcome

    @cached_property
    def extraction_costs(self) -> list[dict[str, Any]]:
        """What the passes of the extraction of the store cost; empty where that is not known."""
        return store_files.read_costs(self.store.path)

    def _make_maps(self, root: str) -> list[str]:
        return make_maps(
            self.store,
            model=self.request.model,
            dataset=self.dataset,
            view=self.clustering_rows,
            root=root,
            settings=self.request.maps,
            relabelled=self.settings.renamed_columns,
        )

    def task_provenance(
        self, settings: Mapping[str, Any], rows: Manifest, tasks_sha256: str
    ) -> dict[str, Any]:
        """Provenance of a metric of many tasks: its own settings, its rows, and its tasks."""
        digests = {"view_sha256": rows.fingerprint(), "tasks_sha256": tasks_sha256}
        return make_provenance(
            store=self.store.provenance(),
            settings={**settings, **digests},
            view=rows.source,
            mesh=self.mesh,
        )

    def task_folder(self, metric: str) -> str | None:
        """Folder in which a metric of many tasks keeps finished tasks."""
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
        return relabel(rows, self.settings.columns if self.settings.renamed_columns else None)

    @property
    def clustering_rows(self) -> Manifest:
        """Rows of the clustering score, in file order."""
        if self.protocol is not None:
            return self.read_view(self.protocol.clustering_score.view)
        return self.custom_rows

    @property
    def neighbor_rows(self) -> Manifest:
        """Rows of the neighbour metrics, shuffled as the protocol does."""
        protocol = self.protocol.robustness_index if self.protocol else None
        rows = self.read_view(protocol.view) if protocol else self.custom_rows
        seed = protocol.shuffle_seed if protocol else protocols.SHUFFLE_SEED
        return row_views.shuffle(rows, seed)

    @property
    def neighborhood(self) -> Neighborhood:
        """Neighbours, searched once for all metrics that need them; a failure is for all too."""
        if isinstance(self._searched, Exception):
            raise self._searched
        return self._searched

    @cached_property
    def _searched(self) -> Neighborhood | Exception:
        try:
            return self._search()
        except Exception as error:  # noqa: BLE001 - raised for every metric that needs them
            return error

    def _search(self) -> Neighborhood:
        return find_neighborhood(
            self.store,
            self.neighbor_rows,
            protocol=self.protocol.robustness_index if self.protocol else None,
            settings=self.settings,
            n_typed=CROMA_M if MarginsResult.metric in self.request.metrics else 0,
            mesh=self.request.mesh,
            keep_graph=self.request.keep_graph,
        )


class Finished(NamedTuple):
    """A metric, or the maps, of an evaluation.

    Attributes:
        key: name of the record in ``Results``.
        record: the record; None for maps.
        paths: files that were written.
    """

    key: str
    record: Any | None
    paths: tuple[str, ...]


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
    """Compute metrics of a store, and write them if ``output`` is set.

    Args:
        store: embeddings, or the folder ``<root>/<model>/<dataset>`` of a store.
        model: name of the model in the results; None: the name of the folder.
        dataset: a protocol's name (``camelyon``, ``tcga``, ``tolkach_esca``), or any other for a
            custom dataset; None: the name of the folder.
        metrics: names of ``results.registry.KINDS``; neighbours are searched once for all of them.
        settings: choices of the user.
        metadata_dir: folder of the protocol's metadata files.
        manifest: rows and labels of a custom dataset, or their file; None: those of the store.
        output: folder of all results, ``<output>/<model>/<dataset>/<metric>.json``. Finished parts
            of long metrics are kept there, so that an interrupted run can resume.
        maps: also make maps of the rows of the clustering score; needs ``output``.
        mesh: devices; None: all local devices; see ``Request``.

    Returns:
        The record of each metric by its name; with several confounders by ``<metric>@<column>``.

    Raises:
        FileNotFoundError: there is no store in that folder.
        UsageError: a metric is unknown, the metadata folder of a protocol is missing, or settings
            would be ignored.
        InputError: a metric cannot use the rows, labels or embeddings.
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
        maps=maps,
    )
    return run_request(opened, request)


def run_request(store: Store, request: Request) -> Results:
    """Compute a request metric by metric, and write each record as soon as it is complete.

    Args:
        store: embeddings.
        request: what to compute.

    Raises:
        UsageError: see ``Request.check``.
        InputError: a metric cannot use the rows, labels or embeddings.
    """
    request.check()
    records: dict[str, Any] = {}
    paths: list[str] = []
    for evaluation in plan_evaluations(store, request):
        for part in request.parts:
            finished = evaluation.finish(part)
            if finished.record is not None:
                records[finished.key] = finished.record
                paths += finished.paths
    if request.output is not None and hosts.leads(request.mesh):
        for path in write_summaries(request.output, request.model):
            record = read_result(path)
            records[record.metric] = record
            paths.append(path)
    return Results(records, tuple(paths))


def as_names(metrics: Sequence[str]) -> tuple[str, ...]:
    """Check the names of metrics.

    Raises:
        UsageError: the names are a single string, or there are none.
    """
    if isinstance(metrics, str) or not metrics:
        raise UsageError(f"metrics: expected a list of names, found {metrics!r}; put it in one.")
    return tuple(metrics)


def plan_evaluations(store: Store, request: Request) -> Iterator[Evaluation]:
    """One ``Evaluation`` for each confounder of a request that was checked."""
    # Embeddings in memory have nothing to keep.
    if len(request.parts) > 1 and request.keep_graph:
        store = store.caching(CACHE_BYTES)
    confounders = request.settings.confounders
    if not confounders:
        yield Evaluation(store, request, request.dataset)
    for column in confounders:
        settings = request.settings.with_confounder(column)
        name = folder_names.join_confounder(request.dataset, column)
        yield Evaluation(store, replace(request, settings=settings), name, column)


def has_own_subsets(rows: Manifest, dataset: str) -> bool:
    """Whether the rows of a custom dataset have subsets, which a store does not keep."""
    return SUBSET in rows and dataset not in protocols.PROTOCOLS
