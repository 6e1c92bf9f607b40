"""Metrics inside a program that has the encoder in hand: a training loop, a notebook.

Enters: a function from tiles to embeddings (or embeddings), and what each patch is. Leaves: the
records that ``experiments.evaluate`` writes, equal to the last bit for equal embeddings, but in
memory: nothing is written unless asked for, and nothing is shown.
"""

import contextlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import jax
from jax.sharding import Mesh

from pathorob_jax.core import checks, devices
from pathorob_jax.core.checks import UsageError
from pathorob_jax.core.devices import default_modes
from pathorob_jax.core.progress import quiet
from pathorob_jax.data import protocols
from pathorob_jax.data.manifest import SUBSET
from pathorob_jax.data.tileset import Tileset
from pathorob_jax.embeddings.embed_in_memory import (
    DEFAULT_BATCH_SIZE,
    as_rows,
    embed_tiles,
    open_tiles,
    store_in_memory,
)
from pathorob_jax.evaluation import run
from pathorob_jax.evaluation.apd import ApdSettings
from pathorob_jax.evaluation.clustering_score import ClusteringSettings
from pathorob_jax.evaluation.neighborhood import Settings
from pathorob_jax.results import over_datasets
from pathorob_jax.results.records import ApdResult, ClusteringResult, RobustnessIndexResult
from pathorob_jax.results.result_files import write_outcome

NAME = "checkpoint"
# Metrics of many tasks, which several processes share through a folder.
SHARED = (ApdResult.metric, ClusteringResult.metric)


def evaluate(
    embed_fn: Callable[[Any], Any],
    tileset: str | os.PathLike[str] | Tileset | tuple[Any, Any],
    *,
    metrics: Sequence[str] = (RobustnessIndexResult.metric,),
    model: str = NAME,
    dataset: str = NAME,
    batch_size: int = DEFAULT_BATCH_SIZE,
    settings: Settings | None = None,
    apd: ApdSettings | None = None,
    clustering: ClusteringSettings | None = None,
    metadata_dir: str | None = None,
    output: str | None = None,
    mesh: Mesh | None = None,
    workers: int = 0,
    progress: bool = False,
) -> dict[str, Any]:
    """Embed tiles with a function and compute metrics of the embeddings.

    ``embed_fn`` is called as it is: jit it, and give the same jitted function at every checkpoint
    (``functools.partial(embed, params)``), so that it compiles once. It is not jitted here, since a
    function that closes over parameters would be compiled anew for each checkpoint, with the
    parameters as constants in it.

    On several hosts each process computes the metrics of what it is given, on its own devices, and
    nothing is exchanged: call it on one process, or on all with the same tiles and equal results.
    ``embed_fn`` must then run on local devices alone (parameters spread over hosts: give a local
    copy). ``apd`` and ``clustering_score`` are shared between processes through ``output``: all
    must call.

    Args:
        embed_fn: uint8[B, H, W, 3] -> float[B, D] of any float dtype, one embedding a tile. All
            batches have ``batch_size`` tiles; the last is filled up with black ones, whose
            embeddings are dropped.
        tileset: the folder of a tileset, a ``Tileset``, or in memory ``Tiles`` or any pair of
            (uint8[N, H, W, 3], table of N rows).
        metrics: names of ``evaluation.METRICS``; neighbours are sought once for all of them.
        model: name that the records carry, of the checkpoint.
        dataset: a protocol's name (``camelyon``, ``tcga``, ``tolkach_esca``), or any other.
        batch_size: tiles of one call, over all devices of ``mesh``.
        settings: what a user may choose of neighbours. Compare checkpoints at one given k.
        apd: of the performance drop.
        clustering: of the clustering score.
        metadata_dir: folder of the protocol's metadata files.
        output: folder of all results, to write the records as ``experiments.evaluate`` does; None:
            nothing is written.
        mesh: local devices. Each batch is split over all of them, and the metrics use them; None:
            a batch is placed wherever ``embed_fn`` has its parameters, and the metrics use all
            local devices.
        workers: processes that decode; 0 decodes in threads.
        progress: show progress and log what a reader must know, which ``warnings`` of each record
            holds in any case.

    Returns:
        The record of each metric (``records.RobustnessIndexResult`` ...) by its name; with several
        confounders by ``<metric>@<column>``.

    Raises:
        FileNotFoundError: no such folder.
        UsageError: an unknown metric, a batch size that the devices cannot share, devices of other
            hosts, or a call inside ``jax.jit``.
        InputError: tiles, rows or labels that cannot be worked with; ``embed_fn`` returned anything
            but B embeddings of one size, finite and not all zero.
    """
    settings = settings or Settings()
    _check_request(metrics, model, dataset, metadata_dir, output, mesh)
    if batch_size < 1 or (mesh is not None and batch_size % mesh.size):
        raise UsageError(
            f"batch_size: expected a positive multiple of the {mesh.size if mesh else 1} devices, "
            f"found {batch_size}."
        )
    with contextlib.nullcontext() if progress else quiet():
        manifest, batches = open_tiles(tileset, settings.columns, batch_size, workers)
        embeddings = embed_tiles(embed_fn, batches, manifest, mesh, name=f"embed {model}")
    return evaluate_embeddings(
        embeddings,
        manifest,
        metrics=metrics,
        model=model,
        dataset=dataset,
        settings=settings,
        apd=apd,
        clustering=clustering,
        metadata_dir=metadata_dir,
        output=output,
        mesh=mesh,
        progress=progress,
    )


def evaluate_embeddings(
    embeddings: Any,
    manifest: Any,
    *,
    metrics: Sequence[str] = (RobustnessIndexResult.metric,),
    model: str = NAME,
    dataset: str = NAME,
    settings: Settings | None = None,
    apd: ApdSettings | None = None,
    clustering: ClusteringSettings | None = None,
    metadata_dir: str | None = None,
    output: str | None = None,
    mesh: Mesh | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Compute metrics of embeddings in memory.

    Args:
        embeddings: float[N, D], NumPy or JAX.
        manifest: row i describes embedding i; whatever ``as_manifest`` takes, or a ``Manifest``. A
            patch may recur in several subsets: its first embedding counts.
        metrics: as ``evaluate`` takes it, like all that follow.
        model: likewise.
        dataset: likewise.
        settings: likewise.
        apd: likewise.
        clustering: likewise.
        metadata_dir: likewise.
        output: likewise.
        mesh: likewise.
        progress: likewise.

    Returns:
        As ``evaluate``.

    Raises:
        UsageError: an unknown metric, or devices of other hosts.
        InputError: embeddings that are not finite, all zero, or not as many as rows; rows or labels
            that the metric cannot work with.
    """
    settings = settings or Settings()
    _check_request(metrics, model, dataset, metadata_dir, output, mesh)
    rows = as_rows(manifest, settings.columns)
    store = store_in_memory(embeddings, rows, model)
    own = SUBSET in rows and dataset not in protocols.PROTOCOLS
    planned = run.plan_evaluations(
        store,
        model=model,
        dataset=dataset,
        root=output,
        metrics=metrics,
        metadata_dir=metadata_dir,
        manifest=rows if own else None,
        settings=settings,
        apd=apd,
        clustering=clustering,
        mesh=None if mesh is None else devices.make_mesh(mesh.devices.ravel().tolist()),
        keep_graph=False,
    )
    records = {}
    with contextlib.nullcontext() if progress else quiet(), default_modes():
        for one in planned:
            for metric in metrics:
                outcome = one.compute(metric)
                if output is not None:
                    write_outcome(output, outcome)
                records[metric + one.dataset.removeprefix(dataset)] = outcome.record
        if output is not None:
            over_datasets.write_summaries(output, model)
    return records


def scalars(records: Mapping[str, Any], *, prefix: str = "") -> dict[str, float]:
    """The numbers of records in one flat mapping, as experiment trackers log them.

    Args:
        records: what ``evaluate`` returns.
        prefix: in front of every name, ``val/`` say.

    Returns:
        ``<metric>/<number>`` for every number of the records themselves and for k, and
        ``<metric>/<number>_low`` and ``_high`` for its 95 % interval. NaN where undefined. The same
        names every time.
    """
    out: dict[str, float] = {}
    for key, record in records.items():
        name = prefix + key + "/"
        for field in fields(record):
            value = getattr(record, field.name)
            if isinstance(value, float) or field.name == "k":
                out[name + field.name] = float(value)
        for number, ends in _intervals(record).items():
            out[f"{name}{number}_low"], out[f"{name}{number}_high"] = ends or (math.nan, math.nan)
    return out


def _intervals(record: Any) -> dict[str, list[float] | None]:
    """95 % intervals of a record by the number that they are of."""
    out: dict[str, list[float] | None] = {}
    for field in fields(record):
        value = getattr(record, field.name)
        if field.name in ("ci95", "companions_ci95") and isinstance(value, dict):
            out |= value
        elif field.name == "ci95":
            out[record.metric] = value
        elif field.name.endswith("_ci95"):
            out[field.name.removesuffix("_ci95")] = value
    return out


def _check_request(
    metrics: Sequence[str],
    model: str,
    dataset: str,
    metadata_dir: str | None,
    output: str | None,
    mesh: Mesh | None,
) -> None:
    if isinstance(metrics, str):
        raise UsageError(f"metrics: expected a list of names, found {metrics!r}; put it in one.")
    run.check_request(metrics, dataset=dataset, metadata_dir=metadata_dir)
    checks.check_folder_name(model, what="model")
    checks.check_folder_name(dataset, what="dataset")
    here, n_processes = jax.process_index(), jax.process_count()
    if mesh is not None and any(device.process_index != here for device in mesh.devices.flat):
        raise UsageError(
            "mesh: expected devices of this process alone, found others; give "
            "sharding.make_mesh(jax.local_devices())."
        )
    shared = [name for name in metrics if name in SHARED]
    if n_processes > 1 and shared and output is None:
        raise UsageError(
            f"output: {', '.join(shared)} are shared between the {n_processes} processes; give a "
            "folder that all of them see."
        )
