"""The commands: exit codes, one clear message, nothing half-written, and the demo's truth."""

import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import scripts
import torch_oracles
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parents[2]
HEADER = "slide_id,patch_id,biological_class,medical_center"


def run_apart(*arguments):
    """``python -m experiments.<first> <rest>`` from the clone's root, a process of its own."""
    module, *flags = map(str, arguments)
    return subprocess.run(
        [sys.executable, "-m", f"experiments.{module}", *flags],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if k != "XLA_FLAGS"},
    )


def run(*arguments):
    """The same within this process, which has JAX already."""
    return scripts.call(*map(str, arguments))


def refused(done, code, *words):
    """One message on standard error, no traceback, and the exit code."""
    assert done.code == code, done.text
    assert "Traceback" not in done.text
    errors = [line for line in done.text.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.text
    for word in words:
        assert re.search(word, errors[0]), f"{word!r} not in {errors[0]!r}"


def write_rows(path, rows):
    path.write_text("\n".join([HEADER, *rows]) + "\n")
    return path


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    """A manifest of 2 classes x 2 centres x 2 slides x 4 patches, and embeddings of it."""
    folder = tmp_path_factory.mktemp("arrays")
    rows = [
        f"s{b}{m}{s},{p},class{b},Center {m}"
        for b in range(2)
        for m in range(2)
        for s in range(2)
        for p in range(4)
    ]
    write_rows(folder / "manifest.csv", rows)
    x = np.random.default_rng(0).normal(size=(32, 6)).astype(np.float32)
    np.save(folder / "x.npy", x)
    for name, value in (("nan", np.nan), ("zero", 0.0)):
        bad = x.copy()
        bad[5] = value
        np.save(folder / f"{name}.npy", bad)
    np.save(folder / "short.npy", x[:30])
    write_rows(folder / "other.csv", ["t1,0,class0,Center 0", "t2,0,class1,Center 1"])
    return folder


@pytest.mark.slow
def test_import_evaluate_report(arrays, tmp_path):
    done = run(
        "import_embeddings",
        "--format=npy",
        f"--source={arrays}/x.npy",
        f"--manifest={arrays}/manifest.csv",
        "--model=mine",
        "--dataset=ours",
        f"--output={tmp_path}/embeddings",
    )
    assert done.code == 0, done.text
    evaluate = ["evaluate", f"--output={tmp_path}/results", "--k=5"]
    done = run_apart(*evaluate, f"--embeddings={tmp_path}/embeddings/mine")
    assert done.returncode == 0, done.stderr
    assert "mine on ours: robustness index" in done.stderr
    path = tmp_path / "results/mine/ours/robustness_index.json"
    first = json.loads(path.read_text())
    done = run("report", f"--results={tmp_path}/results", f"--output={tmp_path}/report")
    assert done.code == 0, done.text
    page = (tmp_path / "report/index.html").read_text()
    assert f"{first['robustness_index']:.3f}" in page
    # Other rows than the store's: refused, and the old result stays.
    done = run(
        *evaluate,
        f"--embeddings={tmp_path}/embeddings/mine",
        f"--manifest={arrays}/other.csv",
    )
    refused(done, 1, "lacks 2 of the 2 patches", "other.csv", "t1-0", "line 2", "Extract or import")
    assert json.loads(path.read_text()) == first
    # The same command again, and one of another configuration.
    again = ["import_embeddings", "--format=npy", f"--manifest={arrays}/manifest.csv"]
    again += ["--model=mine", "--dataset=ours", f"--output={tmp_path}/embeddings"]
    assert run(*again, f"--source={arrays}/x.npy").code == 0
    np.save(tmp_path / "y.npy", np.ones((32, 7)))
    done = run(*again, f"--source={tmp_path}/y.npy")
    refused(done, 1, "another configuration", "dim: there 6, here 7", "--overwrite")


@pytest.mark.slow
def test_bad_input_is_one_message_and_nothing_half_written(arrays, tmp_path):
    imported = ["import_embeddings", "--format=npy", "--model=m", "--dataset=d"]
    rows = ["s1,0,a,A", "s1,0,a,A", "s2,0,b,B"]
    twice = write_rows(tmp_path / "twice.csv", rows)
    missing = tmp_path / "missing.csv"
    missing.write_text("slide_id,patch_id,label,medical_center\ns,0,a,A\n")
    cases = {
        "nan": (
            [*imported, f"--source={arrays}/nan.npy", f"--manifest={arrays}/manifest.csv"],
            (1, "s001-1", "NaN"),
        ),
        "zero": (
            [*imported, f"--source={arrays}/zero.npy", f"--manifest={arrays}/manifest.csv"],
            (1, "s001-1", "only zeros"),
        ),
        "short": (
            [*imported, f"--source={arrays}/short.npy", f"--manifest={arrays}/manifest.csv"],
            (1, r"short.npy: expected shape \(32, any\)", r"found \(30, 6\)"),
        ),
        "twice": (
            [*imported, f"--source={arrays}/x.npy", f"--manifest={twice}"],
            (1, "patch s1-0 appears twice", "line 2 and line 3", "Remove one"),
        ),
        "missing": (
            [*imported, f"--source={arrays}/x.npy", f"--manifest={missing}"],
            (1, r"missing \['biological_class'\]", "--label_column"),
        ),
        "format": (
            ["import_embeddings", "--format=csv"],
            (2, "format"),
        ),
        "model": (
            ["extract", "--model=colour_stats", "--tileset=/nowhere", "--dataset=d"],
            (2, "unknown name 'colour_stats'. Did you mean 'color_stats'"),
        ),
        "tileset": (
            ["extract", "--model=color_stats", "--tileset=/nowhere", "--dataset=d"],
            (1, "/nowhere: no such folder"),
        ),
        "positional": (
            ["evaluate", "store", "--embeddings=/nowhere"],
            (2, r"unexpected arguments \['store'\]"),
        ),
        "store": (
            ["evaluate", "--embeddings=/nowhere"],
            (1, "/nowhere: no embedding store", "experiments.extract"),
        ),
        "k": (["evaluate", "--embeddings=/nowhere", "--k=many"], (2, "k: expected default")),
        "results": (["report", "--results=/nowhere"], (1, "experiments.evaluate")),
    }

    for name, (command, expected) in cases.items():
        refused(run(*command, f"--output={tmp_path}/out-{name}"), *expected)
        left = [p for p in (tmp_path / f"out-{name}").rglob("*") if p.is_file()]
        complete = [p for p in left if p.name == "store.json" and "true" in p.read_text()]
        assert not complete, name


@pytest.mark.slow
def test_required_flags_are_named():
    done = run_apart("evaluate")
    assert done.returncode == 2
    assert "--embeddings" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_unreadable_image_names_the_tile_and_leaves_no_store(tmp_path):
    tiles = tmp_path / "tiles"
    tiles.mkdir()
    rows = []
    for i in range(6):
        pixels = np.random.default_rng(i).integers(0, 256, (64, 64, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tiles / f"{i}.png")
        rows.append(f"s{i},{i},class{i % 2},Center {i % 3},{i}.png")
    (tiles / "manifest.csv").write_text("\n".join([f"{HEADER},path", *rows]) + "\n")
    broken = tiles / "4.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:200])
    command = ["extract", "--model=color_stats", f"--tileset={tiles}", "--dataset=d"]
    command += [f"--output={tmp_path}/out", "--batch_size=2"]
    refused(run(*command), 1, "4.png: cannot be decoded", "Replace the file")
    refused(
        run("evaluate", f"--embeddings={tmp_path}/out/color_stats", f"--output={tmp_path}/r"),
        1,
        "the store is unfinished",
        "run experiments.extract",
    )
    assert not (tmp_path / "r").exists()
    # A mended file makes another tileset: what was embedded before may no longer be its images.
    broken.write_bytes(whole)
    refused(run(*command), 1, "another configuration", "tileset_sha256", "--overwrite")
    assert run(*command, "--overwrite").code == 0


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.campaign
def test_extraction_benchmark(tmp_path):
    """Every row of a small run is there, on file as on standard output, with plausible figures."""
    torch_oracles.import_timm()
    done = run_apart(
        "benchmarks.extraction",
        "--models=vit_s16",
        "--batch_sizes=2",
        "--dtypes=float32",
        "--peers=ours,torch",
        "--tiles=5",
        "--tile_px=32",
        "--matmul=64",
        "--repeats=1",
        "--min_seconds=0",
        f"--results={tmp_path}",
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "extraction.jsonl").read_text() == done.stdout
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert not [line["failed"] for line in lines if "failed" in line]
    rows = {(line["part"], line["peer"]): line for line in lines if "peer" in line}
    parts = ("matmul", "device", "end_to_end")
    assert list(rows) == [(part, peer) for part in parts for peer in ("ours", "torch")]
    ceiling = max(rows["matmul", peer]["tflops"] for peer in ("ours", "torch"))
    for (part, peer), row in rows.items():
        assert row["peak_bytes"] > 1e8
        assert row["first_s"] > 0
        assert {"jax", "torch", "timm"} <= set(row["versions"])
        if part == "matmul":
            continue
        assert row["images_per_s"] == pytest.approx(2 / row["median_s"]), (part, peer)
        assert row["tflops"] == pytest.approx(row["images_per_s"] * 9.196997e-3, rel=1e-6)
        assert row["utilisation"] == pytest.approx(row["tflops"] / ceiling)
    for peer in ("ours", "torch"):
        row = rows["end_to_end", peer]
        assert row["tiles"] == 6  # whole batches
        assert 0 <= row["wait_share"] < 1
    speedups = {line["part"]: line["speedup"] for line in lines if "compare" in line}
    for part in parts[1:]:
        ratio = rows[part, "ours"]["images_per_s"] / rows[part, "torch"]["images_per_s"]
        assert speedups[part] == pytest.approx(ratio)


@pytest.mark.slow
@pytest.mark.campaign
def test_demo_tells_the_stain_from_the_morphology(tmp_path):
    """The ground truth: centres differ in stain, classes in nuclei, independently.

    Colour statistics hold the stain, so their neighbours share the centre: index near 0. Texture of
    the standardised haematoxylin channel holds the nuclei: index near 1. The bounds leave room
    for slide effects and for the classes' own colour.
    """
    tiles, embeddings = tmp_path / "tiles", tmp_path / "embeddings"
    steps = [
        ["synthesize", f"--output={tiles}", "--slides=2", "--tiles=8", "--tile_px=128"],
        [
            "extract",
            "--model=color_stats,nuclear_texture,vit_random",
            f"--tileset={tiles}",
            "--dataset=synthetic",
            f"--output={embeddings}",
        ],
        [
            "evaluate",
            "--k=15",
            f"--output={tmp_path}/results",
            "--embeddings="
            + ",".join(
                f"{embeddings}/{m}" for m in ("color_stats", "nuclear_texture", "vit_random")
            ),
        ],
        ["report", f"--results={tmp_path}/results", f"--output={tmp_path}/report"],
    ]
    for step in steps:
        done = run_apart(*step)
        assert done.returncode == 0, done.stderr
    index, support = {}, {}
    for path in (tmp_path / "results").glob("*/synthetic/robustness_index.json"):
        value = json.loads(path.read_text())
        index[value["model"]] = value["robustness_index"]
        support[value["model"]] = value["support"]
    # k exceeds the 8 same-class, same-centre neighbours of other slides: every tile must choose.
    assert min(support.values()) > 0.9
    assert index["color_stats"] < 0.2
    assert index["nuclear_texture"] > 0.85
    assert index["color_stats"] < index["vit_random"] < index["nuclear_texture"]
    page = (tmp_path / "report/index.html").read_text()
    assert all(model in page for model in index)
