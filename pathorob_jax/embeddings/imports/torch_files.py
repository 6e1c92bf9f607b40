"""``.pt`` files without PyTorch: tensors, lists and dicts; slide2vec's and eva's folders.

The pickle inside is read by an unpickler that knows PyTorch's tensors and nothing else, so that
nothing in a file is executed. Values are read from their place in the archive.
"""

import collections
import io
import math
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from pathorob_jax.core import files, pickle_checks
from pathorob_jax.core.checks import InputError
from pathorob_jax.data import table_files
from pathorob_jax.data.manifest import CLASS, SLIDE
from pathorob_jax.embeddings.imports import arrays
from pathorob_jax.embeddings.imports import source as sources
from pathorob_jax.embeddings.imports.arrays import Member, Place
from pathorob_jax.embeddings.imports.source import Ask, Piece, Source

_STORAGES = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}


class _Storage(NamedTuple):
    offset: int
    n_values: int
    dtype: np.dtype


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Unpickler(pickle.Unpickler):
    """Makes ``_Tensor``s; whatever else a pickle wants to call is refused."""

    def __init__(self, data: bytes, storages: Mapping[str, tuple[int, int]]):
        super().__init__(io.BytesIO(data))
        self._storages = storages

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        known = {
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
            ("collections", "OrderedDict"): collections.OrderedDict,
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"it calls {module}.{name}")
        return known[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, n_values = pid
        if kind != "storage" or not isinstance(dtype, np.dtype):
            raise ValueError("a storage of an unknown type")
        begin, size = self._storages[str(key)]
        if n_values * dtype.itemsize > size:
            raise ValueError("a storage is shorter than the pickle says")
        return _Storage(begin, n_values, dtype)


def _rebuild(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    if not isinstance(storage, _Storage) or len(shape) != len(strides):
        raise ValueError("a tensor without storage")
    shape, strides = tuple(map(int, shape)), tuple(map(int, strides))
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if min((offset, *shape, *strides)) < 0 or (math.prod(shape) and last >= storage.n_values):
        raise ValueError("a tensor lies outside its storage")
    return _Tensor(storage, int(offset), shape, strides)


def load(path: str) -> Any:
    """What is in a ``.pt`` file of PyTorch 1.6 or later, with ``Member`` in place of tensors.

    Raises:
        FileNotFoundError: no such file.
        InputError: the file is damaged, older, or holds what could be executed.
    """
    try:
        with sources.open_binary(path) as stream:
            return _members(path, _load(path, stream))
    except (InputError, FileNotFoundError):
        raise
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: refused: it holds more than tensors, and unpickling that could run any "
            "program. If you trust its origin, save its tensors alone elsewhere. "
            f"({files.describe(error)})"
        ) from error
    except files.UNREADABLE as error:
        raise InputError(
            f"{path}: no tensors of PyTorch 1.6 or later, or truncated ({files.describe(error)}). "
            "Copy it again, or save it anew."
        ) from error


def _load(path: str, stream: Any) -> Any:
    with zipfile.ZipFile(stream) as archive:
        damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"{damaged} is not as it was written")
        infos = {info.filename: info for info in archive.infolist()}
        [name] = [n for n in infos if n.rpartition("/")[2] == "data.pkl"]
        folder = name.removesuffix("data.pkl")
        order = infos.get(f"{folder}byteorder")
        if order is not None and archive.read(order) != b"little":
            raise ValueError("its bytes are in the order of another machine")
        if infos[name].file_size > pickle_checks.MAX_PICKLE_BYTES:
            raise ValueError("its pickle is larger than any of tensors' names")
        data = archive.read(name)
        storages = {}
        for other, info in infos.items():
            if other.startswith(f"{folder}data/"):
                if info.compress_type != zipfile.ZIP_STORED:
                    raise ValueError("it was compressed afterwards; save it anew")
                stream.seek(info.header_offset + 26)
                lengths = np.frombuffer(stream.read(4), "<u2")
                begin = info.header_offset + 30 + int(lengths.sum())
                storages[other.removeprefix(f"{folder}data/")] = begin, info.file_size
    pickle_checks.check_pickle(io.BytesIO(data), path)
    return _Unpickler(data, storages).load()


def _members(path: str, value: Any) -> Any:
    if isinstance(value, _Tensor):
        storage, kind = value.storage, value.storage.dtype
        begin = storage.offset + value.offset * kind.itemsize
        place = Place(path, begin, value.shape, kind, value.strides if value.shape else None)
        return Member(value.shape, kind, place)
    if isinstance(value, dict):
        return {key: _members(path, inner) for key, inner in value.items()}
    if isinstance(value, list | tuple) and not isinstance(value, Member):
        return [_members(path, inner) for inner in value]
    return value


def open_rows(path: str, encoder: str | None = None) -> Piece:
    """A file as embeddings: a tensor of rows or of one, a list of them, or a dict by patch.

    Raises:
        InputError: it holds no such thing.
    """
    value = load(path)
    if isinstance(value, Member):
        assert isinstance(value.place, Place)
        return value.place.rows(path)
    if isinstance(value, list) and value and all(isinstance(m, Member) for m in value):
        return _listed(path, value)
    if isinstance(value, dict):
        members = {str(key): m for key, m in value.items() if isinstance(m, Member)}
        # Columns that are lists of text.
        piece = arrays.rows_or_keyed(path, members, encoder)
        texts = {
            str(key): [str(v) for v in column]
            for key, column in value.items()
            if isinstance(column, list)
            and len(column) == piece.n_rows
            and all(isinstance(v, str | int) for v in column)
        }
        columns = dict(piece.columns) | texts
        return piece._replace(columns=columns, patches=piece.patches or texts.get("patch_id"))
    raise InputError(
        f"{path}: expected a tensor of rows, a list of tensors, or a dict of one vector a patch, "
        f"found {type(value).__name__}."
    )


def _listed(path: str, members: Sequence[Member]) -> Piece:
    pieces = [m.place.rows(f"{path}: tensor {i}") for i, m in enumerate(members)
              if isinstance(m.place, Place)]  # fmt: skip
    whole = Source(path, pieces, "")
    return Piece(path, len(whole), whole.dim, whole.take)


def read_pt(ask: Ask) -> Source:
    """``.pt`` with one vector a patch or with rows; a folder of such files, one a slide."""
    return arrays.read_keyed(ask, ".pt", open_rows)


def read_slide2vec(ask: Ask) -> Source:
    """slide2vec's run folder, or its ``tile_embeddings`` or ``image_embeddings`` folder.

    ``<sample>.pt`` or ``<sample>.npz`` (key ``features``) with ``<sample>.meta.json`` beside it;
    coordinates are those of ``tiles/<sample>.coordinates.npz``, where that is found.
    """
    root = ask.path.rstrip("/")
    for name in ("tile_embeddings", "image_embeddings"):
        if sources.is_folder(files.join(root, name)):
            root = files.join(root, name)
            break
    paths = [p for p in sources.walk(root, ".pt", ".npz") if not p.endswith(".coordinates.npz")]
    images = root.endswith("image_embeddings")
    tiles = files.join(root.rpartition("/")[0] or ".", "tiles")
    used, pieces = list(paths), []
    for path in paths:
        where = files.join(root, path)
        opened = open_rows(where) if path.endswith(".pt") else arrays.open_npz(where)
        meta = f"{where.rpartition('.')[0]}.meta.json"
        sample = sources.stem(path)
        if files.exists(meta):
            info = files.read_json(meta)
            used.append(path.rpartition(".")[0] + ".meta.json")
            sample = str(info.get("sample_id", sample))
            found = (opened.n_rows, opened.dim)
            said = (info.get("num_tiles", found[0]), info.get("feature_dim", found[1]))
            if not images and said != found:
                raise InputError(
                    f"{where}: has {found[0]} rows of {found[1]} dimensions, its .meta.json says "
                    f"{said[0]} of {said[1]}. Extract this slide again."
                )
        columns = {} if path.count("/") == 0 else {"class": path.split("/")[0]}
        if images:
            pieces.append(opened._replace(patches=[sample], columns=columns))
            continue
        beside = files.join(tiles, f"{sample}.coordinates.npz")
        coords = _coordinates(beside) if files.exists(beside) else opened.coords
        pieces.append(opened._replace(slide=sample, coords=coords, columns=columns))
    digest = sources.digest_files(root, used)
    return Source(ask.path, pieces, digest, names={CLASS: "class"})


def _coordinates(path: str) -> np.ndarray:
    with sources.reading(path), sources.open_binary(path) as stream, np.load(stream) as archive:
        return np.stack([archive["x"], archive["y"]], axis=1)


def read_eva(ask: Ask) -> Source:
    """The folder of eva: ``manifest.csv`` with ``embeddings`` (files under it) and ``target``."""
    path = files.join(ask.path, "manifest.csv")
    table, _ = table_files.read_table(path, needed=("embeddings",))
    if "embeddings" not in table.column_names:
        raise InputError(f"{path}: expected a column 'embeddings', found {table.column_names}.")
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    pieces, names = [], [str(name) for name in columns["embeddings"]]
    for row, name in enumerate(names):
        if name.startswith("/") or ".." in name.split("/") or files.is_remote(name):
            raise InputError(f"{path}: row {row}: {name!r} lies outside {ask.path}. Copy it there.")
        opened = open_rows(files.join(ask.path, name))
        mine = {key: str(values[row]) for key, values in columns.items() if values[row] is not None}
        ids = [sources.stem(name)] if opened.n_rows == 1 else None
        if ids is None:
            ids = [f"{sources.stem(name)}-{i}" for i in range(opened.n_rows)]
        # A file of many is what eva writes of a slide.
        slide = mine.get("wsi_id") or (sources.stem(name) if opened.n_rows > 1 else None)
        pieces.append(opened._replace(columns=mine, patches=ids, slide=slide))
    digest = sources.digest_files(ask.path, ["manifest.csv", *dict.fromkeys(names)])
    return Source(ask.path, pieces, digest, names={CLASS: "target", SLIDE: "wsi_id"})
