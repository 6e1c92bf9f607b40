"""Locks that allow one writer at a time and are released when the writer dies.

``acquire`` returns a ``Lock`` or raises an error that names the holder. Local files are locked by
the kernel, which releases the lock whenever the process ends. Object stores have no locks: there a
lease is renewed every minute, and the lease of a killed writer expires.
"""

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
from typing import Protocol

import tensorstore as ts
from absl import logging

from pathorob_jax.core import files
from pathorob_jax.core.checks import InputError

RENEW_S, LEASE_S = 60.0, 600.0
LOOK_EVERY_S = 0.1
WRITING = "writing this store"


class HeldError(InputError):
    """Another process, or another thread of this one, holds the lock."""


class Lock(Protocol):
    """A lock that is held."""

    def check(self) -> None:
        """Raise InputError unless the lock is still held: it can be removed meanwhile."""
        ...

    def release(self) -> None:
        """Release the lock. Further calls do nothing."""
        ...


def acquire(path: str, *, doing: str = WRITING, patience_s: float = 0.0) -> Lock:
    """Acquire the lock at ``path``, a local file or an object of ``gs://`` or ``s3://``.

    Args:
        path: path of the lock.
        doing: what its holder does, in words.
        patience_s: how long to wait for a holder.

    Raises:
        HeldError: another process, or another writer in this process, holds the lock.
    """
    until_s = time.monotonic() + patience_s
    while True:
        try:
            return _acquire(path, doing)
        except HeldError:
            if time.monotonic() > until_s:
                raise
            time.sleep(LOOK_EVERY_S)


def _acquire(path: str, doing: str) -> Lock:
    if files.is_remote(path):
        folder, _, name = path.rpartition("/")
        return Lease(ts.KvStore.open(folder + "/").result(), name, where=path, doing=doing)
    return _FileLock(os.path.abspath(os.path.expanduser(path)), doing)


def drop_abandoned(path: str) -> None:
    """Remove the lock of a local file whose holder was killed; a lock that is held stays."""
    if not files.is_remote(path) and files.exists(path):
        with contextlib.suppress(HeldError):
            acquire(path).release()


def _me() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def refusal(path: str, holder: str, doing: str, mend: str) -> HeldError:
    """The error about what another process holds."""
    return HeldError(f"{path}: {holder or 'another process'} is {doing}. {mend}")


def loss(path: str) -> InputError:
    """The error about a lock that was removed."""
    return InputError(
        f"{path}: was removed or replaced while this process was writing the store, and another "
        "one may be writing it by now. Nothing more is written. Give the command again when no "
        "other process writes this store; it goes on where this one stopped."
    )


class _FileLock:
    """``flock`` on a file that is removed on release."""

    def __init__(self, path: str, doing: str):
        self._path = path
        os.makedirs(os.path.dirname(path), exist_ok=True)
        while True:
            self._file = open(path, "a+", errors="replace")  # noqa: SIM115 - held until release
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                self._file.seek(0)
                holder = self._file.read(200).strip()
                self._file.close()
                raise refusal(path, holder, doing, "Wait for it, or stop it.") from error
            except OSError as error:
                logging.warning("%s: no lock on this file system (%s)", path, error.strerror)
            if self._is_current():
                break
            self._file.close()  # the previous holder has removed the file meanwhile
        self._file.truncate(0)
        self._file.write(_me())
        self._file.flush()

    def _is_current(self) -> bool:
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            return False

    def check(self) -> None:
        """Raise InputError if the file was removed or replaced."""
        if self._file.closed or not self._is_current():
            raise loss(self._path)

    def release(self) -> None:
        """Release the lock. Further calls do nothing; a file of another holder stays."""
        if not self._file.closed:
            if self._is_current():  # else it was removed, and may be another one's by now
                os.unlink(self._path)
            self._file.close()


class Lease:
    """A lease object that its holder renews. Writes are conditional on the last read or write.

    Args:
        kvstore: key-value store of the object.
        name: name of the object.
        where: path for messages.
        doing: what the holder does, for messages.
    """

    def __init__(self, kvstore: ts.KvStore, name: str, *, where: str, doing: str = WRITING):
        self._kvstore, self._name, self._where, self._doing = kvstore, name, where, doing
        stored = kvstore.read(name).result()
        if stored.state == "value":
            holder, renewed_s = self._parse(stored.value)
            left_s = renewed_s + LEASE_S - time.time()
            if left_s > 0:
                raise self._refusal(holder, left_s)
        self._generation = self._write(stored.stamp.generation)
        if not self._generation:
            raise self._refusal("", LEASE_S)
        self._stopped, self._lost = threading.Event(), threading.Event()
        threading.Thread(target=self._renew, daemon=True).start()

    def _parse(self, value: bytes) -> tuple[str, float]:
        """Holder of a lease, and when it was renewed."""
        try:
            held = json.loads(value)
            return str(held["holder"]), float(held["renewed_s"])
        except files.UNREADABLE as error:
            raise InputError(
                f"{self._where}: expected the lease of a writer, found another object. Remove it "
                "if no process is writing this store."
            ) from error

    def _refusal(self, holder: str, left_s: float) -> HeldError:
        mend = (
            f"Wait for it; if it was killed, wait {left_s:.0f} s more until its lease runs out, "
            "or remove that object."
        )
        return refusal(self._where, holder, self._doing, mend)

    def _write(self, generation: bytes) -> bytes:
        """Write the object; return its generation, empty if another writer has changed it."""
        value = json.dumps({"holder": _me(), "renewed_s": time.time()}).encode()
        stamp = self._kvstore.write(self._name, value, if_equal=generation).result()
        return bytes(stamp.generation)

    def _renew(self) -> None:
        while not self._stopped.wait(RENEW_S):
            try:
                generation = self._write(self._generation)
            except ValueError as error:
                logging.warning("%s: the lease could not be renewed (%s)", self._where, error)
                continue
            if not generation:
                logging.error("%s: another writer took this lease", self._where)
                self._lost.set()
                return
            self._generation = generation

    def check(self) -> None:
        """Raise InputError if another writer has taken the lease."""
        if self._lost.is_set():
            raise loss(self._where)

    def release(self) -> None:
        """Release the lock. Further calls do nothing."""
        if not self._stopped.is_set():
            self._stopped.set()
            # Writing None deletes. The condition keeps a lease that another writer has taken.
            self._kvstore.write(self._name, None, if_equal=self._generation).result()
