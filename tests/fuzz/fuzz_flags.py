"""Flags of all scripts with odd values: one message, or a result that an oracle confirms.

``fuzz_flags(n, seed)`` runs the scripts in this process on tiny data.
"""

import collections
import json
import os
import pathlib
import random
import shutil
import tempfile

import numpy as np
import oracles
import pyarrow.parquet as pq
import scripts

from pathorob_jax.embeddings.store import open_store

CLEAN, EQUAL, TRACEBACK, SILENT = "clean error", "equal to the oracle", "traceback", "silent"
N = 48
BIO, CENTER, SLIDE = np.arange(N) // 4 % 2, np.arange(N) // 8 % 2, np.arange(N) // 4
NUMBERS = ["0", "-1", "-9999999999", "1e3", "nan", "inf", "", " ", "x", "1.5", "2", "²", "0x1F"]
NUMBERS += ["99999999999999999999", "3", "7", "1_0", "+5"]
NAMES = ["", ".", "..", "../../x", "/abs", "a/b", "a\\b", "a,b", "a@b", "Köln", "北京", "n" * 300]
NAMES += ["a b", "x.json", "\x00", "a\nb", "$HOME", "%2F", "-", "--x", "a=b", "a\u200bb", "ok"]
# None that a privileged user could make outside of the test's own folder.
FILES = [
    "",
    "/proc/none",
    "/dev/null",
    "s3:/x",
    "ftp://a/b",
    "x" * 5000,
    "\x00",
    "file",
    ".",
    "hf://a/b",
]
WORDS = ["", "x", "all", "paired", "auto", "default", "float32", "None", "true", "all,all"]
COLUMNS = ["", "scanner", "medical_center", "patch_id", "nothing", "scanner,scanner", '"a', "a/b"]
COLUMNS += ["medical_center,scanner", "biological_class", "slide_id", "..", '"scanner"']
FLAGS = {
    "evaluate": {
        **dict.fromkeys(("k", "seed", "draws", "budget_mb", "repetitions", "trials"), NUMBERS),
        **dict.fromkeys(("max_patches_per_combi", "min_cell_size", "slides_per_cell"), NUMBERS),
        **dict.fromkeys(("rows_per_slide", "test_slides", "k_min", "k_max"), NUMBERS),
        **dict.fromkeys(("design", "precision", "stopping", "heads", "metrics"), WORDS),
        **dict.fromkeys(("clustering_metric", "apd_classes", "apd_centers"), WORDS),
        **dict.fromkeys(("embeddings", "manifest", "metadata_dir", "neighbors", "output"), FILES),
        **dict.fromkeys(("center_column", "label_column", "group_column"), COLUMNS),
        "dataset": NAMES,
    },
    "import_embeddings": {
        **dict.fromkeys(("model", "dataset"), NAMES),
        **dict.fromkeys(("source", "manifest", "output"), FILES),
        **dict.fromkeys(("center_column", "label_column"), COLUMNS),
        **dict.fromkeys(("slide_column", "patch_column", "group_column"), COLUMNS),
        **dict.fromkeys(("format", "encoder"), WORDS),
    },
    "report": dict.fromkeys(("results", "output"), FILES),
    "synthesize": {
        **dict.fromkeys(("slides", "tiles", "tile_px", "seed"), [*NUMBERS[:12], "32", "33"]),
        "output": FILES,
    },
    "extract": {
        **dict.fromkeys(("batch_size", "num_processes", "process_id"), NUMBERS),
        **dict.fromkeys(("model", "dataset"), NAMES),
        **dict.fromkeys(("tileset", "output", "spec", "weights"), FILES),
        **dict.fromkeys(("pooling", "preset", "compute_dtype", "on_bad_image"), WORDS),
        **dict.fromkeys(("center_column", "label_column"), COLUMNS),
        "coordinator": NAMES,
    },
}


def fuzz_flags(n: int, seed: int) -> collections.Counter:
    """Run ``n`` commands with one odd flag each, and count what becomes of them."""
    draw = random.Random(seed)
    cases = [(name, flag, v) for name in FLAGS for flag in FLAGS[name] for v in FLAGS[name][flag]]
    draw.shuffle(cases)
    counts: collections.Counter = collections.Counter()
    with tempfile.TemporaryDirectory() as top:
        inputs = _make_inputs(pathlib.Path(top, "inputs"))
        for i, (name, flag, value) in enumerate(cases[:n]):
            folder = pathlib.Path(top, f"work{i}", "deep", "here")
            folder.mkdir(parents=True)
            kind, what = _attempt(name, flag, value, inputs, folder)
            counts[kind] += 1
            if kind in (TRACEBACK, SILENT):
                print(f"{kind}: {name} --{flag}={value!r}\n{what}")  # noqa: T201
            shutil.rmtree(pathlib.Path(top, f"work{i}"))
    return counts


def _make_inputs(folder):
    """A manifest and its array, a store, results and a tileset."""
    folder.mkdir()
    lines = ["slide_id,patch_id,biological_class,medical_center,scanner"]
    lines += [
        f"s{s},{i},class{b},Center {c},scan{s // 2 % 2}"
        for i, (s, b, c) in enumerate(zip(SLIDE, BIO, CENTER, strict=True))
    ]
    (folder / "rows.csv").write_text("\n".join(lines) + "\n")
    x = np.random.default_rng(0).normal(size=(N, 5)).astype(np.float32)
    np.save(folder / "x.npy", x)
    for name in ("import_embeddings", "evaluate", "synthesize"):
        done = scripts.call(name, *_flags(name, folder, folder).values())
        assert done.code == 0, done.text
    return folder


def _flags(name, inputs, folder):
    """A command that works, by flag."""
    chosen = {
        "import_embeddings": {
            "format": "npy",
            "source": inputs / "x.npy",
            "manifest": inputs / "rows.csv",
            "model": "m",
            "dataset": "d",
            "output": folder / "e",
        },
        "evaluate": {
            "embeddings": inputs / "e",
            "output": folder / "r",
            "k": 5,
            "draws": 200,
            "metrics": "robustness_index",
        },
        "report": {"results": inputs / "r", "output": folder / "page"},
        "synthesize": {"output": folder / "tiles", "slides": 1, "tiles": 1, "tile_px": 32},
        "extract": {
            "model": "color_stats",
            "tileset": inputs / "tiles",
            "dataset": "d",
            "output": folder / "e",
            "batch_size": 8,
        },
    }[name]
    return {flag: f"--{flag}={value}" for flag, value in chosen.items()}


def _attempt(name, flag, value, inputs, folder):
    flags = _flags(name, inputs, folder) | {flag: f"--{flag}={value}"}
    of_apd = ("repetitions", "stopping", "heads", "apd_classes", "apd_centers", "slides_per_cell")
    if flag in (*of_apd, "rows_per_slide", "test_slides"):
        flags |= {"metrics": "--metrics=apd", "repetitions": "--repetitions=1"}
        flags |= {flag: f"--{flag}={value}"}
    if flag in ("trials", "k_min", "k_max", "clustering_metric"):
        flags |= {
            "metrics": "--metrics=clustering_score",
            "trials": "--trials=2",
            "k_max": "--k_max=3",
        }
        flags |= {flag: f"--{flag}={value}"}
    before, here = _list(folder.parents[1]), os.getcwd()
    os.chdir(folder)
    try:
        done = scripts.call(name, *flags.values())
    except ValueError as error:  # the system passes no NUL
        return (CLEAN, "") if "null" in str(error) and "\x00" in value else (TRACEBACK, error)
    finally:
        os.chdir(here)
    if "Traceback" in done.text:
        return TRACEBACK, done.text
    outside = [p for p in _list(folder.parents[1]) - before if folder not in (p, *p.parents)]
    if outside:
        return SILENT, f"wrote {outside}"
    if done.code:
        one = len(done.errors) == 1 and len(done.errors[0]) > 20 and "[Errno" not in done.text
        return (CLEAN, "") if one and done.code in (1, 2) else (SILENT, done)
    wrong = _check(name, flag, value, folder)
    return (SILENT, wrong) if wrong else (EQUAL, "")


def _list(top):
    return set(top.rglob("*"))


def _check(name, flag, value, folder):
    """What differs from the oracle; "" if nothing does."""
    if name == "report":
        pages = list(folder.rglob("index.html"))
        return "" if len(pages) == 1 and "<html" in pages[0].read_text() else "no page"
    if name == "synthesize":
        found = sum(pq.read_metadata(path).num_rows for path in folder.rglob("*.parquet"))
        wanted = 16 * (int(value) if flag in ("slides", "tiles") else 1)
        return "" if found == wanted else f"{found} tiles instead of {wanted}"
    if name == "import_embeddings":
        [path] = folder.rglob("store.json")
        x = np.random.default_rng(0).normal(size=(N, 5)).astype(np.float32)
        return "" if (open_store(str(path.parent)).read() == x).all() else "other embeddings"
    if name == "extract":
        rows = {len(open_store(str(path.parent))) for path in folder.rglob("store.json")}
        return "" if rows == {16} else f"{rows} rows"
    found = [path for path in folder.rglob("*.json") if "tasks" not in path.parts]
    if not found:
        return "no result"
    for path in found:
        record = json.loads(path.read_text())
        if path.parent.name != record["dataset"] or path.parent.parent.name != record["model"]:
            return f"{path} holds {record['model']} on {record['dataset']}"
        if record["metric"] == "robustness_index" and flag not in ("label_column", "max_patches"):
            wrong = _check_index(record, flag, value, path.parent.name)
            if wrong:
                return wrong
    return ""


def _check_index(record, flag, value, dataset):
    """The index by brute force, where the flag chose rows and labels that are known."""
    if flag in ("max_patches_per_combi", "min_cell_size", "design", "group_column"):
        return ""
    x = np.random.default_rng(0).normal(size=(N, 5)).astype(np.float32)
    by_scanner = dataset.endswith("@scanner") or (
        flag == "center_column" and value.strip('"') == "scanner"
    )
    labels = SLIDE // 2 % 2 if by_scanner else CENTER
    indices, _ = oracles.nearest(x, SLIDE, record["k"])
    wanted = oracles.robustness_index(indices, BIO, labels, record["k"])
    same = np.isclose(record["robustness_index"], wanted, rtol=1e-9)
    return "" if same else f"{record['robustness_index']} instead of {wanted}"
