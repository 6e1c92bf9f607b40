"""What every reader gives: rows of embeddings in pieces, and what the tool knows about the rows.

A piece is the part of one file. It is read by ascending rows, so that a reader may stream forward
and holds one block at a time. Nothing here knows a format.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs

from pathorob_jax.core import digests, files
from pathorob_jax.core.checks import InputError
from pathorob_jax.data.names import canonical, canonical_column

Take = Callable[[np.ndarray], np.ndarray]
# Rows between two wanted ones that are read and dropped, rather than read in a call of its own.
MAX_GAP = 16
BLOCK_BYTES = 2**22
# Of columns of text.
CHUNK_BYTES = 2**24


class Ask(NamedTuple):
    """What a reader is asked for.

    Attributes:
        path: the file or folder as the tool left it.
        encoder: which of several sets of embeddings; None: the only one.
        columns: our column name -> the source's, as the user gave them.
    """

    path: str
    encoder: str | None = None
    columns: Mapping[str, str] = {}


class Piece(NamedTuple):
    """Rows of one file.

    Attributes:
        where: the file, and the array in it, for messages.
        n_rows: its rows.
        dim: D; 0 if it has no rows.
        take: ascending int64[n] rows of the piece -> float[n, D].
        slide: the slide of all its rows; None: ``columns`` or nobody knows.
        patches: ids of the patches, as text of Python or of Arrow; None: unknown.
        coords: number[n_rows, 2], x and y; None: unknown.
        columns: other columns, one text for each row (of Python or of Arrow) or for all.
    """

    where: str
    n_rows: int
    dim: int
    take: Take
    slide: str | None = None
    patches: Any = None
    coords: np.ndarray | None = None
    columns: Mapping[str, Any] = {}


@dataclass
class Source:
    """All rows of a source, in the order of its files.

    Attributes:
        where: the file or folder.
        pieces: the parts that have rows.
        fingerprint: hex sha256 of all that was read.
        names: our column name -> the tool's own column, used where the user names none.
        said: what a reader passed over or chose, for the log.
    """

    where: str
    pieces: list[Piece]
    fingerprint: str
    names: Mapping[str, str] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        empty = [piece.where for piece in self.pieces if not piece.n_rows]
        if empty:
            self.said.append(f"{len(empty)} files hold no patch, the first is {empty[0]}")
        self.pieces = [piece for piece in self.pieces if piece.n_rows]
        if not self.pieces:
            raise InputError(
                f"{self.where}: expected embeddings, found not one row. Extract again."
            )
        first = self.pieces[0]
        for piece in self.pieces:
            if piece.dim != first.dim:
                raise InputError(
                    f"{piece.where}: has {piece.dim} dimensions, {first.where} {first.dim}. All "
                    "must come from one encoder: remove the other's files, or extract them again."
                )
            if piece.coords is not None and len(piece.coords) != piece.n_rows:
                raise InputError(
                    f"{piece.where}: has {piece.n_rows} embeddings and {len(piece.coords)} "
                    "coordinates. Extract this slide again."
                )
        self._starts = np.cumsum([0, *(piece.n_rows for piece in self.pieces)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def dim(self) -> int:
        """D."""
        return self.pieces[0].dim

    def slides(self) -> pa.ChunkedArray | None:
        """Canonical slide of each row; None if any is unknown."""
        if any(piece.slide is None for piece in self.pieces):
            return None
        return _chunked(pa.repeat(canonical(p.slide or ""), p.n_rows) for p in self.pieces)

    def patches(self) -> pa.ChunkedArray | None:
        """Canonical patch id of each row; None if any is unknown."""
        if any(piece.patches is None for piece in self.pieces):
            return None
        return canonical_column(_chunked(_texts(piece.patches) for piece in self.pieces))

    def row_numbers(self) -> pa.ChunkedArray:
        """Number of each row in its piece, from 0, as text."""
        return _chunked(pa.array(range(p.n_rows)).cast(pa.string()) for p in self.pieces)

    def coords(self) -> np.ndarray | None:
        """number[N, 2]; None if any is unknown."""
        found = [piece.coords for piece in self.pieces]
        if any(coords is None for coords in found):
            return None
        return np.concatenate([np.asarray(coords) for coords in found])

    def column(self, name: str) -> pa.ChunkedArray:
        """A column of the tool; null where a piece has none.

        Raises:
            pa.ArrowException or TypeError: its values are no text.
        """
        parts = []
        for piece in self.pieces:
            values = piece.columns.get(name)
            alone = values is None or isinstance(values, str)
            one = pa.scalar(values, pa.string()) if alone else None
            parts.append(_texts(values) if one is None else pa.repeat(one, piece.n_rows))
        return _chunked(parts)

    def column_names(self) -> list[str]:
        """Columns that any piece has, in order of appearance."""
        return list(dict.fromkeys(name for piece in self.pieces for name in piece.columns))

    def forget_labels(self) -> None:
        """Free the columns, once they are joined."""
        self.pieces = [p._replace(patches=None, coords=None, columns={}) for p in self.pieces]

    def take(self, rows: np.ndarray) -> np.ndarray:
        """float32[n, D] of ascending rows int64[n]."""
        out = np.empty((len(rows), self.dim), np.float32)
        piece_of = np.searchsorted(self._starts, rows, side="right") - 1
        for at in np.unique(piece_of):
            mine = np.flatnonzero(piece_of == at)
            piece = self.pieces[at]
            with reading(piece.where), np.errstate(over="ignore"):  # the store refuses infinities
                out[mine] = piece.take(rows[mine] - self._starts[at])
        return out


def as_numbers(column: pa.ChunkedArray) -> np.ndarray:
    """float64[N] of numbers in text.

    Raises:
        TypeError or ValueError: it holds something else.
    """
    blocks = [c.to_numpy(zero_copy_only=False).astype(np.float64) for c in column.chunks]
    return np.concatenate(blocks) if blocks else np.zeros(0)


def _texts(values: Any) -> pa.Array:
    """Text of Python or of Arrow, as an array."""
    if isinstance(values, pa.ChunkedArray):
        return values.combine_chunks()
    return values if isinstance(values, pa.Array) else pa.array(values, pa.string())


def _chunked(parts: Iterable[pa.Array]) -> pa.ChunkedArray:
    """One array after the other, in few chunks: a source may have a thousand pieces."""
    out, block, size = [], [], 0
    for part in parts:
        block.append(part)
        size += part.nbytes
        if size > CHUNK_BYTES:
            out.append(pa.concat_arrays(block))
            block, size = [], 0
    if block:
        out.append(pa.concat_arrays(block))
    return pa.chunked_array(out, pa.string())


class reading:
    """A block in which whatever a damaged file raises becomes an InputError that names it."""

    def __init__(self, where: str):
        self._where = where

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
        if isinstance(error, files.UNREADABLE) and not isinstance(
            error, InputError | FileNotFoundError
        ):
            raise InputError(
                f"{self._where}: cannot be read ({files.describe(error)}). Copy it again, or "
                "extract it again."
            ) from error


def check_rows(where: str, shape: Sequence[int], dtype: Any) -> tuple[int, int]:
    """Rows and dimensions of an array of embeddings.

    Raises:
        InputError: it is no float[N, D].
    """
    kind = np.dtype(dtype)
    hollow = len(shape) == 2 and shape[0] > 0 and not shape[1]
    if (kind.kind != "f" and kind.name != "bfloat16") or hollow:
        raise InputError(f"{where}: expected floats, found {kind} of shape {tuple(shape)}.")
    if len(shape) != 2:
        raise InputError(
            f"{where}: expected embeddings of shape (rows, dimensions), found {tuple(shape)}. "
            "Average tokens before, or name another array with --encoder."
        )
    return int(shape[0]), int(shape[1])


def flat_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape [N, D] of what is stored as [1, N, D], [D] (one row) or (0,) (an empty slide)."""
    shape = tuple(map(int, shape))
    if len(shape) == 3 and shape[0] == 1:
        return shape[1:]
    if len(shape) == 1:
        return (1, shape[0]) if shape[0] else (0, 0)
    return shape


def read_runs(rows: np.ndarray, read: Callable[[int, int], np.ndarray]) -> np.ndarray:
    """Ascending rows, read as few slices: ``read(start, stop)`` gives [stop - start, D]."""
    breaks = np.flatnonzero(np.diff(rows) > MAX_GAP) + 1
    return np.concatenate(
        [read(int(r[0]), int(r[-1]) + 1)[r - r[0]] for r in np.split(rows, breaks)]
    )


def stream_blocks(start: Callable[[], Iterator[np.ndarray]]) -> Take:
    """A ``take`` over blocks that can only be read forward; it begins anew for earlier rows."""
    state: dict[str, Any] = {"next": 0, "block": None, "at": 0, "blocks": None}

    def take(rows: np.ndarray) -> np.ndarray:
        if state["blocks"] is None or rows[0] < state["at"]:
            state.update(next=0, block=None, at=0, blocks=start())
        out: list[np.ndarray] = []
        left = rows
        while len(left):
            if state["block"] is None or left[0] >= state["next"]:
                block = next(state["blocks"], None)
                if block is None:
                    raise ValueError("it ends early")
                state.update(at=state["next"], next=state["next"] + len(block), block=block)
                continue
            n = int(np.searchsorted(left, state["next"]))
            out.append(state["block"][left[:n] - state["at"]])
            left = left[n:]
        return np.concatenate(out)

    return take


def open_binary(path: str) -> Any:
    """A seekable stream of a file, local or remote."""
    fs, inner = files.filesystem(path)
    kind = fs.get_file_info(inner).type
    if kind == pafs.FileType.NotFound:
        raise FileNotFoundError(f"{path}: no such file.")
    if kind != pafs.FileType.File:
        raise InputError(f"{path}: expected a file, found a folder.")
    return fs.open_input_file(inner) if files.is_remote(path) else open(inner, "rb")


def walk(root: str, *suffixes: str) -> list[str]:
    """Paths of all files under a folder, relative to it, that end in a suffix, in order.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    fs, inner = files.filesystem(root)
    if fs.get_file_info(inner).type != pafs.FileType.Directory:
        raise FileNotFoundError(f"{root}: no such folder.")
    found = fs.get_file_info(pafs.FileSelector(inner, recursive=True))
    paths = [e.path[len(inner.rstrip("/")) + 1 :] for e in found if e.type == pafs.FileType.File]
    return sorted(p for p in paths if p.endswith(suffixes) and "/." not in f"/{p}")


def is_folder(path: str) -> bool:
    """Whether there is a folder at the path."""
    fs, inner = files.filesystem(path)
    return fs.get_file_info(inner).type == pafs.FileType.Directory


def stem(path: str) -> str:
    """Name of a file without its folder and its last ending."""
    name = path.rstrip("/").rpartition("/")[2]
    return name.rpartition(".")[0] or name


def digest_files(root: str, paths: Sequence[str]) -> str:
    """Hex sha256 of names and contents of files under a folder (or "" for ``root`` itself)."""
    parts = []
    for path in paths:
        sha = hashlib.sha256()
        with open_binary(files.join(root, path) if path else root) as stream:
            while block := stream.read(BLOCK_BYTES):
                sha.update(block)
        parts += [path.encode(), sha.digest()]
    return digests.digest(*parts)


def choose(names: Sequence[str], wanted: str | None, *, where: str, what: str) -> str:
    """The one that was asked for, or the only one.

    Raises:
        InputError: there are several and none was named, or that one is not there.
    """
    listed = ", ".join(names)
    if wanted is not None:
        if wanted in names:
            return wanted
        raise InputError(f"{where}: has no {what} {wanted!r}. Give --encoder, one of: {listed}.")
    if len(names) != 1:
        raise InputError(
            f"{where}: holds {what}s of several encoders. Name one with --encoder: {listed}."
            if names
            else f"{where}: expected {what}s, found none."
        )
    return names[0]
