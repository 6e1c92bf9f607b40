"""Import embeddings that were computed elsewhere into an embedding store.

Supported are PathoROB's feature folders and arrays with the rows of a manifest. The result is the
same kind of store as extraction writes, so that metrics need neither weights nor images.
"""

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pathorob_jax.core import checks, digests, files, folder_names
from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.core.progress import Progress
from pathorob_jax.data import manifest as manifests
from pathorob_jax.data.manifest import CENTER, PATCH, SLIDE, Manifest
from pathorob_jax.data.names import Spellings, canonical
from pathorob_jax.embeddings.store import Store, open_store
from pathorob_jax.embeddings.store_writer import create_store

CHUNK_ROWS = 1024
Rows = Callable[[np.ndarray], np.ndarray]


def import_embeddings(
    source: str,
    manifest: Any,
    *,
    root: str,
    model: str,
    dataset: str,
    form: str | None = None,
    columns: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> Store:
    """Import embeddings into ``<root>/<model>/<dataset>/``.

    Args:
        source: ``pathorob_npz``: folder with one ``.npz`` per medical centre; ``npy``: float[N, D]
            whose row i belongs to row i of the single manifest.
        manifest: rows and labels: a file (CSV or Parquet), a table (mapping of columns, pandas,
            polars, pyarrow) or a ``Manifest``; or a list of them, whose patches the store unites.
        root: folder of all stores.
        model: name of the encoder.
        dataset: name of the dataset.
        form: a key of ``FORMATS``; None: ``pathorob_npz`` for a folder, ``npy`` for a file.
        columns: our column name -> the manifest's, for class and centre.
        overwrite: replace a store of another configuration.

    Raises:
        UsageError: unknown format, or several manifests for ``npy``.
        FileNotFoundError: no such source.
        InputError: a patch is missing, a row is NaN or all zero, shapes differ.

    >>> import numpy as np, pathorob_jax as pr
    >>> rows = {"slide_id": np.arange(48) // 4, "patch_id": np.arange(48)}
    >>> rows |= {"biological_class": ["tumor", "normal"] * 24}
    >>> rows |= {"medical_center": ["A"] * 24 + ["B"] * 24}
    >>> np.save("x.npy", np.random.default_rng(0).normal(size=(48, 8)))
    >>> store = pr.import_embeddings("x.npy", rows, root="embeddings", model="mine", dataset="ours")
    >>> len(store), store.dim
    (48, 8)
    """
    form = form or ("pathorob_npz" if os.path.isdir(source) else "npy")
    view = _as_manifests(manifest, columns)
    checks.check_known(form, FORMATS, what="format")
    folder_names.check_folder_name(model, what="model")
    folder_names.check_dataset_name(dataset)
    rows = manifests.union(view)
    path = files.join(root, model, dataset)
    with contextlib.ExitStack() as streams:
        dim, read, fingerprint = FORMATS[form](source, view, rows, streams)
        writer = streams.enter_context(
            create_store(
                path,
                manifest=rows,
                dim=dim,
                chunk_rows=CHUNK_ROWS,
                identity={
                    "encoder": {"model": model, "weights": "embeddings made elsewhere"},
                    "source": {"format": form, "sha256": fingerprint},
                },
                overwrite=overwrite,
            )
        )
        if writer.info["complete"]:
            return open_store(path)
        done = len(rows) - sum(
            s.stop - s.start for s in map(writer.chunk_slice, writer.missing_chunks)
        )
        with Progress(f"import {model}", total=len(rows), unit="row", done=done) as progress:
            for chunk in writer.missing_chunks:
                part = writer.chunk_slice(chunk)
                writer.wait(writer.write(chunk, read(np.arange(part.start, part.stop))))
                progress.update(part.stop - part.start)
        return writer.commit()


def _as_manifests(manifest: Any, columns: Mapping[str, str] | None) -> list[Manifest]:
    """One or several manifests, from files or tables."""
    if isinstance(manifest, list | tuple):
        return [m for part in manifest for m in _as_manifests(part, columns)]
    if isinstance(manifest, str):
        return [manifests.read_manifest(manifest, columns=columns)]
    if isinstance(manifest, Manifest):
        return [manifests.relabel(manifest, columns)]
    return [manifests.as_manifest(manifest, columns=columns)]


def _read_pathorob(
    source: str, view: Sequence[Manifest], rows: Manifest, streams: contextlib.ExitStack
) -> tuple[int, Rows, str]:
    """Read PathoROB's ``<centre>.npz`` (spaces as underscores) with one member per patch key."""
    del view
    if not os.path.isdir(source):
        raise FileNotFoundError(f"{source}: no such folder of PathoROB features.")
    files_there = Spellings(os.listdir(source), where=source)
    names = {}
    for center in rows.factorize(CENTER).names:
        wanted_name = f"{center.replace(' ', '_')}.npz"
        names[center] = files_there.find(wanted_name) or wanted_name
    archives = {c: _open_npz(os.path.join(source, name), streams) for c, name in names.items()}
    centers, keys = rows.column(CENTER), rows.keys.to_pylist()
    _check_distinct(rows, [(names[c], key) for c, key in zip(centers, keys, strict=True)])
    first = _member(archives[centers[0]], keys[0], source, names[centers[0]])

    def read(wanted: np.ndarray) -> np.ndarray:
        out = np.empty((len(wanted), first.size), np.float32)
        for i, row in enumerate(wanted):
            center = centers[row]
            value = _member(archives[center], keys[row], source, names[center])
            if value.size != first.size:
                raise InputError(
                    f"{os.path.join(source, names[center])}: member {keys[row]} has {value.size} "
                    f"values, the first patch {first.size}. All must come from one encoder."
                )
            with np.errstate(over="ignore"):  # the store refuses infinite values
                out[i] = value
        return out

    # Checksums from each archive, because recomputed features have the same sizes.
    members = [
        (canonical(name), m.filename, m.CRC)
        for c, name in names.items()
        for m in archives[c].file.zip.infolist()
    ]
    return first.size, read, digests.digest(*(repr(m).encode() for m in sorted(members)))


def _check_distinct(rows: Manifest, members: Sequence[tuple[str, str]]) -> None:
    """Check that no two patches are one member of one file."""
    first: dict[tuple[str, str], int] = {}
    for row, member in enumerate(members):
        other = first.setdefault(member, row)
        if other != row:
            slides, patches = rows.column(SLIDE), rows.column(PATCH)
            raise InputError(
                f"{rows.source}: patch {patches[other]!r} of slide {slides[other]!r} and patch "
                f"{patches[row]!r} of slide {slides[row]!r} are both {member[1]!r} in {member[0]}, "
                "as PathoROB names them. Import them from an array (--format=npy), or rename one."
            )


class _Archive(NamedTuple):
    """An open ``.npz`` and the spelling of its members."""

    file: Any
    members: Spellings


def _open_npz(path: str, streams: contextlib.ExitStack) -> _Archive:
    if not os.path.exists(path):
        raise FileNotFoundError(
            f"{path}: no such file; PathoROB's feature folder holds one .npz for each medical "
            "centre of the manifest, spaces in its name as underscores."
        )
    try:
        # Open the stream here, because NumPy does not close its own if the archive is damaged.
        stream = streams.enter_context(open(path, "rb"))  # noqa: SIM115
        archive = np.load(stream, allow_pickle=False)
    except files.UNREADABLE as error:
        raise InputError(f"{path}: cannot be read as .npz ({error}). Copy it again.") from error
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise InputError(f"{path}: expected an .npz archive, found a single array.")
    return _Archive(archive, Spellings(archive.files, where=path))


def _member(archive: _Archive, key: str, source: str, name: str) -> np.ndarray:
    where = os.path.join(source, name)
    spelt = archive.members.find(key)
    if spelt is None:
        raise InputError(
            f"{where}: lacks patch {key}. Extract its features too, or leave it out of the "
            "manifest."
        )
    try:
        value = np.asarray(archive.file[spelt])
    except files.UNREADABLE as error:
        raise InputError(
            f"{where}: member {key} cannot be read ({error}). Copy it again."
        ) from error
    if value.dtype.kind != "f" or not value.size or value.shape[-1:] != (value.size,):
        raise InputError(
            f"{where}: member {key}: expected one vector of floats, found {value.dtype} of shape "
            f"{value.shape}."
        )
    return value.reshape(-1)


def _read_npy(
    source: str, view: Sequence[Manifest], rows: Manifest, streams: contextlib.ExitStack
) -> tuple[int, Rows, str]:
    """Read an array whose row i belongs to row i of the single manifest."""
    del streams  # mapped, not streamed
    if len(view) != 1:
        raise UsageError(f"manifest: format npy takes exactly one manifest, found {len(view)}.")
    if not os.path.exists(source):
        raise FileNotFoundError(f"{source}: no such array.")
    try:
        array = np.lib.format.open_memmap(source, mode="r")
    except files.UNREADABLE as error:
        raise InputError(f"{source}: cannot be read as .npy ({error}).") from error
    checks.check_shape(
        array.shape,
        (len(view[0]), None),
        name=source,
        why=f"(rows of {view[0].source}, dimensions)",
    )
    if array.dtype.kind != "f" or not array.shape[1]:
        raise InputError(f"{source}: expected floats, found {array.dtype} of shape {array.shape}.")
    # A patch that repeats has the embedding of its first row.
    position = manifests.locate(rows, view[0])

    def read(wanted: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):  # the store refuses infinite values
            return np.asarray(array[position[wanted]], np.float32)

    return array.shape[1], read, digests.digest_array(array)


Reader = Callable[[str, Sequence[Manifest], Manifest, contextlib.ExitStack], tuple[int, Rows, str]]
FORMATS: dict[str, Reader] = {
    "pathorob_npz": _read_pathorob,
    "npy": _read_npy,
}
