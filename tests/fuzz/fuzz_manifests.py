"""A campaign of damaged and odd manifests: each is refused with one message, or read right.

``fuzz_manifests`` writes tables as CSV and Parquet, changes them, and reads them as manifests. What
is read must be what an oracle reads: Python's csv module, or the table before it was written, with
names made canonical by ``unicodedata`` alone.
"""

import csv
import io
import os
import random
import re
import tempfile
import unicodedata
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pathorob_jax.core.checks import InputError
from pathorob_jax.data.manifest import CENTER, CLASS, PATCH, REQUIRED, SLIDE, read_manifest

CLEAN, EQUAL, TRACEBACK, SILENT = "clean error", "equal to the oracle", "traceback", "silent"
ODD = [
    "",
    " ",
    "\u200b",
    "\ufeff",
    "\0",
    "\t",
    "NaN",
    "null",
    "=1+1",
    '"',
    "'",
    ";",
    "|",
    "\\",
    "-",
]
ODD += [
    "é",
    "e\u0301",
    "北京",
    "🩺",
    "\u202e",
    "\r",
    "\n",
    "\r\n",
    "a,b",
    "x" * 2000,
    "1e400",
    "\x1f",
]
BITS = [
    b",",
    b'"',
    b"\n",
    b"\r",
    b"\0",
    b"\xff",
    b";",
    b"\t",
    b"\xef\xbb\xbf",
    b'""',
    b"a",
    b"\xc3",
]


def fuzz_manifests(n: int, seed: int = 0) -> Counter[str]:
    """Outcomes of n manifests: ``clean error``, ``equal to the oracle``, ``traceback``, ``silent``.

    The campaign depends on n and seed alone. There should be no ``traceback`` and no ``silent``;
    such an outcome carries what led to it behind a colon.
    """
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for i in range(n):
            rng = random.Random(f"{seed} {i}")
            attack = _parquet if i % 3 == 2 else _damaged_csv if i % 3 == 1 else _written_csv
            outcomes[attack(rng, folder)] += 1
    return outcomes


def _columns(rng: random.Random) -> dict[str, list[str]]:
    """A small table that keeps the rules, but for what is then done to it."""
    n = rng.randint(1, 12)
    slides = [rng.randint(0, 4) for _ in range(n)]
    return {
        SLIDE: [f"s{s}" for s in slides],
        PATCH: [str(i) for i in range(n)],
        CLASS: [rng.choice(["normal", "tumor", "Köln"]) for _ in range(n)],
        CENTER: [f"centre {s % 2}" for s in slides],
        "note": [rng.choice(["", "x", "y z"]) for _ in range(n)],
    }


def _mutate(rng: random.Random, columns: dict[str, list[str]]) -> None:
    """Put odd text into some cells."""
    for _ in range(rng.randint(0, 3)):
        cells = rng.choice(list(columns.values()))
        at = rng.randrange(len(cells))
        odd = rng.choice(ODD)
        cells[at] = rng.choice([odd, cells[at] + odd, odd + cells[at], cells[at][:1] + odd + "q"])


def _written_csv(rng: random.Random, folder: str) -> str:
    """A table with odd cells, written in a dialect at random: the oracle is the table itself."""
    columns = _columns(rng)
    _mutate(rng, columns)
    delimiter, end = rng.choice([",", ",", ";", "\t", "|"]), rng.choice(["\n", "\r\n", "\r"])
    everything = rng.random() < 0.3

    def cell(text: str) -> str:
        special = everything or re.search(f'[{re.escape(delimiter)}"\r\n]', text)
        return '"' + text.replace('"', '""') + '"' if special else text

    lines = [list(columns), *zip(*columns.values(), strict=True)]
    text = end.join(delimiter.join(map(cell, line)) for line in lines)
    text += rng.choice(["", end, end * 3])
    data = text.encode(rng.choice(["utf-8", "utf-8", "utf-8-sig", "utf-16"]))
    kept = [row for row in zip(*columns.values(), strict=True) if any(c.strip() for c in row)]
    expected = dict(zip(columns, map(list, zip(*kept, strict=True)), strict=True)) if kept else {}
    return _judge(_write(folder, "m.csv", data), expected, f"{text!r}")


def _damaged_csv(rng: random.Random, folder: str) -> str:
    """Bytes of a CSV file changed at random: the oracle is Python's reader."""
    columns = _columns(rng)
    sink = io.StringIO(newline="")
    writer = csv.writer(sink, quoting=rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    data = bytearray(sink.getvalue().encode())
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data))
        match rng.randrange(4):
            case 0:
                data[at:at] = rng.choice(BITS)
            case 1:
                del data[at : at + rng.randint(1, 9)]
            case 2:
                data[at] ^= 1 << rng.randrange(8)
            case _:
                data[at : at + 1] = data[at : at + rng.randint(2, 30)]
        data = data or bytearray(b"x")
    try:
        text = data.decode("utf-8-sig")
        rows = [
            row for row in csv.reader(io.StringIO(text, newline="")) if any(map(str.strip, row))
        ]
    except (UnicodeDecodeError, csv.Error):
        rows = []
    expected: dict[str, list[str]] | None = None
    if rows:
        names = list(rows[0])
        while len(names) > 1 and not names[-1].strip():
            names.pop()
        body = [row[: len(names)] for row in rows[1:]]
        if all(len(row) == len(names) for row in body):
            expected = {name: [row[j] for row in body] for j, name in enumerate(names)}
    return _judge(_write(folder, "m.csv", bytes(data)), expected, f"{bytes(data)!r}")


def _parquet(rng: random.Random, folder: str) -> str:
    """A Parquet file with columns of odd types, or with damaged bytes."""
    columns = _columns(rng)
    n = len(columns[SLIDE])
    _mutate(rng, columns)
    table = pa.table(columns)
    expected: dict[str, list[str]] | None = dict(columns)
    kind = rng.randrange(6)
    if kind == 0:  # a label of floats, with a hole
        holes = np.array([float(rng.randint(0, 2)) for _ in range(n)])
        holes[rng.randrange(n)] = np.nan
        table, expected = _replace(table, rng.choice(REQUIRED), pa.array(holes)), None
    elif kind == 1:
        table = table.append_column("extra", pa.array([b"\xff\xfe"] * n, pa.binary(2)))
    elif kind == 2:
        table = table.append_column("extra", pa.array([b"\xff"] * n, pa.binary_view()))
    elif kind == 3:
        name = rng.choice(REQUIRED)
        table = _replace(table, name, table.column(name).combine_chunks().dictionary_encode())
    path = os.path.join(folder, "m.parquet")
    pq.write_table(table, path, compression=rng.choice(["none", "snappy", "zstd"]))
    if kind == 4:
        with open(path, "rb") as stream:
            data = bytearray(stream.read())
        for _ in range(rng.randint(1, 3)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        if rng.random() < 0.3:
            del data[rng.randrange(len(data)) :]
        _write(folder, "m.parquet", bytes(data))
        try:  # pages have no checksum: what pyarrow itself reads is what the file says
            found = pq.ParquetFile(path).read()
            found.validate(full=True)
            expected = {name: found.column(name).to_pylist() for name in found.column_names}
        except Exception:  # noqa: BLE001 - whatever pyarrow raises for it
            expected = None
    return _judge(path, expected, f"kind {kind}: {columns}")


def _replace(table: pa.Table, name: str, column: pa.Array) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, column)


def _write(folder: str, name: str, data: bytes) -> str:
    path = os.path.join(folder, name)
    with open(path, "wb") as stream:
        stream.write(data)
    return path


def _judge(path: str, expected: dict[str, list[str]] | None, note: str) -> str:
    """The outcome of reading a file. ``expected`` None: nothing but a refusal is right."""
    try:
        found = read_manifest(path)
    except InputError as error:
        message = str(error)
        is_clear = (
            path in message and "\n" not in message.replace("\\n", "") and len(message) < 4000
        )
        return CLEAN if is_clear else f"{TRACEBACK}: unclear {message!r} for {note}"
    except Exception as error:  # noqa: BLE001 - all that a user would see as a traceback
        return f"{TRACEBACK}: {error!r} for {note}"
    if expected is None:
        return f"{SILENT}: read, though nothing is right: {note}"
    wanted = {_text(name): [_text(value) for value in values] for name, values in expected.items()}
    for name in found.table.column_names:
        if found.column(name).tolist() != wanted.get(name):
            return f"{SILENT}: {name}: {found.column(name).tolist()} for {note}"
    return EQUAL


def _text(value: object) -> str:
    """A name by UAX 15 and the list of signs without a width, said again."""
    text = "" if value is None else value.decode() if isinstance(value, bytes) else str(value)
    invisible = {0xAD, 0x200B, 0x2060, 0xFEFF, 0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F)}
    text = "".join(c for c in text if ord(c) not in invisible | set(range(0x2066, 0x206A)))
    text = unicodedata.normalize("NFC", text)
    return re.sub(r"\A[\s\u200c\u200d]+|[\s\u200c\u200d\0]+\Z", "", text)
