"""What the tests of several processes share: their start, their words and how they end."""

import os
import pathlib
import socket
import subprocess
import sys
import time

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
ENVIRONMENT = {
    "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests" / "helpers")]),
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
}


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


class Workers:
    """Processes of two CPU devices that run one script; a context that leaves none alive."""

    def __init__(self, script, arguments, folder):
        """One process for each list of arguments."""
        # A killed one must not leave half of a kept program.
        safe = "import kept_programs\nkept_programs.make_safe()\n"
        (folder / "worker.py").write_text(safe + script)
        self._logs = [folder / f"log{i}" for i in range(len(arguments))]
        self.processes = []
        for own, path in zip(arguments, self._logs, strict=True):
            with path.open("w") as log:  # not a pipe, which a process that says much would fill
                self.processes.append(
                    subprocess.Popen(
                        [sys.executable, "-W", "ignore", folder / "worker.py", *map(str, own)],
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        cwd=REPOSITORY,
                        env=os.environ | ENVIRONMENT,
                    )
                )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for process in self.processes:
            process.kill()
            process.wait()

    def said(self):
        """What each process wrote so far."""
        return [path.read_text() for path in self._logs]

    def wait_until(self, is_so, *, within_s):
        """Wait while all are at work."""
        deadline_s = time.monotonic() + within_s
        while not is_so():
            assert time.monotonic() < deadline_s, self.said()
            assert all(process.poll() is None for process in self.processes), self.said()
            time.sleep(0.01)

    def finish(self, codes, *, within_s):
        """Wait for all and check their exit codes; what each process said."""
        deadline_s = time.monotonic() + within_s
        with self:
            found = [_code(process, deadline_s) for process in self.processes]
        said = self.said()
        assert found == codes, "\n".join([f"exit codes {found}, expected {codes}", *said])
        return said


def _code(process, deadline_s):
    """Exit code; None: still at work after the deadline."""
    try:
        return process.wait(max(1.0, deadline_s - time.monotonic()))
    except subprocess.TimeoutExpired:
        return None


def fake_command(folder, name, body):
    """A command of this name in a folder, that does no more than ``body`` says in bash."""
    path = pathlib.Path(folder) / name
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(0o755)
