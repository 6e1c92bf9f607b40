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

from pathorob_jax import files, images, sharding
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
        batch_size: tiles per device and step; None chooses by kind of device. A chunk of the store
            is one step of all devices; a resumed store keeps its own.
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
    path = files.join(root, encoder.name, dataset)
    first = images.decode_tile(*tileset.reader.read(0))
    writer = create_store(
        path,
        manifest=tileset.manifest,
        dim=registry.embedding_dim(encoder, *first.shape[:2]),
        chunk_rows=mesh.size * (batch_size or default_batch_size(mesh)),
        identity={
            "encoder": encoder.identity,
            "source": {"tileset_sha256": tileset.fingerprint},
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
    # Padded to whole devices: a resumed store may have been begun on another number of them.
    step_rows = -(-writer.chunk_rows // mesh.size) * mesh.size
    plan = np.full((len(writer.missing_chunks), step_rows), images.NO_ROW, np.int64)
    for step, chunk in enumerate(writer.missing_chunks):
        rows = writer.chunk_slice(chunk)
        plan[step, : rows.stop - rows.start] = np.arange(rows.start, rows.stop)
    split, whole = sharding.row_sharding(mesh), sharding.replicated_sharding(mesh)
    params = jax.device_put(encoder.params, whole)
    embed = jax.jit(encoder.apply, in_shardings=(whole, split), out_shardings=split)
    embedded: deque[tuple[int, np.ndarray, jax.Array]] = deque()
    writing: deque[ts.WriteFutures] = deque()
    done = len(tileset) - int((plan != images.NO_ROW).sum())
    name = f"embed {encoder.name}"
    with Progress(name, total=len(tileset), unit="tile", done=done) as progress:

        def write_oldest() -> None:
            chunk, mask, embeddings = embedded.popleft()
            writing.append(writer.write(chunk, np.asarray(embeddings)[mask]))
            if len(writing) > CHUNKS_IN_FLIGHT:
                writing.popleft().result()
            progress.update(int(mask.sum()))

        for chunk, batch in zip(
            writer.missing_chunks,
            images.read_batches(tileset, plan, workers=workers),
            strict=True,
        ):
            embedded.append((chunk, batch.mask, embed(params, jax.device_put(batch.images, split))))
            if len(embedded) > CHUNKS_IN_FLIGHT:
                write_oldest()
        while embedded:
            write_oldest()
        for future in writing:
            future.result()
