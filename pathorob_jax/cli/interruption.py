"""What Ctrl-C does while a script is being imported: ``start.run_main`` takes over."""

import os
import signal
import sys


def watch() -> None:
    """Leave with one line at Ctrl-C, until ``start.run_main`` says how to go on."""
    signal.signal(signal.SIGINT, _leave)


def watch_script() -> None:
    """The same where Python imports a script for ``python -m``, and nothing anywhere else."""
    if sys.argv[:1] == ["-m"]:
        watch()


def _leave(*signal_and_frame: object) -> None:
    sys.stderr.write("interrupted before the work began\n")
    sys.stderr.flush()
    os._exit(1)
