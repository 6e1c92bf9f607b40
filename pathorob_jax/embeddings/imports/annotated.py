"""AnnData (``.h5ad``, ``.zarr``), SpatialData as LazySlide writes it, and groups of Zarr arrays.

An AnnData group has ``X`` [N, D] or ``obsm/<name>`` [N, D], and the table ``obs``. A SpatialData
store has such groups under ``tables`` and the tiles' outlines under ``shapes``.
"""

import struct
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pathorob_jax.core import digests, files
from pathorob_jax.core.checks import InputError
from pathorob_jax.data.manifest import PATCH, SLIDE
from pathorob_jax.embeddings.imports import hdf5, zarr_arrays
from pathorob_jax.embeddings.imports import source as sources
from pathorob_jax.embeddings.imports.source import Ask, Piece, Source, reading

# Coordinates and projections to two dimensions, which no encoder made.
NO_EMBEDDING = ("spatial", "X_umap", "X_tsne", "X_draw_graph_fa")
TILE_COLUMNS = ("tile_id", "id")


class _Group(Protocol):
    """A group of an HDF5 file or of a Zarr store."""

    where: str

    def names(self, path: str) -> list[str]: ...
    def is_group(self, path: str) -> bool: ...
    def attributes(self, path: str) -> dict[str, Any]: ...
    def values(self, path: str) -> np.ndarray: ...
    def shape(self, path: str) -> tuple[tuple[int, ...], Any]: ...
    def take(self, path: str) -> sources.Take: ...


class _Hdf5Group:
    def __init__(self, path: str, file: Any):
        self.where, self._file = path, file

    def names(self, path: str) -> list[str]:
        return list(self._file[path]) if path in self._file else []

    def is_group(self, path: str) -> bool:
        return not hasattr(self._file[path], "shape")

    def attributes(self, path: str) -> dict[str, Any]:
        return dict(self._file[path].attrs)

    def values(self, path: str) -> np.ndarray:
        data = self._file[path]
        return np.asarray(data.asstr()[()] if data.dtype.kind == "O" else data[()])

    def shape(self, path: str) -> tuple[tuple[int, ...], Any]:
        return self._file[path].shape, self._file[path].dtype

    def take(self, path: str) -> sources.Take:
        where = self.where

        def take(rows: np.ndarray) -> np.ndarray:
            with hdf5.open_h5(where) as file:
                return sources.read_runs(rows, lambda a, b: file[path][a:b])

        return take


class _ZarrGroup:
    def __init__(self, path: str):
        self.where = path

    def _at(self, path: str) -> str:
        return files.join(self.where, path)

    def names(self, path: str) -> list[str]:
        return zarr_arrays.children(self._at(path) if path != "." else self.where)

    def is_group(self, path: str) -> bool:
        return not zarr_arrays.is_array(self._at(path))

    def attributes(self, path: str) -> dict[str, Any]:
        return zarr_arrays.attributes(self._at(path))

    def values(self, path: str) -> np.ndarray:
        return zarr_arrays.read_values(self._at(path))

    def shape(self, path: str) -> tuple[tuple[int, ...], Any]:
        array = zarr_arrays.open_numbers(self._at(path))
        return array.shape, array.dtype.numpy_dtype

    def take(self, path: str) -> sources.Take:
        return zarr_arrays.taker(self._at(path))


def read_anndata(ask: Ask) -> Source:
    """``.h5ad`` or a folder of them, or the ``.zarr`` of an AnnData; ``--encoder`` names obsm."""
    if sources.is_folder(ask.path) and zarr_arrays.is_zarr(ask.path):
        piece = _open_anndata(_ZarrGroup(ask.path), ask)
        return Source(ask.path, [piece], zarr_arrays.digest(ask.path), names={PATCH: "obs_names"})
    paths = sources.walk(ask.path, ".h5ad") if sources.is_folder(ask.path) else [""]
    pieces = []
    for path in paths:
        where = files.join(ask.path, path) if path else ask.path
        with hdf5.open_h5(where) as file:
            piece = _open_anndata(_Hdf5Group(where, file), ask)
        pieces.append(piece if len(paths) == 1 or piece.slide or SLIDE in piece.columns
                      else piece._replace(slide=sources.stem(where)))  # fmt: skip
    return Source(
        ask.path, pieces, sources.digest_files(ask.path, paths), names={SLIDE: "library_id"}
    )


def read_spatialdata(ask: Ask) -> Source:
    """One SpatialData store or a folder of them; ``--encoder`` names the table, or begins it."""
    stores = [""]
    if not zarr_arrays.is_zarr(ask.path):
        stores = [n for n in files.list_folders(ask.path) if n.endswith(".zarr")]
    pieces, prints = [], []
    for name in stores:
        root = files.join(ask.path, name) if name else ask.path
        tables = files.list_folders(files.join(root, "tables"))
        wanted = ask.encoder
        if wanted is not None and wanted not in tables:
            beginning = [t for t in tables if t.startswith(f"{wanted}_")]
            wanted = beginning[0] if len(beginning) == 1 else wanted
        table = sources.choose(tables, wanted, where=root, what="table")
        group = files.join(root, "tables", table)
        piece = _open_anndata(_ZarrGroup(group), ask._replace(encoder=None))
        about = zarr_arrays.attributes(group)
        region = about.get("region")
        region = region[0] if isinstance(region, list) and len(region) == 1 else region
        shapes = region if isinstance(region, str) else table.rpartition("_")[2]
        outlines = files.join(root, "shapes", shapes, "shapes.parquet")
        coords = piece.coords
        if coords is None and files.exists(outlines):
            named = (str(about.get("instance_key")), *TILE_COLUMNS)
            ids = next((piece.columns[c] for c in named if c in piece.columns), None)
            coords = _corners(outlines, None if ids is None else ids.to_pylist())
        pieces.append(piece._replace(slide=sources.stem(root), coords=coords))
        prints.append((name, zarr_arrays.digest(group)))
    whole = digests.digest(*(part.encode() for pair in prints for part in pair))
    return Source(ask.path, pieces, whole, names={PATCH: "tile_id"})


def _open_anndata(group: _Group, ask: Ask) -> Piece:
    with reading(group.where):
        name = _choose_matrix(group, ask.encoder)
        if group.is_group(name):
            raise InputError(
                f"{group.where}: {name} is sparse. Write the embeddings as a dense array, or name "
                "one of obsm with --encoder."
            )
        shape, dtype = group.shape(name)
        n_rows, dim = sources.check_rows(f"{group.where}: {name}", shape, dtype)
        columns = {n: pa.array(v, pa.string()) for n, v in _frame(group) if len(v) == n_rows}
        coords = None
        if "spatial" in group.names("obsm"):
            coords = group.values("obsm/spatial")[:, :2]
    ids = columns.get(ask.columns.get(PATCH, PATCH)) or next(
        (columns[c] for c in TILE_COLUMNS if c in columns), columns.get("obs_names")
    )
    where = f"{group.where}: {name}"
    return Piece(where, n_rows, dim, group.take(name), patches=ids, coords=coords, columns=columns)


def _choose_matrix(group: _Group, wanted: str | None) -> str:
    made = [name for name in group.names("obsm") if name not in NO_EMBEDDING]
    has_x = "X" in group.names(".") if isinstance(group, _ZarrGroup) else "X" in group.names("/")
    if wanted in ("X", None) and has_x:
        shape = None if group.is_group("X") else group.shape("X")[0]
        if wanted == "X" or not made or (shape and shape[-1]):
            return "X"
    return "obsm/" + sources.choose(made, wanted, where=group.where, what="obsm array")


def _frame(group: _Group) -> Iterator[tuple[str, list[Any]]]:
    """Columns of ``obs`` as text (None: missing), and its index as ``obs_names``."""
    index = str(group.attributes("obs").get("_index", "_index"))
    for name in group.names("obs"):
        if name == "__categories":
            continue
        values = _column(group, f"obs/{name}")
        if values is not None:
            yield ("obs_names" if name == index else name), values


def _column(group: _Group, path: str) -> list[Any] | None:
    if not group.is_group(path):
        return _texts(group.values(path))
    parts = group.names(path)
    if {"codes", "categories"} <= set(parts):
        categories = _column(group, f"{path}/categories") or []
        return [categories[c] if c >= 0 else None for c in group.values(f"{path}/codes").tolist()]
    if {"values", "mask"} <= set(parts):
        mask = group.values(f"{path}/mask").tolist()
        texts = _texts(group.values(f"{path}/values")) or []
        return [None if m else t for t, m in zip(texts, mask, strict=True)]
    return None


def _texts(values: np.ndarray) -> list[Any] | None:
    if values.ndim != 1:
        return None
    return [v.decode() if isinstance(v, bytes) else str(v) for v in values.tolist()]


def _corners(path: str, ids: Sequence[Any] | None) -> np.ndarray | None:
    """Least x and y of each tile's outline, in the order of ``ids``; None if a tile has none."""
    if ids is None:
        return None
    with reading(path), sources.open_binary(path) as stream, pq.ParquetFile(stream) as file:
        table = file.read()
        outlines = table.column("geometry").to_pylist()
        names = (*TILE_COLUMNS, "__index_level_0__")
        named = next((name for name in names if name in table.column_names), None)
        keys = table.column(named).to_pylist() if named else range(len(outlines))
        of_tile = {
            str(key): _least(path, outline)
            for key, outline in zip(keys, outlines, strict=True)
            if outline is not None
        }
    if any(str(id) not in of_tile for id in ids):
        return None
    return np.asarray([of_tile[str(id)] for id in ids]).reshape(-1, 2)


def _least(path: str, wkb: bytes) -> tuple[float, float]:
    """Least x and y of a polygon in well-known binary."""
    order = "<" if wkb[0] == 1 else ">"
    kind, n_rings = struct.unpack(f"{order}II", wkb[1:9])
    if kind != 3 or not n_rings:
        raise InputError(
            f"{path}: expected a polygon of two dimensions (type 3 of well-known binary) as the "
            f"outline of each tile, found type {kind} with {n_rings} parts. Write polygons, or the "
            "places of tiles as obsm/spatial of the table."
        )
    [n] = struct.unpack(f"{order}I", wkb[9:13])
    points = np.frombuffer(wkb, f"{order}f8", 2 * n, offset=13).reshape(n, 2)
    return float(points[:, 0].min()), float(points[:, 1].min())


def read_zarr(ask: Ask) -> Source:
    """A Zarr array [N, D], or a group with one and with columns of N values beside it."""
    root = ask.path
    if zarr_arrays.is_array(root):
        pieces = [_zarr_piece(root)]
        return Source(root, pieces, zarr_arrays.digest(root))
    names = [n for n in zarr_arrays.children(root) if zarr_arrays.is_array(files.join(root, n))]
    wide, columns = [], {}
    for name in names:
        shape = zarr_arrays.shape_of(files.join(root, name))
        if len(shape) == 1:
            columns[name] = name
        elif name not in ("coords", "coordinates"):
            wide.append(name)
    name = sources.choose(wide, ask.encoder, where=root, what="array")
    piece = _zarr_piece(files.join(root, name))
    read = {n: zarr_arrays.read_values(files.join(root, n)) for n in columns}
    texts = {n: _texts(v) for n, v in read.items() if len(v) == piece.n_rows}
    place = next((n for n in ("coords", "coordinates") if n in names), None)
    coords = None if place is None else zarr_arrays.read_values(files.join(root, place))[:, :2]
    patches = texts.get(ask.columns.get(PATCH, PATCH))
    piece = piece._replace(columns=texts, patches=patches, coords=coords)
    return Source(root, [piece], zarr_arrays.digest(root))


def _zarr_piece(path: str) -> Piece:
    array = zarr_arrays.open_numbers(path)
    shape = sources.flat_shape(array.shape)
    n_rows, dim = sources.check_rows(path, shape, array.dtype.numpy_dtype)
    return Piece(path, n_rows, dim, zarr_arrays.taker(path, len(array.shape)))
