"""Leases: processes over one folder, on any hosts, share work piece by piece as they go.

A process becomes a ``Member`` of a folder, which holds one file for it; a thread renews the time of
that file. A member takes a piece of work by creating a file that must not exist yet, so that one
member gets it. A piece whose member is gone is taken over under the next number, ``7.1`` after
``7.0``. So files are only ever created, and nobody waits for a lock.

A member is gone when its file is (it left), when the kernel says so (same machine: the file is no
longer locked), or when its file was not renewed for ``LEASE_S``. Times are compared with one
another as the disk or the object store gives them, never with the clock of a host.

Leases save work, they do not guard it: a member that was paused for long may do a piece again that
another one has taken over. What is written must therefore be whole files, the same from all.
"""

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Self

import tensorstore as ts
from absl import logging

from pathorob_jax.core import files

# NFS may show a time of change that is a minute old.
RENEW_S, LEASE_S = 15.0, 120.0
MEMBER = ".host"
# How often a member without work looks whether the pieces of others are done.
LOOK_EVERY_S = 1.0


class Lease(NamedTuple):
    """The newest lease of a piece of work.

    Attributes:
        number: how many members had it before.
        holder: who, in words.
        is_living: whether that member is still there.
    """

    number: int
    holder: str
    is_living: bool


class Member:
    """This process, as one of those that share the work of a folder. As a context it leaves."""

    def __init__(self, folder: str):
        """Join.

        Args:
            folder: local, ``gs://`` or ``s3://``; made if need be. It holds nothing else.
        """
        folder = folder if files.is_remote(folder) else files.filesystem(folder)[1]
        self._folder, self._id = folder, uuid.uuid4().hex[:12]
        self._path = files.join(folder, self._id + MEMBER)
        self._file: Any = None
        about = {"who": f"{socket.gethostname()} (process {os.getpid()})", "machine": machine()}
        if not files.is_remote(folder):
            os.makedirs(folder, exist_ok=True)
            self._file = open(self._path, "x")  # noqa: SIM115 - held until this member leaves
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                about["machine"] = ""  # no locks on this file system: its time alone tells
            self._file.write(json.dumps(about))
            self._file.flush()
        self._about = json.dumps(about).encode()
        if files.is_remote(folder):
            files.write_bytes(self._path, self._about)
        self._left = threading.Event()
        threading.Thread(target=self._renew, daemon=True, name="lease").start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.leave()

    def _renew(self) -> None:
        while not self._left.wait(RENEW_S):
            try:
                self._touch()
            except FileNotFoundError:
                return
            except (OSError, ValueError) as error:
                logging.warning("%s: could not be renewed (%s)", self._path, error)

    def _touch(self) -> int:
        """Renew; return the time of it in ns, by the clock of the disk.

        Raises:
            FileNotFoundError: the file was removed.
        """
        if files.is_remote(self._path):
            files.check_there(self._path)
            files.write_bytes(self._path, self._about)
        else:
            os.utime(self._path)  # without a time: that of the file server
        return files.changed_ns(self._path)

    def is_lost(self) -> bool:
        """Whether the folder, or this member's place in it, was removed."""
        return not files.exists(self._path)

    def take(self, piece: str, *, number: int = 0) -> bool:
        """Take a piece of work; False if another member has it, or the folder is gone.

        Args:
            piece: its name.
            number: 0, or one more than that of the lease of a member that is gone.
        """
        path = files.join(self._folder, f"{piece}.{number}")
        if files.is_remote(path):
            return _create_object(path, self._id.encode())
        try:
            with open(path, "x") as file:
                file.write(self._id)
        except (FileExistsError, FileNotFoundError):
            return False
        return True

    def find_leases(self, pieces: Iterable[str]) -> dict[str, Lease]:
        """The newest lease of each piece of work that has one."""
        try:
            now_ns = self._touch()
        except FileNotFoundError:
            return {}
        return find_leases(self._folder, pieces, now_ns=now_ns)

    def leave(self) -> None:
        """Leave; what is unfinished may be taken by others at once. Further calls do nothing."""
        if not self._left.is_set():
            self._left.set()
            with contextlib.suppress(OSError):
                files.remove(self._path)
            if self._file is not None:
                self._file.close()


def take_missing(member: Member, find_missing: Callable[[], Iterable[str]]) -> Iterator[str]:
    """Take one missing piece after another, until none is missing, whoever made it.

    Args:
        member: this process.
        find_missing: names of the pieces that are not done now. A piece that was taken here must be
            done when the next one is asked for.
    """
    while missing := list(find_missing()):
        held = member.find_leases(missing)
        has_taken = False
        for piece in missing:
            lease = held.get(piece)
            if lease is not None and lease.is_living:
                continue
            if member.take(piece, number=0 if lease is None else lease.number + 1):
                has_taken = True
                yield piece
        if not has_taken:
            time.sleep(LOOK_EVERY_S)


def find_leases(
    folder: str, pieces: Iterable[str], *, now_ns: int | None = None
) -> dict[str, Lease]:
    """The newest lease of each piece of work that has one; nothing is written.

    Args:
        folder: as of ``Member``.
        pieces: their names.
        now_ns: as of ``find_members``.
    """
    newest: dict[str, int] = {}
    wanted = set(pieces)
    with contextlib.suppress(FileNotFoundError):
        for name in files.list_files(folder):
            piece, _, ending = name.rpartition(".")
            if piece in wanted and ending.isdigit():
                newest[piece] = max(newest.get(piece, 0), int(ending))
    living = {one.id: one.who for one in find_members(folder, now_ns=now_ns)}
    found = {}
    for piece, number in newest.items():
        path = files.join(folder, f"{piece}.{number}")
        with contextlib.suppress(FileNotFoundError):
            holder = files.read_bytes(path).decode(errors="replace")
            # One that is being created has no contents yet.
            is_new = not holder and _is_fresh(files.changed_ns(path), now_ns)
            found[piece] = Lease(number, living.get(holder, ""), is_new or holder in living)
    return found


def _is_fresh(changed_ns: int, now_ns: int | None) -> bool:
    return now_ns is None or now_ns - changed_ns < LEASE_S * 1e9


class Present(NamedTuple):
    """A member that is there: its id, and who it is in words."""

    id: str
    who: str


def find_members(folder: str, *, now_ns: int | None = None) -> list[Present]:
    """The members of a folder that are not gone; nothing is written.

    Args:
        folder: as of ``Member``.
        now_ns: time of a file that was written just now to the same disk; None: the newest sign of
            any member.
    """
    try:
        names = files.list_files(folder, MEMBER)
    except FileNotFoundError:
        return []
    found = []
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            path = files.join(folder, name)
            found.append((name.removesuffix(MEMBER), path, files.changed_ns(path)))
    now_ns = now_ns or max((changed_ns for *_, changed_ns in found), default=0)
    present = []
    for member, path, changed_ns in found:
        if _is_fresh(changed_ns, now_ns):
            who = _holder(path)
            if who is not None:
                present.append(Present(member, who))
    return present


def _holder(path: str) -> str | None:
    """Who a member is; None if it is gone as far as its file and the kernel tell."""
    try:
        about = json.loads(files.read_bytes(path))
        if about["machine"] == machine() and not files.is_remote(path) and not _is_locked(path):
            return None
        return str(about["who"])
    except FileNotFoundError:
        return None
    except files.UNREADABLE:
        return "a process that begins"


def _is_locked(path: str) -> bool:
    with open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def machine() -> str:
    """What tells whether two processes have one kernel, which knows whose locks are held."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return socket.gethostname()


def _create_object(path: str, data: bytes, *, kvstore: ts.KvStore | None = None) -> bool:
    """Create an object unless there is one; object stores decide between two that try at once."""
    folder, _, name = path.rpartition("/")
    kvstore = kvstore or ts.KvStore.open(folder + "/").result()
    there = kvstore.read(name).result()
    if there.state != "missing":
        return False
    written = kvstore.write(name, data, if_equal=there.stamp.generation).result()
    return bool(written.generation)
