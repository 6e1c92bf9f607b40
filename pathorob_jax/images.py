"""Tilesets: images and their manifest, decoded in order by a grain pipeline.

Enters: a folder (local, ``gs://``, ``s3://``) of Parquet files with an ``image`` column as the
Hugging Face ``datasets`` Image feature stores it, or of image files beside a ``manifest.csv`` with
a ``path`` column. Leaves: the manifest, and batches of uint8 tiles in the order of a plan.
"""

import io
import multiprocessing
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import grain
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from absl import flags
from PIL import Image

from pathorob_jax import files
from pathorob_jax.checks import InputError
from pathorob_jax.manifest import Manifest, as_manifest, read_manifest

IMAGE_COLUMN, PATH_COLUMN = "image", "path"
FOLDER_MANIFEST = "manifest.csv"
CACHED_ROW_GROUPS = 2
NO_ROW = -1


class TileReader(Protocol):
    """Encoded tiles by row of the tileset; readable from several threads, and picklable."""

    def read(self, row: int) -> tuple[bytes, str]:
        """Encoded bytes of a tile, and its name for messages."""
        ...


@dataclass(frozen=True, eq=False)
class Tileset:
    """Images with the manifest of their patches.

    Attributes:
        path: where it lies.
        manifest: each patch once; row i is tile ``rows[i]`` of the reader.
        reader: encoded tiles.
        fingerprint: hex sha256 of the manifest and of every file's name and size.
    """

    path: str
    manifest: Manifest
    reader: TileReader
    fingerprint: str

    def __len__(self) -> int:
        return len(self.manifest)


class Batch(NamedTuple):
    """Tiles of one step.

    Attributes:
        images: uint8[B, H, W, 3]; black where masked.
        rows: int64[B] rows of the tileset; ``NO_ROW`` where masked.
        mask: bool[B] True for tiles, False for padding.
    """

    images: np.ndarray
    rows: np.ndarray
    mask: np.ndarray


def open_tileset(path: str, *, columns: dict[str, str] | None = None) -> Tileset:
    """Open a tileset of either form.

    Raises:
        FileNotFoundError: no such folder.
        InputError: neither form, or its manifest breaks a rule.
    """
    parquet = files.list_files(path, ".parquet")
    if parquet:
        return _open_parquet(path, parquet, columns)
    if FOLDER_MANIFEST in files.list_files(path, ".csv"):
        return _open_folder(path, columns)
    raise InputError(
        f"{path}: expected a tileset (Parquet files with an {IMAGE_COLUMN!r} column, or image "
        f"files and a {FOLDER_MANIFEST} with a {PATH_COLUMN!r} column), found neither."
    )


def decode_tile(data: bytes, name: str) -> np.ndarray:
    """uint8[H, W, 3] as ``PIL.Image.convert("RGB")`` gives it, whatever the file's mode.

    Raises:
        InputError: the bytes are no whole image; the message names the tile.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(
            f"{name}: cannot be decoded as an image ({error}). Replace the file, or leave its row "
            "out of the tileset."
        ) from error


def plan_batches(
    n_rows: int, *, batch_size: int, process_index: int = 0, process_count: int = 1
) -> np.ndarray:
    """Rows that one process reads at each step.

    A step takes ``batch_size * process_count`` consecutive rows, process p the p-th part of them;
    all processes have the same number of steps.

    Returns:
        int64[steps, batch_size], ``NO_ROW`` past the end.
    """
    step_rows = batch_size * process_count
    steps = -(-n_rows // step_rows)
    rows = np.arange(steps * step_rows, dtype=np.int64)
    rows[n_rows:] = NO_ROW
    return rows.reshape(steps, process_count, batch_size)[:, process_index]


def read_batches(
    tileset: Tileset, plan: np.ndarray, *, workers: int = 0, threads: int | None = None
) -> Iterator[Batch]:
    """Decode the tiles of a plan, ahead of the consumer, in the plan's order.

    Args:
        tileset: what to read.
        plan: int64[steps, B] rows (``plan_batches``, or any part of it).
        workers: processes that decode; 0 decodes in threads of this process. The order and the
            values do not depend on it. A script that uses workers needs the usual
            ``if __name__ == "__main__"`` guard.
        threads: threads that decode (in each worker); None: one for each core, shared by workers.

    Raises:
        InputError: a tile cannot be decoded, or has another size than the first one.
    """
    if not plan.size:
        return iter(())
    size = decode_tile(*tileset.reader.read(0)).shape
    source = _PlannedTiles(tileset.reader, plan.ravel(), size)
    cores = os.cpu_count() or 1
    options = grain.ReadOptions(
        num_threads=threads or max(1, cores // max(workers, 1)), prefetch_buffer_size=4
    )
    dataset = (
        grain.MapDataset.source(source)
        .batch(plan.shape[1], batch_fn=_collate)
        .to_iter_dataset(options)
    )
    if workers:
        # grain's workers read an absl flag even where no absl app parsed any (grain 0.2).
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        dataset = dataset.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
        )
    return iter(dataset)


class _PlannedTiles:
    """Random-access source of the planned rows, decoded."""

    def __init__(self, reader: TileReader, rows: np.ndarray, size: tuple[int, ...]):
        self._reader, self._rows, self._size = reader, rows, size

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> tuple[np.ndarray, int]:
        row = int(self._rows[index])
        if row == NO_ROW:
            return np.zeros(self._size, np.uint8), NO_ROW
        data, name = self._reader.read(row)
        image = decode_tile(data, name)
        if image.shape != self._size:
            raise InputError(
                f"{name}: expected {self._size[1]} x {self._size[0]} pixels like the first tile of "
                f"the tileset, found {image.shape[1]} x {image.shape[0]}. Bring all tiles to one "
                "size."
            )
        return image, row

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        parent = multiprocessing.parent_process()
        if parent is not None:  # a worker must not outlive a parent that was killed
            threading.Thread(target=_exit_with_parent, args=(parent,), daemon=True).start()


def _exit_with_parent(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _collate(elements: Sequence[tuple[np.ndarray, int]]) -> Batch:
    rows = np.asarray([row for _, row in elements], np.int64)
    return Batch(np.stack([image for image, _ in elements]), rows, rows != NO_ROW)


def _open_parquet(path: str, names: Sequence[str], columns: dict[str, str] | None) -> Tileset:
    fs, inner = files.filesystem(path)
    tables, groups, sizes = [], [], []
    for index, name in enumerate(names):
        file_path = files.join(inner, name)
        try:
            with pq.ParquetFile(fs.open_input_file(file_path)) as file:
                _check_image_column(file.schema_arrow, files.join(path, name))
                flat = [f.name for f in file.schema_arrow if not pa.types.is_nested(f.type)]
                tables.append(file.read(columns=flat))
                rows = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
        except (pa.ArrowInvalid, OSError) as error:
            raise _unreadable(files.join(path, name), error) from error
        starts = np.cumsum([0, *rows]).tolist()
        groups += [_RowGroup(index, g, n, starts[g]) for g, n in enumerate(rows)]
        sizes.append(fs.get_file_info(file_path).size)
    try:
        # Permissive: a file without rows has columns of type null.
        table = pa.concat_tables(tables, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise InputError(
            f"{path}: expected the same columns in all Parquet files ({error}). Write them anew "
            "with one schema."
        ) from error
    manifest = as_manifest(table, source=path, columns=columns).unique_patches()
    reader = _ParquetTiles(path, tuple(names), groups, manifest.source_rows)
    return _tileset(path, manifest, reader, list(zip(names, sizes, strict=True)))


def _check_image_column(schema: pa.Schema, name: str) -> None:
    field = schema.field(IMAGE_COLUMN) if IMAGE_COLUMN in schema.names else None
    if (
        field is None
        or not pa.types.is_struct(field.type)
        or field.type.get_field_index("bytes") < 0
    ):
        found = schema.names if field is None else field.type
        raise InputError(
            f"{name}: expected a column {IMAGE_COLUMN!r} of structs of 'bytes' and 'path' (the "
            f"Image feature of Hugging Face datasets), found {found}."
        )


def _unreadable(name: str, error: Exception) -> InputError:
    return InputError(f"{name}: cannot be read as Parquet ({error}). Fetch it again.")


def _read_file(name: str) -> bytes:
    try:
        return files.read_bytes(name)
    except FileNotFoundError as error:
        raise InputError(
            f"{name}: no such file, though the tileset lists it. Put it back, or leave its row out "
            "of the tileset."
        ) from error


def _open_folder(path: str, columns: dict[str, str] | None) -> Tileset:
    source = files.join(path, FOLDER_MANIFEST)
    manifest = read_manifest(source, columns=columns).unique_patches()
    paths = manifest.column(PATH_COLUMN)
    reader = _FileTiles(path, tuple(paths))
    fs, inner = files.filesystem(path)
    sizes = [info.size or 0 for info in fs.get_file_info([files.join(inner, p) for p in paths])]
    return _tileset(path, manifest, reader, list(zip(paths, sizes, strict=True)))


def _tileset(
    path: str, manifest: Manifest, reader: TileReader, listing: Sequence[tuple[str, int]]
) -> Tileset:
    listed = files.digest(*(f"{name}:{size}".encode() for name, size in listing))
    fingerprint = files.digest(manifest.fingerprint().encode(), listed.encode())
    return Tileset(path, manifest, reader, fingerprint)


class _FileTiles:
    """One image file a row."""

    def __init__(self, path: str, names: Sequence[str]):
        self._path, self._names = path, names

    def read(self, row: int) -> tuple[bytes, str]:
        name = files.join(self._path, self._names[row])
        return _read_file(name), name


class _RowGroup(NamedTuple):
    """Row group ``group`` of file ``file``: its rows, and where they start in that file."""

    file: int
    group: int
    n_rows: int
    start: int


class _ParquetTiles:
    """Rows of Parquet files, read by row group; the last few groups are kept."""

    def __init__(
        self,
        path: str,
        names: Sequence[str],
        groups: Sequence[_RowGroup],
        rows: np.ndarray,
    ):
        self._path, self._names, self._groups, self._rows = path, names, groups, rows
        self._starts = np.cumsum([0] + [g.n_rows for g in groups])
        self._lock = threading.Lock()
        self._files: dict[int, pq.ParquetFile] = {}
        self._cache: OrderedDict[int, pa.StructArray] = OrderedDict()

    def read(self, row: int) -> tuple[bytes, str]:
        at = int(self._rows[row])
        index = int(np.searchsorted(self._starts, at, side="right")) - 1
        inside = at - int(self._starts[index])
        group = self._groups[index]
        value = self._column(index)[inside].as_py()
        name = f"{files.join(self._path, self._names[group.file])} row {group.start + inside}"
        if value is None or (value.get("bytes") is None and not value.get("path")):
            raise InputError(f"{name}: the {IMAGE_COLUMN!r} column is empty. Remove the row.")
        if value.get("bytes") is not None:
            return value["bytes"], name
        linked = value["path"]
        if not (os.path.isabs(linked) or files.is_remote(linked)):
            linked = files.join(self._path, linked)
        return _read_file(linked), linked

    def _column(self, index: int) -> pa.StructArray:
        # ParquetFile is not thread-safe: one lock for reading, decoding happens outside it.
        with self._lock:
            if index not in self._cache:
                file, group, *_ = self._groups[index]
                name = files.join(self._path, self._names[file])
                try:
                    if file not in self._files:
                        fs, inner = files.filesystem(name)
                        self._files = {file: pq.ParquetFile(fs.open_input_file(inner))}
                    column = self._files[file].read_row_group(group, columns=[IMAGE_COLUMN])
                except (pa.ArrowInvalid, OSError) as error:
                    raise _unreadable(f"{name} row group {group}", error) from error
                self._cache[index] = column[IMAGE_COLUMN].combine_chunks()
                if len(self._cache) > CACHED_ROW_GROUPS:
                    self._cache.popitem(last=False)
            self._cache.move_to_end(index)
            return self._cache[index]

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_lock", "_files", "_cache")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()
        self._files, self._cache = {}, OrderedDict()
