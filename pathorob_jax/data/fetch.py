"""Fetch the benchmark: images from the Hugging Face hub, tables of patches from GitHub.

Every file is checked against its size and sha256, each time: those of ``sources``, and from the
first use on those that the lock file of the folder holds. A download that is cut goes on where it
stopped. Nothing else in this package connects to the network by itself.
"""

import hashlib
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from absl import logging

from pathorob_jax.core import checks, faults, files, locks, sealed_files
from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.data import downloads
from pathorob_jax.data.downloads import DownloadError, UnreachableError
from pathorob_jax.data.sources import GITHUB_RAW, SOURCES, Source

LOCK_FILE = "fetched.json"
SCHEMA_VERSION = 1
# Holds partial files.
PARTS = ".fetch"
_BLOCK = 2**20


@dataclass(frozen=True)
class Fetched:
    """What a fetch did.

    Attributes:
        present: files that lay in the data folder, or in the cache of the hub, and are right.
        downloaded: files that were downloaded.
        missing: files that a dry run would download.
    """

    present: tuple[str, ...] = ()
    downloaded: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


def fetch(
    datasets: Sequence[str],
    data_dir: str,
    *,
    dry_run: bool = False,
    endpoint: str | None = None,
    github: str = GITHUB_RAW,
    sources: Mapping[str, Sequence[Source]] = SOURCES,
) -> Fetched:
    """Fetch datasets into ``<data_dir>/<dataset>/`` (tilesets) and ``<data_dir>/metadata/``.

    Args:
        datasets: names; each of ``sources``.
        data_dir: a local folder. Files that lie there are checked and kept.
        dry_run: say what would be downloaded, and download nothing.
        endpoint: address of the hub; None: ``$HF_ENDPOINT``, else huggingface.co.
        github: address of GitHub's raw files, or of a mirror.
        sources: the files of every dataset.

    Raises:
        UsageError: an unknown dataset, or a remote folder.
        InputError: files can be neither found nor downloaded; one message says which, and where to
            put them if they are brought by hand.
        HeldError: another process fetches into the folder.
        WriteError: the disk is full or fails.
    """
    if not datasets:
        raise UsageError(f"datasets: expected some of {', '.join(sources)}, found none.")
    for name in datasets:
        checks.check_known(name, sources, what="datasets")
    if not data_dir or files.is_remote(data_dir):
        raise UsageError(f"data_dir: expected a local folder, found {data_dir!r}.")
    folder = os.path.abspath(os.path.expanduser(data_dir))
    with faults.writing(folder):
        os.makedirs(os.path.join(folder, PARTS), exist_ok=True)
    wanted = list(dict.fromkeys(source for name in datasets for source in sources[name]))
    lock = locks.acquire(os.path.join(folder, PARTS, "lock"), doing="fetching into this folder")
    try:
        return _Folder(folder, endpoint, github).fetch(wanted, dry_run=dry_run)
    finally:
        lock.release()


def survey(
    datasets: Sequence[str], data_dir: str, *, sources: Mapping[str, Sequence[Source]] = SOURCES
) -> list[Source]:
    """Files of datasets that must be downloaded or checked; nothing is read, written or asked.

    A file that lies there with the size that its lock entry holds was checked when it came.

    Raises:
        InputError: the lock file cannot be read.
    """
    folder = _Folder(os.path.abspath(os.path.expanduser(data_dir)), None, GITHUB_RAW)
    wanted = dict.fromkeys(source for name in datasets for source in sources[name])
    return [source for source in wanted if not folder.was_checked(source)]


class _Folder:
    """A data folder and what its lock file knows."""

    def __init__(self, path: str, endpoint: str | None, github: str):
        self._path, self._endpoint, self._github = path, endpoint, github
        self._lock = os.path.join(path, LOCK_FILE)
        self._known: dict[str, dict[str, Any]] = {}
        if os.path.exists(self._lock):
            try:
                read = sealed_files.read_json(self._lock, schema_version=SCHEMA_VERSION)
            except InputError as error:
                raise InputError(
                    f"{error} Restore it; or remove it, and what is recorded at first use is "
                    "recorded again."
                ) from error
            self._known = read["files"]

    def fetch(self, wanted: Sequence[Source], *, dry_run: bool) -> Fetched:
        missing = [source for source in wanted if not self._is_here(source)]
        present = tuple(source.path for source in wanted if source not in missing)
        if missing:
            self._check_room(missing)
            logging.info("to download: %s", self._describe(missing))
        if dry_run:
            return Fetched(present, missing=tuple(source.path for source in missing))
        if missing and downloads.is_offline():
            raise InputError(self._bring(missing, "HF_HUB_OFFLINE is set"))
        for i, source in enumerate(missing):
            try:
                self._download(source)
            except UnreachableError as error:
                raise InputError(self._bring(missing[i:], f"no answer ({error})")) from error
        return Fetched(present, tuple(source.path for source in missing))

    def was_checked(self, source: Source) -> bool:
        """Whether a file was checked once, and has the size that it had."""
        known, target = self._known.get(source.path), self._target(source)
        if known is None or known["revision"] != source.revision or not os.path.exists(target):
            return False
        return bool(os.path.getsize(target) == known["n_bytes"])

    def _target(self, source: Source) -> str:
        return os.path.join(self._path, *source.path.split("/"))

    def _part(self, source: Source) -> str:
        name = source.path.replace("/", "_")
        return os.path.join(self._path, PARTS, f"{name}.{source.revision[:12]}.part")

    def _expected(self, source: Source) -> tuple[int | None, str]:
        """Size and digest, or its beginning, of a file."""
        known = self._known.get(source.path)
        if known is None or known["revision"] != source.revision:
            return source.n_bytes, source.sha256
        return known["n_bytes"], known["sha256"]

    def _is_here(self, source: Source) -> bool:
        """Whether the file lies in the folder or the cache of the hub, and is right."""
        target = self._target(source)
        if os.path.exists(target):
            problem = self._check(source, target)
            if not problem:
                return True
            logging.warning("%s: %s; it is fetched again", target, problem)
        cached = downloads.find_cached(source)
        if cached is None:
            return False
        problem = self._check(source, cached)
        if problem:
            logging.warning("%s: %s; it is not used", cached, problem)
            return False
        _link(os.path.realpath(cached), target)
        logging.info("%s: in the cache of the hub", source.path)
        return True

    def _check(self, source: Source, path: str, *, sha256: str = "") -> str:
        """What is wrong with a file; "": nothing, and its digest is in the lock file."""
        n_bytes, expected = self._expected(source)
        expected = max(expected, sha256, key=len)
        found_bytes = os.path.getsize(path)
        if n_bytes is not None and found_bytes != n_bytes:
            return f"has {found_bytes} bytes, expected {n_bytes}"
        found = _sha256(path)
        if not found.startswith(expected):
            return f"has sha256 {found[:12]}, expected {expected[:12]}"
        entry = {
            "repo": source.repo,
            "revision": source.revision,
            "name": source.name,
            "licence": source.licence,
            "n_bytes": found_bytes,
            "sha256": found,
        }
        if self._known.get(source.path) != entry:
            self._known[source.path] = entry
            in_order = dict(sorted(self._known.items()))
            sealed_files.write_json(
                self._lock, {"schema_version": SCHEMA_VERSION, "files": in_order}
            )
        return ""

    def _download(self, source: Source) -> None:
        """Download, check and place a file. What came damaged is downloaded once more."""
        part, problem = self._part(source), ""
        for _ in range(2):
            remote = downloads.locate(source, endpoint=self._endpoint, github=self._github)
            downloads.download(source, remote, part)
            problem = self._check(source, part, sha256=remote.sha256)
            if not problem:
                target = self._target(source)
                with faults.writing(target):
                    os.makedirs(os.path.dirname(target), exist_ok=True)
                    os.replace(part, target)
                logging.info("%s: downloaded and checked", source.path)
                return
            os.unlink(part)
        raise DownloadError(
            f"{source.repo}: {source.name} came damaged twice ({problem}); nothing of it was kept. "
            "A proxy may change it: fetch it on another network, or report it."
        )

    def _check_room(self, missing: Iterable[Source]) -> None:
        needed = 0
        for source in missing:
            part = self._part(source)
            there = os.path.getsize(part) if os.path.exists(part) else 0
            needed += max(0, (self._expected(source)[0] or 0) - there)
        free = shutil.disk_usage(self._path).free
        if needed > free:
            raise faults.WriteError(
                f"{self._path}: too little room: {describe_bytes(needed)} are to be downloaded, "
                f"{describe_bytes(free)} are free. Make room, or give another --data_dir."
            )

    def _describe(self, missing: Sequence[Source]) -> str:
        """How many files and bytes, from where, under which licence."""
        lines = [_count(missing)]
        for repo in dict.fromkeys(source.repo for source in missing):
            part = [source for source in missing if source.repo == repo]
            one = part[0]
            site = "https://huggingface.co/datasets" if one.is_on_hub else "https://github.com"
            if one.is_on_hub and (self._endpoint or os.environ.get("HF_ENDPOINT")):
                site = (self._endpoint or os.environ["HF_ENDPOINT"]).rstrip("/") + "/datasets"
            elif not one.is_on_hub and self._github != GITHUB_RAW:
                site = self._github.rstrip("/")
            lines.append(
                f"  {_count(part)} from {site}/{repo} at {one.revision[:12]}, licence {one.licence}"
            )
        return "\n".join(lines)

    def _bring(self, missing: Sequence[Source], why: str) -> str:
        """The one message where there is no network."""
        lines = [
            f"data_dir: {_count(missing)} missing, and {why}. The same command goes on where this "
            "one stopped. Without a network, put these files there and give it again; it checks "
            "them. A copied cache of the Hugging Face hub (HF_HOME) serves too."
        ]
        for source in missing:
            n_bytes, sha256 = self._expected(source)
            size = f"{n_bytes:,} bytes" if n_bytes is not None else "size unknown"
            known = f", sha256 {sha256}{'...' if len(sha256) < 64 else ''}" if sha256 else ""
            url = downloads.page_of(source, endpoint=self._endpoint, github=self._github)
            lines.append(f"  {self._target(source)} ({size}{known})\n    from {url}")
        return "\n".join(lines)


def _sha256(path: str) -> str:
    sha = hashlib.sha256()
    with open(path, "rb", buffering=0) as stream:
        while block := stream.read(_BLOCK):
            sha.update(block)
    return sha.hexdigest()


def _link(path: str, target: str) -> None:
    """Give a file a second name, or where disks differ a symbolic link: no second copy."""
    with faults.writing(target):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        fresh = f"{target}{files.PARTIAL}"
        if os.path.lexists(fresh):
            os.unlink(fresh)
        try:
            os.link(path, fresh)
        except OSError:
            os.symlink(path, fresh)
        os.replace(fresh, target)


def _count(part: Sequence[Source]) -> str:
    n_files = f"{len(part)} file{'s' if len(part) != 1 else ''}"
    known = sum(source.n_bytes or 0 for source in part)
    more = ", and what has no known size" if any(s.n_bytes is None for s in part) else ""
    return f"{n_files}, {describe_bytes(known)}{more}"


def describe_bytes(n_bytes: int) -> str:
    """A size in words."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if n_bytes >= scale:
            return f"{n_bytes / scale:.1f} {unit}"
    return f"{n_bytes} bytes"
