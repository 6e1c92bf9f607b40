"""Measure how the time of a pass over tiles is spent.

A ``Clock`` is told when the first step starts and when the host waits for tiles. A ``Summary`` is
one line for the log.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Summary:
    """How the time of a pass over the tiles was spent in this process.

    Attributes:
        tiles: number of embedded tiles.
        seconds: total time.
        start_s: time until the first tiles were decoded and the networks compiled.
        wait_s: upper bound of the time that the devices were idle because no tiles were ready.
        read_s: time of reading and decoding, summed over threads or processes.
        n_bad: number of tiles without an embedding.
    """

    tiles: int
    seconds: float
    start_s: float
    wait_s: float
    read_s: float
    n_bad: int

    @property
    def wait_share(self) -> float:
        """Share of the time after the start that the devices were idle."""
        return self.wait_s / max(self.seconds - self.start_s, 1e-9)

    def __str__(self) -> str:
        busy_s = max(self.seconds - self.start_s - self.wait_s, 1e-9)
        decoded = self.tiles / max(self.read_s, 1e-9)
        skipped = f", {self.n_bad} skipped (bad_rows in store.json)" if self.n_bad else ""
        return (
            f"{self.tiles} tiles{skipped} in {self.seconds:.1f} s (start {self.start_s:.1f} s), "
            f"devices {self.tiles / busy_s:.1f} tiles/s, waited for tiles "
            f"{100 * self.wait_share:.1f} % of the time, decoding {decoded:.0f} tiles/s a thread"
        )


class Clock:
    """Measures the duration of a pass, of its start, and of idle devices after the start."""

    def __init__(self) -> None:
        self._begun_s = time.perf_counter()
        self._started_s: float | None = None
        self.wait_s = 0.0
        """Seconds that the devices were idle, after the start."""

    @property
    def elapsed_s(self) -> float:
        """Seconds since the beginning of the pass."""
        return time.perf_counter() - self._begun_s

    @property
    def start_s(self) -> float:
        """Seconds from the beginning until the first step was dispatched, or until now."""
        return self.elapsed_s if self._started_s is None else self._started_s - self._begun_s

    def start(self) -> None:
        """Record that the first step has been dispatched. Further calls do nothing."""
        if self._started_s is None:
            self._started_s = time.perf_counter()

    @contextlib.contextmanager
    def waiting(self, idle: Callable[[], bool]) -> Iterator[None]:
        """Count the time of the block if the devices are idle at its end; else none was idle."""
        asked_s = time.perf_counter()
        yield
        if self._started_s is not None and idle():
            self.wait_s += time.perf_counter() - asked_s
