"""Embed a tileset with one or more encoders, and write one embedding store per encoder.

Every tile is decoded once for all encoders, and encoders that differ only in pooling share one
forward pass. While the devices embed, the host decodes the next tiles and writes finished chunks. A
run that was killed continues with the missing chunks and ends with the same bytes. Processes that
embed into the same stores, on one host or several, share the chunks as they go; one that joins or
dies changes no byte.

A device embeds one block of ``batch_size`` tiles of one size at a time (``size_sorting``). Blocks
always consist of the same rows, so that no bit depends on the number of devices or processes, or on
an interruption.
"""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
from absl import logging
from jax.sharding import Mesh

from pathorob_jax.core import cost, devices, faults, files, folder_names, hosts
from pathorob_jax.core.checks import InputError
from pathorob_jax.data import tile_batches
from pathorob_jax.data.decode import TileError
from pathorob_jax.data.tile_batches import OnBadImage
from pathorob_jax.data.tileset import Tileset
from pathorob_jax.embeddings import tile_record
from pathorob_jax.embeddings.batch_size import find_batch_size
from pathorob_jax.embeddings.chunk_plan import chunk_rows
from pathorob_jax.embeddings.forward_pass import (
    Forward,
    Pass,
    block_and_chunk,
    by_forward,
    list_passes,
)
from pathorob_jax.embeddings.store import Store, open_store, recorded_settings
from pathorob_jax.embeddings.store_writer import StoreWriter, create_store
from pathorob_jax.embeddings.tile_transform import STAIN, TileTransform
from pathorob_jax.embeddings.timing import Summary
from pathorob_jax.models import registry
from pathorob_jax.models.registry import Encoder


class Extraction(NamedTuple):
    """Stores in the order of the encoders, and one summary for each pass over the tiles."""

    stores: list[Store]
    summaries: list[Summary]


def extract(
    tileset: Tileset,
    encoders: Sequence[Encoder],
    *,
    root: str,
    dataset: str,
    batch_size: int | None = None,
    workers: int = 0,
    on_bad_image: OnBadImage = "error",
    stain: TileTransform | None = None,
    mesh: Mesh | None = None,
    overwrite: bool = False,
) -> Extraction:
    """Embed every tile of a tileset into ``<root>/<encoder>/<dataset>/``, once per encoder.

    With ``stain`` the folder is ``<root>/<encoder>+<method>/<dataset>/``.

    Args:
        tileset: tiles; of several sizes, if the encoders take them.
        encoders: encoders from ``registry.load_encoders``, with different names.
        root: folder of all stores.
        dataset: any name.
        batch_size: tiles per device and step; None: measured if the tileset is large enough
            (``batch_size.find_batch_size``; the smallest over the encoders). A resumed store keeps
            its batch size, so that it ends with the same bytes.
        workers: number of decoding processes; 0: decode in threads.
        on_bad_image: ``error`` ends the run at a tile that cannot be decoded; ``skip`` lists it in
            ``store.json`` and leaves it out of the store's manifest.
        stain: a robustifier of images (``pr.fit_stain``, ``pr.load_stain``), which normalises tiles
            before the encoder's own preprocessing; None: none. The settings of the store tell how
            many tiles it left as they are.
        mesh: devices of this process; None: all local ones.
        overwrite: replace a store of another configuration.

    Returns:
        The complete stores, new or already complete, and how the time was spent.

    Raises:
        InputError: a tile cannot be decoded, or has a size that an encoder cannot take; a store has
            another configuration, or tiles have changed since it was written; it is being written
            by another process, or cannot be written; an embedding is NaN, infinite or all zero;
            another process of the run failed.

    >>> import pathorob_jax as pr
    >>> from pathorob_jax.data.synthetic_tiles import SyntheticConfig, write_tileset
    >>> write_tileset("tiles", SyntheticConfig(n_slides=1, n_tiles=2, tile_px=32))
    32
    >>> encoder = pr.load_encoder("color_stats")
    >>> [store] = pr.extract(
    ...     pr.open_tileset("tiles"), [encoder], root="embeddings", dataset="synthetic"
    ... ).stores
    >>> len(store)
    32
    """
    mesh = mesh or devices.make_mesh(jax.local_devices())
    folder_names.check_dataset_name(dataset)
    names = [encoder.name for encoder in encoders]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise InputError(f"model: {', '.join(repeated)} is given more than once.")
    with _hinting_at_skip():
        shape = tile_batches.tile_shape(tileset, on_bad_image=on_bad_image)
    normalize = None if stain is None else stain.bind(tileset.manifest)
    forwards = by_forward(encoders, mesh)
    folders = names if stain is None else [f"{name}+{stain.method}" for name in names]
    paths = [files.join(root, name, dataset) for name in folders]
    with contextlib.ExitStack() as held:
        with hosts.together("stores"):
            if hosts.is_lead():
                size = batch_size or _recorded_or_found(tileset, forwards, paths, shape, mesh)
                writers = _open_writers(
                    tileset, encoders, paths, shape, mesh, size, stain, overwrite=overwrite
                )
        with hosts.together("stores"):
            if not hosts.is_lead():
                size = batch_size or 1
                writers = _open_writers(tileset, encoders, paths, shape, mesh, size, stain)
        for writer in writers:
            held.enter_context(writer)
        writer_of = dict(zip(names, writers, strict=True))
        summaries = []
        with hosts.together("embedding"), _hinting_at_skip(), _letting_go(writers):
            for group in list_passes(forwards, writer_of, mesh):
                with cost.measured(mesh) as took:
                    done = Pass(
                        tileset,
                        group,
                        writer_of,
                        shape=shape,
                        workers=workers,
                        on_bad_image=on_bad_image,
                        normalize=normalize,
                        mesh=mesh,
                    ).run()
                summaries.append(done)
                if done.tiles:
                    _keep_cost(took, done, [writer_of[e.name] for f in group for e in f.encoders])
                logging.info("%s", done)
        with hosts.together("stores"):
            if hosts.is_lead():
                for writer in writers:
                    if not writer.info["complete"]:
                        _complete(writer, tileset, stain)
    return Extraction([open_store(path) for path in paths], summaries)


def _complete(writer: StoreWriter, tileset: Tileset, stain: TileTransform | None) -> None:
    """Complete a store whose chunks are all on disk, unless another process has done so."""
    with writer.alone():
        if not writer.is_completed():
            settings = tile_record.add_outcomes(writer, tileset.manifest)
            if stain is not None:
                counts = settings[STAIN][tile_record.OUTCOMES]
                with faults.writing(writer.path):
                    stain.write_examples(writer.place, tileset, counts)
            writer.commit(settings=settings)


@contextlib.contextmanager
def _letting_go(writers: Sequence[StoreWriter]) -> Iterator[None]:
    """A block that, if it fails, leaves the chunks to the other processes at once."""
    try:
        yield
    except BaseException:
        for writer in writers:
            writer.close()
        raise


def _keep_cost(took: dict[str, Any], done: Summary, writers: Sequence[StoreWriter]) -> None:
    """Write what a pass cost beside the embeddings; ``encoders`` shared it."""
    about = {"tiles": done.tiles, "start_s": round(done.start_s, 3), "encoders": len(writers)}
    for writer in writers:
        writer.add_cost(took | about)


@contextlib.contextmanager
def _hinting_at_skip() -> Iterator[None]:
    try:
        yield
    except TileError as error:
        raise InputError(f"{error} Or skip such tiles: --on_bad_image=skip.") from error


def _recorded_or_found(
    tileset: Tileset,
    forwards: Sequence[Forward],
    paths: Sequence[str],
    shape: tuple[int, int, int],
    mesh: Mesh,
) -> int:
    """The batch size of an existing store, otherwise the smallest of those measured."""
    for path in paths:
        recorded = (recorded_settings(path) or {}).get("batch_size")
        if recorded:
            return int(recorded)
    return min(
        find_batch_size(f.step, f.params, shape, mesh=mesh, n_tiles=len(tileset)) for f in forwards
    )


def _open_writers(
    tileset: Tileset,
    encoders: Sequence[Encoder],
    paths: Sequence[str],
    shape: tuple[int, int, int],
    mesh: Mesh,
    batch_size: int,
    stain: TileTransform | None,
    *,
    overwrite: bool = False,
) -> list[StoreWriter]:
    """One writer per encoder. If one fails, all locks are released."""
    writers: list[StoreWriter] = []
    check = tile_record.TileCheck(tileset)
    source = tileset.identity
    settings: dict[str, Any] = {
        "batch_size": batch_size,
        "device": {
            "kind": mesh.devices.flat[0].device_kind,
            "count": mesh.size,
        },
    }
    if stain is not None:
        about = stain.describe()
        source["robustifier_sha256"] = about["sha256"]
        settings[STAIN] = {name: about[name] for name in ("method", "target", "scope")}
    try:
        for encoder, path in zip(encoders, paths, strict=True):
            recorded = recorded_settings(path)
            is_new = recorded is None
            if stain is not None and not overwrite:
                _check_stain(path, (recorded or {}).get(STAIN, {}), settings[STAIN])
            mixed = is_new and tile_batches.are_mixed(tileset, shape)
            create = functools.partial(
                create_store,
                path,
                manifest=tileset.manifest,
                dim=registry.embedding_dim(encoder, *shape[:2]),
                chunk_rows=chunk_rows(len(tileset), batch_size, mixed=mixed),
                identity={"encoder": encoder.identity, "source": source},
                settings=settings,
                overwrite=overwrite,
                shared=True,
                lead=hosts.is_lead(),
            )
            writers.append(create())
            changed = check.find_changed(writers[-1]) if hosts.is_lead() else []
            if changed and not overwrite:
                raise InputError(check.describe(writers[-1], changed))
            if changed:
                writers.pop().close()
                writers.append(create(resume=False))
                check.find_changed(writers[-1])
            kept = block_and_chunk(writers[-1])[0]
            if kept != batch_size and hosts.is_lead():
                logging.info("%s: goes on with its batch size, %d", path, kept)
    except BaseException:
        for writer in writers:
            writer.close()
        raise
    return writers


def _check_stain(path: str, recorded: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Refuse another scope or target than a store has: its folder is named by the method alone."""
    differing = [
        f"{name} {recorded[name]!r}, now {value!r}"
        for name, value in wanted.items()
        if recorded.get(name, value) != value
    ]
    if differing:
        raise InputError(
            f"{path}: holds embeddings of another configuration (stain: {'; '.join(differing)}). "
            "Give another --output, or --overwrite to replace them."
        )
