"""Versions of packages, disks, folders that are written, shared memory."""

import errno
import os
import platform
import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata

from packaging.requirements import Requirement

from pathorob_jax.cli.doctor.findings import FAIL, OK, WARN, Finding
from pathorob_jax.core import faults, files
from pathorob_jax.core.checks import InputError
from pathorob_jax.version import __version__

GIB = 2**30
# Less is a full disk; PathoROB's images and a large encoder need about this much.
FULL_BYTES, LITTLE_BYTES = GIB, 10 * GIB
SHARED_MEMORY = "/dev/shm"
# What processes that decode images share with the one that embeds them.
SHARED_BYTES = 2 * GIB
SHOWN = ("jax", "jaxlib", "flax", "numpy", "tensorstore", "pyarrow", "huggingface_hub")
_PLUGINS = ("jax-cuda12-plugin", "jax-cuda13-plugin", "jax-rocm60-plugin")


def check_versions() -> list[Finding]:
    """Versions, and whether each package has the others that it asks for."""
    found = {name: _version(name) for name in SHOWN}
    shown = ", ".join(f"{name} {version or 'absent'}" for name, version in found.items())
    state = Finding(
        "versions",
        OK,
        f"pathorob-jax {__version__}, Python {platform.python_version()}, {shown}",
    )
    wrong = [*_unmet("pathorob-jax"), *_unmet("jax")]
    findings = [
        Finding("versions", FAIL, text, f"pip install --upgrade '{wanted}'")
        for text, wanted in dict(wrong).items()
    ]
    jaxlib = found["jaxlib"]
    for plugin in _PLUGINS:
        version = _version(plugin)
        if version is not None and jaxlib is not None and version != jaxlib:
            findings.append(
                Finding(
                    "versions",
                    FAIL,
                    f"{plugin} {version} is not of jaxlib {jaxlib}",
                    f"pip install '{plugin}=={jaxlib}'",
                )
            )
    return findings or [state]


def _unmet(package: str) -> Iterator[tuple[str, str]]:
    """Requirements of an installed package that are not met, and what to install."""
    try:
        wanted = metadata.requires(package) or ()
    except metadata.PackageNotFoundError:  # a clone that is not installed
        return
    for text in wanted:
        need = Requirement(text)
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            continue
        version = _version(need.name)
        asked = f"{need.name}{need.specifier}"
        if version is None:
            yield f"{package} needs {asked}, which is absent", asked
        elif not need.specifier.contains(version, prereleases=True):
            yield f"{package} needs {asked}, found {version}", asked


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def check_disk(path: str, *, of: str, can_fail: bool = True) -> Finding:
    """Space for what will be written below ``path``."""
    if files.is_remote(path):
        return Finding("disk", OK, f"{of} {path}: in an object store")
    there = _nearest(path)
    try:
        disk = os.statvfs(there)
    except OSError as error:
        return Finding("disk", FAIL, f"{of} {path}: {error.strerror}", "Give another folder.")
    free = disk.f_bavail * disk.f_frsize
    text = f"{of} {path}: {_show(free)} free"
    mend = "Make room, or give another folder."
    if disk.f_files and not disk.f_favail:
        return Finding("disk", FAIL, f"{text}, but no file more (inodes)", mend)
    if free < FULL_BYTES:
        return Finding("disk", FAIL if can_fail else WARN, text, mend)
    if free < LITTLE_BYTES and can_fail:
        return Finding(
            "disk", WARN, f"{text}; images and weights take up to {_show(LITTLE_BYTES)}", mend
        )
    return Finding("disk", OK, text)


def check_access(path: str, *, of: str, mend: str, can_fail: bool = True) -> Finding:
    """Whether a file can be written below ``path``; what is tried is removed again."""
    bad = FAIL if can_fail else WARN
    if files.is_remote(path):
        return Finding("access", OK, f"{of} {path}: an object store tells when it is written to")
    reason = _why_not_writable(path)
    if reason:
        return Finding("access", bad, f"{of} {path}: cannot be written ({reason})", mend)
    return Finding("access", OK, f"{of} {path}: can be written")


def _why_not_writable(path: str) -> str:
    """Why no file can be written below a path; "" if one can, or could if the disk had room."""
    full = os.strerror(errno.ENOSPC)
    try:
        faults.check_writable(path)
    except InputError as error:
        reason = str(error).partition("cannot be written (")[2].partition(")")[0] or str(error)
        if reason != full:
            return reason
    try:
        handle, name = tempfile.mkstemp(prefix=".doctor.", dir=_nearest(path))
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(b"\0" * 4096)
                stream.flush()
                os.fsync(stream.fileno())
        finally:
            os.unlink(name)
    except OSError as error:
        return "" if error.errno == errno.ENOSPC else str(error.strerror)
    return ""


def check_shared_memory(workers: int, path: str = SHARED_MEMORY) -> Finding:
    """Shared memory for processes that decode images."""
    name, without = "/dev/shm", "--workers=0 needs none"
    if not os.path.isdir(path):
        return Finding(name, OK, f"{path}: not on this system; {without}")
    disk = os.statvfs(path)
    free, size = disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize
    text = f"{_show(free)} free of {_show(size)}"
    if free >= SHARED_BYTES:
        return Finding(name, OK, text)
    return Finding(
        name,
        FAIL if workers else WARN,
        f"{text}; processes that decode images (--workers) need {_show(SHARED_BYTES)}",
        f"In a container: docker run --shm-size=2g; {without}.",
    )


def check_folders(
    outputs: Sequence[str], caches: Sequence[tuple[str, str, str, bool]]
) -> list[Finding]:
    """Disk and access of the folders of outputs and of caches.

    Args:
        outputs: folders of the user.
        caches: (what, folder, mend, whether the work needs it) of each cache.
    """
    places = [("output", path, "Give another --output, or change its permissions.", True)
              for path in outputs]  # fmt: skip
    places += caches
    checks: list[Callable[[str, str, str, bool], Finding]] = [
        lambda of, path, mend, needed: check_disk(path, of=of, can_fail=needed),
        lambda of, path, mend, needed: check_access(path, of=of, mend=mend, can_fail=needed),
    ]
    return [check(*place) for check in checks for place in places]


def _nearest(path: str) -> str:
    """The folder that is there, at or above a path."""
    there = os.path.abspath(os.path.expanduser(path))
    while not os.path.isdir(there) and there != os.path.dirname(there):
        there = os.path.dirname(there)
    return there


def _show(n_bytes: float) -> str:
    return f"{n_bytes / GIB:.1f} GiB" if n_bytes >= 0.1 * GIB else f"{n_bytes / 2**20:.0f} MiB"
