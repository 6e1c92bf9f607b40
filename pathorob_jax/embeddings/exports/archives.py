"""NumPy archives, member by member: one for a store, and PathoROB's, one for each centre."""

import csv
import io
import os
import zipfile
from collections.abc import Iterable

import numpy as np

from pathorob_jax.core.checks import InputError
from pathorob_jax.data.manifest import CENTER, PATCH, SLIDE, Manifest
from pathorob_jax.embeddings.exports.blocks import columns_of, read_blocks
from pathorob_jax.embeddings.store import Store

EMBEDDINGS = "embeddings"
MANIFEST = "manifest.csv"


def write_npz(store: Store, path: str) -> None:
    """Write a store as one ``.npz``: ``embeddings`` float32[N, D], and each column as text[N].

    Raises:
        InputError: the manifest has a column of that name.
    """
    columns = columns_of(store.manifest, EMBEDDINGS, form="npz")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        parts = (block.embeddings for block in read_blocks(store))
        _write_member(archive, EMBEDDINGS, (len(store), store.dim), np.dtype("<f4"), parts)
        for name, values in columns.items():
            texts = np.array(values, np.str_)
            _write_member(archive, name, texts.shape, texts.dtype, [texts])


def write_pathorob(store: Store, folder: str) -> None:
    """Fill a folder as PathoROB does: ``<centre>.npz``, one float32[D] per ``slide-patch``.

    Spaces in the name of a centre become underscores; centres whose names are then equal share a
    file. ``manifest.csv`` has the rows of the store in their order, and all their columns.

    Raises:
        InputError: two patches would be one member, or a centre's name is none of a file.
    """
    manifest = store.manifest
    file_of = {name: _file_name(name, store.path) for name in manifest.factorize(CENTER).names}
    names = np.array([file_of[center] for center in manifest.column(CENTER)], dtype=object)
    keys = manifest.keys.to_pylist()
    for name in sorted(set(names)):
        rows = np.flatnonzero(names == name)
        _check_distinct(manifest, rows, keys)
        path = os.path.join(folder, name)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            for block in read_blocks(store, rows):
                for row, vector in zip(block.rows, block.embeddings, strict=True):
                    _write_member(archive, keys[row], vector.shape, vector.dtype, [vector])
    _write_rows(manifest, os.path.join(folder, MANIFEST))


def _file_name(center: str, where: str) -> str:
    name = f"{center.replace(' ', '_')}.npz"
    if "/" in name or "\\" in name or name.startswith(".") or len(name.encode()) > 255:
        raise InputError(
            f"{where}: the medical centre {center[:80]!r} cannot be the name of a file, as "
            "PathoROB's layout needs; rename it, or export to anndata, parquet or npz."
        )
    return name


def _check_distinct(manifest: Manifest, rows: np.ndarray, keys: list[str]) -> None:
    first: dict[str, int] = {}
    for row in rows.tolist():
        other = first.setdefault(keys[row], row)
        if other != row:
            slides, patches = manifest.column(SLIDE), manifest.column(PATCH)
            raise InputError(
                f"{manifest.source}: patch {patches[other]!r} of slide {slides[other]!r} and patch "
                f"{patches[row]!r} of slide {slides[row]!r} are both {keys[row]!r} in PathoROB's "
                "layout; rename one, or export to anndata, parquet or npz."
            )


def _write_member(
    archive: zipfile.ZipFile,
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype,
    parts: Iterable[np.ndarray],
) -> None:
    """Write an array in parts, as ``np.savez`` writes it whole."""
    header = io.BytesIO()
    described = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": shape,
    }
    np.lib.format.write_array_header_1_0(header, described)
    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        member.write(header.getvalue())
        for part in parts:
            member.write(np.ascontiguousarray(part).data.cast("B") if part.size else b"")


def _write_rows(manifest: Manifest, path: str) -> None:
    names = manifest.table.column_names
    with open(path, "w", newline="", encoding="utf-8") as stream:
        rows = csv.writer(stream, lineterminator="\n")
        rows.writerow(names)
        columns = [manifest.table[name].to_pylist() for name in names]
        rows.writerows(zip(*columns, strict=True))
