"""Short measurements of this machine, from which a plan estimates how long a run takes."""

import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pathorob_jax.core import devices, hosts
from pathorob_jax.core.progress import quiet
from pathorob_jax.data import decode, synthetic_tiles
from pathorob_jax.data.synthetic_tiles import SyntheticConfig
from pathorob_jax.embeddings.batch_size import default_batch_size
from pathorob_jax.evaluation.in_memory import evaluate_embeddings
from pathorob_jax.models import registry
from pathorob_jax.models.registry import Encoder
from pathorob_jax.models.spec import ModelSpec

# Metrics whose time is measured; the others have many fits, whose number depends on the rows.
MEASURED = ("robustness_index", "margins", "probes")
MAX_ROWS = 1200
N_TILES = 24
TIMED_S, TIMED_CALLS = 1.5, 2
# A batch of an encoder with more arithmetic is made smaller where no accelerator is.
MAX_GFLOP = 300.0


class Tile(NamedTuple):
    """What a tile costs, whose size is that of the synthetic ones unless another is known.

    Attributes:
        draw_s: seconds to draw and encode it.
        decode_s: seconds to decode it in one thread.
        n_bytes: size of its file.
    """

    draw_s: float
    decode_s: float
    n_bytes: float


class Speed(NamedTuple):
    """What an encoder costs on all devices of this process.

    Attributes:
        start_s: seconds to make its program.
        tile_s: seconds a tile.
        dim: length D of an embedding.
    """

    start_s: float
    tile_s: float
    dim: int


@dataclass(frozen=True)
class Evaluating:
    """What metrics cost.

    Attributes:
        first_s: seconds of the first evaluation of ``n_rows`` embeddings, programs included.
        next_s: of each later one.
        n_rows: number of embeddings measured.
    """

    first_s: float
    next_s: float
    n_rows: int

    def of_rows(self, n: int) -> float:
        """Seconds of one evaluation: the search of neighbours grows with the square."""
        return self.next_s * max(1.0, (n / self.n_rows) ** 2)


def measure_tile(config: SyntheticConfig) -> Tile:
    """Draw, encode and decode a few synthetic tiles."""
    rows = synthetic_tiles.draw_sample(config, N_TILES)
    next(rows)  # makes tables that all share
    start_s = time.perf_counter()
    drawn = list(itertools.islice(rows, N_TILES))
    draw_s = (time.perf_counter() - start_s) / max(1, len(drawn))
    data = [row["image"]["bytes"] for row in drawn]
    start_s = time.perf_counter()
    for one in data:
        decode.decode_tile(one, "tile")
    decode_s = (time.perf_counter() - start_s) / max(1, len(data))
    return Tile(draw_s, decode_s, float(np.mean([len(one) for one in data])))


def measure_encoder(spec: ModelSpec, *, preset: str, batch_size: int | None, tile_px: int) -> Speed:
    """Embed empty tiles with an encoder; its weights need not be there."""
    mesh = devices.make_mesh(jax.local_devices())
    params: Any = None
    if registry.needs_weights(spec):
        zeros = registry.network_of(registry.runnable(spec))[1]
        params = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), zeros)
    encoder = registry.load_encoder(spec, preset=preset, params=params)
    dim = registry.embedding_dim(encoder, tile_px, tile_px)
    size = batch_size or default_batch_size(mesh)
    if mesh.devices.flat[0].platform == "cpu":
        size = max(1, min(size, int(MAX_GFLOP / max(1e-9, _gflops(encoder, tile_px)))))
    whole, split = devices.replicated_sharding(mesh), devices.row_sharding(mesh)
    on_devices = jax.device_put(encoder.params, whole)
    tiles = jax.device_put(np.zeros((size * mesh.size, tile_px, tile_px, 3), np.uint8), split)
    start_s = time.perf_counter()
    step = jax.jit(encoder.apply, out_shardings=split)
    jax.block_until_ready(step(on_devices, tiles))
    first_s = time.perf_counter() - start_s
    call_s = _repeat(lambda: jax.block_until_ready(step(on_devices, tiles)))
    return Speed(max(0.0, first_s - call_s), call_s / len(tiles), dim)


def _gflops(encoder: Encoder, tile_px: int) -> float:
    """Arithmetic of one tile, in units of 1e9; 0 where XLA does not say."""
    tile = jax.ShapeDtypeStruct((1, tile_px, tile_px, 3), jnp.uint8)
    cost = jax.jit(encoder.apply).lower(encoder.params, tile).cost_analysis()
    found = cost if isinstance(cost, Mapping) else {}
    return float(found.get("flops", 0.0)) / 1e9


def _repeat(call: Callable[[], Any]) -> float:
    """Seconds of a call."""
    start_s, calls, took_s = time.perf_counter(), 0, 0.0
    while calls < TIMED_CALLS or took_s < TIMED_S:
        call()
        calls, took_s = calls + 1, time.perf_counter() - start_s
    return took_s / calls


def measure_evaluation(
    metrics: tuple[str, ...], k: int | str, *, n_rows: int, dim: int
) -> Evaluating:
    """Evaluate random embeddings, those of four classes and four centres."""
    n = min(n_rows, MAX_ROWS)
    rng = np.random.default_rng(0)
    slide = np.arange(n) * 48 // n
    rows = {
        "slide_id": [f"s{i}" for i in slide],
        "patch_id": list(map(str, range(n))),
        "biological_class": [f"class{i % 4}" for i in slide],
        "medical_center": [f"center{i // 4 % 4}" for i in slide],
    }
    x = rng.normal(size=(n, dim)).astype(np.float32)
    k = min(k, n // 4) if isinstance(k, int) else "auto"
    took_s = []
    for _ in range(2):
        start_s = time.perf_counter()
        with quiet():
            evaluate_embeddings(x, rows, metrics=metrics, k=k)
        took_s.append(time.perf_counter() - start_s)
        x = x[::-1].copy()
    return Evaluating(took_s[0], took_s[1], n)


def decoding_threads() -> int:
    """Threads that decode while the devices embed."""
    return hosts.n_cores()
