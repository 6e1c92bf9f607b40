"""Finished tasks on disk: one file each, which a later run takes over where it still fits.

A task's file holds the fingerprint of everything that its result depends on. A file of another
fingerprint, or a damaged one, is reported and its task is computed again. Whoever computes a task
holds its lock, so that several runs over one folder share the tasks.
"""

import io
import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from absl import logging
from jax.sharding import Mesh

from pathorob_jax.core import digests, faults, files, locks
from pathorob_jax.core.checks import InputError
from pathorob_jax.core.provenance import software_versions

UNREADABLE = (KeyError, TypeError, ValueError, OSError, EOFError, zipfile.BadZipFile)


def make_fingerprint(facts: Mapping[str, Any], mesh: Mesh) -> str:
    """Hex sha256 of what results depend on; JAX and the device decide their last bits.

    Args:
        facts: plain values.
        mesh: devices that compute.
    """
    jax = [software_versions()["jax"], mesh.devices.flat[0].device_kind]
    return digest_json({**facts, "jax": jax})


def digest_json(value: Any) -> str:
    """Hex sha256 of plain values, whatever the order of their keys."""
    return digests.digest(json.dumps(value, sort_keys=True).encode())


@dataclass(frozen=True)
class TaskFiles:
    """The files of the tasks of one kind.

    Attributes:
        folder: where they lie; None: nothing is kept.
        task: what a task is, in one word; files are named ``<task>_<number>``.
        fingerprint: of all that the results depend on.
    """

    folder: str | None
    task: str
    fingerprint: str
    _said: set[str] = field(default_factory=set, repr=False, compare=False)

    def hold(self, number: int) -> locks.Lock | None:
        """The lock of a task, to be held while it is computed; None: without a folder.

        Raises:
            HeldError: another run computes the task.
        """
        if self.folder is None:
            return None
        path = self._lock_path(number)
        with faults.writing(path):
            return locks.acquire(path, doing=f"computing this {self.task}")

    def drop_abandoned(self, number: int) -> None:
        """Remove what a killed run left of the lock of a finished task."""
        if self.folder is not None:
            with faults.writing(self.folder):
                locks.drop_abandoned(self._lock_path(number))

    def _lock_path(self, number: int) -> str:
        return files.join(self.folder or ".", f".{self.task}_{number:04d}.lock")

    def read_json(self, number: int, *, key: str, **facts: Any) -> Any | None:
        """The result of a task, as plain values; None where there is none that fits.

        Args:
            number: of the task.
            key: under which the file holds the result.
            **facts: what else the file must hold beside the fingerprint.
        """

        def read(path: str) -> Any:
            record = files.read_json(path)
            if record["digest"] != digest_json(record[key]):
                raise ValueError("digest")
            return record.pop(key), record

        return self._read(number, "json", read, {"fingerprint": self.fingerprint, **facts})

    def write_json(self, number: int, result: Any, *, key: str, **facts: Any) -> None:
        """Keep the result of a task; arguments as of ``read_json``."""
        if self.folder is not None:
            record = {"fingerprint": self.fingerprint, **facts, "digest": digest_json(result)}
            files.write_json(self._path(number, "json"), record | {key: result})

    def read_arrays(self, number: int) -> dict[str, np.ndarray] | None:
        """The result of a task, as arrays; None where there is none that fits."""

        def read(path: str) -> Any:
            arrays = dict(np.load(io.BytesIO(files.read_bytes(path)), allow_pickle=False))
            return arrays, {"fingerprint": str(arrays.pop("fingerprint"))}

        return self._read(number, "npz", read, {"fingerprint": self.fingerprint})

    def write_arrays(self, number: int, arrays: Mapping[str, Any]) -> None:
        """Keep the result of a task."""
        if self.folder is not None:
            sink = io.BytesIO()
            np.savez_compressed(sink, fingerprint=np.array(self.fingerprint), **arrays)
            files.write_bytes(self._path(number, "npz"), sink.getvalue())

    def _path(self, number: int, suffix: str) -> str:
        return files.join(self.folder or ".", f"{self.task}_{number:04d}.{suffix}")

    def _read(
        self, number: int, suffix: str, read: Callable[[str], Any], facts: Mapping[str, Any]
    ) -> Any | None:
        path = self._path(number, suffix)
        if self.folder is None or not files.exists(path):
            return None
        try:
            result, record = read(path)
            is_same = all(record[name] == value for name, value in facts.items())
        except (InputError, *UNREADABLE):
            if path not in self._said:
                logging.warning("%s: damaged; the %s is computed again.", path, self.task)
            self._said.add(path)
            return None
        if not is_same:
            if not self._said:
                logging.warning(
                    "%s: made from other data or settings; it is computed again, and so is every "
                    "%s like it.",
                    path,
                    self.task,
                )
            self._said.add(path)
            return None
        return result
