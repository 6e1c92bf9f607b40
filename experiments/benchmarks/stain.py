"""Stain normalisation: ours and torchstain's NumPy code, on the same tiles in one run.

A tile is normalised by its own numbers to a given target, uint8 in, uint8 out; times are those of
one tile. Ours is what extraction runs: blocks of ``stain.BLOCK`` tiles from the host's memory.
torchstain takes tiles one by one, as it offers; for Macenko without its two extra images of the
stains. ``vit_s16`` is the rate of ViT-S/16 with its preprocessing on batches of the same tiles.
Every row runs in a separate process. ``cpu_s`` is the processor time over all threads, for
comparisons on a machine that others use at the same time. ``max_levels_off`` compares all pixels of
all tiles; Reinhard's are then those of ``tissue_only=False``, as torchstain has no mask.
"""

import dataclasses
import importlib
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import app, flags

from experiments.benchmarks import harness
from pathorob_jax.core import cost
from pathorob_jax.data import synthetic_tiles
from pathorob_jax.models import registry
from pathorob_jax.robustify.stain import BLOCK, STAIN_METHODS, split_blocks

_TILES = flags.DEFINE_integer("tiles", 32, "Tiles.", lower_bound=1)
_TILE_PX = flags.DEFINE_integer("tile_px", 256, "Side of a tile.", lower_bound=32)
_METHODS = flags.DEFINE_list("methods", sorted(STAIN_METHODS), "Methods.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Passes over all tiles.", lower_bound=1)
_RESULTS = flags.DEFINE_string(
    "results",
    str(pathlib.Path(__file__).parent / "results"),
    "Folder whose stain.jsonl the lines are appended to; empty: none.",
)
PEERS = harness.Peers("experiments.benchmarks.stain")
VIT, VIT_BATCH = "kaiko_vits16", 32
CPU_REPEATS = 2


def make_tiles(n: int, tile_px: int) -> np.ndarray:
    """uint8[n, px, px, 3] of all classes and centres in turn."""
    config = synthetic_tiles.SyntheticConfig(tile_px=tile_px)
    n_classes, n_centers = len(config.classes), len(config.centers)
    return np.stack(
        [
            synthetic_tiles.render_tile(
                config,
                class_idx=i % n_classes,
                center_idx=i // n_classes % n_centers,
                slide_idx=0,
                tile_idx=i,
            )
            for i in range(n)
        ]
    )


def normalize(tiles: np.ndarray, method: str, **options: Any) -> np.ndarray:
    """The tiles with the stain of the first, block by block."""
    kind = STAIN_METHODS[method]
    blocks = [block for block, _ in split_blocks(tiles)]
    target = [part[0] for part in kind.measure(blocks[0], **options)[:2]]
    found = [kind.normalize(jax.device_put(block), *target, **options)[0] for block in blocks]
    return np.concatenate([np.asarray(block) for block in found])[: len(tiles)]


def measure(peer: str, method: str, folder: str) -> dict[str, object]:
    """Time one peer; also save what it made of the tiles."""
    tiles = np.load(os.path.join(folder, "tiles.npy"))
    call: Callable[[], Any]
    if peer == "ours":
        kind = STAIN_METHODS[method]
        target = jax.device_get([part[0] for part in kind.measure(tiles[:BLOCK])[:2]])

        def call() -> None:
            started = [
                kind.normalize(jax.device_put(block), *target)[0]
                for block, _ in split_blocks(tiles)
            ]
            jax.block_until_ready(started)

        options = {"tissue_only": False} if method == "reinhard" else {}
        made = normalize(tiles, method, **options)
    elif peer == "torchstain":
        module = importlib.import_module(f"torchstain.numpy.normalizers.{method}")
        theirs = getattr(module, f"Numpy{method.capitalize()}Normalizer")()
        theirs.fit(tiles[0])
        given = {"stains": False} if method == "macenko" else {}

        def call() -> list[Any]:
            return [theirs.normalize(tile, **given) for tile in tiles]

        made = np.stack([x[0] if isinstance(x, tuple) else x for x in call()])
    else:
        encoder = registry.load_encoder(
            dataclasses.replace(registry.get_spec(VIT), weights=None, seed=0)
        )
        step, batch = jax.jit(encoder.apply), tiles[:VIT_BATCH]
        tiles, made = batch, np.zeros(0)

        def call() -> None:
            jax.block_until_ready(step(encoder.params, batch))

    np.save(os.path.join(folder, f"{peer}-{method}.npy"), made)
    times = harness.time_calls(call, repeats=_REPEATS.value)
    start = time.process_time()
    for _ in range(CPU_REPEATS):
        call()
    cpu_s = (time.process_time() - start) / CPU_REPEATS
    per_tile = {name: times[name] / len(tiles) for name in ("median_s", "p10_s", "p90_s")}
    return {
        "task": "stain",
        "peer": peer,
        "method": method,
        "tiles": len(tiles),
        "tile_px": tiles.shape[1],
        **times,
        **per_tile,
        "cpu_s": cpu_s / len(tiles),
        "tiles_per_s": 1 / per_tile["median_s"],
        "peak_bytes": cost.peak_bytes(),
        "device": jax.devices()[0].device_kind,
    }


def compare(
    ours: dict[str, Any], theirs: dict[str, Any], vit: dict[str, Any], folder: str
) -> dict[str, object]:
    """Speedup over torchstain and ViT-S/16, and the largest difference in grey levels."""
    method = ours["method"]
    a, b = (
        np.load(os.path.join(folder, f"{peer}-{method}.npy")).astype(int)
        for peer in ("ours", "torchstain")
    )
    return {
        "task": "stain",
        "method": method,
        "compare": "torchstain / ours",
        "speedup": theirs["median_s"] / ours["median_s"],
        "speedup_p10": theirs["p10_s"] / ours["p10_s"],
        "speedup_cpu": theirs["cpu_s"] / ours["cpu_s"],
        "speedup_over_vit_s16": vit["median_s"] / ours["median_s"],
        "max_levels_off": int(np.abs(a - b).max()),
        "share_off": float((a != b).mean()),
    }


def main(argv: list[str]) -> None:
    """Measure one peer, or all peers in separate processes."""
    del argv
    path = os.path.join(_RESULTS.value, "stain.jsonl") if _RESULTS.value else None

    def make(folder: str) -> None:
        np.save(os.path.join(folder, "tiles.npy"), make_tiles(_TILES.value, _TILE_PX.value))

    def run_all(run: harness.Run, folder: str) -> None:
        options = {"repeats": _REPEATS.value}
        vit = run("vit_s16", methods="none", **options)
        for method in _METHODS.value:
            ours, theirs = (run(p, methods=method, **options) for p in ("ours", "torchstain"))
            harness.emit(compare(ours, theirs, vit, folder), path=path)

    def measure_one(peer: str, folder: str) -> dict[str, object]:
        [method] = _METHODS.value
        return measure(peer, method, folder)

    PEERS.main(make=make, measure=measure_one, run_all=run_all, path=path)


if __name__ == "__main__":
    app.run(main)
