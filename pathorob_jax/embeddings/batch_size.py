"""Choose the batch size: the number of tiles per device and step.

``find_batch_size`` measures a jitted step at several sizes and returns a size that fits into memory
and is nearly the fastest.
"""

import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh

from pathorob_jax.core import devices

CANDIDATES = {"cpu": (8, 16, 32, 64)}
ACCELERATOR_CANDIDATES = (32, 64, 128, 256, 512, 1024)
DEFAULTS = {"cpu": 32}
ACCELERATOR_DEFAULT = 128
# A shorter run would end before the measurement does.
MIN_TILES = 4096
TIME_LIMIT_S = 60.0
TIMED_S, TIMED_CALLS = 0.5, 2
# Of sizes with nearly the same speed the smallest is chosen, which leaves memory to others.
NEARLY = 0.97


def default_batch_size(mesh: Mesh) -> int:
    """Tiles per device and step if nothing is measured, by kind of device."""
    return DEFAULTS.get(mesh.devices.flat[0].platform, ACCELERATOR_DEFAULT)


def find_batch_size(
    step: Any, params: Any, shape: tuple[int, int, int], *, mesh: Mesh, n_tiles: int
) -> int:
    """Measure the speed at several batch sizes and choose one.

    Sizes are tried in ascending order until one does not fit, the rate falls, or a minute is over.

    Args:
        step: jitted (params, uint8[n, H, W, 3] split over the mesh) -> arrays.
        params: parameters on the devices.
        shape: (H, W, 3) of a tile.
        mesh: devices.
        n_tiles: number of tiles to embed; below ``MIN_TILES`` nothing is measured.

    Returns:
        The smallest size within 3 % of the fastest; the default if nothing was measured.
    """
    if n_tiles < MIN_TILES:
        return default_batch_size(mesh)
    candidates = CANDIDATES.get(mesh.devices.flat[0].platform, ACCELERATOR_CANDIDATES)
    rates = _measure(step, params, shape, mesh, candidates)
    if not rates:
        return candidates[0]
    fastest = max(rates.values())
    chosen = next(size for size, rate in rates.items() if rate >= NEARLY * fastest)
    measured = ", ".join(f"{size}: {rate:.0f}" for size, rate in rates.items())
    logging.info("batch size %d per device (tiles/s by size: %s)", chosen, measured)
    return chosen


def _measure(
    step: Any, params: Any, shape: tuple[int, int, int], mesh: Mesh, candidates: Sequence[int]
) -> dict[int, float]:
    """Tiles per second by size, ascending."""
    start_s = time.monotonic()
    rates: dict[int, float] = {}
    split = devices.row_sharding(mesh)
    for size in candidates:
        tiles = np.zeros((size * mesh.size, *shape), np.uint8)
        try:
            images = jax.device_put(tiles, split)
            compiled = step.lower(params, images).compile()
            if not _fits(compiled, mesh):
                break
            jax.block_until_ready(compiled(params, images))
            rates[size] = _rate(compiled, params, images)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            break
        if rates[size] < NEARLY * max(rates.values()):
            break
        if time.monotonic() - start_s > TIME_LIMIT_S:
            break
    return rates


def _rate(compiled: Any, params: Any, images: jax.Array) -> float:
    start_s, calls, took_s = time.perf_counter(), 0, 0.0
    while calls < TIMED_CALLS or took_s < TIMED_S:
        jax.block_until_ready(compiled(params, images))
        calls, took_s = calls + 1, time.perf_counter() - start_s
    return calls * len(images) / took_s


def _fits(compiled: Any, mesh: Mesh) -> bool:
    """Whether the scratch memory of a program is free on the devices; True if it is unknown."""
    needed = compiled.memory_analysis()
    for device in mesh.devices.flat:
        stats = device.memory_stats() or {}
        if needed is None or "bytes_limit" not in stats:
            return True
        free = stats["bytes_limit"] - stats.get("bytes_in_use", 0)
        # Parameters are in memory already; two batches and their results are in flight.
        if needed.temp_size_in_bytes + 2 * needed.output_size_in_bytes > 0.9 * free:
            return False
    return True
