"""Metrics inside a program that has the encoder or its embeddings, such as a training loop.

The records are those that ``experiments.evaluate`` writes, equal to the last bit for equal
embeddings. By default, nothing is written or shown.
"""

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
from jax.sharding import Mesh

from pathorob_jax.core import devices
from pathorob_jax.core.checks import UsageError
from pathorob_jax.core.devices import default_modes
from pathorob_jax.core.progress import quiet
from pathorob_jax.data.tileset import Tileset
from pathorob_jax.embeddings.embed_in_memory import (
    DEFAULT_BATCH_SIZE,
    as_rows,
    embed_tiles,
    open_tiles,
    store_in_memory,
)
from pathorob_jax.evaluation.run import (
    DEFAULT_METRICS,
    Request,
    as_names,
    has_own_subsets,
    run_request,
)
from pathorob_jax.evaluation.settings import Settings
from pathorob_jax.results.result_set import Results

NAME = "checkpoint"


def evaluate(
    embed_fn: Callable[[Any], Any],
    tileset: str | os.PathLike[str] | Tileset | tuple[Any, Any],
    *,
    metrics: Sequence[str] = DEFAULT_METRICS,
    k: int | str | None = None,
    model: str = NAME,
    dataset: str = NAME,
    batch_size: int = DEFAULT_BATCH_SIZE,
    settings: Settings | None = None,
    metadata_dir: str | None = None,
    output: str | None = None,
    mesh: Mesh | None = None,
    workers: int = 0,
    progress: bool = False,
) -> Results:
    """Embed tiles with a function and compute metrics of the embeddings.

    ``embed_fn`` is called unchanged. Jit it and pass the same jitted function at every checkpoint
    (``functools.partial(embed, params)``), so that it compiles once. This function does not jit it,
    because a function that closes over parameters would be compiled again for each checkpoint, with
    the parameters as constants.

    On several hosts, each process computes the metrics of its tiles on its local devices, and the
    processes exchange nothing: call the function on one process, or on all processes with the same
    tiles and equal results. ``embed_fn`` must then run on local devices only (if parameters are
    sharded over hosts, pass a local copy). With an ``output`` that all processes see, those that
    call share the tasks of metrics of many tasks, such as ``apd``.

    Args:
        embed_fn: uint8[B, H, W, 3] -> float[B, D] of any float dtype, one embedding per tile. All
            batches have ``batch_size`` tiles; the last batch is padded with black tiles, whose
            embeddings are dropped.
        tileset: the folder of a tileset, a ``Tileset``, or in memory ``Tiles`` or any pair of
            (uint8[N, H, W, 3], table of N rows).
        metrics: names of ``results.registry.KINDS``; neighbours are searched once for all of them.
        k: number of neighbours, instead of ``settings.k``; compare checkpoints at one fixed k.
        model: name of the checkpoint in the records.
        dataset: a protocol's name (``camelyon``, ``tcga``, ``tolkach_esca``), or any other.
        batch_size: tiles per call, over all devices of ``mesh``.
        settings: choices of the user.
        metadata_dir: folder of the protocol's metadata files.
        output: folder of all results, where records are written as by ``experiments.evaluate``;
            None: nothing is written.
        mesh: local devices. Each batch is split over all of them, and the metrics use them; None:
            a batch is placed on the devices of ``embed_fn``'s parameters, and the metrics use all
            local devices.
        workers: processes that decode; 0: decode in threads. Tiles in memory need none.
        progress: whether to show progress and log warnings; ``warnings`` of each record always
            has them.

    Returns:
        The record of each metric by its name; with several confounders by ``<metric>@<column>``.

    Raises:
        FileNotFoundError: the folder does not exist.
        UsageError: a metric is unknown, the batch size is not divisible over the devices, devices
            belong to other hosts, settings would be ignored, or the call is inside ``jax.jit``.
        InputError: tiles, rows or labels are invalid; or ``embed_fn`` did not return B embeddings
            of one size, finite and not all zero.

    >>> import jax, numpy as np, pathorob_jax as pr
    >>> tiles = np.random.default_rng(0).integers(0, 256, (32, 16, 16, 3), np.uint8)
    >>> rows = {"slide_id": np.arange(32) // 4, "patch_id": np.arange(32)}
    >>> rows |= {"biological_class": ["tumor", "normal"] * 16}
    >>> rows |= {"medical_center": ["A"] * 16 + ["B"] * 16}
    >>> embed = jax.jit(lambda tiles: tiles.reshape(len(tiles), -1) / 255 - 0.5)
    >>> results = pr.evaluate(embed, (tiles, rows), k=3, batch_size=16)
    >>> results.robustness_index.n_samples
    32
    """
    settings = _choose(settings, k)
    request = _make_request(model, dataset, metrics, settings, metadata_dir, output, mesh)
    if batch_size < 1 or (mesh is not None and batch_size % mesh.size):
        raise UsageError(
            f"batch_size: expected a positive multiple of the {mesh.size if mesh else 1} devices, "
            f"found {batch_size}."
        )
    with contextlib.nullcontext() if progress else quiet():
        manifest, batches = open_tiles(tileset, settings.columns, batch_size, workers)
        embeddings = embed_tiles(embed_fn, batches, manifest, mesh, name=f"embed {model}")
    return _evaluate(embeddings, manifest, request, progress=progress)


def evaluate_embeddings(
    embeddings: Any,
    manifest: Any,
    *,
    metrics: Sequence[str] = DEFAULT_METRICS,
    k: int | str | None = None,
    model: str = NAME,
    dataset: str = NAME,
    settings: Settings | None = None,
    metadata_dir: str | None = None,
    output: str | None = None,
    mesh: Mesh | None = None,
    progress: bool = False,
) -> Results:
    """Compute metrics of embeddings in memory.

    Args:
        embeddings: float[N, D], NumPy or JAX.
        manifest: row i describes embedding i: a mapping of columns, a pandas, polars or pyarrow
            table, or a ``Manifest``. Its columns: ``slide_id``, ``patch_id``, ``biological_class``,
            ``medical_center``. A patch may appear in several subsets; its first embedding counts.
        metrics: names of ``results.registry.KINDS``; neighbours are searched once for all of them.
        k: number of neighbours, instead of ``settings.k``.
        model: name of the model in the records.
        dataset: a protocol's name (``camelyon``, ``tcga``, ``tolkach_esca``), or any other.
        settings: choices of the user.
        metadata_dir: folder of the protocol's metadata files.
        output: folder of all results; None: nothing is written.
        mesh: local devices; None: all of them.
        progress: whether to show progress and log warnings.

    Returns:
        The record of each metric by its name; with several confounders by ``<metric>@<column>``.

    Raises:
        UsageError: a metric is unknown, devices belong to other hosts, or settings would be
            ignored.
        InputError: embeddings are not finite, all zero, or not as many as rows; or a metric cannot
            use the rows or labels.

    >>> import numpy as np, pathorob_jax as pr
    >>> x = np.random.default_rng(0).normal(size=(48, 8))
    >>> rows = {"slide_id": np.arange(48) // 4, "patch_id": np.arange(48)}
    >>> rows |= {"biological_class": ["tumor", "normal"] * 24}
    >>> rows |= {"medical_center": ["A"] * 24 + ["B"] * 24}
    >>> results = pr.evaluate_embeddings(x, rows, metrics=["robustness_index", "margins"], k=5)
    >>> list(results)
    ['robustness_index', 'margins']
    >>> index = results.robustness_index
    >>> index.ci95[0] <= index.value <= index.ci95[1]
    True
    >>> results.to_table().column_names
    ['model', 'dataset', 'metric', 'name', 'value', 'low', 'high']
    """
    settings = _choose(settings, k)
    request = _make_request(model, dataset, metrics, settings, metadata_dir, output, mesh)
    return _evaluate(embeddings, manifest, request, progress=progress)


def _choose(settings: Settings | None, k: int | str | None) -> Settings:
    settings = settings or Settings()
    if k is None:
        return settings
    if settings.k not in (Settings.k, k):
        raise UsageError(f"k: found {k!r}, and {settings.k!r} in the settings; give one of them.")
    return replace(settings, k=k)


def _make_request(
    model: str,
    dataset: str,
    metrics: Sequence[str],
    settings: Settings,
    metadata_dir: str | None,
    output: str | None,
    mesh: Mesh | None,
) -> Request:
    """The request, checked before any tile is read."""
    here = jax.process_index()
    if mesh is not None and any(device.process_index != here for device in mesh.devices.flat):
        raise UsageError(
            "mesh: expected devices of this process alone, found others; give "
            "core.devices.make_mesh(jax.local_devices())."
        )
    request = Request(
        model=model,
        dataset=dataset,
        metrics=as_names(metrics),
        settings=settings,
        metadata_dir=metadata_dir,
        output=output,
        mesh=None if mesh is None else devices.make_mesh(mesh.devices.ravel().tolist()),
        keep_graph=False,
    )
    request.check()
    return request


def _evaluate(embeddings: Any, manifest: Any, request: Request, *, progress: bool) -> Results:
    rows = as_rows(manifest, request.settings.columns)
    store = store_in_memory(embeddings, rows, request.model)
    if has_own_subsets(rows, request.dataset):
        request = replace(request, manifest=rows)
    with contextlib.nullcontext() if progress else quiet(), default_modes():
        return run_request(store, request)
