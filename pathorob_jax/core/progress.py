"""Progress of long computations: a bar with rate and ETA on a terminal, log lines elsewhere.

``Progress`` is a context manager whose ``update`` counts finished units. Inside ``quiet`` this
package shows neither bars nor log lines; inside ``labelled`` they begin with a label.
"""

import contextlib
import contextvars
import logging as std_logging
import pathlib
import sys
import time
from collections.abc import Iterator
from typing import Self

from absl import logging
from tqdm import tqdm

LOG_EVERY_S = 10.0
_PACKAGE = str(pathlib.Path(__file__).parents[1])
_QUIET = contextvars.ContextVar("quiet", default=False)
_LABEL = contextvars.ContextVar("label", default="")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Show no bars and, from this package, only log lines of errors. Other log lines are kept."""

    def is_shown(record: std_logging.LogRecord) -> bool:
        return record.levelno >= std_logging.ERROR or not record.pathname.startswith(_PACKAGE)

    token, logger = _QUIET.set(True), logging.get_absl_logger()
    logger.addFilter(is_shown)  # one filter per call, so that calls can nest
    try:
        yield
    finally:
        logger.removeFilter(is_shown)
        _QUIET.reset(token)


@contextlib.contextmanager
def labelled(label: str) -> Iterator[None]:
    """Progress that starts in this block says what it belongs to (``2 of 12: uni on breast``).

    A block inside another one keeps the label of the outer one, which knows more.
    """
    token = _LABEL.set(_LABEL.get() or label)
    try:
        yield
    finally:
        _LABEL.reset(token)


class Progress:
    """``with Progress("embed", total=N, unit="tile", done=already) as p: p.update(batch)``."""

    def __init__(self, name: str, *, total: int, unit: str, done: int = 0):
        name = f"{_LABEL.get()}: {name}" if _LABEL.get() else name
        self._name, self._total, self._unit = name, total, unit
        self._done = self._skipped = done
        self._start_s = self._last_log_s = time.monotonic()
        self._bar = (
            tqdm(total=total, initial=done, unit=unit, desc=name, smoothing=0.1)
            if sys.stderr.isatty() and not _QUIET.get()
            else None
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()
        elif kind is None:
            self._log(final=True)

    def update(self, n: int) -> None:
        """Count ``n`` more finished units."""
        self._done += n
        if self._bar is not None:
            self._bar.update(n)
        elif time.monotonic() - self._last_log_s >= LOG_EVERY_S:
            self._log(final=False)

    def others_did(self, n_done: int) -> None:
        """Count what others have done meanwhile, which is no work of this computation.

        Args:
            n_done: finished units, those of ``update`` included.
        """
        n_more = n_done - self._done
        self._done += n_more
        self._skipped += n_more
        if self._bar is not None:
            self._bar.initial += n_more
            self._bar.n += n_more
            self._bar.refresh()

    def _log(self, *, final: bool) -> None:
        now = self._last_log_s = time.monotonic()
        elapsed_s = max(now - self._start_s, 1e-9)
        rate = (self._done - self._skipped) / elapsed_s
        left_s = (self._total - self._done) / rate if rate > 0 else float("nan")
        logging.info(
            "%s: %d/%d %ss, %.1f %s/s, %s",
            self._name,
            self._done,
            self._total,
            self._unit,
            rate,
            self._unit,
            f"took {elapsed_s:.1f} s" if final else f"ETA {left_s:.0f} s",
        )
