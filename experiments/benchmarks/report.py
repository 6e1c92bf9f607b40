"""Time of a report of many models: results of one model, varied under other names.

The results of ``--results`` are those of ``evaluate``, of any metrics and datasets. Each further
model has the same records with every number moved a little, and draws moved as their
number, with noise of their own.
"""

import math
import zlib
from typing import Any

import numpy as np
from absl import app, flags

from experiments.benchmarks import harness
from pathorob_jax.core import files
from pathorob_jax.core.plain import as_plain, from_plain
from pathorob_jax.models import registry
from pathorob_jax.report.write import write_report
from pathorob_jax.results.collection import Collection
from pathorob_jax.results.record import Outcome
from pathorob_jax.results.result_files import write_outcome

_RESULTS = flags.DEFINE_string("results", None, "Results of one model or more.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Folder of varied results, report.", required=True)
_MODELS = flags.DEFINE_integer("models", 30, "Models of the report.", lower_bound=1)
_REPEATS = flags.DEFINE_integer("repeats", 3, "Timed reports.", lower_bound=0)
# How far numbers move, as a standard deviation in units of their room within [0, 1].
SPREAD = 0.4
# Standard deviation of the draws of each model that no other model shares.
NOISE = 0.01


def vary_results(results: str, output: str, models: list[str]) -> int:
    """Write varied results of each model; returns the number of records."""
    found = Collection.read(results).all_outcomes
    for model in models:
        for outcome in found:
            record = outcome.record
            seed = zlib.crc32(f"{model}/{record.metric}/{record.dataset}".encode())
            rng = np.random.default_rng(seed)
            plain = _vary(as_plain(record), rng.normal() * SPREAD, rng)
            varied = from_plain(type(record), plain | {"model": model}, where=model, stored=True)
            draws = {
                name: values
                + (getattr(varied, name) - getattr(record, name))
                + rng.normal(size=values.shape) * NOISE
                for name, values in outcome.draws.items()
            }
            write_outcome(output, Outcome(varied, outcome.draws_key, draws))
    return len(models) * len(found)


def _vary(value: Any, push: float, rng: np.random.Generator) -> Any:
    """Plain values with each float moved: most by the push of the record, a little by chance."""
    if isinstance(value, dict):
        return {name: _vary(part, push, rng) for name, part in value.items()}
    if isinstance(value, list):
        return [_vary(part, push, rng) for part in value]
    if not isinstance(value, float) or not math.isfinite(value):
        return value
    room = value * (1 - value) if 0 <= value <= 1 else value
    return value + (push + rng.normal() * SPREAD / 20) * room


def main(argv: list[str]) -> None:
    """Vary, write the report as often as asked, and print one JSON line."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    names = list(registry.MODELS)[: _MODELS.value]
    results, report = (files.join(_OUTPUT.value, name) for name in ("results", "report"))
    n_records = vary_results(_RESULTS.value, results, names)
    times = harness.time_calls(lambda: write_report(results, report), repeats=_REPEATS.value)
    n_bytes = len(files.read_bytes(files.join(report, "index.html")))
    shape = {"models": len(names), "records": n_records, "page_mb": n_bytes / 1e6}
    harness.emit({"task": "report", **shape, **times, **harness.host("cpu")})


if __name__ == "__main__":
    app.run(main)
