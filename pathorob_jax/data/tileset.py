"""Tilesets: encoded images and their manifest.

A tileset is a folder (local, ``gs://``, ``s3://``) of Parquet files with an ``image`` column in the
format of the Hugging Face ``datasets`` Image feature, or of image files next to a ``manifest.csv``
with a ``path`` column. An open ``Tileset`` has the manifest and a reader of the encoded tiles.
Hidden files and files of other kinds in the folder do not count.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from pathorob_jax.core import checks, digests, files
from pathorob_jax.core.checks import InputError
from pathorob_jax.data import decode, parquet_tiles, tile_paths
from pathorob_jax.data.decode import ImageRange
from pathorob_jax.data.manifest import (
    REQUIRED,
    Manifest,
    as_manifest,
    line_of,
    read_manifest,
)
from pathorob_jax.data.names import spell_as_files
from pathorob_jax.data.parquet_tiles import IMAGE_COLUMN, ParquetTiles
from pathorob_jax.data.tile_paths import AllowPaths

PATH_COLUMN = "path"
FOLDER_MANIFEST = "manifest.csv"
N_SAMPLE = 8


class BadImage(NamedTuple):
    """A tile that could not be used.

    Attributes:
        row: row of the tileset, and of the array of a store made from it.
        name: the file of the tile, or the file and row.
        reason: what is wrong with it.
    """

    row: int
    name: str
    reason: str


class TileReader(Protocol):
    """Reads encoded tiles by row of the tileset. Thread-safe and picklable."""

    def read(self, row: int) -> tuple[bytes, str]:
        """Encoded bytes of a tile, and its name for messages.

        Raises:
            TileError: there are no bytes: the cell is empty or the file is missing.
            InputError: a file of many tiles cannot be read.
        """
        ...


@dataclass(frozen=True, eq=False, repr=False)
class Tileset:
    """Encoded images and the manifest of their patches.

    Attributes:
        path: folder of the tileset.
        manifest: each patch once; row i is tile ``rows[i]`` of the reader.
        reader: encoded tiles.
        fingerprint: hex sha256 of the manifest and of the name and size of every file, except
            files that Parquet files link to.
        stamp: hex sha256 of the name, size and time of change of every file, links included: if it
            is the same, no file has changed since.
        image_range: how to scale grey images of more than 8 bits.
        sample: a few rows that lie far apart and are read quickly.
    """

    path: str
    manifest: Manifest
    reader: TileReader
    fingerprint: str
    stamp: str = ""
    image_range: ImageRange | None = None
    sample: tuple[int, ...] = ()

    @property
    def identity(self) -> dict[str, Any]:
        """What a store records of the tiles that its embeddings are of."""
        found: dict[str, Any] = {"tileset_sha256": self.fingerprint}
        if self.image_range is not None:
            found["image_range"] = self.image_range
        return found

    def __repr__(self) -> str:
        return f"Tileset({self.manifest.source}: {len(self)} tiles)"

    def __len__(self) -> int:
        return len(self.manifest)


def open_tileset(
    path: str,
    *,
    columns: dict[str, str] | None = None,
    image_range: ImageRange | None = None,
    allow_paths: AllowPaths = "inside",
) -> Tileset:
    """Open a tileset in either format.

    Args:
        path: its folder.
        columns: our column name -> name in the tileset, for columns that are named differently.
        image_range: ``full`` or (low, high): the values that become black and white in grey images
            of more than 8 bits; None: such images are bad images.
        allow_paths: files that the tileset may name: those ``inside`` its folder, by relative
            paths; any ``local`` ones; ``any``, also on servers.

    Raises:
        FileNotFoundError: no such folder.
        UsageError: ``image_range`` or ``allow_paths`` is none of those.
        InputError: the folder has neither format, its manifest breaks a rule, or it names files
            that are not allowed.

    >>> import pathorob_jax as pr
    >>> from pathorob_jax.data.synthetic_tiles import SyntheticConfig, write_tileset
    >>> write_tileset("tiles", SyntheticConfig(n_slides=1, n_tiles=2, tile_px=32))
    32
    >>> tileset = pr.open_tileset("tiles")
    >>> len(tileset), tileset.manifest.column("medical_center")[0]
    (32, 'North Hospital')
    """
    image_range = decode.check_image_range(image_range)
    checks.check_known(allow_paths, tile_paths.ALLOW_PATHS, what="allow_paths")
    names = [name for name in files.list_files(path) if not name.startswith(".")]
    parquet = [name for name in names if name.endswith(".parquet")]
    if parquet and FOLDER_MANIFEST in names:
        raise InputError(
            f"{path}: holds both {FOLDER_MANIFEST} and {parquet[0]}, and either could list the "
            "tiles. Move the one that does not out of the folder."
        )
    if parquet:
        opened = _open_parquet(path, parquet, columns, allow_paths)
    elif FOLDER_MANIFEST in names:
        opened = _open_folder(path, columns, allow_paths)
    else:
        raise InputError(
            f"{path}: expected a tileset (Parquet files with an {IMAGE_COLUMN!r} column, or image "
            f"files and a {FOLDER_MANIFEST} with a {PATH_COLUMN!r} column), found neither"
            f"{_describe_folder(path, names)}."
        )
    sizes = _digest(f"{file.name}:{file.size}" for file in opened.own)
    every = (*opened.own, *opened.linked)
    stamp = _digest(f"{file.name}:{file.size}:{file.changed_ns}" for file in every)
    return Tileset(
        path,
        opened.manifest,
        opened.reader,
        digests.digest(opened.manifest.fingerprint().encode(), sizes.encode()),
        stamp,
        image_range,
        _spread(opened.starts),
    )


class _File(NamedTuple):
    """A file of a tileset: its name there, size in bytes, and time of change in nanoseconds."""

    name: str
    size: int
    changed_ns: int


class _Opened(NamedTuple):
    """A tileset of either format.

    Attributes:
        manifest: as in ``Tileset``.
        reader: as in ``Tileset``.
        own: the files that hold the tiles.
        linked: files that Parquet files link to.
        starts: int64[n] rows that are read quickly, ascending.
    """

    manifest: Manifest
    reader: TileReader
    own: list[_File]
    linked: list[_File]
    starts: np.ndarray


def _spread(rows: np.ndarray) -> tuple[int, ...]:
    """At most ``N_SAMPLE`` of the rows, far apart."""
    at = np.unique(np.linspace(0, len(rows) - 1, N_SAMPLE).round().astype(np.int64))
    return tuple(np.unique(rows[at]).tolist())


def _digest(lines: Iterable[str]) -> str:
    return digests.digest(*(line.encode() for line in lines))


def _describe_folder(path: str, names: Sequence[str]) -> str:
    """What is in a folder that is no tileset, and a folder below that may be one."""
    for folder in files.list_folders(path):
        if folder.startswith("."):
            continue
        inner = files.list_files(files.join(path, folder))
        if FOLDER_MANIFEST in inner or any(name.endswith(".parquet") for name in inner):
            return f"; {files.join(path, folder)} may be meant"
    if not names:
        return ""
    others = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f", but {names[0]}{others}"


def _open_parquet(
    path: str, names: list[str], columns: dict[str, str] | None, allow: AllowPaths
) -> _Opened:
    needed = [(columns or {}).get(name, name) for name in REQUIRED]
    opened = parquet_tiles.open_parquet(path, names, needed=needed)
    targets = tile_paths.resolve(
        path,
        [link.path for link in opened.links],
        allow=allow,
        where=[f"{files.join(path, names[link.file])} row {link.row}" for link in opened.links],
    )
    manifest = as_manifest(opened.table, source=path, columns=columns).unique_patches()
    reader = ParquetTiles(path, tuple(names), opened.groups, manifest.source_rows, allow)
    own = [_File(name, *stat) for name, stat in zip(names, opened.stats, strict=True)]
    stats = tile_paths.stat_all(path, targets)
    linked = [_File(link.path, *stat) for link, stat in zip(opened.links, stats, strict=True)]
    first = np.asarray([0, *itertools.accumulate(g.n_rows for g in opened.groups)][:-1])
    starts = np.searchsorted(manifest.source_rows, first)
    return _Opened(manifest, reader, own, linked, starts[starts < len(manifest)])


def _open_folder(path: str, columns: dict[str, str] | None, allow: AllowPaths) -> _Opened:
    source = files.join(path, FOLDER_MANIFEST)
    manifest = read_manifest(source, columns=columns).unique_patches()
    names = spell_as_files(path, manifest.column(PATH_COLUMN).tolist())
    lines = [f"{source} {line_of(manifest, row)}" for row in range(len(manifest))]
    targets = tile_paths.resolve(path, names, allow=allow, where=lines)
    stats = tile_paths.stat_all(path, targets)
    own = [_File(name, *stat) for name, stat in zip(names, stats, strict=True)]
    return _Opened(manifest, _FileTiles(tuple(targets)), own, [], np.arange(len(manifest)))


class _FileTiles:
    """Reader of one image file per row."""

    def __init__(self, targets: Sequence[str]):
        self._targets = targets

    def read(self, row: int) -> tuple[bytes, str]:
        name = self._targets[row]
        return tile_paths.read_image(name), name
