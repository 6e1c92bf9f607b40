"""Where the paths inside a tileset may lead: one rule for ``manifest.csv`` and ``image.path``.

Tilesets come from elsewhere. A path in one could read any file of the machine, or make it call a
server and sign the call with the user's key. By default, paths are relative to the folder of the
tileset and stay inside it; a remote tileset may also name its own files by URL. The rule looks at
the text of a path: a symbolic link inside the folder leads where its owner put it.
"""

import contextlib
import os
import posixpath
import re
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple
from urllib.parse import unquote, urlsplit

import pyarrow.fs as pafs

from pathorob_jax.core import checks, files
from pathorob_jax.core.checks import InputError
from pathorob_jax.data.decode import TileError

AllowPaths = Literal["inside", "local", "any"]
"""Paths that a tileset may hold: relative ones inside its folder; any on this machine; URLs too."""
ALLOW_PATHS = ("inside", "local", "any")
_WINDOWS_DRIVE = re.compile(r"^[A-Za-z]:[\\/]")


class _Place(NamedTuple):
    """Where a path of a tileset leads, and the least that admits it."""

    target: str
    needs: AllowPaths


def _locate(root: str, path: str) -> _Place:
    if path.lower().startswith("file:"):
        return _Place(unquote(urlsplit(path).path), "local")
    if files.is_remote(path):
        inner = path.removeprefix(root.rstrip("/") + "/")
        under = files.is_remote(root) and inner != path and not _can_leave(inner)
        return _Place(path, "inside" if under else "any")
    if path.startswith("/") or _WINDOWS_DRIVE.match(path):
        return _Place(path, "local")
    inner, target = posixpath.normpath(path), root
    while inner.split("/")[0] == "..":
        above = target if files.is_remote(root) else os.path.abspath(os.path.expanduser(target))
        target, inner = above.rstrip("/").rpartition("/")[0] or "/", inner[3:] or "."
    if files.is_remote(root):
        return _Place(files.join(target, inner), "any" if _can_leave(path) else "inside")
    return _Place(files.join(target, inner), "inside" if target == root else "local")


def _can_leave(inner: str) -> bool:
    """Whether the end of a URL may be more than the name of a file under its beginning.

    After a "?" would be options, such as another server; "%2e" stands for a dot.
    """
    return bool(set("?#%\\") & set(inner)) or ".." in posixpath.normpath(inner).split("/")


def resolve(
    root: str, paths: Iterable[str], *, allow: AllowPaths = "inside", where: Iterable[str]
) -> list[str]:
    """The full paths of the files that a tileset names.

    Args:
        root: folder of the tileset.
        paths: as they stand in the tileset.
        allow: which paths are admitted.
        where: the place of each path, for messages.

    Raises:
        UsageError: ``allow`` is none of the choices.
        InputError: a path leads elsewhere than ``allow`` admits; the message names the flag, and
            how many such paths there are.
    """
    checks.check_known(allow, ALLOW_PATHS, what="allow_paths")
    admitted = ALLOW_PATHS.index(allow)
    targets: list[str] = []
    first: tuple[str, str] | None = None
    n_out, most = 0, 0
    for path, place_of in zip(paths, where, strict=True):
        if "\0" in path:
            raise InputError(
                f"{place_of}: the path {path!r} holds a NUL, as no file does. Mend it."
            )
        place = _locate(root, path)
        needs = ALLOW_PATHS.index(place.needs)
        if needs > admitted:
            first = first or (path, place_of)
            n_out, most = n_out + 1, max(most, needs)
        targets.append(place.target)
    if first is not None:
        raise _leads_out(*first, ALLOW_PATHS[most], n_out)
    return targets


def _leads_out(path: str, where: str, needs: str, n: int) -> InputError:
    shown = re.sub(r"//[^/@]*@", "//", path).partition("?")[0]  # no credentials
    kind = "leads out of the tileset's folder"
    if files.is_remote(path) or path.lower().startswith("file:"):
        kind = "is a URL"
    elif path.startswith("/") or _WINDOWS_DRIVE.match(path):
        kind = "is absolute"
    others = f" ({n} such paths)" if n > 1 else ""
    reach = "read any file of this machine" if needs == "local" else "ask servers, with your keys"
    return InputError(
        f"{where}: the path {shown!r} {kind}{others}. Write paths relative to the folder of the "
        f"tileset, and inside it. Or let the tileset {reach}, if you trust whoever made it: "
        f"--allow_paths={needs}."
    )


def read_image(name: str) -> bytes:
    """Contents of an image file.

    Raises:
        TileError: there is no such file.
        InputError: it cannot be read.
    """
    try:
        return files.read_bytes(name)
    except FileNotFoundError as error:
        raise TileError(
            name,
            "no such file, though the tileset lists it",
            f"{_find_respelt(name)}Put it back, or leave its row out of the tileset.",
        ) from error
    except OSError as error:  # network or permissions, not the image
        raise InputError(f"{name}: cannot be read ({error}). Mend that and run again.") from error


def _find_respelt(name: str) -> str:
    """A hint where a file that is missing is there in another spelling; "" if it is not."""
    if files.is_remote(name):
        return ""
    slashes = name.replace("\\", "/")
    if slashes != name and os.path.exists(slashes):
        return f"{slashes} is there: write paths with '/', not with '\\'. "
    found = "/" if name.startswith("/") else "."
    for part in slashes.split("/"):
        if part in ("", "."):
            continue
        try:
            entries = os.listdir(found)
        except OSError:
            return ""
        same = [e for e in entries if e.casefold() == part.casefold()]
        if part not in entries and len(same) != 1:
            return ""
        found = posixpath.join(found, part if part in entries else same[0])
    return f"{found} is there: upper and lower case differ. "


def stat_all(root: str, targets: Sequence[str]) -> list[tuple[int, int]]:
    """Size in bytes and time of change in nanoseconds of each file; zeros where it is missing.

    Args:
        root: folder of the tileset; the files under it are asked for together.
        targets: full paths.
    """
    fs, inner = files.filesystem(root)
    prefix = root.rstrip("/") + "/"
    own, others = [], []
    for at, target in enumerate(targets):
        if target.startswith(prefix):
            own.append((at, files.join(inner, target[len(prefix) :])))
        else:
            others.append((at, target))
    found = dict.fromkeys(range(len(targets)), (0, 0))
    try:
        infos = fs.get_file_info([path for _, path in own])
        found |= {at: _stat(info) for (at, _), info in zip(own, infos, strict=True)}
    except OSError:  # one name that the file system cannot even look up
        others = list(enumerate(targets))
    for at, target in others:
        with contextlib.suppress(OSError):  # the reader says what is wrong
            system, path = files.filesystem(target)
            found[at] = _stat(system.get_file_info(path))
    return [found[at] for at in range(len(targets))]


def _stat(info: pafs.FileInfo) -> tuple[int, int]:
    return (info.size or 0, info.mtime_ns or 0) if info.type == pafs.FileType.File else (0, 0)
