"""A campaign of damaged and odd tilesets: each is refused with one message, or read right.

``fuzz_tilesets`` writes a small tileset as a folder or as Parquet, changes it, and reads all of it.
What is read must be the labels and pixels that were written; no file outside the folder, and no
server, may be asked for.
"""

import csv
import io
import json
import pathlib
import random
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from PIL import Image

from pathorob_jax.core.checks import InputError
from pathorob_jax.data import parquet_tiles, tile_batches
from pathorob_jax.data.tileset import open_tileset

CLEAN, EQUAL, TRACEBACK, SILENT = "clean error", "equal to the oracle", "traceback", "silent"
# What went wrong, for the message of a test.
FAILURES: list[str] = []
N = 8
LABELS = ("slide_id", "patch_id", "biological_class", "medical_center")
CLASSES, CENTERS = ["normal", "tumor"], ["A", "B"]
IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
OUTSIDE = [
    *("../secret.png", "{root}/../secret.png", "/etc/passwd", "sub/../../secret.png", "..", "/"),
    *("file://{root}/0.png", "s3://b/k?endpoint_override=127.0.0.1:9&scheme=http", "gs://b/k"),
    *("hdfs://127.0.0.1:9/x", "http://127.0.0.1:9/x", "~/secret.png", "sub\\0.png", "a" * 400),
    *("", " ", ".", "0.png/", "0.png/x", "0.PNG", "C:\\0.png", "%2e%2e/secret.png", "x\ny.png"),
]
EXTRA: list[Callable[[], pa.Array]] = [
    lambda: pa.array([bytes([i]) * 16 for i in range(N)], pa.uuid()),
    lambda: pa.array([b"\xff"] * N, pa.binary_view()),
    lambda: pa.FixedShapeTensorArray.from_numpy_ndarray(np.zeros((N, 2, 2), np.float32)),
    lambda: pa.array([[{"a": [1]}]] * N),
    lambda: pa.array([b"\xff"] * N).dictionary_encode(),
    lambda: pa.nulls(N),
]


class _Written:
    """A tileset on disk, and what must be read of it."""

    def __init__(self, root: pathlib.Path, draw: random.Random):
        self.root, self.form = root, draw.choice(["folder", "parquet", "links", "some links"])
        rng = np.random.default_rng(draw.randrange(2**32))
        self.pixels = [rng.integers(0, 256, (6, 5, 3), np.uint8) for _ in range(N)]
        self.columns = {
            "slide_id": [f"s{i // 2}" for i in range(N)],
            "patch_id": [f"p{i}" for i in range(N)],
            "biological_class": [CLASSES[i % 2] for i in range(N)],
            "medical_center": [CENTERS[i // 2 % 2] for i in range(N)],
        }
        self.group_rows = draw.choice([1, 3, 100])
        self.paths = [f"{i}.png" if i % 3 else f"sub/{i}.png" for i in range(N)]
        (root / "sub").mkdir(parents=True)
        self.encoded = []
        for path, pixels in zip(self.paths, self.pixels, strict=True):
            sink = io.BytesIO()
            Image.fromarray(pixels).save(sink, "PNG")
            self.encoded.append(sink.getvalue())
            if self.form != "parquet":
                (root / path).write_bytes(sink.getvalue())
        (root.parent / "secret.png").write_bytes(self.encoded[0])

    def write(self, *, labels: bool = False, extra: pa.Array | None = None) -> None:
        """Write the manifest, or the Parquet file."""
        if self.form == "folder":
            with (self.root / "manifest.csv").open("w", newline="") as stream:
                writer = csv.writer(stream)
                writer.writerow([*self.columns, "path"])
                writer.writerows(zip(*self.columns.values(), self.paths, strict=True))
            return
        linked = {"parquet": 0, "links": 1, "some links": 2}[self.form]
        cells = [
            {"bytes": None, "path": path}
            if linked and i % linked == 0
            else {"bytes": data, "path": "/where/it/was.png"}
            for i, (path, data) in enumerate(zip(self.paths, self.encoded, strict=True))
        ]
        columns: dict = {"image": pa.array(cells, IMAGE_TYPE)} | self.columns
        metadata = None
        if labels:
            columns["biological_class"] = [CLASSES.index(v) for v in columns["biological_class"]]
            feature = {"names": CLASSES, "_type": "ClassLabel"}
            metadata = {
                "huggingface": json.dumps({"info": {"features": {"biological_class": feature}}})
            }
        if extra is not None:
            columns["extra"] = extra
        table = pa.table(columns).replace_schema_metadata(metadata)
        pq.write_table(
            table,
            self.root / "a.parquet",
            row_group_size=self.group_rows,
            write_page_checksum=True,
        )


def _no_change(tiles: _Written, draw: random.Random) -> None:
    tiles.write(labels=draw.random() < 0.5)


def _other_column(tiles: _Written, draw: random.Random) -> None:
    tiles.write(extra=draw.choice(EXTRA)())


def _stray_file(tiles: _Written, draw: random.Random) -> None:
    tiles.write()
    name = draw.choice(
        [".DS_Store", "Thumbs.db", "README", "._a.parquet", ".manifest.csv", "b.txt"]
    )
    (tiles.root / name).write_bytes(draw.randbytes(draw.randrange(99)))


def _foreign_file(tiles: _Written, draw: random.Random) -> None:
    tiles.write()
    (tiles.root / draw.choice(["b.parquet", "a2.parquet"])).write_bytes(draw.randbytes(99))


def _path(tiles: _Written, draw: random.Random) -> None:
    tiles.paths[draw.randrange(N)] = draw.choice(OUTSIDE).format(root=tiles.root)
    tiles.write()


def _lost_image(tiles: _Written, draw: random.Random) -> None:
    tiles.write()
    path = tiles.root / draw.choice(tiles.paths)
    if path.exists():
        path.unlink()
        if draw.random() < 0.3:
            path.mkdir()


def _bytes(tiles: _Written, draw: random.Random) -> None:
    tiles.write()
    name = "manifest.csv" if tiles.form == "folder" else "a.parquet"
    if draw.random() < 0.3 and tiles.form != "parquet":
        name = draw.choice(tiles.paths)
    data = (tiles.root / name).read_bytes()
    at = draw.randrange(len(data))
    damaged = {
        "flip": data[:at] + bytes([data[at] ^ (1 << draw.randrange(8))]) + data[at + 1 :],
        "cut": data[:at],
        "noise": data[:at] + draw.randbytes(8) + data[at + 8 :],
        "zeros": data[:at] + bytes(len(data[at : at + 30])) + data[at + 30 :],
    }
    # A letter of a manifest that becomes another cannot be noticed: it is cut only.
    kind = draw.choice(["cut"] if name == "manifest.csv" else list(damaged))
    (tiles.root / name).write_bytes(damaged[kind])


def _wide_image(tiles: _Written, draw: random.Random) -> None:
    row, sink = draw.randrange(N), io.BytesIO()
    Image.fromarray(np.full((6, 5), 40_000, np.uint16)).save(sink, "PNG")
    tiles.encoded[row] = sink.getvalue()
    if tiles.form != "parquet":
        (tiles.root / tiles.paths[row]).write_bytes(sink.getvalue())
    tiles.pixels[row] = np.full((1, 1, 3), 0, np.uint8)  # nothing that is read may count
    tiles.write()


CHANGES = (
    *(_no_change, _other_column, _stray_file, _foreign_file, _path, _path, _path),
    *(_lost_image, _bytes, _bytes, _bytes, _wide_image),
)


def _read(root: pathlib.Path) -> tuple[list[tuple[str, ...]], list[np.ndarray]]:
    """Labels and pixels of every row."""
    tileset = open_tileset(str(root))
    plan = tile_batches.plan_batches(len(tileset), batch_size=3)
    pixels = [
        batch.images[at]
        for batch in tile_batches.read_batches(tileset, plan, threads=2)
        for at in np.flatnonzero(batch.mask)
    ]
    columns = [tileset.manifest.column(name).tolist() for name in LABELS]
    return list(zip(*columns, strict=True)), pixels


def _outcome(tiles: _Written) -> str:
    try:
        labels, pixels = _read(tiles.root)
    except (InputError, FileNotFoundError) as error:
        if str(tiles.root) in str(error) or "workers" in str(error):
            return CLEAN
        FAILURES.append(f"names no file: {error}")
        return SILENT
    except Exception:  # noqa: BLE001 - that is what is looked for
        FAILURES.append(traceback.format_exc())
        return TRACEBACK
    expected = dict(zip(zip(*tiles.columns.values(), strict=True), tiles.pixels, strict=True))
    # A manifest that was cut at the end of a line is a whole manifest of fewer rows.
    if labels and all(
        label in expected and np.array_equal(expected[label], found)
        for label, found in zip(labels, pixels, strict=True)
    ):
        return EQUAL
    FAILURES.append(f"read wrong: {tiles.form} {labels}")
    return SILENT


def fuzz_tilesets(n: int, seed: int) -> Counter[str]:
    """Outcomes of ``n`` tilesets."""
    draw, outcomes = random.Random(seed), Counter()

    def refuse(*args: object) -> None:
        raise AssertionError(f"asked a server: {args}")

    with (
        warnings.catch_warnings(),
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(parquet_tiles, "MIN_BATCH_ROWS", 2),
        mock.patch.object(parquet_tiles, "MAX_BATCH_ROWS", 2),
        mock.patch("pathorob_jax.core.files.pafs", _LocalOnly(refuse)),
    ):
        warnings.simplefilter("ignore")
        for number in range(n):
            tiles = _Written(pathlib.Path(folder) / str(number) / "tiles", draw)
            change = draw.choice(CHANGES)
            change(tiles, draw)
            before = len(FAILURES)
            outcomes[_outcome(tiles)] += 1
            FAILURES[before:] = [f"{change.__name__}: {text}" for text in FAILURES[before:]]
    return outcomes


class _LocalOnly:
    """pyarrow.fs, whose remote file systems end the campaign."""

    def __init__(self, refuse: Callable[..., None]):
        self._refuse = refuse

    def __getattr__(self, name: str) -> object:
        return getattr(pafs, name) if name != "FileSystem" else self

    def from_uri(self, uri: str) -> None:
        """What a tileset on disk must never lead to."""
        self._refuse(uri)
