"""Case retrieval on rows of Camelyon's shape: what it adds to the search of the robustness index.

Each part is measured in a separate process on the same arrays.

- ``levels``: the search of the index, and what patches and mean-pooled slides cost beside it (they
  use its neighbours; scores and intervals included).
- ``sets``: slides by their sets of patches, in operations a second (N^2 D of them), beside plain
  products of the same rows.
- ``schedule``: all databases of one repetition of the performance drop, patches and slides, in
  operations a second (2 Q N D of the product of queries and rows), beside plain products.

Lines are printed, and appended to ``--output`` if it is set.
"""

import os
import tempfile
from typing import Any

import jax
import numpy as np
from absl import app, flags

from experiments.benchmarks import harness
from experiments.benchmarks.camelyon_rows import make_arrays, multiply
from pathorob_jax.core import aligned, cost, devices
from pathorob_jax.data.association_schedule import AssociationSchedule
from pathorob_jax.data.manifest import Manifest, as_manifest
from pathorob_jax.data.protocols import PROTOCOLS
from pathorob_jax.embeddings.embed_in_memory import store_in_memory
from pathorob_jax.evaluation import retrieval, retrieval_schedule
from pathorob_jax.evaluation.run import Evaluation, Request
from pathorob_jax.evaluation.schedule_plan import make_plan
from pathorob_jax.evaluation.settings import ApdSettings, Settings
from pathorob_jax.kernels.neighbors.set_matches import match_sets
from pathorob_jax.metrics.retrieval import DEPTH, Lists

_SAMPLES = flags.DEFINE_integer("samples", 20_400, "Rows N (a multiple of 68).", lower_bound=68)
_DIM = flags.DEFINE_integer("dim", 1_536, "Dimensions D.", lower_bound=1)
_REPEATS = flags.DEFINE_integer("repeats", 3, "Calls after the first.", lower_bound=0)
_PARTS = flags.DEFINE_list("parts", ["levels", "sets", "schedule"], "What to measure.")
_OUTPUT = flags.DEFINE_string("output", None, "File to append lines to.")
_PART = flags.DEFINE_string("part", None, "Measure this one on --folder (internal).")
_FOLDER = flags.DEFINE_string("folder", None, "Arrays (internal).")

MODULE = "experiments.benchmarks.retrieval"
K = 11


def make_evaluation(x: np.ndarray, labels: np.ndarray) -> Evaluation:
    """Evaluation of the arrays as a custom dataset, with Camelyon's schedule."""
    published = PROTOCOLS["camelyon"].apd.schedule
    schedule = AssociationSchedule(
        published.classes, published.centers, published.slides, len(x) // 68
    )
    settings = Settings(k=K, apd=ApdSettings(schedule=schedule, repetitions=1))
    rows = make_manifest(labels, schedule)
    request = Request("benchmark", "rows", settings=settings, keep_graph=False)
    return Evaluation(store_in_memory(x, rows, "benchmark"), request, "rows")


def make_manifest(labels: np.ndarray, schedule: AssociationSchedule) -> Manifest:
    """Manifest of the rows."""
    bio, center, slide = labels
    return as_manifest(
        {
            "slide_id": slide.astype(str),
            "patch_id": np.arange(len(slide)).astype(str),
            "biological_class": np.array(schedule.classes)[bio],
            "medical_center": np.array(schedule.centers)[center],
        }
    )


def measure(part: str, folder: str, repeats: int) -> dict[str, Any]:
    """Time one part on the arrays of a folder."""
    stored = np.load(os.path.join(folder, "embeddings.npy"), mmap_mode="r")
    x = aligned.empty_aligned(stored.shape)
    x[:] = stored
    del stored
    labels = np.load(os.path.join(folder, "labels.npy"))
    found = {"levels": time_levels, "sets": time_sets, "schedule": time_schedule}[part](
        x, labels, repeats
    )
    return {
        "task": "retrieval",
        "part": part,
        "n": len(x),
        "dim": x.shape[1],
        **found,
        "peak_bytes": cost.peak_bytes(),
        "device": jax.devices()[0].device_kind,
    }


def time_levels(x: np.ndarray, labels: np.ndarray, repeats: int) -> dict[str, Any]:
    """The search of the index, and patches and mean-pooled slides from its neighbours."""
    found: list[Evaluation] = []

    def search() -> None:
        found.append(make_evaluation(x, labels))
        assert found[-1].neighborhood is not None

    index = harness.time_calls(search, repeats=repeats)
    times = harness.time_calls(lambda: measure_levels(found[-1]), repeats=repeats)
    return times | {
        "index_median_s": index["median_s"],
        "share_of_index": times["median_s"] / index["median_s"],
        "share_of_index_first_call": times["first_s"] / index["first_s"],
    }


def measure_levels(evaluation: Evaluation) -> None:
    """Scores and intervals of patches and of mean-pooled slides."""
    hood = retrieval.find_patches(evaluation)
    [scope] = hood.scopes
    slides = retrieval.find_slides(evaluation, hood)
    means = retrieval.search_means(hood.embeddings(scope.scope), slides, evaluation)
    for lists in (
        Lists(scope.any.indices[:, :DEPTH], scope.scope.bio_id, scope.group_id),
        Lists(means, slides.label_id, slides.group_id),
    ):
        retrieval.measure_level(lists, hood.jackknife, 2, optimistic=False)


def time_sets(x: np.ndarray, labels: np.ndarray, repeats: int) -> dict[str, Any]:
    """Similarities of all pairs of slides by their sets of patches."""
    mesh = devices.make_mesh(jax.local_devices())
    times = harness.time_calls(lambda: match_sets(x, labels[2], mesh=mesh), repeats=repeats)
    n, dim = x.shape
    return times | compare(times, n * n * dim, x, repeats)


def time_schedule(x: np.ndarray, labels: np.ndarray, repeats: int) -> dict[str, Any]:
    """All databases of one repetition; queries are the test rows and as many more as fill N."""
    evaluation = make_evaluation(x, labels)
    plan = make_plan(evaluation)
    [task] = plan.draw_repetitions()
    data = retrieval_schedule.read(plan, evaluation)
    times = harness.time_calls(lambda: retrieval_schedule.count_task(task, data), repeats=repeats)
    union = np.unique(np.concatenate([task.training(s) for s in range(task.schedule.n_splits)]))
    n_queries = len(task.test())
    flop = 2 * n_queries * len(union) * x.shape[1]
    return (
        times
        | {"n_queries": n_queries, "n_rows": len(union), "databases": task.schedule.n_splits}
        | compare(times, flop, x, repeats)
    )


def compare(times: dict[str, Any], flop: int, x: np.ndarray, repeats: int) -> dict[str, Any]:
    """Rate of a part, and of plain products of the same rows in the same process."""
    products = harness.time_calls(lambda: multiply(x), repeats=repeats)
    rate = flop / times["median_s"] / 1e9
    plain = 2 * len(x) ** 2 * x.shape[1] / products["median_s"] / 1e9
    return {
        "tflop": flop / 1e12,
        "gflop_per_s": rate,
        "products_gflop_per_s": plain,
        "share_of_products": rate / plain,
    }


def main(argv: list[str]) -> None:
    """Measure one part, or all of them in separate processes."""
    del argv
    if _PART.value and _FOLDER.value:
        harness.answer(measure(_PART.value, _FOLDER.value, _REPEATS.value))
        return
    with tempfile.TemporaryDirectory() as folder:
        make_arrays(_SAMPLES.value, _DIM.value, folder)
        for part in _PARTS.value:
            line = harness.run_peer(
                MODULE,
                [f"--part={part}", f"--folder={folder}", f"--repeats={_REPEATS.value}"],
            )
            harness.emit(line, path=_OUTPUT.value)


if __name__ == "__main__":
    app.run(main)
