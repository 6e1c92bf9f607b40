"""Arrays in files: ``.npy``, ``.npz``, ``.safetensors``, and what plismbench, croma and soma write.

Rows are read by their place in the file, so that nothing of its size is held, and remote files are
read as local ones.
"""

import hashlib
import io
import json
import math
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from pathorob_jax.core import files
from pathorob_jax.core.checks import InputError
from pathorob_jax.data import table_files
from pathorob_jax.data.manifest import CENTER, CLASS, PATCH, SLIDE
from pathorob_jax.embeddings.imports import source as sources
from pathorob_jax.embeddings.imports.source import Ask, Piece, Source, reading

ROWS = ("features", "embeddings", "feats", "x", "X")
MAX_HEADER = 2**28
SAFETENSORS = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}


class Place(NamedTuple):
    """An array of plain values in a file.

    Attributes:
        path: the file.
        offset: its first byte.
        shape: its shape.
        dtype: its values.
        strides: values to the next element of each axis; None: in C order.
    """

    path: str
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype
    strides: tuple[int, ...] | None = None

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop) of the array, of any number of axes.

        Raises:
            ValueError: the file ends before.
        """
        inner = self.shape[1:]
        c_strides = tuple(math.prod(inner[i:]) for i in range(len(inner) + 1))
        strides = self.strides or c_strides
        wide = (stop - start, *inner)
        size = self.dtype.itemsize
        if not math.prod(wide):
            return np.zeros(wide, self.dtype)
        # What lies between the first and the last value of these rows.
        last = sum((n - 1) * s for n, s in zip(wide, strides, strict=True))
        if strides[0] < max(strides[1:], default=0):  # in Fortran order: column by column
            n, column = math.prod(inner), strides[1] if len(inner) == 1 else 0
            if not column or strides[0] != 1:
                raise ValueError(f"strides {strides} are not supported; write it in C order")
            with sources.open_binary(self.path) as stream:
                columns = [self._get(stream, start + j * column, stop - start) for j in range(n)]
            return np.stack(columns, axis=1)
        with sources.open_binary(self.path) as stream:
            flat = self._get(stream, start * strides[0], last + 1)
        steps = tuple(s * size for s in strides)
        return np.lib.stride_tricks.as_strided(flat, wide, steps).copy()

    def _get(self, stream: Any, first: int, count: int) -> np.ndarray:
        stream.seek(self.offset + first * self.dtype.itemsize)
        data = stream.read(count * self.dtype.itemsize)
        if len(data) != count * self.dtype.itemsize:
            raise ValueError("the file is shorter than its header says")
        return np.frombuffer(data, self.dtype)

    def rows(self, where: str, *, columns: slice = slice(None)) -> Piece:
        """The array as embeddings: [N, D], [1, N, D] or [D]."""
        flat = sources.flat_shape(self.shape)
        n_rows, dim = sources.check_rows(where, flat, self.dtype)
        place = self
        if len(self.shape) != 2:
            strides = None if self.strides is None else (flat[-1], 1)[: len(flat)]
            place = self._replace(shape=flat, strides=strides)
        width = len(range(*columns.indices(dim)))

        def take(rows: np.ndarray) -> np.ndarray:
            return sources.read_runs(rows, lambda a, b: place.read(a, b)[:, columns])

        return Piece(where, n_rows, width, take)


def open_npy(path: str) -> Place:
    """The array of a ``.npy`` file.

    Raises:
        FileNotFoundError: no such file.
        InputError: it is no array, or of Python objects.
    """
    try:
        with sources.open_binary(path) as stream:
            return _npy_header(stream, path)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: no such array.") from error
    except InputError:
        raise
    except files.UNREADABLE as error:
        raise InputError(
            f"{path}: cannot be read as .npy ({files.describe(error)}). Copy it again."
        ) from error


def _npy_header(stream: Any, path: str) -> Place:
    version = np.lib.format.read_magic(stream)
    read = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, fortran, dtype = read(stream)
    if dtype.hasobject:
        raise ValueError("an array of Python objects")
    offset = stream.tell()
    if not isinstance(stream, zipfile.ZipExtFile):
        stream.seek(0, 2)
        if stream.tell() - offset < math.prod(shape) * dtype.itemsize:
            raise ValueError("the file is shorter than its header says")
    strides = None
    if fortran and len(shape) > 1:
        strides = tuple(math.prod(shape[:i]) for i in range(len(shape)))
    return Place(path, offset, tuple(shape), dtype, strides)


def read_npy(ask: Ask) -> Source:
    """An array whose row i belongs to row i of the manifest.

    Raises:
        InputError: it is no float[N, D].
    """
    place = open_npy(ask.path)
    sources.check_rows(ask.path, place.shape, place.dtype)
    # As older versions named the source of a store.
    digest = _digest_like_numpy(place)
    return Source(ask.path, [place.rows(ask.path)], digest)


def _digest_like_numpy(place: Place) -> str:
    """``digests.digest_array`` of the array, by blocks."""
    sha = hashlib.sha256(f"{place.shape} {place.dtype.str}".encode())
    step = max(1, sources.BLOCK_BYTES // max(1, math.prod(place.shape[1:]) * place.dtype.itemsize))
    with reading(place.path):
        for start in range(0, place.shape[0] if place.shape else 0, step):
            block = place.read(start, min(start + step, place.shape[0]))
            sha.update(np.ascontiguousarray(block).data)
    return sha.hexdigest()


def read_plismbench(ask: Ask) -> Source:
    """Plismbench's ``<export>/<extractor>`` folder of ``<slide>/features.npy``.

    The first three columns are the tile's numbers, of which the last two are x and y; a slide is
    named ``<stain>_<scanner>_to_<reference>``.
    """
    paths = [p for p in sources.walk(ask.path, ".npy") if f"/{p}".endswith("/features.npy")]
    root = ask.path.rstrip("/")
    extractors = sorted({"/".join(p.split("/")[:-2]) for p in paths})
    if len(extractors) > 1 or ask.encoder is not None:
        names = [e.rpartition("/")[2] or root.rpartition("/")[2] for e in extractors]
        of = dict(zip(names, extractors, strict=True))
        kept = of[sources.choose(sorted(of), ask.encoder, where=ask.path, what="folder")]
        paths = [p for p in paths if "/".join(p.split("/")[:-2]) == kept]
    pieces = []
    for path in paths:
        where = files.join(ask.path, path)
        slide = where.split("/")[-2]
        words = slide.split("_")
        if len(words) < 2:
            raise InputError(
                f"{where}: expected a folder <stain>_<scanner>_to_<reference>, found {slide!r}. "
                "Rename it as plismbench does."
            )
        place = open_npy(where)
        if len(place.shape) != 2 or place.shape[1] < 4:
            raise InputError(
                f"{where}: expected three numbers of the tile and the embedding in each row, found "
                f"shape {place.shape}."
            )
        with reading(where):
            tile = np.concatenate(
                [place.read(a, min(a + 1024, place.shape[0]))[:, :3]
                 for a in range(0, place.shape[0], 1024)] or [np.zeros((0, 3))]
            )  # fmt: skip
            ids = ["_".join(map(str, row)) for row in tile.astype(np.int64).tolist()]
        known = {"stain": words[0], "scanner": words[1]}
        piece = place.rows(where, columns=slice(3, None))
        pieces.append(piece._replace(slide=slide, patches=ids, coords=tile[:, 1:], columns=known))
    digest = sources.digest_files(ask.path, paths)
    return Source(ask.path, pieces, digest, names={CENTER: "scanner"})


def read_croma(ask: Ask) -> Source:
    """Croma's and soma's folder: ``embeddings.npy`` and a CSV whose row i is its row i."""
    folder = ask.path if sources.is_folder(ask.path) else ask.path.rpartition("/")[0] or "."
    path = files.join(folder, "embeddings.npy") if folder == ask.path else ask.path
    tables = files.list_files(folder, ".csv")
    name = "manifest.csv" if "manifest.csv" in tables else tables[0] if len(tables) == 1 else None
    if name is None:
        raise InputError(
            f"{folder}: expected manifest.csv beside the array, found {tables or 'none'}."
        )
    table, _ = table_files.read_table(files.join(folder, name), needed=())
    place = open_npy(path)
    piece = place.rows(path)
    if table.num_rows != piece.n_rows:
        raise InputError(
            f"{files.join(folder, name)}: expected the {piece.n_rows} rows of {path}, found "
            f"{table.num_rows}. Give the manifest that the array was made with."
        )
    columns = {c: table.column(c).to_pylist() for c in table.column_names}
    ids = columns.get("sample_id")
    piece = piece._replace(columns=columns, patches=ids)
    relative = [path[len(folder.rstrip("/")) + 1 :] if folder != "." else path, name]
    digest = sources.digest_files(folder, relative)
    return Source(
        ask.path, [piece], digest, names={SLIDE: "group_id", PATCH: "sample_id", CLASS: "label"}
    )


def read_npz(ask: Ask) -> Source:
    """Archives with one vector a patch, or with one array of rows and columns beside it."""
    return read_keyed(ask, ".npz", open_npz)


def open_npz(path: str, encoder: str | None = None) -> Piece:
    """The rows of one archive."""
    with reading(path), sources.open_binary(path) as stream, zipfile.ZipFile(stream) as archive:
        damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"{damaged} is not as it was written")
        places = {}
        for info in archive.infolist():
            with archive.open(info) as member:
                place = _npy_header(member, path)
            stream.seek(info.header_offset + 26)
            lengths = np.frombuffer(stream.read(4), "<u2")
            begin = info.header_offset + 30 + int(lengths.sum())
            name = info.filename.removesuffix(".npy")
            places[name] = Member(
                place.shape,
                place.dtype,
                place._replace(offset=begin + place.offset)
                if info.compress_type == zipfile.ZIP_STORED
                else _compressed(path, begin, info),
            )
    return rows_or_keyed(path, places, encoder)


class Member(NamedTuple):
    """A named array: its shape, its type, and where it is."""

    shape: tuple[int, ...]
    dtype: np.dtype
    place: Place | Callable[[], np.ndarray]

    def value(self) -> np.ndarray:
        """The whole array, of one or more axes."""
        if not isinstance(self.place, Place):
            return self.place()
        return self.place.read(0, self.shape[0])


def _compressed(path: str, begin: int, info: zipfile.ZipInfo) -> Callable[[], np.ndarray]:
    """A compressed member, read whole."""
    if info.compress_type != zipfile.ZIP_DEFLATED:
        raise ValueError(f"{info.filename} is compressed in a way that NumPy does not use")

    def read() -> np.ndarray:
        with sources.open_binary(path) as stream:
            stream.seek(begin)
            data = zlib.decompress(stream.read(info.compress_size), -zlib.MAX_WBITS)
        return np.asarray(np.load(io.BytesIO(data), allow_pickle=False))

    return read


def rows_or_keyed(path: str, members: Mapping[str, Member], encoder: str | None = None) -> Piece:
    """One array of rows (with columns of the same length beside it), or one vector a patch.

    Raises:
        InputError: neither, or vectors of several sizes.
    """
    wide = [n for n, m in members.items() if len(m.shape) > 1 and _is_row_array(m)]
    vectors = [n for n, m in members.items() if n not in wide and _is_vector(m)]
    single = all(sources.flat_shape(members[n].shape)[0] == 1 for n in wide)
    if encoder is None and single and len(wide) > max(1, len(members) - len(wide)):
        wide, vectors = [], list(wide)  # one vector a patch, each as a row
    named = [n for n in wide if n in ROWS]
    if wide:
        name = sources.choose(
            named if encoder is None and len(named) == 1 else wide,
            encoder,
            where=path,
            what="array",
        )
        return _rows_of(path, name, members)
    if not vectors:
        raise InputError(
            f"{path}: expected one vector of floats for each patch, or one array of rows, found "
            f"{', '.join(f'{n} {m.shape}' for n, m in list(members.items())[:5]) or 'nothing'}."
        )
    dim = math.prod(members[vectors[0]].shape)
    for name in vectors:
        if math.prod(members[name].shape) != dim:
            raise InputError(
                f"{path}: {name} has {math.prod(members[name].shape)} values, {vectors[0]} {dim}. "
                "All must come from one encoder."
            )

    def take(rows: np.ndarray) -> np.ndarray:
        return np.stack([members[vectors[row]].value().reshape(-1) for row in rows])

    return Piece(path, len(vectors), dim, take, patches=vectors)


def _is_float(dtype: np.dtype) -> bool:
    return dtype.kind == "f" or dtype.name == "bfloat16"


def _is_row_array(member: Member) -> bool:
    return _is_float(member.dtype) and len(sources.flat_shape(member.shape)) == 2


def _is_vector(member: Member) -> bool:
    return _is_float(member.dtype) and len(member.shape) == 1 and member.shape[0] > 0


def _rows_of(path: str, name: str, members: Mapping[str, Member]) -> Piece:
    member, where = members[name], f"{path}: {name}"
    if isinstance(member.place, Place):
        piece = member.place.rows(where)
    else:
        flat = sources.flat_shape(member.shape)
        n_rows, dim = sources.check_rows(where, flat, member.dtype)
        kept: list[np.ndarray] = []

        def take(rows: np.ndarray) -> np.ndarray:
            if not kept:
                kept.append(member.value().reshape(flat))
            return kept[0][rows]

        piece = Piece(where, n_rows, dim, take)
    columns: dict[str, Any] = {}
    for other, m in members.items():
        if other != name and m.shape == (piece.n_rows,) and m.dtype.kind in "iufUSb":
            values = m.value()
            columns[other] = [
                v.decode() if isinstance(v, bytes) else str(v) for v in values.tolist()
            ]
    coords = members.get("coords") or members.get("coordinates")
    xy = None
    if coords is not None and len(coords.shape) == 2 and coords.shape[0] == piece.n_rows:
        xy = coords.value()[:, :2]
    return piece._replace(columns=columns, patches=columns.get(PATCH), coords=xy)


def read_safetensors(ask: Ask) -> Source:
    """``.safetensors`` with one vector a patch, or with one array of rows."""
    return read_keyed(ask, ".safetensors", open_safetensors)


def open_safetensors(path: str, encoder: str | None = None) -> Piece:
    """The rows of one file."""
    with reading(path), sources.open_binary(path) as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 0 < length < MAX_HEADER:
            raise ValueError("it has no header of safetensors")
        header = json.loads(stream.read(length))
        stream.seek(0, 2)
        size = stream.tell() - 8 - length
        members = {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            shape, kind = tuple(entry["shape"]), SAFETENSORS.get(entry["dtype"])
            if kind is None:
                continue
            if not 0 <= begin <= end <= size or end - begin != math.prod(shape) * kind.itemsize:
                raise ValueError(f"{name} lies outside the file, which is truncated")
            members[name] = Member(shape, kind, Place(path, 8 + length + begin, shape, kind))
    return rows_or_keyed(path, members, encoder)


def read_keyed(ask: Ask, ending: str, open_file: Callable[..., Piece]) -> Source:
    """One file, or a folder of files, which are of one slide each if they hold rows."""
    if not sources.is_folder(ask.path):
        return Source(
            ask.path, [open_file(ask.path, ask.encoder)], sources.digest_files(ask.path, [""])
        )
    paths: Sequence[str] = sources.walk(ask.path, ending)
    pieces = []
    for path in paths:
        piece = open_file(files.join(ask.path, path), ask.encoder)
        pieces.append(
            piece if piece.patches is not None else piece._replace(slide=sources.stem(path))
        )
    return Source(ask.path, pieces, sources.digest_files(ask.path, paths))
