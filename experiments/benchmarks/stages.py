"""Stages of the measurements on an accelerator, and how one is run."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO

# As the exit code of ``timeout``.
TIMED_OUT = 124


@dataclass(frozen=True)
class Stage:
    """Commands that are measured one after another.

    Attributes:
        seconds: limit of each command.
        module: script below ``experiments.benchmarks``.
        variants: flags of each command.
        full: flags at full size.
        small: flags of a rehearsal.
    """

    seconds: int
    module: str
    variants: Sequence[str] = ("",)
    full: str = ""
    small: str = ""

    def commands(self, *, rehearse: bool, folder: str) -> list[list[str]]:
        """Arguments of Python; ``{folder}`` in flags is that of the stage's own files."""
        size = self.small if rehearse else self.full
        return [
            [
                "-m",
                f"experiments.benchmarks.{self.module}",
                *f"{variant} {size}".format(folder=folder).split(),
            ]
            for variant in self.variants
        ]


_SEARCH = "--samples=20400 --dim=3072 --repeats=3"
_SMALL_SEARCH = "--samples=680 --dim=64 --repeats=1"
_EXTRACT = "--parts=device --dtypes=bfloat16 --repeats=3 --results="
_SMALL_EXTRACT = "--models=vit_s16 --batch_sizes=2 --peers=ours --matmul=64 --min_seconds=0"
STAGES: Mapping[str, Stage] = {
    "parity": Stage(150, "parity", ("--folder={folder}",), "", "--rehearse"),
    "neighbors": Stage(
        40,
        "neighbors",
        (
            "--task=search --peers=ours,cuvs,matmul",
            "--task=robustness_index --peers=ours,matmul",
            "--task=all --peers=ours,ours_again",
        ),
        _SEARCH,
        _SMALL_SEARCH,
    ),
    "million": Stage(
        110,
        "neighbors",
        ("--task=search --k=100 --peers=ours --repeats=0",),
        "--samples=1000008 --dim=1536",
        "--samples=1360 --dim=64",
    ),
    "apd": Stage(
        40,
        "apd",
        ("--shape=tcga --peers=ours --repeats=1", "--shape=camelyon --peers=ours --repeats=1"),
        "--dim=3072",
        "--dim=32 --rows_per_slide=4",
    ),
    "clustering": Stage(
        40,
        "clustering",
        ("--peers=ours --repeats=1", "--peers=cuml,flash_kmeans"),
        "--samples=2000 --dim=3072",
        "--samples=80 --dim=16 --trials=3 --k_max=4",
    ),
    "extract_large": Stage(
        90,
        "extraction",
        (_EXTRACT,),
        "--models=vit_l16 --batch_sizes=256 --peers=ours,torch,torch_compile",
        _SMALL_EXTRACT,
    ),
    "extract_giant": Stage(
        120,
        "extraction",
        (_EXTRACT,),
        "--models=vit_g14 --batch_sizes=256 --peers=ours,torch,torch_compile",
        _SMALL_EXTRACT,
    ),
    "end_to_end": Stage(
        90,
        "extraction",
        ("--parts=end_to_end --dtypes=bfloat16 --repeats=1 --peers=ours --results=",),
        "--models=vit_l16 --batch_sizes=256 --tiles=8192 --workers=12",
        "--models=vit_s16 --batch_sizes=2 --tiles=8 --tile_px=32 --matmul=64 --min_seconds=0",
    ),
}


@dataclass(frozen=True)
class Outcome:
    """How a stage went.

    Attributes:
        name: of the stage.
        code: the first exit code that is not 0; 124: out of time.
        seconds: of all its commands.
    """

    name: str
    code: int
    seconds: float

    def __str__(self) -> str:
        words = {0: "well", TIMED_OUT: "out of time"}
        return (
            f"{self.name}: {words.get(self.code, f'exit code {self.code}')}, {self.seconds:.0f} s"
        )


def run_stage(
    name: str,
    stage: Stage,
    *,
    folder: str,
    rehearse: bool,
    patience: float,
    environment: Mapping[str, str],
) -> Outcome:
    """Run the commands of a stage; their JSON lines are appended to ``<folder>/lines.jsonl``.

    What follows a failed command is still run: each measures something of its own.

    Args:
        name: of the stage, and of its log.
        stage: what to run.
        folder: where lines and logs are kept.
        rehearse: take the small sizes.
        patience: limits are multiplied by it.
        environment: of the commands.
    """
    # The card's memory is shared with torch, and first calls of later stages find programs.
    kept = {
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "JAX_COMPILATION_CACHE_DIR": os.path.abspath(os.path.join(folder, "xla")),
    }
    begun_s, code = time.monotonic(), 0
    own = os.path.join(folder, name)
    for arguments in stage.commands(rehearse=rehearse, folder=own):
        with open(os.path.join(folder, "logs", f"{name}.log"), "a+", encoding="utf-8") as log:
            start = log.tell()
            done = _run(arguments, log, {**kept, **environment}, stage.seconds * patience)
            log.seek(start)
            said = log.read().splitlines()
        lines = [line for line in said if line.startswith("{")]
        with open(os.path.join(folder, "lines.jsonl"), "a", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)
        print("\n".join([*lines, *(said[-5:] if done else [])]), flush=True)
        code = code or done
    return Outcome(name, code, time.monotonic() - begun_s)


def _run(
    arguments: Sequence[str], log: IO[str], environment: Mapping[str, str], limit_s: float
) -> int:
    """The exit code of Python with these arguments; ``TIMED_OUT`` where it had to be ended."""
    with subprocess.Popen(
        [sys.executable, *arguments],
        stdout=log,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
    ) as process:
        try:
            return process.wait(limit_s)
        except BaseException as error:
            # With the peers that it started: they would go on, and hold the device.
            os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                return TIMED_OUT
            raise
