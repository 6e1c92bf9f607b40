"""Embed tiles, on disk or in memory, with a function of the running program.

``embed_tiles`` feeds tiles to the function batch by batch and returns float32[N, D];
``store_in_memory`` wraps such an array as a ``Store`` that has no folder.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore as ts
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pathorob_jax.core import checks, digests
from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.core.progress import Progress
from pathorob_jax.core.provenance import software_versions
from pathorob_jax.core.typing import Float
from pathorob_jax.data import tileset as images
from pathorob_jax.data.decode import ImageRange
from pathorob_jax.data.manifest import Manifest, as_manifest
from pathorob_jax.data.tile_batches import NO_ROW, plan_batches, read_batches
from pathorob_jax.data.tile_paths import AllowPaths
from pathorob_jax.data.tileset import Tileset
from pathorob_jax.embeddings.pipeline import run_ahead
from pathorob_jax.embeddings.store import Store

DEFAULT_BATCH_SIZE = 64
MEND = "Look at the parameters (diverged?) and at what embed_fn does to a black or white tile."


class Tiles(NamedTuple):
    """Tiles in memory.

    Attributes:
        images: uint8[N, H, W, 3].
        manifest: row i describes image i; a ``Manifest`` or any input of ``as_manifest``.
    """

    images: Any
    manifest: Any


def load_tiles(
    tileset: str | os.PathLike[str] | Tileset,
    *,
    columns: Mapping[str, str] | None = None,
    workers: int = 0,
    image_range: ImageRange | None = None,
    allow_paths: AllowPaths = "inside",
) -> Tiles:
    """Decode a tileset into memory, once for all evaluations: N · H · W · 3 bytes.

    Args:
        tileset: folder of the tileset, or an open ``Tileset``.
        columns: our column name -> name in the manifest, for columns that are named differently.
        workers: number of decoding processes; 0: decode in threads.
        image_range: how to scale grey images of more than 8 bits; see ``open_tileset``.
        allow_paths: files that the tileset may name; see ``open_tileset``.

    Raises:
        FileNotFoundError: no such folder.
        UsageError: columns, a range or paths for a tileset that is open.
        InputError: not a tileset, or a tile cannot be decoded or differs in size from the first.

    >>> import pathorob_jax as pr
    >>> from pathorob_jax.data.synthetic_tiles import SyntheticConfig, write_tileset
    >>> write_tileset("tiles", SyntheticConfig(n_slides=1, n_tiles=2, tile_px=32))
    32
    >>> tiles = pr.load_tiles("tiles")
    >>> tiles.images.shape, tiles.images.dtype.name, len(tiles.manifest)
    ((32, 32, 32, 3), 'uint8', 32)
    """
    if isinstance(tileset, Tileset):
        given = {
            "columns": bool(columns),
            "image_range": image_range is not None,
            "allow_paths": allow_paths != "inside",
        }
        for name in (name for name, is_given in given.items() if is_given):
            raise UsageError(f"{name}: the tileset is open; give {name} to open_tileset.")
    opened = _open_tileset(tileset, columns, image_range=image_range, allow_paths=allow_paths)
    plan = plan_batches(len(opened), batch_size=DEFAULT_BATCH_SIZE)
    # Copy: batches of worker processes are in shared memory, which is small.
    blocks = [np.array(b.images[b.mask]) for b in read_batches(opened, plan, workers=workers)]
    return Tiles(np.concatenate(blocks), opened.manifest)


def _open_tileset(tileset: Any, columns: Mapping[str, str] | None, **options: Any) -> Tileset:
    if isinstance(tileset, Tileset):
        return tileset
    if isinstance(tileset, str | os.PathLike):
        return images.open_tileset(os.fspath(tileset), columns=dict(columns or {}), **options)
    raise UsageError(
        "tileset: expected a folder, an open Tileset or a pair (images, manifest), found "
        f"{type(tileset).__name__}."
    )


def open_tiles(
    tileset: Any, columns: Mapping[str, str] | None, batch_size: int, workers: int
) -> tuple[Manifest, Iterator[tuple[np.ndarray, np.ndarray]]]:
    """The manifest, and batches of tiles uint8[B, H, W, 3] with their rows int64[B], in order."""
    if not isinstance(tileset, tuple) or len(tileset) != 2:
        opened = _open_tileset(tileset, columns)
        plan = plan_batches(len(opened), batch_size=batch_size)
        batches = read_batches(opened, plan, workers=workers)
        return opened.manifest, ((batch.images, batch.rows) for batch in batches)
    pixels, rows = np.asarray(tileset[0]), as_rows(tileset[1], columns)
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


def as_rows(manifest: Any, columns: Mapping[str, str] | None) -> Manifest:
    """A checked manifest whose rows are numbered in their own order."""
    if isinstance(manifest, Manifest):
        return as_manifest(manifest.table, source=manifest.source, columns=columns)
    return as_manifest(manifest, columns=columns)


def embed_tiles(
    embed_fn: Callable[[Any], Any],
    batches: Iterator[tuple[np.ndarray, np.ndarray]],
    manifest: Manifest,
    mesh: Mesh | None,
    *,
    name: str,
) -> Float[np.ndarray, "N D"]:
    """Embeddings of all tiles, float32[N, D]. One batch is embedded while the next is read."""
    split = None if mesh is None else NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    dim: int | None = None

    def dispatch(batch: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, Any]:
        nonlocal dim
        pixels, rows = batch
        embeddings = embed_fn(jax.device_put(pixels, split))
        where = f"the batch from patch {manifest.keys[int(rows[0])]} on"
        dim = _check_embeddings(embeddings, len(rows), dim, where=where)
        return rows[rows != NO_ROW], embeddings

    blocks: list[np.ndarray] = []
    with Progress(name, total=len(manifest), unit="tile") as progress:
        for rows, embeddings in run_ahead(batches, dispatch):
            blocks.append(_as_float32(jax.device_get(embeddings)[: len(rows)]))
            _check_rows(blocks[-1], manifest, first=int(rows[0]), name="embed_fn", mend=MEND)
            progress.update(len(rows))
    return np.concatenate(blocks)


def _check_embeddings(found: Any, n_tiles: int, dim: int | None, *, where: str) -> int:
    """Dimensions D of the embeddings of a batch; ``dim`` is that of earlier batches.

    Raises:
        UsageError: the values are traced, or on other hosts.
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
    with np.errstate(over="ignore"):  # infinite values are refused next
        return np.asarray(found, np.float32)


def _check_rows(
    embeddings: np.ndarray, manifest: Manifest, *, first: int, name: str, mend: str
) -> None:
    """Raise InputError if a row has no direction."""
    bad, word = checks.find_bad_rows(embeddings)
    if bad.size:
        row = first + int(bad[0])
        raise InputError(
            f"{name}: the embedding of patch {manifest.keys[row]} (row {row}) holds {word}; such a "
            f"row has no direction. {mend}"
        )


def store_in_memory(embeddings: Any, rows: Manifest, model: str) -> Store:
    """Embeddings as a store without a folder, each patch once.

    Raises:
        InputError: not float[N, D] of N rows, or a row has no direction.
    """
    values = np.asarray(embeddings)
    if not jnp.issubdtype(values.dtype, jnp.floating):
        raise InputError(f"embeddings: expected floats, found {values.dtype}.")
    checks.check_shape(
        values.shape, (len(rows), None), name="embeddings", why="(rows of the manifest, dimensions)"
    )
    if not values.shape[1]:
        raise InputError("embeddings: expected one dimension or more, found none.")
    x = _as_float32(values)
    _check_rows(x, rows, first=0, name="embeddings", mend="Mend its source, or leave it out.")
    manifest = rows.unique_patches()
    if len(manifest) < len(rows):
        x = x[manifest.source_rows]
    info = {
        "manifest_sha256": manifest.fingerprint(),
        "identity": {
            "encoder": {"model": model, "weights": "in memory"},
            "source": {"format": "memory", "sha256": digests.digest_array(x)},
        },
        "versions": software_versions(),
    }
    return Store("embeddings in memory", info, manifest, ts.array(x))
