"""One small tileset through the default device and the CPU: every number of every metric.

Both extract the same tiles; then both evaluate the store that the CPU made. One JSON line for each
comparison, and exit code 1 if a number is out of its tolerance.
"""

import glob
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from absl import app, flags

from experiments.benchmarks import harness, number_comparison
from pathorob_jax.embeddings.store import open_store

_FOLDER = flags.DEFINE_string("folder", None, "Where tiles, stores and results go; unset: nowhere.")
_REHEARSE = flags.DEFINE_bool("rehearse", False, "Fewer tiles and metrics, for a CPU.")

ENCODERS = ("nuclear_texture", "vit_random")
METRICS = ("robustness_index", "margins", "probes", "apd", "clustering_score")
EMBEDDING_TOLERANCE = 1e-4
DEVICE, CPU = "device", "cpu"


def run(script: str, *arguments: str, cpu: bool) -> None:
    """Run a script on the default device or on the CPU."""
    environment: Mapping[str, str] = harness.best_environment() | (
        {"JAX_PLATFORMS": "cpu"} if cpu else {}
    )
    command = [sys.executable, "-m", f"experiments.{script}", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{script} {arguments} failed:\n{done.stderr[-2000:]}")


def run_on_both(script: str, *arguments: str) -> None:
    """Run a script on the default device and on the CPU at a time; ``{place}`` tells them apart."""
    with ThreadPoolExecutor() as pool:
        runs = [
            pool.submit(run, script, *(a.format(place=place) for a in arguments), cpu=place == CPU)
            for place in (DEVICE, CPU)
        ]
        for done in runs:
            done.result()


def compare_embeddings(folder: str, encoder: str) -> bool:
    """Largest relative error of a row, device against CPU."""
    paths = [f"{folder}/{place}/embeddings/{encoder}/synthetic" for place in (DEVICE, CPU)]
    here, there = (open_store(path).read() for path in paths)
    error = np.linalg.norm(here - there, axis=1) / np.linalg.norm(there, axis=1)
    worst = float(error.max())
    harness.answer({"compare": "embeddings", "model": encoder, "relative_error": worst})
    return worst < EMBEDDING_TOLERANCE


def compare_results(folder: str) -> bool:
    """Every number of every metric, device against CPU."""
    well = True
    for path in sorted(glob.glob(f"{folder}/{CPU}/results/*/*/*.json")):
        with open(path) as file, open(path.replace(f"/{CPU}/", f"/{DEVICE}/")) as other:
            found = number_comparison.compare(json.load(other), json.load(file))
        harness.answer({"compare": os.path.basename(path)[:-5], **found})
        well = well and found["out_of_tolerance"] == 0
    return well


def measure(folder: str, *, rehearse: bool) -> bool:
    """Make both, and compare them."""
    shutil.rmtree(folder, ignore_errors=True)
    slides, tiles = (6, 2) if rehearse else (6, 8)
    run(
        "synthesize",
        *(f"--output={folder}/tiles", f"--slides={slides}", f"--tiles={tiles}", "--tile_px=128"),
        cpu=True,
    )
    encoders = ENCODERS[:1] if rehearse else ENCODERS
    run_on_both(
        "extract",
        *(f"--model={','.join(encoders)}", f"--tileset={folder}/tiles", "--dataset=synthetic"),
        *(f"--output={folder}/{{place}}/embeddings", "--batch_size=64"),
    )
    metrics = METRICS[:3] if rehearse else METRICS
    sizes = [] if rehearse else ["--repetitions=1", "--trials=3", "--k_max=4"]
    run_on_both(
        "evaluate",
        f"--embeddings={folder}/{CPU}/embeddings/{ENCODERS[0]}/synthetic",
        f"--output={folder}/{{place}}/results",
        f"--metrics={','.join(metrics)}",
        *("--k=5" if rehearse else "--k=21", "--draws=200", *sizes),
    )
    same = [compare_embeddings(folder, encoder) for encoder in encoders]
    return all([*same, compare_results(folder)])


def main(argv: list[str]) -> None:
    """Compare, and end with the verdict."""
    del argv
    if _FOLDER.value:
        sys.exit(not measure(_FOLDER.value, rehearse=_REHEARSE.value))
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(not measure(folder, rehearse=_REHEARSE.value))


if __name__ == "__main__":
    app.run(main)
