"""Replace a store by one that was written beside it, once the new one is complete.

The new store is written to ``.<dataset>.new`` beside the old one, which stays whole and readable
until then. A swap that was killed between its two renames is undone by ``recover``: afterwards the
old store is in its place and the new one is still beside it.
"""

import os
import shutil

import pyarrow.fs as pafs

from pathorob_jax.core import files
from pathorob_jax.embeddings.store_files import INFO


def aside(path: str) -> str:
    """Where the store is written that is to replace the one at ``path``."""
    return beside(path, "new")


def beside(path: str, suffix: str) -> str:
    """A hidden path beside a store, of the same file system."""
    folder, _, name = path.rstrip("/").rpartition("/")
    return files.join(folder or ".", f".{name}.{suffix}")


def recover(path: str) -> None:
    """Finish or undo a swap that was killed. Called while the store is locked."""
    if files.is_remote(path):
        return
    old = _local(beside(path, "old"))
    if os.path.lexists(old) and not os.path.lexists(_local(path)):
        os.rename(old, _local(path))
    _remove_local(old)


def swap(path: str) -> None:
    """Put the store of ``aside(path)`` in the place of the one at ``path``, which is removed."""
    if files.is_remote(path):
        _copy_objects(aside(path), path)
        return
    old = _local(beside(path, "old"))
    _remove_local(old)
    if os.path.lexists(_local(path)):
        os.rename(_local(path), old)
    os.rename(_local(aside(path)), _local(path))
    _remove_local(old)


def remove(path: str) -> None:
    """Remove the store at ``path``, if there is one."""
    if not files.is_remote(path):
        _remove_local(_local(path))
    elif files.exists(path):
        fs, inner = files.filesystem(path)
        fs.delete_dir_contents(inner)


def _copy_objects(source: str, target: str) -> None:
    """Object stores cannot rename: copy all, ``store.json`` last, and remove the source.

    Killed halfway it leaves the complete source, which the next writer takes up.
    """
    remove(target)
    fs, start = files.filesystem(source)
    _, end = files.filesystem(target)
    found = fs.get_file_info(pafs.FileSelector(start, recursive=True))
    names = [f.path.removeprefix(start) for f in found if f.type == pafs.FileType.File]
    for name in sorted(names, key=lambda name: name == f"/{INFO}"):
        fs.create_dir(os.path.dirname(end + name))
        fs.copy_file(start + name, end + name)
    remove(source)


def _local(path: str) -> str:
    return files.filesystem(path)[1]


def _remove_local(path: str) -> None:
    if os.path.islink(path):
        os.unlink(path)
    elif os.path.exists(path):
        shutil.rmtree(path)
