"""Tileset -> embedding store: decode ahead, embed on all local devices, write chunk by chunk.

Enters: a tileset and encoders. Leaves: one complete store per encoder. While the device embeds a
chunk, the next ones are decoded and the last ones written; a run that was killed goes on with the
chunks that are missing and ends with the same bytes.
"""

from collections import deque

import jax
import numpy as np
import tensorstore as ts
from absl import logging
from jax.sharding import Mesh

from pathorob_jax import checks, files, images, sharding
from pathorob_jax.models import registry
from pathorob_jax.models.registry import Encoder
from pathorob_jax.progress import Progress
from pathorob_jax.store import Store, StoreWriter, create_store, open_store

# Per device; enough to fill it at 224 pixels without holding many tiles in memory.
DEFAULT_BATCH_SIZE = {"cpu": 32}
ACCELERATOR_BATCH_SIZE = 128
CHUNKS_IN_FLIGHT = 2


def extract(
    tileset: images.Tileset,
    encoder: Encoder,
    *,
    root: str,
    dataset: str,
    batch_size: int | None = None,
    workers: int = 0,
    mesh: Mesh | None = None,
    overwrite: bool = False,
) -> Store:
    """Embed every tile of a tileset into ``<root>/<encoder>/<dataset>/``.

    Args:
        tileset: tiles of one size.
        encoder: from ``registry.load_encoder``.
        root: folder of all stores.
        dataset: any name.
        batch_size: tiles per device and step; None chooses by kind of device. A resumed store
            keeps the one that it began with, also on another number of devices, so that it ends
            with the same bytes.
        workers: processes that decode; 0 decodes in threads.
        mesh: devices; None: all local ones.
        overwrite: replace a store of another configuration.

    Returns:
        The complete store, freshly written or as it was.

    Raises:
        InputError: a tile cannot be decoded or has another size; the store holds another
            configuration; an embedding is NaN, infinite or all zero.
    """
    mesh = mesh or sharding.make_mesh(jax.local_devices())
    checks.check_folder_name(dataset, what="dataset")
    path = files.join(root, encoder.name, dataset)
    first = images.decode_tile(*tileset.reader.read(0))
    batch_size = batch_size or default_batch_size(mesh)
    writer = create_store(
        path,
        manifest=tileset.manifest,
        dim=registry.embedding_dim(encoder, *first.shape[:2]),
        chunk_rows=mesh.size * batch_size,
        identity={
            "encoder": encoder.identity,
            "source": {"tileset_sha256": tileset.fingerprint},
        },
        settings={
            "batch_size": batch_size,
            "device": {"kind": mesh.devices.flat[0].device_kind, "count": mesh.size},
        },
        overwrite=overwrite,
    )
    if writer.info["complete"]:
        logging.info("%s: complete already, %d patches", path, len(tileset))
        return open_store(path)
    _embed_missing(tileset, encoder, writer, workers=workers, mesh=mesh)
    return writer.commit()


def default_batch_size(mesh: Mesh) -> int:
    """Tiles per device and step, by kind of device."""
    platform = mesh.devices.flat[0].platform
    return DEFAULT_BATCH_SIZE.get(platform, ACCELERATOR_BATCH_SIZE)


def _embed_missing(
    tileset: images.Tileset, encoder: Encoder, writer: StoreWriter, *, workers: int, mesh: Mesh
) -> None:
    """Embed the rows of missing chunks step by step; write each chunk once it is full."""
    batch_size = int(writer.info["settings"]["batch_size"])
    slices = [writer.chunk_slice(chunk) for chunk in writer.missing_chunks]
    missing = np.concatenate([np.arange(s.start, s.stop) for s in slices] or [np.zeros(0, int)])
    plan = images.plan_batches(len(missing), batch_size=batch_size * mesh.size)
    plan = np.where(plan == images.NO_ROW, images.NO_ROW, missing[plan])
    split, whole = sharding.row_sharding(mesh), sharding.replicated_sharding(mesh)
    params = jax.device_put(encoder.params, whole)
    embed = jax.jit(encoder.apply, in_shardings=(whole, split), out_shardings=split)
    chunks = deque(zip(writer.missing_chunks, (s.stop - s.start for s in slices), strict=True))
    embedded: deque[tuple[np.ndarray, jax.Array]] = deque()
    unwritten: list[np.ndarray] = []
    writing: deque[ts.WriteFutures] = deque()
    done = len(tileset) - len(missing)
    name = f"embed {encoder.name}"
    with Progress(name, total=len(tileset), unit="tile", done=done) as progress:

        def take_oldest() -> None:
            mask, embeddings = embedded.popleft()
            unwritten.append(np.asarray(embeddings)[mask])
            while chunks and sum(map(len, unwritten)) >= chunks[0][1]:
                chunk, n_rows = chunks.popleft()
                rows = np.concatenate(unwritten)
                unwritten[:] = [rows[n_rows:]]
                writing.append(writer.write(chunk, rows[:n_rows]))
                if len(writing) > CHUNKS_IN_FLIGHT:
                    writer.wait(writing.popleft())
            progress.update(int(mask.sum()))

        for batch in images.read_batches(tileset, plan, workers=workers):
            embedded.append((batch.mask, embed(params, jax.device_put(batch.images, split))))
            if len(embedded) > CHUNKS_IN_FLIGHT:
                take_oldest()
        while embedded:
            take_oldest()
        for future in writing:
            writer.wait(future)
