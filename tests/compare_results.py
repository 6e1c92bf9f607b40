"""Evaluate the same stores with two checkouts and list every number that differs.

    python tests/compare_results.py --before=<checkout> --after=. --work=<folder> [--quick]

The stores are the golden and the many-K embeddings of ``../shared/golden``, keyed to PathoROB's
real metadata, and the demo's tiles with its three encoders. The checkout ``before`` writes the
stores, their neighbour graphs and its results; ``after`` then reads those same stores. Two results
are equal when their JSON is, apart from schema and provenance; numbers that differ are listed with
the largest difference, and so are values that only ``after`` has. Exit code 1: a difference beyond
``TOLERATED``.
"""

import argparse
import json
import math
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"
METADATA = {
    "camelyon": ["camelyon.csv", "camelyon_reduced.csv"],
    "tcga": ["tcga_2x2.csv", "tcga_4x4.csv"],
    "tolkach_esca": ["tolkach_esca.csv", "tolkach_esca_reduced.csv"],
}
METRICS = "robustness_index,margins,probes,apd,clustering_score"
ENCODERS = ("color_stats", "nuclear_texture", "vit_random")
# What has changed on purpose since 7ab3428: part of a place -> tolerance of the difference
# (relative for numbers above 1) and why. The first that applies counts.
TOLERATED = {
    "ci95": (math.inf, "intervals rest on left-out slides: ADR 24"),
    "ami_biology": (1e-11, "expected mutual information is summed in another order"),
    "ami_center": (1e-11, "expected mutual information is summed in another order"),
    "silhouettes": (5e-6, "silhouettes are computed in float64"),
    "mari": (1e-15, "weights are summed in another order"),
    "warnings": (math.inf, "words"),
    "clustering_score_std_meaning": (math.inf, "words"),
}


def run(checkout: pathlib.Path, module: str, *arguments: str) -> None:
    """One script of a checkout; its output is shown only where it fails."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", f"experiments.{module}", *arguments]
    done = subprocess.run(
        command, cwd=checkout, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{checkout}: {' '.join(command)}\n{done.stderr}")


def write_stores(checkout: pathlib.Path, work: pathlib.Path) -> None:
    """Golden and many-K embeddings as ``.npy`` imports; the demo's tiles embedded."""
    golden, metadata = SHARED / "golden", work / "metadata"
    metadata.mkdir(parents=True, exist_ok=True)
    for source in [*(SHARED / "pathorob" / "metadata").iterdir(), golden / "tcga_2x2.csv"]:
        shutil.copyfile(source, metadata / source.name)
    for model, folder in (("golden", golden), ("many_k", golden / "clustering_many_k")):
        for dataset in METADATA:
            with np.load(folder / f"embeddings_{dataset}.npz") as arrays:
                slide, patch = arrays["slide_id"], arrays["patch_id"]
                features = arrays["features"].astype(np.float32)
            write_manifest(work / f"{model}_{dataset}.csv", slide, patch, metadata, dataset)
            np.save(work / f"{model}_{dataset}.npy", features)
            run(
                checkout,
                "import_embeddings",
                "--format=npy",
                f"--source={work}/{model}_{dataset}.npy",
                f"--manifest={work}/{model}_{dataset}.csv",
                f"--model={model}",
                f"--dataset={dataset}",
                f"--output={work}/embeddings",
            )
    run(checkout, "synthesize", f"--output={work}/tiles", "--overwrite")
    run(
        checkout,
        "extract",
        f"--model={','.join(ENCODERS)}",
        f"--tileset={work}/tiles",
        "--dataset=synthetic",
        f"--output={work}/embeddings",
    )


def write_manifest(path, slide, patch, metadata, dataset) -> None:
    """Class and centre of each embedding, out of the dataset's metadata files."""
    import csv

    labels = {}
    for name in METADATA[dataset]:
        with (metadata / name).open() as stream:
            for row in csv.DictReader(stream):
                key = (row["slide_id"], row["patch_id"])
                labels[key] = (row["biological_class"], row["medical_center"])
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["slide_id", "patch_id", "biological_class", "medical_center"])
        for key in zip(slide.tolist(), patch.tolist(), strict=True):
            writer.writerow([*key, *labels[key]])


def evaluate(checkout: pathlib.Path, work: pathlib.Path, output: pathlib.Path, quick: bool) -> None:
    """All metrics of every store, by the protocols' settings, and three other ways of use."""
    effort = ["--repetitions=2", "--trials=5", "--k_max=6"] if quick else ["--repetitions=5"]
    protocol = [f"--dataset={','.join(METADATA)}", f"--metadata_dir={work}/metadata"]
    golden, many_k = (
        f"--embeddings={work}/embeddings/golden",
        f"--embeddings={work}/embeddings/many_k",
    )
    demo = "--embeddings=" + ",".join(f"{work}/embeddings/{name}" for name in ENCODERS)
    one = f"--embeddings={work}/embeddings/golden/tolkach_esca"
    calls = {
        "protocol": [golden, *protocol, f"--metrics={METRICS}", "--heads=knn", *effort],
        "many_k": [many_k, *protocol, "--metrics=clustering_score", *effort[1:]],
        "auto": [golden, *protocol, "--metrics=robustness_index,margins", "--k=auto"],
        # Its slides are too few for the splits of the performance drop.
        "demo": [demo, f"--metrics={METRICS.replace('apd,', '')}", "--k=61", *effort[1:]],
        "paired": [
            *(one, "--dataset=custom", "--design=paired", "--metrics=robustness_index,margins"),
            "--k=auto",
        ],
    }
    for name, arguments in calls.items():
        if not (output / name / "done").exists():
            run(checkout, "evaluate", *arguments, f"--output={output / name}")
            (output / name / "done").touch()


def flatten(value, place=()):
    """(place, leaf) of nested JSON."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from flatten(inner, (*place, key))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from flatten(inner, (*place, i))
    else:
        yield place, value


def compare(before: pathlib.Path, after: pathlib.Path) -> bool:
    """List the differences of two folders of results; whether all of them are tolerated."""
    names = sorted({p.relative_to(root) for root in (before, after) for p in root.rglob("*.json")})
    names = [name for name in names if "tasks" not in name.parts]
    fine, n_leaves = True, 0
    for name in names:
        if not (before / name).exists() or not (after / name).exists():
            is_new = (after / name).exists()
            print(f"{name}: only {'after' if is_new else 'before'}")
            fine &= is_new
            continue
        old, new = (
            dict(flatten({k: v for k, v in json.loads((root / name).read_text()).items()
                          if k not in ("schema_version", "provenance")}))
            for root in (before, after)
        )  # fmt: skip
        n_leaves += len(new)
        differing: dict[str, list[float]] = {}
        added: set[str] = set()
        for place in old.keys() | new.keys():
            a, b = old.get(place), new.get(place)
            if a != b or (place in old) != (place in new):
                numbers = all(isinstance(v, int | float) for v in (a, b))
                apart = abs(a - b) / max(1.0, abs(a), abs(b)) if numbers else math.inf
                field = ".".join(part for part in place if isinstance(part, str))
                if place not in old:
                    added.add(field)
                else:
                    differing.setdefault(field, []).append(apart)
        if added:
            print(f"{name}: only after: {', '.join(sorted(added))}")
        for field, apart in sorted(differing.items()):
            whys = (TOLERATED[part] for part in TOLERATED if part in field)
            tolerance, why = next(whys, (0.0, "not expected"))
            fine &= max(apart) <= tolerance
            print(f"{name}: {field}: {len(apart)} differ by up to {max(apart):.1e} ({why})")
    print(f"{len(names)} files with {n_leaves} values compared: {'equal' if fine else 'DIFFERENT'}")
    return fine


def main() -> None:
    """Stores once, results of both checkouts, and their differences."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=pathlib.Path, required=True)
    parser.add_argument("--after", type=pathlib.Path, required=True)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    before, after, work = (p.resolve() for p in (options.before, options.after, options.work))
    if not (work / "stores").exists():
        write_stores(before, work)
        (work / "stores").touch()
    for checkout, name in ((before, "before"), (after, "after")):
        if name == "after":
            shutil.rmtree(work / name, ignore_errors=True)
        evaluate(checkout, work, work / name, options.quick)
    sys.exit(0 if compare(work / "before", work / "after") else 1)


if __name__ == "__main__":
    main()
