"""Large files and folders that are written piece by piece and appear only when they are whole.

What is written lies beside its place under a hidden name. When the block ends it takes the place;
when the block fails it is removed.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator

from pathorob_jax.core import faults, files
from pathorob_jax.core.checks import InputError


def check_place(path: str, *, overwrite: bool) -> None:
    """Check that a local file or folder may be written at ``path``.

    Raises:
        InputError: the path is remote, or something is there that may not be replaced.
    """
    if files.is_remote(path):
        raise InputError(
            f"{path}: expected a local path; write there and copy the result to its place."
        )
    if os.path.lexists(path) and not overwrite:
        raise InputError(f"{path}: is there already. Give --overwrite to replace it.")


@contextlib.contextmanager
def new_file(path: str) -> Iterator[str]:
    """A block that writes the file whose name it is given, which then becomes ``path``.

    Raises:
        WriteError: the disk is full or fails, or ``path`` is a folder.
    """
    with _beside(path) as folder:
        fresh = os.path.join(folder, os.path.basename(path))
        yield fresh
        with faults.writing(path):
            with open(fresh, "rb") as stream:
                os.fsync(stream.fileno())
            os.replace(fresh, path)


@contextlib.contextmanager
def new_folder(path: str) -> Iterator[str]:
    """A block that fills the folder whose name it is given, which then becomes ``path``.

    Raises:
        WriteError: the disk is full or fails.
    """
    with _beside(path) as folder:
        fresh = os.path.join(folder, "new")
        os.mkdir(fresh)
        yield fresh
        with faults.writing(path):
            for name in os.listdir(fresh):
                with open(os.path.join(fresh, name), "rb") as stream:
                    os.fsync(stream.fileno())
            files.put_folder(fresh, path, aside=os.path.join(folder, "old"))


@contextlib.contextmanager
def _beside(path: str) -> Iterator[str]:
    with faults.writing(path):
        parent = os.path.dirname(path)
        os.makedirs(parent, exist_ok=True)
        folder = tempfile.mkdtemp(
            prefix=f".{os.path.basename(path)}.", suffix=files.PARTIAL, dir=parent
        )
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
