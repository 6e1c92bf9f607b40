"""Real processes killed at random moments: the same command then ends with the same bytes.

``fuzz_kills(n, seed)`` kills import, evaluate, report and extract with KILL, TERM or INT.
"""

import collections
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np
from run_folders import without_cost

ROOT = pathlib.Path(__file__).resolve().parents[2]
CLEAN, EQUAL, TRACEBACK, SILENT = "clean error", "equal to the oracle", "traceback", "silent"
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
N_SLIDES, N_PATCHES = 24, 4


def fuzz_kills(n: int, seed: int) -> collections.Counter:
    """Kill ``n`` processes and run each again; count whether the bytes are those of a whole run.

    A killed one that says more than one line, or that leaves what another run stumbles over, counts
    as ``traceback`` or ``silent``.
    """
    draw = random.Random(seed)
    counts: collections.Counter = collections.Counter()
    with tempfile.TemporaryDirectory() as top:
        kinds = draw.sample(sorted(COMMANDS), len(COMMANDS))
        chosen = [kinds[i % len(kinds)] for i in range(n)]
        whole = _run_whole(pathlib.Path(top, "whole"), chosen)
        for i, name in enumerate(chosen):
            folder = pathlib.Path(top, f"killed{i}")
            moment_s = draw.uniform(0.2, 1.0) * whole[name].seconds
            kind, what = _attempt(name, whole[name], folder, draw.choice(SIGNALS), moment_s)
            counts[kind] += 1
            if kind in (TRACEBACK, SILENT):
                print(f"{kind}: {name} after {moment_s:.1f} s\n{what}")  # noqa: T201
            shutil.rmtree(folder)
    return counts


COMMANDS = {
    "import_embeddings": [
        *("--format=npy", "--source=in/x.npy", "--manifest=in/rows.csv"),
        *("--model=m", "--dataset=d", "--output=out"),
    ],
    "evaluate": [
        *("--embeddings=in/e", "--output=out", "--k=5", "--draws=200", "--repetitions=3"),
        *("--trials=2", "--k_max=3", "--metrics=robustness_index,apd,clustering_score"),
    ],
    "report": ["--results=in/r", "--output=out"],
    "extract": [
        *("--model=color_stats", "--tileset=in/tiles", "--dataset=d", "--batch_size=2"),
        "--output=out",
    ],
}
# What a command reads, and the commands that make it.
NEEDED = {
    "report": [
        ["import_embeddings", *COMMANDS["import_embeddings"][:-1], "--output=in/e"],
        ["evaluate", "--embeddings=in/e", "--output=in/r", "--k=5", "--draws=200"],
    ],
    "evaluate": [["import_embeddings", *COMMANDS["import_embeddings"][:-1], "--output=in/e"]],
    "extract": [["synthesize", "--slides=1", "--tiles=2", "--tile_px=32", "--output=in/tiles"]],
    "import_embeddings": [],
}


class _Whole(collections.namedtuple("_Whole", "inputs files seconds")):
    """Inputs of a command, its files without an interruption, and how long it took."""


def _run_whole(top, names):
    whole = {}
    for name in sorted(set(names)):
        folder = top / name
        _write_arrays(folder / "in")
        for command in NEEDED[name]:
            _finish(_start(folder, *command))
        shutil.copytree(folder / "in", top / f"{name}-in")
        _finish(_start(folder, name, *COMMANDS[name]))  # compiles
        shutil.rmtree(folder)
        shutil.copytree(top / f"{name}-in", folder / "in")
        begin_s = time.monotonic()
        _finish(_start(folder, name, *COMMANDS[name]))
        seconds = time.monotonic() - begin_s
        whole[name] = _Whole(top / f"{name}-in", _files(folder), seconds)
    return whole


def _write_arrays(folder):
    folder.mkdir(parents=True)
    slide = np.repeat(np.arange(N_SLIDES), N_PATCHES)
    lines = ["slide_id,patch_id,biological_class,medical_center"]
    lines += [f"s{s},{i},class{s % 2},Center {s // 2 % 2}" for i, s in enumerate(slide)]
    (folder / "rows.csv").write_text("\n".join(lines) + "\n")
    x = np.random.default_rng(0).normal(size=(len(slide), 6)).astype(np.float32)
    np.save(folder / "x.npy", x)


def _start(folder, name, *flags):
    cache = folder.parent / "xla" if folder.parent.name == "whole" else folder.parent / "whole/xla"
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    environment |= {"PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": str(cache)}
    folder.mkdir(parents=True, exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", f"experiments.{name}", *flags],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def _finish(process):
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 0, said


def _files(folder):
    """Bytes of all files but hidden ones, of which nothing reads, and what each cost."""
    paths = (p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    names = {str(p.relative_to(folder)): p for p in paths if p.name != "cost.json"}
    return {n: without_cost(f"results/{n}", p.read_bytes()) for n, p in names.items()}


def _attempt(name, whole, folder, number, moment_s):
    folder.mkdir()
    shutil.copytree(whole.inputs, folder / "in")
    process = _start(folder, name, *COMMANDS[name])
    time.sleep(moment_s)
    process.send_signal(number)
    said = process.communicate(timeout=300)[1]
    own = [line for line in said.splitlines() if str(ROOT) in line]
    if "Traceback" in said and own:  # without a line of ours it was Python's own start
        return TRACEBACK, said
    if number == signal.SIGINT and process.returncode == 1 and "interrupted" not in said:
        return SILENT, said
    hidden = [p.name for p in folder.rglob(".*") if number != signal.SIGKILL]
    if hidden:
        return SILENT, f"left {hidden}"
    again = _start(folder, name, *COMMANDS[name])
    said = again.communicate(timeout=300)[1]
    if again.returncode:
        return (TRACEBACK if "Traceback" in said else SILENT), said
    locks = [p.name for p in folder.rglob(".*.lock")]
    found = _files(folder)
    if found != whole.files or locks:
        names = {n for n in {*found, *whole.files} if found.get(n) != whole.files.get(n)}
        return SILENT, f"{number.name}: other bytes in {sorted(names)}, locks {locks}"
    return EQUAL, ""
