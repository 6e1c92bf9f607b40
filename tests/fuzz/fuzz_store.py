"""Damaged and forged files of a store: refused by name, or read as they were written."""

import json
import pathlib
import random
import shutil
import tempfile
from collections import Counter

import damage
import numpy as np
from stores import make_manifest

from pathorob_jax.core import sealed_files
from pathorob_jax.data.tileset import BadImage
from pathorob_jax.embeddings import store, store_writer

N, D, CHUNK = 40, 5, 16
BAD = (3, 21)
# Values of store.json that decide how the array is read; other values are what a forger says.
STRUCTURE = ("complete", "n_rows", "dim", "chunk_rows", "manifest_sha256", "schema_version")


def _write(path):
    rng = np.random.default_rng(5)
    rows = np.arange(N)
    writer = store_writer.create_store(
        str(path),
        manifest=make_manifest(rows % 2, rows // 20, rows // 4, case=[f"c{i // 8}" for i in rows]),
        dim=D,
        chunk_rows=CHUNK,
        identity={"encoder": {"model": "m", "size": [1, 2]}, "source": {"sha256": "ab"}},
    )
    x = rng.normal(size=(N, D)).astype(np.float32)
    for chunk in writer.missing_chunks:
        part = writer.chunk_slice(chunk)
        bad = [BadImage(row, "a.png", "blue") for row in BAD if part.start <= row < part.stop]
        writer.write(chunk, x[part], bad=bad).result()
    return writer.commit()


def _read(path):
    opened = store.open_store(str(path))
    kept = {name: opened.info[name] for name in ("identity", "bad_rows", "n_rows", "dim")}
    return opened.read_patches(opened.manifest), opened.manifest.table, kept


def _is_same(found, whole) -> bool:
    return np.array_equal(found[0], whole[0]) and found[1].equals(whole[1]) and found[2] == whole[2]


def fuzz_store_files(n: int, seed: int) -> Counter:
    """Open a store ``n`` times, each time with one of its files damaged."""
    rng, count = random.Random(seed), damage.empty_count()
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "m" / "d"
        _write(path)
        whole = _read(path)
        names = sorted(str(f.relative_to(path)) for f in path.rglob("*") if f.is_file())
        names = [name for name in names if not name.startswith("bad_rows/")]  # read on resuming
        backup = {name: (path / name).read_bytes() for name in names}
        for _ in range(n):
            name = rng.choice([*names, "store.json", "manifest.parquet", "embeddings/zarr.json"])
            _damage(path / name, backup[name], rng)
            count[
                damage.classify(lambda: _read(path), lambda f: _is_same(f, whole), names=str(path))
            ] += 1
            if (path / name).is_dir():
                shutil.rmtree(path / name)
            (path / name).write_bytes(backup[name])
    return count


def _damage(file: pathlib.Path, data: bytes, rng: random.Random) -> None:
    kind = rng.choice(["bytes", "bytes", "json", "sealed", "gone", "folder"])
    if kind in ("gone", "folder"):
        file.unlink()
        if kind == "folder":
            file.mkdir()
    elif kind == "bytes" or file.suffix != ".json":
        file.write_bytes(damage.damage_bytes(data, rng))
    elif kind == "sealed" and file.name == "store.json":
        value = json.loads(data)
        value.pop("digest")
        structure = {name: value[name] for name in STRUCTURE}
        rest = {name: value[name] for name in value if name not in STRUCTURE}
        sealed_files.write_json(str(file), rest | damage.edit_json(structure, rng))
    else:
        file.write_text(json.dumps(damage.edit_json(json.loads(data), rng)))
