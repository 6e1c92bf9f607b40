"""All campaigns of odd and damaged input, at full length: ``make fuzz``.

Each outcome is a clean error, equal to the oracle, a traceback, or silent (a wrong value without a
word). The last two must be 0.

    python tests/fuzz/campaigns.py [--seed=0] [--share=1.0] [name ...]
"""

import argparse
import importlib
import logging
import math
import sys
import time

OUTCOMES = ("clean error", "equal to the oracle", "traceback", "silent")
# Name, module, function, number of cases.
CAMPAIGNS = (
    ("manifests", "fuzz_manifests", "fuzz_manifests", 1200),
    ("images", "fuzz_images", "fuzz_images", 700),
    ("tilesets", "fuzz_tilesets", "fuzz_tilesets", 60),
    ("checkpoints", "fuzz_checkpoints", "fuzz_checkpoints", 500),
    ("specs", "fuzz_checkpoints", "fuzz_specs", 140),
    ("store files", "fuzz_store", "fuzz_store_files", 370),
    ("results", "fuzz_results", "fuzz_results", 1400),
    ("tasks and graphs", "fuzz_results", "fuzz_tasks_and_graphs", 230),
    ("flags", "fuzz_flags", "fuzz_flags", 90),
    ("kills", "fuzz_kills", "fuzz_kills", 60),
)


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="campaigns; none: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=1.0, help="part of the cases")
    chosen = parser.parse_args()
    logging.disable(logging.CRITICAL)  # thousands of refusals are logged
    n_bad = 0
    say(f"{'':18}{'cases':>7}" + "".join(f"{o:>21}" for o in OUTCOMES) + f"{'seconds':>9}")
    for name, module, function, n_cases in CAMPAIGNS:
        if chosen.names and name not in chosen.names:
            continue
        start = time.monotonic()
        count = getattr(importlib.import_module(module), function)(
            math.ceil(n_cases * chosen.share), seed=chosen.seed
        )
        line = "".join(f"{count[outcome]:>21}" for outcome in OUTCOMES)
        seconds = time.monotonic() - start
        say(f"{name:18}{sum(count.values()):>7}{line}{seconds:>9.0f}")
        n_bad += count["traceback"] + count["silent"]
    return min(n_bad, 1)


if __name__ == "__main__":
    sys.exit(main())
