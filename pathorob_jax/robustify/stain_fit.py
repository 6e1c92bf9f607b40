"""Fit a stain normalisation on the tiles of a tileset, in one pass."""

import os
from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from pathorob_jax.core import checks, devices, files
from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.core.privacy import file_name
from pathorob_jax.core.progress import Progress
from pathorob_jax.core.typing import Int
from pathorob_jax.data.decode import decode_tile
from pathorob_jax.data.manifest import CENTER, CLASS, SLIDE, Manifest
from pathorob_jax.data.tile_batches import NO_ROW, Batch, read_batches
from pathorob_jax.data.tileset import Tileset
from pathorob_jax.robustify import fit_table
from pathorob_jax.robustify.fit_table import FitTable
from pathorob_jax.robustify.macenko import Stains
from pathorob_jax.robustify.stain import (
    BLOCK,
    COLUMN_OF,
    SCOPES,
    STAIN_METHODS,
    StainMethod,
    StainRobustifier,
    Statistics,
    split_blocks,
)

MEAN = "mean"


def fit_stain(
    tileset: Tileset,
    *,
    method: str,
    target: str = MEAN,
    scope: str = "tile",
    rows: Int[np.ndarray, " n"] | None = None,
    workers: int = 0,
    mesh: Mesh | None = None,
) -> StainRobustifier:
    """Fit a stain normalisation on the tiles of a tileset, in one pass.

    Args:
        tileset: tiles.
        method: a name of ``STAIN_METHODS``.
        target: ``mean`` over the named rows; a medical centre, the mean over its rows among them;
            the number of a row of the tileset; or an image file.
        scope: of what the numbers are that are mapped to the target's: each ``tile``; its ``slide``
            or its ``center``, whose mean over all tiles of the tileset is kept. With scope ``tile``
            Macenko keeps those of the slides, for tiles with too little tissue.
        rows: rows of the tileset that the target may be taken from; None: all.
        workers: number of decoding processes; 0: decode in threads.
        mesh: devices that share the tiles; None: the first device.

    Raises:
        UsageError: a method or scope does not exist, or the target is nothing of these.
        InputError: a tile cannot be decoded, or none of the target's is usable.

    >>> import pathorob_jax as pr
    >>> from pathorob_jax.data.synthetic_tiles import SyntheticConfig, write_tileset
    >>> write_tileset("tiles", SyntheticConfig(n_slides=1, n_tiles=2, tile_px=64))
    32
    >>> tiles = pr.load_tiles("tiles")
    >>> stain = pr.fit_stain(pr.open_tileset("tiles"), method="macenko")
    >>> stain
    StainRobustifier(macenko: target=mean, scope=tile)
    >>> stain.transform(tiles.images).images.shape
    (32, 64, 64, 3)
    """
    checks.check_known(method, STAIN_METHODS, what="method")
    checks.check_known(scope, SCOPES, what="scope")
    kind, manifest = STAIN_METHODS[method], tileset.manifest
    named = np.arange(len(tileset)) if rows is None else np.unique(np.asarray(rows, np.int64))
    if len(named) and not 0 <= named[0] <= named[-1] < len(tileset):
        raise UsageError(
            f"rows: expected numbers below {len(tileset)}, found {named[0]} to {named[-1]}."
        )
    chosen, image = _find_target(tileset, target, named)
    column = SLIDE if scope == "tile" and kind.borrows else COLUMN_OF.get(scope)
    everything = chosen if column is None else np.arange(len(tileset))
    mesh = mesh or devices.make_mesh(jax.local_devices()[:1])
    measured = _measure_rows(kind, tileset, everything, workers, mesh)
    if image is not None:
        own = _to_host(kind.measure(_blocks_of_one(image)))
        numbers, n_usable = _average(kind, *(part[:1] for part in own))
    else:
        at = np.searchsorted(everything, chosen)
        numbers, n_usable = _average(kind, *(part[at] for part in measured))
    if not n_usable:
        raise InputError(
            f"target: {target}: none of {max(1, len(chosen))} tiles can be a target for {method}: "
            "they are blank, or of one stain; give another --target or other --fit_rows."
        )
    groups: tuple[str, ...] = ()
    group_numbers = group_usable = None
    if column is not None:
        categories = manifest.factorize(column)
        groups = categories.names
        means = [
            _average(kind, *(part[categories.ids == g] for part in measured))
            for g in range(len(groups))
        ]
        group_numbers = (np.stack([m[0][0] for m in means]), np.stack([m[0][1] for m in means]))
        group_usable = np.asarray([n > 0 for _, n in means])
    part = manifest.take(chosen) if image is None else None
    return StainRobustifier(
        method=method,
        scope=scope,
        target=file_name(target) if image is not None else target,
        numbers=numbers,
        groups=groups,
        group_numbers=group_numbers,
        group_usable=group_usable,
        n_measured=max(1, len(chosen)),
        n_usable=n_usable,
        table=None if part is None else _tabulate(part),
        rows_sha256="" if part is None else part.fingerprint(),
        tileset_sha256=tileset.fingerprint,
        source=file_name(tileset.path),
    )


def _find_target(
    tileset: Tileset, target: str, named: np.ndarray
) -> tuple[Int[np.ndarray, " n"], np.ndarray | None]:
    """Rows of the target, ascending; or none, and its image."""
    if target == MEAN:
        return named, None
    centers = tileset.manifest.column(CENTER)
    if target in set(centers.tolist()):
        mine = named[centers[named] == target]
        if not len(mine):
            raise InputError(f"target: none of the rows of the fit is of centre {target!r}.")
        return mine, None
    if target.isdecimal() and int(target) < len(tileset):
        return np.asarray([int(target)]), None
    if files.is_remote(target) or os.path.isfile(os.path.expanduser(target)):
        return np.zeros(0, np.int64), decode_tile(files.read_bytes(target), target)
    raise UsageError(
        f"target: expected {MEAN}, a centre ({', '.join(sorted(set(centers.tolist())))}), a row "
        f"below {len(tileset)} or an image file, found {target!r}."
    )


def _measure_rows(
    kind: StainMethod, tileset: Tileset, rows: np.ndarray, workers: int, mesh: Mesh
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The two numbers of each row, float32[n, ...], and whether it is usable, bool[n].

    Rows are ascending.
    """
    found: list[tuple[np.ndarray, ...]] = []  # rows, the two numbers, usable
    with Progress("measure stains", total=len(rows), unit="tile") as progress:
        for batch in read_rows(tileset, rows, workers=workers, n_devices=mesh.size):
            for images, numbers in split_by_size(batch):
                starts = range(0, len(images), BLOCK)
                started = [
                    kind.measure(jax.device_put(block, mesh.devices.flat[i % mesh.size]))
                    for i, (block, _) in enumerate(split_blocks(images))
                ]
                for start, block in zip(starts, map(_to_host, started), strict=True):
                    mine = numbers[start : start + BLOCK]
                    found.append((mine, *(part[: len(mine)] for part in block)))
                progress.update(len(images))
    if not found:
        return np.zeros((0, 3)), np.zeros((0, 3)), np.zeros(0, bool)
    measured, first, second, usable = (np.concatenate(part) for part in zip(*found, strict=True))
    order = np.argsort(measured)
    return first[order], second[order], usable[order]


def read_rows(
    tileset: Tileset, rows: np.ndarray, *, workers: int, n_devices: int
) -> Iterator[Batch]:
    """Decoded tiles of the given rows in batches of ``BLOCK`` for each device.

    Raises:
        TileError: a tile cannot be decoded.
    """
    size = BLOCK * n_devices
    plan = np.full(-(-len(rows) // size) * size, NO_ROW, np.int64)
    plan[: len(rows)] = rows
    return read_batches(tileset, plan.reshape(-1, size), workers=workers, mixed=True)


def split_by_size(batch: Batch) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Tiles of one size, uint8[n, H, W, 3], with their rows, int64[n]; each size once."""
    if batch.mask.any():
        yield batch.images[batch.mask], batch.rows[batch.mask]
    for shape in sorted({odd.image.shape for odd in batch.odd}):
        same = [odd for odd in batch.odd if odd.image.shape == shape]
        yield np.stack([odd.image for odd in same]), batch.rows[[odd.at for odd in same]]


def _blocks_of_one(image: np.ndarray) -> np.ndarray:
    return next(split_blocks(image[None]))[0]


def _to_host(found: Statistics) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.asarray(found[0]), np.asarray(found[1]), np.asarray(found.usable)


def _average(
    kind: StainMethod, first: np.ndarray, second: np.ndarray, usable: np.ndarray
) -> tuple[tuple[np.ndarray, np.ndarray], int]:
    """Mean of the usable tiles' numbers, and how many these are; zeros if there is none."""
    n = int(usable.sum())
    if not n:
        return (np.zeros(first.shape[1:], np.float32), np.zeros(second.shape[1:], np.float32)), 0
    mean = first[usable].astype(np.float64).mean(0)
    if kind.kind is Stains:  # directions
        mean /= np.linalg.norm(mean, axis=0, keepdims=True)
    level = second[usable].astype(np.float64).mean(0)
    return (mean.astype(np.float32), level.astype(np.float32)), n


def _tabulate(rows: Manifest) -> FitTable:
    classes, centers, slides = (rows.factorize(name) for name in (CLASS, CENTER, SLIDE))
    return fit_table.make_fit_table(
        classes.ids, centers.ids, slides.ids, classes=classes.names, centers=centers.names
    )
