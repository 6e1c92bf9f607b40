"""Metrics inside a program that has the encoder in hand: a training loop, a notebook.

Enters: a function from tiles to embeddings (or embeddings), and what each patch is. Leaves: the
records that ``experiments.evaluate`` writes, equal to the last bit for equal embeddings, but in
memory: nothing is written unless asked for, and nothing is shown.
"""

import contextlib
import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore as ts
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pathorob_jax.core import checks, devices, files
from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.core.modes import default_modes
from pathorob_jax.core.progress import Progress, quiet
from pathorob_jax.core.provenance import software_versions
from pathorob_jax.core.typing import Float
from pathorob_jax.data import protocols
from pathorob_jax.data import tileset as images
from pathorob_jax.data.manifest import SUBSET, Manifest, as_manifest
from pathorob_jax.data.tile_batches import NO_ROW, plan_batches, read_batches
from pathorob_jax.data.tileset import Tileset
from pathorob_jax.embeddings.store import Store
from pathorob_jax.evaluation import run
from pathorob_jax.evaluation.apd import ApdSettings
from pathorob_jax.evaluation.clustering_score import ClusteringSettings
from pathorob_jax.evaluation.neighborhood import Settings
from pathorob_jax.results import over_datasets
from pathorob_jax.results.records import ApdResult, ClusteringResult, RobustnessIndexResult
from pathorob_jax.results.result_files import write_outcome

NAME = "checkpoint"
DEFAULT_BATCH_SIZE = 64
# Batches that the device works at while the host takes the one before.
BATCHES_IN_FLIGHT = 2
MEND = "Look at the parameters (diverged?) and at what embed_fn does to a black or white tile."
# Metrics of many tasks, which several processes share through a folder.
SHARED = (ApdResult.metric, ClusteringResult.metric)


class Tiles(NamedTuple):
    """Tiles in memory.

    Attributes:
        images: uint8[N, H, W, 3].
        manifest: row i describes image i; whatever ``as_manifest`` takes, or a ``Manifest``.
    """

    images: Any
    manifest: Any


def load_tiles(
    tileset: str | os.PathLike[str] | Tileset,
    *,
    columns: Mapping[str, str] | None = None,
    workers: int = 0,
) -> Tiles:
    """Decode a tileset into memory, once for all evaluations: N · H · W · 3 bytes.

    Args:
        tileset: its folder, or one that is open.
        columns: our column name -> the manifest's, for those that differ.
        workers: processes that decode; 0 decodes in threads.

    Raises:
        FileNotFoundError: no such folder.
        InputError: no tileset, or a tile cannot be decoded or has another size than the first.
    """
    opened = _open_tileset(tileset, columns)
    plan = plan_batches(len(opened), batch_size=DEFAULT_BATCH_SIZE)
    # Copied: batches of worker processes lie in memory that is shared, and small.
    blocks = [np.array(b.images[b.mask]) for b in read_batches(opened, plan, workers=workers)]
    return Tiles(np.concatenate(blocks), opened.manifest)


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
        manifest, batches = _open(tileset, settings.columns, batch_size, workers)
        embeddings = _embed(embed_fn, batches, manifest, mesh, name=f"embed {model}")
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
    rows = _as_rows(manifest, settings.columns)
    store = _in_memory(embeddings, rows, model)
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


def _open_tileset(tileset: Any, columns: Mapping[str, str] | None) -> Tileset:
    if isinstance(tileset, Tileset):
        return tileset
    if isinstance(tileset, str | os.PathLike):
        return images.open_tileset(os.fspath(tileset), columns=dict(columns or {}))
    raise UsageError(
        "tileset: expected a folder, an open Tileset or a pair (images, manifest), found "
        f"{type(tileset).__name__}."
    )


def _open(
    tileset: Any, columns: Mapping[str, str] | None, batch_size: int, workers: int
) -> tuple[Manifest, Iterator[tuple[np.ndarray, np.ndarray]]]:
    """The rows, and batches of uint8[B, H, W, 3] tiles with their int64[B] rows, in order."""
    if not isinstance(tileset, tuple) or len(tileset) != 2:
        opened = _open_tileset(tileset, columns)
        plan = plan_batches(len(opened), batch_size=batch_size)
        batches = read_batches(opened, plan, workers=workers)
        return opened.manifest, ((batch.images, batch.rows) for batch in batches)
    pixels, rows = np.asarray(tileset[0]), _as_rows(tileset[1], columns)
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3:
        raise InputError(
            "tileset: expected images uint8[N, H, W, 3], found "
            f"{pixels.dtype}{list(pixels.shape)}; embed_fn scales and normalises them itself."
        )
    checks.check_shape(
        pixels.shape,
        (len(rows), None, None, 3),
        name="tileset",
        why="(one image for each row of the manifest)",
    )
    plan = plan_batches(len(rows), batch_size=batch_size)
    return rows, _slice_batches(pixels, plan)


def _slice_batches(pixels: np.ndarray, plan: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for rows in plan:
        mask = rows != NO_ROW
        block = np.zeros((len(rows), *pixels.shape[1:]), np.uint8)
        block[mask] = pixels[rows[mask]]
        yield block, rows


def _as_rows(manifest: Any, columns: Mapping[str, str] | None) -> Manifest:
    """Checked rows, counted as they come."""
    if isinstance(manifest, Manifest):
        return as_manifest(manifest.table, source=manifest.source, columns=columns)
    return as_manifest(manifest, columns=columns)


def _embed(
    embed_fn: Callable[[Any], Any],
    batches: Iterator[tuple[np.ndarray, np.ndarray]],
    manifest: Manifest,
    mesh: Mesh | None,
    *,
    name: str,
) -> Float[np.ndarray, "N D"]:
    """float32[N, D]; the device embeds one batch while the next is read."""
    split = None if mesh is None else NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    blocks: list[np.ndarray] = []
    embedded: deque[tuple[np.ndarray, Any]] = deque()
    dim: int | None = None
    with Progress(name, total=len(manifest), unit="tile") as progress:

        def take_oldest() -> None:
            rows, found = embedded.popleft()
            blocks.append(_as_float32(jax.device_get(found)[: len(rows)]))
            _check_rows(blocks[-1], manifest, first=int(rows[0]), name="embed_fn", mend=MEND)
            progress.update(len(rows))

        for pixels, rows in batches:
            found = embed_fn(jax.device_put(pixels, split))
            patch = manifest.keys[int(rows[0])]
            dim = _check_embeddings(found, len(rows), dim, where=f"the batch from patch {patch} on")
            embedded.append((rows[rows != NO_ROW], found))
            if len(embedded) > BATCHES_IN_FLIGHT:
                take_oldest()
        while embedded:
            take_oldest()
    return np.concatenate(blocks)


def _check_embeddings(found: Any, n_tiles: int, dim: int | None, *, where: str) -> int:
    """The dimensions of a batch's embeddings; ``dim`` is that of the batches before.

    Raises:
        UsageError: they are not there yet, or lie on other hosts.
        InputError: not float[B, D].
    """
    if isinstance(found, jax.core.Tracer):
        raise UsageError(
            "embed_fn: returned a traced value; evaluate works on the host and is called between "
            "steps, not inside jax.jit, grad or vmap."
        )
    size = "D" if dim is None else dim
    expected = f"embed_fn: {where}: expected float[{n_tiles}, {size}], found"
    if not isinstance(found, jax.Array | np.ndarray):
        raise InputError(
            f"{expected} {type(found).__name__}; return the embeddings alone, as one array."
        )
    if isinstance(found, jax.Array) and not found.is_fully_addressable:
        raise UsageError(
            "embed_fn: the embeddings lie on devices of other hosts; give it parameters that lie "
            "on local devices."
        )
    what = f"{expected} {found.dtype}{list(found.shape)}"
    if not jnp.issubdtype(found.dtype, jnp.floating):
        raise InputError(f"{what}; return embeddings, not indices or images.")
    if found.ndim != 2 or not found.shape[1]:
        raise InputError(f"{what}; pool tokens or positions into one vector for each tile.")
    if found.shape[0] != n_tiles:
        raise InputError(
            f"{what}; return one row for each tile of the batch, also for those that fill it up."
        )
    if dim is not None and found.shape[1] != dim:
        raise InputError(f"{what}; all batches must have the size of the first.")
    return int(found.shape[1])


def _as_float32(found: Any) -> np.ndarray:
    with np.errstate(over="ignore"):  # what becomes infinite is refused next
        return np.asarray(found).astype(np.float32)


def _check_rows(
    embeddings: np.ndarray, manifest: Manifest, *, first: int, name: str, mend: str
) -> None:
    """Raise InputError for a row without direction."""
    bad, word = checks.find_bad_rows(embeddings)
    if bad.size:
        row = first + int(bad[0])
        raise InputError(
            f"{name}: the embedding of patch {manifest.keys[row]} (row {row}) holds {word}; such a "
            f"row has no direction. {mend}"
        )


def _in_memory(embeddings: Any, rows: Manifest, model: str) -> Store:
    """Embeddings as a store without a folder, each patch once.

    Raises:
        InputError: not float[N, D] of N rows, or a row has no direction.
    """
    found = np.asarray(embeddings)
    if not jnp.issubdtype(found.dtype, jnp.floating):
        raise InputError(f"embeddings: expected floats, found {found.dtype}.")
    checks.check_shape(
        found.shape, (len(rows), None), name="embeddings", why="(rows of the manifest, dimensions)"
    )
    if not found.shape[1]:
        raise InputError("embeddings: expected one dimension or more, found none.")
    x = _as_float32(found)
    _check_rows(x, rows, first=0, name="embeddings", mend="Mend its source, or leave it out.")
    manifest = rows.unique_patches()
    if len(manifest) < len(rows):
        x = x[manifest.source_rows]
    info = {
        "manifest_sha256": manifest.fingerprint(),
        "identity": {
            "encoder": {"model": model, "weights": "in memory"},
            "source": {"format": "memory", "sha256": files.digest_array(x)},
        },
        "versions": software_versions(),
    }
    return Store("embeddings in memory", info, manifest, ts.array(x))
