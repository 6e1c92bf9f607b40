"""Embedding extraction: ours and timm's networks in PyTorch, on the same device in one run.

``--parts=device`` times batches that are already on the device. Ours starts from uint8 tiles and
includes resize and normalisation; torch's starts from normalised float images. With
``--parts=end_to_end``, a Parquet tileset of JPEGs becomes embeddings: ours in a store, torch's by
DataLoader, PIL and torchvision in memory. The peers are ``ours``; ``torch``, timm's network in
eager mode with fused attention (float32: as the reference runs it; bfloat16: weights and
activations, no autocast); and ``torch_compile``, the same in bfloat16 with ``torch.compile``.
Weights are random: speed does not depend on them, and the parity tests check agreement.

Every measurement runs in a separate process. A timed call queues as many batches as take
``--min_seconds`` and waits once; the first call (with compilation) is reported separately.
``tflops`` counts the operations of the network (``flops.vit_flops``) per second. ``utilisation`` is
their share of the ceiling: the best rate that a chain of square products reached in this run, ours
or torch's.
"""

import contextlib
import dataclasses
import itertools
import os
import pathlib
import tempfile
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from absl import app, flags
from jax import lax

from experiments.benchmarks import extraction_torch, harness
from experiments.benchmarks.flops import vit_flops
from pathorob_jax.core import checks, cost, hosts
from pathorob_jax.core.checks import UsageError
from pathorob_jax.data import synthetic_tiles
from pathorob_jax.data import tileset as images
from pathorob_jax.embeddings import extraction
from pathorob_jax.models import layers, registry
from pathorob_jax.models.registry import Encoder, ModelSpec
from pathorob_jax.models.spec import TorchNetwork
from pathorob_jax.models.vit import ViTConfig

_MODELS = flags.DEFINE_list(
    "models", ["vit_s16", "vit_b16"], "vit_s16, vit_b16, vit_l16, vit_g14, or plain ViTs by name."
)
_BATCH_SIZES = flags.DEFINE_list("batch_sizes", ["32"], "Tiles of a step.")
_DTYPES = flags.DEFINE_list("dtypes", ["float32", "bfloat16"], "Types of the products' operands.")
_PEERS = flags.DEFINE_list("peers", ["ours", "torch", "torch_compile"], "Rows to measure.")
_PARTS = flags.DEFINE_list("parts", ["device", "end_to_end"], "What to measure.")
_TILES = flags.DEFINE_integer("tiles", 512, "Tiles of the tileset, end to end.", lower_bound=1)
_TILE_PX = flags.DEFINE_integer("tile_px", 256, "Side of a tile.", lower_bound=16)
_WORKERS = flags.DEFINE_integer(
    "workers", 0, "Processes that decode; 0: ours in threads, torch's one process a core."
)
_REPEATS = flags.DEFINE_integer("repeats", 5, "Timed calls after the first.", lower_bound=1)
_MIN_SECONDS = flags.DEFINE_float("min_seconds", 1.0, "That a timed call lasts, about.")
_MATMUL = flags.DEFINE_integer("matmul", 0, "Side of the ceiling's matrices; 0: by device.")
_ATTENTION = flags.DEFINE_enum(
    "attention", None, layers.ATTENTIONS, "Of ours; unset: what it chooses by itself."
)
_COMPILE_MODE = flags.DEFINE_string("compile_mode", "default", "Of torch.compile.")
_RESULTS = flags.DEFINE_string(
    "results",
    str(pathlib.Path(__file__).parent / "results"),
    "Folder whose extraction.jsonl the lines are appended to; empty: none.",
)
_MEASURE = flags.DEFINE_string("measure", None, "One part of one peer (internal).")
_FOLDER = flags.DEFINE_string("folder", "", "Holds the tileset (internal).")

MODULE = "experiments.benchmarks.extraction"
SHAPES = {
    "vit_s16": "kaiko_vits16",
    "vit_b16": "kaiko_vitb16",
    "vit_l16": "uni",
    "vit_g14": "h_optimus_0",
}
PEER_DTYPES = {
    "ours": ("float32", "bfloat16"),
    "torch": ("float32", "bfloat16"),
    "torch_compile": ("bfloat16",),
}
PARTS = ("device", "end_to_end")
PRODUCTS = 10
MATMUL_SIDE = {"cpu": 2048}
ACCELERATOR_MATMUL_SIDE = 8192
DISTINCT_TILES, ROWS_PER_GROUP = 64, 256
PASSED = (_TILE_PX, _WORKERS, _REPEATS, _MIN_SECONDS, _MATMUL, _ATTENTION, _COMPILE_MODE)


@dataclasses.dataclass(frozen=True)
class Case:
    """One measurement; its fields are columns of the output."""

    part: str
    peer: str
    dtype: str
    model: str
    batch_size: int

    def __post_init__(self) -> None:
        checks.check_known(self.part, (*PARTS, "matmul"), what="parts")
        checks.check_known(self.peer, PEER_DTYPES, what="peers")
        checks.check_known(self.dtype, registry.COMPUTE_DTYPES, what="dtypes")
        network_of(self.model)


def spec_of(model: str) -> ModelSpec:
    """The encoder of a name or shape, with random weights."""
    return dataclasses.replace(registry.get_spec(SHAPES.get(model, model)), weights=None, seed=0)


def network_of(model: str) -> tuple[ViTConfig, TorchNetwork]:
    """Our network and timm's network with the same configuration.

    Raises:
        UsageError: the model is not a plain ViT, or timm does not have it.
    """
    spec = spec_of(model)
    if type(spec.network) is not ViTConfig or spec.torch is None or spec.torch.library != "timm":
        raise UsageError(f"models: expected plain ViTs that timm has too, found {model!r}.")
    return spec.network, spec.torch


def make_tileset(folder: str, n_tiles: int, tile_px: int) -> None:
    """Write a Parquet file of JPEGs: a few synthetic tiles, repeated under unique ids."""
    cells = len(synthetic_tiles.CLASSES) * len(synthetic_tiles.CENTERS)
    config = synthetic_tiles.SyntheticConfig(
        n_slides=1, n_tiles=-(-min(n_tiles, DISTINCT_TILES) // cells), tile_px=tile_px
    )
    synthetic_tiles.write_tileset(os.path.join(folder, "distinct"), config)
    distinct = pq.read_table(os.path.join(folder, "distinct"))
    os.makedirs(os.path.join(folder, "tiles"))
    rows = distinct.take(pa.array(np.arange(n_tiles) % len(distinct)))
    column = rows.schema.get_field_index("patch_id")
    rows = rows.set_column(column, "patch_id", pa.array(np.arange(n_tiles).astype(str)))
    path = os.path.join(folder, "tiles", "train-00000.parquet")
    pq.write_table(rows, path, row_group_size=ROWS_PER_GROUP, compression="none")


def load_ours(model: str, dtype: str) -> Encoder:
    """Our encoder, with its parameters in the dtype of the products' operands."""
    encoder = registry.load_encoder(spec_of(model), compute_dtype=dtype)
    if dtype == "float32":
        return encoder
    params = jax.tree.map(lambda x: x.astype(dtype), encoder.params)
    jax.tree.map(lambda x: x.delete(), encoder.params)  # so that the peak counts one copy
    return dataclasses.replace(encoder, params=params)


def attention_of_ours() -> contextlib.AbstractContextManager[None]:
    """Context that applies --attention while ours is traced."""
    if _ATTENTION.value is None:
        return contextlib.nullcontext()
    return layers.use_attention(cast(layers.Attention, _ATTENTION.value))


def device_of_ours() -> dict[str, Any]:
    """The device that JAX computes on, and its peak memory."""
    device = jax.devices()[0]
    peak = (device.memory_stats() or {}).get("peak_bytes_in_use")
    return {"device": device.device_kind, "device_peak_bytes": peak}


def timing() -> dict[str, Any]:
    """Timing arguments from the flags."""
    return {"min_s": _MIN_SECONDS.value, "repeats": _REPEATS.value}


def run_ours(case: Case) -> dict[str, Any]:
    """Time batches of uint8 tiles that are already on the device."""
    encoder = load_ours(case.model, case.dtype)
    shape = (case.batch_size, _TILE_PX.value, _TILE_PX.value, 3)
    tiles = jax.device_put(np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8))
    embed = jax.jit(encoder.apply)
    with attention_of_ours(), hosts.kept_memory():  # as in the script
        return harness.time_batches(
            lambda: embed(encoder.params, tiles), jax.block_until_ready, **timing()
        )


def extract_ours(case: Case) -> dict[str, Any]:
    """Time tileset to store; the rate counts from the first queued step, after compilation."""
    tileset = images.open_tileset(os.path.join(_FOLDER.value, "tiles"))
    encoder = load_ours(case.model, case.dtype)
    summaries = []
    for _ in range(_REPEATS.value):
        with attention_of_ours(), hosts.kept_memory(), tempfile.TemporaryDirectory() as root:
            extracted = extraction.extract(
                tileset,
                [encoder],
                root=root,
                dataset="benchmark",
                batch_size=case.batch_size,
                workers=_WORKERS.value,
            )
        summaries.append(extracted.summaries[0])
    seconds = [summary.seconds - summary.start_s for summary in summaries]
    batches = len(tileset) / case.batch_size
    return {
        "first_s": summaries[0].start_s,
        **harness.spread_over_batches(seconds, batches=batches),
        "tiles": len(tileset),
        "wait_share": float(np.median([summary.wait_share for summary in summaries])),
        "decoded_per_s_of_a_thread": len(tileset) / float(np.median([s.read_s for s in summaries])),
        "devices": jax.local_device_count(),
    }


def multiply_ours(dtype: str, side: int) -> dict[str, Any]:
    """Time a chain of square products in one program, with operands and results of ``dtype``."""
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.standard_normal((side, side), np.float32), dtype) for _ in range(2))
    a = a * side**-0.5  # so that the values neither overflow nor vanish

    @jax.jit
    def chain(a: jax.Array, b: jax.Array) -> jax.Array:
        def step(_: Any, x: jax.Array) -> jax.Array:
            return layers.product("ij,jk->ik", a, x, a.dtype).astype(a.dtype)

        return lax.fori_loop(0, PRODUCTS, step, b)

    return harness.time_batches(lambda: chain(a, b), jax.block_until_ready, **timing())


def measure_ours(case: Case) -> dict[str, Any]:
    """Measure one row of ours."""
    if case.part == "matmul":
        side = matmul_side(jax.default_backend())
        row = as_ceiling(multiply_ours(case.dtype, side), side)
    else:
        row = {"device": run_ours, "end_to_end": extract_ours}[case.part](case)
        row["attention"] = _ATTENTION.value or "auto"
    device = jax.devices()[0]
    peak = (device.memory_stats() or {}).get("peak_bytes_in_use")
    row |= {"device": device.device_kind, "device_peak_bytes": peak}
    return row | {"xla_flags": os.environ.get("XLA_FLAGS", "")}


def measure_torch(case: Case) -> dict[str, Any]:
    """Measure one row of a torch peer."""
    if case.part == "matmul":
        side = matmul_side(extraction_torch.choose_device().type)
        times = extraction_torch.multiply(case.dtype, side, PRODUCTS, **timing())
        return as_ceiling(times, side) | extraction_torch.describe_device()
    config, network = network_of(case.model)
    mode = _COMPILE_MODE.value
    module = extraction_torch.load(case.peer, network, case.dtype, compile_mode=mode)
    shape = (case.batch_size, 3, config.image_px, config.image_px)
    if case.part == "device":
        row = extraction_torch.run(module, shape, case.dtype, **timing())
    else:
        tileset = images.open_tileset(os.path.join(_FOLDER.value, "tiles"))
        transform = extraction_torch.make_transform(spec_of(case.model))
        row = extraction_torch.extract(
            module,
            extraction_torch.Tiles(tileset, transform),
            shape,
            case.dtype,
            workers=_WORKERS.value,
            repeats=_REPEATS.value,
        )
    row |= {"compile_mode": mode} if case.peer == "torch_compile" else {}
    return row | extraction_torch.describe_device()


def matmul_side(device: str) -> int:
    """Side of the matrices for the ceiling on a kind of device."""
    return _MATMUL.value or MATMUL_SIDE.get(device, ACCELERATOR_MATMUL_SIDE)


def as_ceiling(times: dict[str, Any], side: int) -> dict[str, Any]:
    """Add the operations per second to the times of a chain of products."""
    return times | {"side": side, "tflops": 2e-12 * side**3 * PRODUCTS / times["median_s"]}


def measure(case: Case) -> dict[str, Any]:
    """Measure one row in this process."""
    line = {"task": "extraction", **dataclasses.asdict(case)}
    line |= measure_ours(case) if case.peer == "ours" else measure_torch(case)
    if case.part != "matmul":
        line["images_per_s"] = case.batch_size / line["median_s"]
    return line | {"peak_bytes": cost.peak_bytes()}


def run_case(case: Case, folder: str) -> dict[str, Any]:
    """Run ``measure`` in another process; return its row, or the error in ``failed``."""
    arguments = {
        "measure": case.part,
        "peers": case.peer,
        "dtypes": case.dtype,
        "models": case.model,
        "batch_sizes": case.batch_size,
        "folder": folder,
    }
    arguments |= {holder.name: holder.value for holder in PASSED if holder.value is not None}
    try:
        return harness.run_peer(MODULE, [f"--{name}={value}" for name, value in arguments.items()])
    except RuntimeError as error:
        return {"task": "extraction", **dataclasses.asdict(case), "failed": str(error)}


def add_utilisation(row: dict[str, Any], ceilings: dict[str, float]) -> dict[str, Any]:
    """Add the operations of the network to a row, per second and as a share of the ceiling."""
    flops = vit_flops(network_of(row["model"])[0])
    tflops = flops * row["images_per_s"] * 1e-12
    ceiling = ceilings.get(row["dtype"])
    return row | {
        "gflops_per_image": flops * 1e-9,
        "tflops": tflops,
        "ceiling_tflops": ceiling,
        "utilisation": tflops / ceiling if ceiling else None,
    }


def compare(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Speedup of ours over each torch row with the same part, network, batch size and dtype."""
    keys = ("part", "model", "batch_size", "dtype")
    pairs = itertools.product(
        [row for row in rows if row["peer"] == "ours"],
        [row for row in rows if row["peer"] != "ours"],
    )
    return [
        {
            "task": "extraction",
            **{key: ours[key] for key in keys},
            "compare": f"ours / {other['peer']}",
            "speedup": ours["images_per_s"] / other["images_per_s"],
        }
        for ours, other in pairs
        if all(ours[key] == other[key] for key in keys)
    ]


def make_cases(parts: list[str]) -> list[Case]:
    """All cases selected by the flags, in the order of the rows."""
    return [
        Case(part, peer, dtype, model, int(size))
        for model, size, part, dtype, peer in itertools.product(
            _MODELS.value, _BATCH_SIZES.value, parts, _DTYPES.value, _PEERS.value
        )
        if dtype in PEER_DTYPES.get(peer, (dtype,))
    ]


def make_ceiling_cases() -> list[Case]:
    """Chains of products in each dtype, for each library that is measured."""
    libraries = dict.fromkeys(peer.partition("_")[0] for peer in _PEERS.value)
    first = (_MODELS.value[0], int(_BATCH_SIZES.value[0]))
    cases = itertools.product(libraries, _DTYPES.value)
    return [Case("matmul", peer, dtype, *first) for peer, dtype in cases]


def main(argv: list[str]) -> None:
    """Measure one row, or all rows in separate processes.

    The process that starts the others never uses a device, because it would occupy its memory.
    """
    del argv
    if _MEASURE.value:
        [case] = make_cases([_MEASURE.value])
        harness.answer(measure(case))
        return
    path = os.path.join(_RESULTS.value, "extraction.jsonl") if _RESULTS.value else None
    cases = make_cases(_PARTS.value)
    ceilings: dict[str, float] = {}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for case in make_ceiling_cases():
            row = run_case(case, folder)
            ceilings[case.dtype] = max(ceilings.get(case.dtype, 0.0), row.get("tflops", 0.0))
            harness.emit(row, path=path)
        if "end_to_end" in _PARTS.value:
            largest = max(case.batch_size for case in cases)
            make_tileset(folder, -(-_TILES.value // largest) * largest, _TILE_PX.value)
        for case in cases:
            row = run_case(case, folder)
            if "failed" not in row:
                row = add_utilisation(row, ceilings)
                rows.append(row)
            harness.emit(row, path=path)
        for line in compare(rows):
            harness.emit(line, path=path)


if __name__ == "__main__":
    app.run(main)
