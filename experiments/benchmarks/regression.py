"""Compare new lines of benchmarks with the last committed ones, at equal rates of products.

Exit code 1 if a measurement of ours became slower beyond ``--tolerance``; peers are printed alone.
"""

import sys

from absl import app, flags

from experiments.benchmarks import line_comparison

_NEW = flags.DEFINE_string("new", None, "File of new JSON lines.", required=True)
_LAST = flags.DEFINE_string(
    "last", "experiments/benchmarks/results", "Folder of *.jsonl, or one file, of earlier lines."
)
_TOLERANCE = flags.DEFINE_float(
    "tolerance", 0.15, "Share by which a time may grow: runs of one day differ by a tenth."
)


def main(argv: list[str]) -> None:
    """Read both, compare, print, and end with the verdict."""
    del argv
    new, old = map(line_comparison.read_lines, (_NEW.value, _LAST.value))
    report = line_comparison.compare(new, old)
    print(report.describe(_TOLERANCE.value))
    sys.exit(bool(report.slower(_TOLERANCE.value)))


if __name__ == "__main__":
    app.run(main)
