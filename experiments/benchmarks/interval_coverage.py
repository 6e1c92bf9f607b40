"""How often the 95 % intervals hold the truth, for every number with an interval.

The benchmark draws independent datasets of one design (classes x centres, slides of one cell each
with an effect of their own, two encoders that see the same slides) and evaluates each. The truth of
a number is its mean over all datasets. One JSON line per number, and per difference of the two
encoders: truth, standard deviation over datasets, mean width, and the shares of intervals that hold
the truth, that do not exist, and that exclude their own estimate. Numbers that follow from one
another, such as the index by class, are not listed.
"""

import collections
import math
import time
from typing import Any

import numpy as np
from absl import app, flags

from experiments.benchmarks import harness
from pathorob_jax.core.progress import quiet
from pathorob_jax.embeddings.embed_in_memory import as_rows, store_in_memory
from pathorob_jax.evaluation.run import Evaluation, Request
from pathorob_jax.evaluation.settings import ApdSettings, ClusteringSettings, Settings
from pathorob_jax.kernels.bootstrap.intervals import paired_difference
from pathorob_jax.results import registry
from pathorob_jax.results.flatten import find_intervals

_SLIDES = flags.DEFINE_integer("slides", 20, "Slides, a multiple of 4.", lower_bound=8)
_DATASETS = flags.DEFINE_integer("datasets", 500, "Independent datasets.", lower_bound=2)
_FIRST = flags.DEFINE_integer("first", 0, "Seed of the first dataset.", lower_bound=0)
_METRICS = flags.DEFINE_list("metrics", ["robustness_index", "margins", "probes"], "Metrics.")
_OUTPUT = flags.DEFINE_string("output", None, "File to append the lines to.")

ROWS_PER_SLIDE, DIM, DRAWS = 6, 8, 500
# Strength of class, centre, slide and patch, and noise of its own, of the two encoders.
ENCODERS = {"first": (1.6, 1.2, 0.9, 1.0, 0.0), "second": (1.3, 1.5, 0.9, 1.0, 0.5)}


def make_dataset(n_slides: int, seed: int) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    """Embeddings float32[N, 8] of both encoders, and the table of their rows."""
    rng = np.random.default_rng(seed)
    slide = np.repeat(np.arange(n_slides), ROWS_PER_SLIDE)
    bio, center = slide % 4 // 2, slide % 2
    axes = np.linalg.qr(np.random.default_rng(5).normal(size=(DIM, DIM)))[0]
    effects, patches = rng.normal(size=(n_slides, DIM)), rng.normal(size=(len(slide), DIM))
    found = {}
    for name, (of_bio, of_center, of_slide, of_patch, own) in ENCODERS.items():
        x = of_bio * np.outer(2 * bio - 1, axes[0]) + of_center * np.outer(2 * center - 1, axes[1])
        x = x + 2 * axes[2] + of_slide * effects[slide] + of_patch * patches
        found[name] = (x + own * rng.normal(size=x.shape)).astype(np.float32)
    rows = {
        "slide_id": [f"s{s}" for s in slide],
        "patch_id": [str(i) for i in range(len(slide))],
        "biological_class": [f"class{b}" for b in bio],
        "medical_center": [f"center{c}" for c in center],
    }
    return found, rows


def add_third_center(
    embeddings: dict[str, np.ndarray], rows: dict[str, list[str]], seed: int
) -> None:
    """Slides of a third centre, for the drop out of domain; half as many as there are."""
    other, theirs = make_dataset(8 + 4 * (len(set(rows["slide_id"])) // 16), seed + 10**6)
    for name, x in other.items():
        embeddings[name] = np.concatenate([embeddings[name], x - x.mean(0) + x.mean()])
    for name, values in theirs.items():
        kept = ["center2"] * len(values) if name == "medical_center" else [f"o{v}" for v in values]
        rows[name] += values if name == "biological_class" else kept


def measure(n_slides: int, seed: int, metrics: list[str]) -> dict[str, Any]:
    """Value and interval of every number of the first encoder, and of every difference."""
    settings = Settings(
        k=5 if n_slides < 16 else 9,
        draws=DRAWS,
        clustering_score=ClusteringSettings(trials=3, k_max=4),
        apd=ApdSettings(repetitions=10, centers=("center0", "center1")),
    )
    out: dict[str, Any] = {}
    embeddings, rows = make_dataset(n_slides, seed)
    if "apd" in metrics:
        add_third_center(embeddings, rows, seed)
    outcomes: dict[str, dict[str, Any]] = {}
    for name, x in embeddings.items():
        request = Request(name, "rows", tuple(metrics), settings, keep_graph=False)
        evaluation = Evaluation(
            store_in_memory(x, as_rows(rows, None), name), request, request.dataset
        )
        outcomes[name] = {metric: evaluation.compute(metric) for metric in metrics}
    first, second = outcomes.values()
    for metric in metrics:
        record, other = first[metric].record, second[metric].record
        for name, ends in find_intervals(record).items():
            out[name] = (getattr(record, name), ends)
        for name, draws in first[metric].draws.items():
            values = (getattr(record, name), getattr(other, name))
            apart = paired_difference(values, draws, second[metric].draws[name])
            out[f"{name}, difference"] = (float(apart.value), (float(apart.low), float(apart.high)))
    return out


def summarise(found: dict[str, list[tuple[float, tuple[float, float]]]]) -> list[dict[str, Any]]:
    """One line per number."""
    lines = []
    for name, pairs in found.items():
        value = np.array([pair[0] for pair in pairs])
        low, high = np.array([pair[1] for pair in pairs]).T
        truth = float(np.nanmean(value))
        known = np.isfinite(low) & np.isfinite(value)
        held = (low <= truth) & (truth <= high)
        own = (low <= value) & (value <= high)
        lines.append(
            {
                "number": name,
                "truth": truth,
                "deviation": float(np.nanstd(value)),
                "width": float((high - low)[known].mean()) if known.any() else math.nan,
                "coverage": float(held[known].mean()) if known.any() else math.nan,
                "undefined": float(1 - known.mean()),
                "excludes_estimate": float(1 - own[known].mean()) if known.any() else math.nan,
            }
        )
    return lines


def main(argv: list[str]) -> None:
    """Evaluate the datasets, and print one line per number."""
    del argv
    start = time.perf_counter()
    found: dict[str, list[tuple[float, tuple[float, float]]]] = collections.defaultdict(list)
    for name in _METRICS.value:
        registry.get_kind(name)
    with quiet():
        for seed in range(_FIRST.value, _FIRST.value + _DATASETS.value):
            for name, pair in measure(_SLIDES.value, seed, _METRICS.value).items():
                found[name].append(pair)
    shared = {"task": "interval_coverage", "slides": _SLIDES.value, "datasets": _DATASETS.value}
    for line in summarise(found):
        harness.emit(shared | line, path=_OUTPUT.value)
    harness.emit(shared | {"seconds": time.perf_counter() - start})


if __name__ == "__main__":
    app.run(main)
