"""Command-line scripts: each turns flags into one library call.

Run them as ``python -m experiments.<name>``.
"""

import os
import signal
import sys


def _leave(*signal_and_frame: object) -> None:
    sys.stderr.write("interrupted before the work began\n")
    sys.stderr.flush()
    os._exit(1)


if sys.argv[:1] == ["-m"]:
    # A script is being imported, which takes seconds; ``common.run_main`` takes over.
    signal.signal(signal.SIGINT, _leave)
