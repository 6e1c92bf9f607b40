"""PathoROB's feature folders: ``<centre>.npz``, spaces as underscores, one member per patch key."""

import contextlib
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from pathorob_jax.core import digests, files
from pathorob_jax.core.checks import InputError
from pathorob_jax.data.manifest import CENTER, PATCH, SLIDE, Manifest
from pathorob_jax.data.names import Spellings, canonical
from pathorob_jax.embeddings.imports.source import Take


def read_pathorob(
    source: str, rows: Manifest, streams: contextlib.ExitStack
) -> tuple[int, Take, str]:
    """Read the patches of a manifest.

    Args:
        source: the folder with one ``.npz`` for each medical centre.
        rows: the patches.
        streams: closes the files.

    Returns:
        D, a function from rows to their embeddings float32[n, D], and hex sha256 of all members.

    Raises:
        FileNotFoundError: no such folder, or a centre has no file.
        InputError: a patch is missing or damaged, or two are one member.
    """
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
