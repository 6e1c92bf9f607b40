"""Faults of the machine: a full or read-only disk, a quota, too little memory.

``writing`` is a block that writes one file or folder; ``check_writable`` finds what can be found
before the work; ``explain`` gives one message for what a library raised.
"""

import contextlib
import errno
import os
import re
from collections.abc import Iterator

from pathorob_jax.core.checks import InputError

# Less than this is a full disk: no result fits.
MIN_FREE_BYTES = 2**20
# Longer ones are cut in messages.
_MAX_PATH = 300
_AGAIN = "the same command goes on where this one stopped."
_ROOM = f"Make room or give another --output; {_AGAIN}"
_RIGHTS = f"Change its permissions or give another --output; {_AGAIN}"
_MENDS = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: f"Remove files of yours or give another --output; {_AGAIN}",
    errno.EFBIG: f"Raise the limit (ulimit -f) or give another --output; {_AGAIN}",
    errno.EROFS: f"Give another --output; {_AGAIN}",
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.ENAMETOOLONG: "Give a shorter --output or shorter names.",
    errno.ENOTDIR: "A file lies where a folder is wanted; give another --output.",
    errno.EISDIR: "A folder lies where a file is wanted; give another --output.",
}


# The others are met in reading too.
_OF_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


class WriteError(InputError, OSError):
    """Something cannot be written, and so nothing else there can be either."""


@contextlib.contextmanager
def writing(path: str) -> Iterator[None]:
    """A block that writes ``path``.

    Raises:
        WriteError: the disk or TensorStore failed; the message has the path and the mend.
    """
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise WriteError(_describe(path, error)) from error


def check_writable(path: str) -> None:
    """Check before the work that the folder ``path`` can be written; nothing is made.

    Raises:
        WriteError: the path is empty or a file, its folder may not be written, or the disk is full.
    """
    if not path.strip():
        raise WriteError("output: expected a folder, found none; give --output=<folder>.")
    if "\0" in path:
        raise WriteError(f"output: expected a folder without NUL in its name, found {path!r}.")
    if "://" in path:
        return  # an object store tells when it is written to
    there = os.path.abspath(os.path.expanduser(path))
    while not os.path.lexists(there) and there != os.path.dirname(there):
        there = os.path.dirname(there)
    number = 0
    if not os.path.isdir(there):
        number = errno.ENOTDIR
    elif not os.access(there, os.W_OK | os.X_OK):
        is_fixed = os.statvfs(there).f_flag & os.ST_RDONLY
        number = errno.EROFS if is_fixed else errno.EACCES
    elif os.statvfs(there).f_bavail * os.statvfs(there).f_frsize < MIN_FREE_BYTES:
        number = errno.ENOSPC
    if number:
        raise WriteError(_describe(path, OSError(number, os.strerror(number))))


def explain(error: BaseException, *, lower: str = "") -> str | None:
    """One message for a fault of the machine, path included where it is known; None: no fault.

    Args:
        error: what was raised.
        lower: what uses less memory, such as flags.
    """
    if isinstance(error, InputError):
        return None
    if isinstance(error, OSError) and error.errno in _OF_WRITING:
        return _describe(_path_of(error), error)
    if isinstance(error, OSError) and error.errno:
        path = _path_of(error)
        path = path if len(path) <= _MAX_PATH else path[:_MAX_PATH] + "..."
        reason = os.strerror(error.errno)
        return f"{path or 'a file'}: {reason}. Check the path and its permissions."
    text = str(error)
    if _errno_of(text):
        return _describe("", error)
    is_xla = type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError")
    if isinstance(error, MemoryError) or (is_xla and "RESOURCE_EXHAUSTED" in text):
        mend = f"Lower {lower}, or take" if lower else "Take"
        return (
            f"out of memory ({_first_line(text) or 'this machine has no more'}). {mend} a machine "
            f"with more; {_AGAIN}"
        )
    return None


def _describe(path: str, error: BaseException) -> str:
    number = error.errno if isinstance(error, OSError) else _errno_of(str(error))
    reason = os.strerror(number) if number in _MENDS else _first_line(str(error))
    return f"{path or 'a file'}: cannot be written ({reason}). {_MENDS.get(number or 0, _ROOM)}"


def _path_of(error: OSError) -> str:
    names = [name for name in (error.filename2, error.filename) if isinstance(name, str)]
    # pyarrow has it in its text only.
    names += re.findall(r"'([^']+)'", str(error.strerror))
    return str(names[0]) if names else ""


def _errno_of(text: str) -> int | None:
    """The fault that the text of another library's error names."""
    found = [number for number in _OF_WRITING if os.strerror(number).lower() in text.lower()]
    return found[0] if found else None


def _first_line(text: str) -> str:
    """First line, cut between words."""
    line = (text.splitlines() or [""])[0]
    return line if len(line) <= 200 else line[:200].rsplit(" ", 1)[0] + " ..."
