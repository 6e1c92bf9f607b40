"""Where the time of a pass over tiles goes.

Enters: when the pass begins, has started and waits for tiles. Leaves: seconds, and a summary in one
line for the log.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Summary:
    """Where the time of a pass over the tiles went, in this process.

    Attributes:
        tiles: embedded.
        seconds: in all.
        start_s: until the first tiles were decoded and the networks compiled.
        wait_s: that the devices had nothing to do because no tiles were ready; at most.
        read_s: of reading and decoding, summed over the threads or processes that do it.
        n_bad: tiles without an embedding.
    """

    tiles: int
    seconds: float
    start_s: float
    wait_s: float
    read_s: float
    n_bad: int

    @property
    def wait_share(self) -> float:
        """Part of the time after the start that the devices waited."""
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
    """How long a pass takes, its start, and how long devices had nothing to do after it."""

    def __init__(self) -> None:
        self._begun_s = time.perf_counter()
        self._started_s: float | None = None
        self.wait_s = 0.0
        """That devices had nothing to do, after the start."""

    @property
    def elapsed_s(self) -> float:
        """Since the pass began."""
        return time.perf_counter() - self._begun_s

    @property
    def start_s(self) -> float:
        """From the beginning until the first step was on its way, or until now."""
        return self.elapsed_s if self._started_s is None else self._started_s - self._begun_s

    def start(self) -> None:
        """The first step is on its way; further calls do nothing."""
        if self._started_s is None:
            self._started_s = time.perf_counter()

    @contextlib.contextmanager
    def waiting(self, idle: Callable[[], bool]) -> Iterator[None]:
        """Count the block's time if the devices are idle at its end: if not, none has waited."""
        asked_s = time.perf_counter()
        yield
        if self._started_s is not None and idle():
            self.wait_s += time.perf_counter() - asked_s
