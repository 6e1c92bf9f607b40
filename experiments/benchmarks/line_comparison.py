"""Lines of benchmarks against earlier ones of the same work, whatever the machines.

A time says little by itself: processors differ, and a busy one slows all. Each line therefore has
the rate of float32 products of its machine, and the time multiplied by that rate is the number of
products that the machine could have done meanwhile. Two lines are compared by that number.
"""

import json
import pathlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.benchmarks.harness import RATE

# What makes two lines measurements of the same work.
SAME = (
    *("task", "part", "peer", "method", "preset", "model", "dtype", "batch_size", "shape"),
    *("n", "dim", "centers", "bags", "tiles", "tile_px", "side", "splits", "epochs"),
    *("repetitions", "stopping", "n_training_rows", "k_max", "trials", "runs", "n_devices"),
    *("attention", "xla_flags", "device"),
)
# The number of neighbours is asked for, but the number of clusters is an answer.
ANSWERS_K = ("clustering_score",)
FIRST, LATER = "first_s", "median_s"


@dataclass(frozen=True)
class Change:
    """A time of some work, now against then.

    Attributes:
        what: the work, in words.
        time: ``first_s`` or ``median_s``.
        ratio: above 1: slower than then, at equal rates of products.
        machines: processors of then and now, where they differ; else "".
        is_ours: whether this package was measured, and not a peer.
    """

    what: str
    time: str
    ratio: float
    machines: str
    is_ours: bool

    def __str__(self) -> str:
        machines = f" ({self.machines})" if self.machines else ""
        return f"{self.ratio:.2f} times as long: {self.what}, {self.time}{machines}"


@dataclass(frozen=True)
class Report:
    """All changes, the slowest first, and the lines that could not be compared, with the reason."""

    changes: Sequence[Change]
    left_out: Sequence[str]

    def slower(self, tolerance: float) -> list[Change]:
        """Our changes beyond ``1 + tolerance``; peers may become what they like."""
        return [c for c in self.changes if c.is_ours and c.ratio > 1 + tolerance]

    def describe(self, tolerance: float) -> str:
        """All of it, a line each, and how many of ours became slower."""
        count = len(self.slower(tolerance))
        return "\n".join(
            [
                *map(str, self.changes),
                *(f"not compared: {reason}" for reason in self.left_out),
                f"{len(self.changes)} times compared, {count} of ours slower by more than "
                f"{tolerance:.0%}",
            ]
        )


def read_lines(path: str) -> list[dict[str, Any]]:
    """The JSON lines of a file, or of all ``*.jsonl`` of a folder; lines of a log are skipped."""
    place = pathlib.Path(path)
    paths = sorted(place.glob("*.jsonl")) if place.is_dir() else [place]
    texts = [line for one in paths for line in one.read_text("utf-8").splitlines()]
    return [json.loads(line) for line in texts if line.startswith("{")]


def compare(new: Iterable[dict[str, Any]], old: Iterable[dict[str, Any]]) -> Report:
    """Compare each new measurement with the last old one of the same work.

    Args:
        new: lines of now.
        old: lines of then, the newest last.
    """
    last = {_identity(line): line for line in old if _is_timed(line)}
    changes: list[Change] = []
    left_out: list[str] = []
    for line in filter(_is_timed, new):
        what = _describe(line)
        before = last.get(_identity(line))
        reason = _why_not(line, before)
        if before is None or reason:
            left_out.append(f"{what}: {reason}")
            continue
        machines, is_ours = "", str(line["peer"]).startswith("ours")
        if line.get("cpu") != before.get("cpu"):
            machines = f"{before.get('cpu')}, now {line.get('cpu')}"
        for time in (FIRST, LATER):
            if time == LATER and not (line.get("repeats") and before.get("repeats")):
                continue
            ratio = line[time] * line[RATE] / (before[time] * before[RATE])
            changes.append(Change(what, time, ratio, machines, is_ours))
    return Report(sorted(changes, key=lambda change: -change.ratio), left_out)


def _is_timed(line: dict[str, Any]) -> bool:
    return "peer" in line and FIRST in line and LATER in line


def _why_not(line: dict[str, Any], before: dict[str, Any] | None) -> str:
    if before is None:
        return "no line of the same work"
    for which, one in (("the new line", line), ("the last line", before)):
        if not one.get(RATE):
            return f"{which} has no product rate"
    return ""


def _identity(line: dict[str, Any]) -> tuple[Any, ...]:
    k = None if line.get("task") in ANSWERS_K else line.get("k")
    return (*(line.get(name) for name in SAME), k)


def _describe(line: dict[str, Any]) -> str:
    parts = [str(line[name]) for name in ("task", "part", "peer") if name in line]
    shown = [name for name in (*SAME[3:], "k") if name in line and line[name] not in ("", None)]
    if line.get("task") in ANSWERS_K:
        shown = [name for name in shown if name != "k"]
    return " ".join([*parts, *(f"{name}={line[name]}" for name in shown)])
