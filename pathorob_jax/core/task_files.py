"""Finished tasks on disk: one file each, which a later run takes over where it still fits.

A task's file holds the fingerprint of everything that its result depends on. A file of another
fingerprint, or a damaged one, is reported and its task is computed again. Whoever computes a task
holds its lock, so that several runs over one folder share the tasks.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from absl import logging
from jax.sharding import Mesh

from pathorob_jax.core import digests, faults, files, locks, sealed_files
from pathorob_jax.core.provenance import software_versions

SCHEMA_VERSION = 2
FINGERPRINT = "fingerprint"


def make_fingerprint(facts: Mapping[str, Any], mesh: Mesh) -> str:
    """Hex sha256 of what results depend on; JAX and the device decide their last bits.

    Args:
        facts: plain values.
        mesh: devices that compute.
    """
    jax = [software_versions()["jax"], mesh.devices.flat[0].device_kind]
    return digests.digest_json({**facts, "jax": jax})


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

    def read_json(
        self, number: int, *, key: str, check: Callable[[Any], None], **facts: Any
    ) -> Any | None:
        """The result of a task, as plain values; None where there is none that fits.

        Args:
            number: of the task.
            key: under which the file holds the result.
            check: raises an error of ``files.UNREADABLE`` unless the result has the right form.
            **facts: what else the file must hold beside the fingerprint.
        """

        def read(path: str) -> Any:
            record = files.read_json(path)
            if sealed_files.SCHEMA in record:
                record = sealed_files.unseal(path, record, schema_version=SCHEMA_VERSION)
            elif record["digest"] != digests.digest_json(record[key]):  # an older version's
                raise ValueError("digest")
            return record.pop(key), record

        return self._read(number, "json", read, check, {FINGERPRINT: self.fingerprint, **facts})

    def write_json(self, number: int, result: Any, *, key: str, **facts: Any) -> None:
        """Keep the result of a task; arguments as of ``read_json``."""
        if self.folder is not None:
            record = {sealed_files.SCHEMA: SCHEMA_VERSION, FINGERPRINT: self.fingerprint, **facts}
            sealed_files.write_json(self._path(number, "json"), record | {key: result})

    def read_arrays(
        self, number: int, *, check: Callable[[dict[str, np.ndarray]], None]
    ) -> dict[str, np.ndarray] | None:
        """The result of a task, as arrays; None where there is none that fits.

        Args:
            number: of the task.
            check: raises an error of ``files.UNREADABLE`` unless the arrays have the right form.
        """

        def read(path: str) -> Any:
            arrays = sealed_files.load_npz(path)
            if sealed_files.SCHEMA in arrays:  # an older version's has neither schema nor digest
                arrays = sealed_files.read_arrays(path, schema_version=SCHEMA_VERSION)
            return arrays, {FINGERPRINT: str(arrays.pop(FINGERPRINT))}

        return self._read(number, "npz", read, check, {FINGERPRINT: self.fingerprint})

    def write_arrays(self, number: int, arrays: Mapping[str, Any]) -> None:
        """Keep the result of a task."""
        if self.folder is not None:
            sealed_files.write_arrays(
                self._path(number, "npz"),
                {FINGERPRINT: self.fingerprint, **arrays},
                schema_version=SCHEMA_VERSION,
                compressed=True,
            )

    def _path(self, number: int, suffix: str) -> str:
        return files.join(self.folder or ".", f"{self.task}_{number:04d}.{suffix}")

    def _read(
        self,
        number: int,
        suffix: str,
        read: Callable[[str], Any],
        check: Callable[[Any], None],
        facts: Mapping[str, Any],
    ) -> Any | None:
        path = self._path(number, suffix)
        if self.folder is None or not files.exists(path):
            return None
        try:
            result, record = read(path)
            is_same = all(record[name] == value for name, value in facts.items())
            if is_same:
                check(result)
        except files.UNREADABLE:
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
