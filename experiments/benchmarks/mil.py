"""One repetition of slide-level prediction on Camelyon's bags: ours and a loop in torch.

68 bags of 300 tiles, eight fits of 28 training bags and 12 validation bags each. Both train the
same network with the same optimiser on the same bags, and read the same test bags. Each peer runs
in a separate process and also measures its rate of matrix products (2,048 x 2,048, float32), the
yardstick: ours should be faster by more than the ratio of the two rates. ``share_of_rate`` is the
rate of the training's products, by that yardstick. ``cpu_s`` is processor time over all threads,
for comparisons on a machine that others use at the same time.
"""

import importlib
import os
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from experiments.benchmarks import harness
from pathorob_jax.core import cost
from pathorob_jax.kernels.mil import fit
from pathorob_jax.kernels.mil.bags import BagRows
from pathorob_jax.kernels.mil.presets import PRESETS, MilSettings

_PRESETS = flags.DEFINE_list("presets", ["gated", "xmil"], "Presets to measure.")
_EPOCHS = flags.DEFINE_integer("epochs", 20, "Epochs of a fit.", lower_bound=1)
_SPLITS = flags.DEFINE_integer("splits", 8, "Fits.", lower_bound=1)
_DIM = flags.DEFINE_integer("dim", 1_536, "Dimensions D.", lower_bound=1)
_PEERS = flags.DEFINE_list("peers", ["ours", "torch"], "Rows to measure.")
_PEER = flags.DEFINE_string("peer", None, "Measure this one (internal).")
_RESULTS = flags.DEFINE_string(
    "results",
    str(pathlib.Path(__file__).parent / "results"),
    "Folder whose mil.jsonl the lines are appended to; empty: none.",
)

MODULE = "experiments.benchmarks.mil"
BAGS, TILES, TRAINING, VALIDATION, CLASSES = 68, 300, 28, 12, 2
SIDE, PRODUCTS = 2_048, 5


def make_bags(dim: int) -> tuple[BagRows, np.ndarray]:
    """Bags of two classes, and their classes."""
    rng = np.random.default_rng(0)
    label = np.arange(BAGS) % CLASSES
    x = rng.standard_normal((BAGS, TILES, dim), np.float32)
    x += 0.05 * label[:, None, None].astype(np.float32)
    return BagRows(x.reshape(-1, dim), np.arange(BAGS + 1) * TILES), label


def draw_splits(n_splits: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Training and validation bags of each fit, and the test bags of all."""
    rng = np.random.default_rng(1)
    orders = np.stack([rng.permutation(BAGS - VALIDATION) for _ in range(n_splits)])
    training, validation = orders[:, :TRAINING], orders[:, TRAINING : TRAINING + VALIDATION]
    return training, validation, np.arange(BAGS - VALIDATION, BAGS)


def count_flops(settings: MilSettings, dim: int) -> int:
    """Operations of one fit's products: the input needs no gradient, all else three passes."""
    units = settings.attention * (2 if settings.gated else 1)
    tile = settings.projection * (2 * dim + 3 * units)
    epoch = TRAINING * TILES * 2 * tile
    if settings.choose != "last":
        epoch += VALIDATION * TILES * 2 * settings.projection * (dim + units)
    return epoch * settings.epochs


def run_ours(settings: MilSettings, bags: BagRows, label: np.ndarray) -> np.ndarray:
    """Logits of test bags [split, bag, class]."""
    training, validation, test = draw_splits(_SPLITS.value)
    mask = np.zeros((len(training), BAGS), bool)
    np.put_along_axis(mask, validation, values=True, axis=1)
    trained = fit.train_mil(
        bags, label, training, mask, n_classes=CLASSES, settings=settings,
        seeds=np.arange(len(training)),
    )  # fmt: skip
    return fit.predict_mil(trained, bags, test)


def run_torch(settings: MilSettings, bags: BagRows, label: np.ndarray) -> np.ndarray:
    """The same in torch: a loop over fits, epochs and steps; all bags have equally many tiles."""
    torch: Any = importlib.import_module("torch")
    nn = torch.nn
    x = torch.from_numpy(np.asarray(bags.x)).reshape(BAGS, TILES, -1)
    target = torch.from_numpy(label)
    training, validation, test = (torch.from_numpy(a) for a in draw_splits(_SPLITS.value))
    p, a = settings.projection, settings.attention
    drop = nn.Dropout(settings.dropout)

    def read(layers: Any, bag: Any) -> Any:
        hidden = drop(torch.relu(layers["P"](bag)))
        units = drop(torch.tanh(layers["V"](hidden)))
        if settings.gated:
            units = units * drop(torch.sigmoid(layers["U"](hidden)))
        weights = torch.softmax(layers["w"](units), dim=1)
        return layers["head"]((weights.transpose(1, 2) @ hidden)[:, 0])

    out = []
    for split in range(len(training)):
        torch.manual_seed(split)
        sizes = {"P": (x.shape[2], p), "V": (p, a), "U": (p, a), "w": (a, 1), "head": (p, CLASSES)}
        if not settings.gated:
            del sizes["U"]
        layers = nn.ModuleDict({name: nn.Linear(*size) for name, size in sizes.items()})
        n_batch = min(settings.batch_bags, TRAINING)
        if settings.optimizer == "adamw":
            optimizer = torch.optim.AdamW(
                layers.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
            )
            n_steps = settings.epochs * (TRAINING // n_batch)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps, eta_min=1e-8)
        else:
            optimizer = torch.optim.SGD(
                layers.parameters(), lr=settings.learning_rate, momentum=settings.momentum
            )
            schedule = None
        best, kept = -1.0, {k: v.clone() for k, v in layers.state_dict().items()}
        for _ in range(settings.epochs):
            drop.train()
            order = training[split][torch.randperm(TRAINING)]
            for bag in order.split(n_batch):
                optimizer.zero_grad()
                nn.functional.cross_entropy(read(layers, x[bag]), target[bag]).backward()
                optimizer.step()
                if schedule:
                    schedule.step()
            if settings.choose != "last":
                with torch.no_grad():
                    drop.eval()
                    chosen = validation[split]
                    logits = read(layers, x[chosen])
                ahead = (logits[:, 1] - logits[:, 0])[:, None] - (logits[:, 1] - logits[:, 0])
                pairs = (target[chosen] == 1)[:, None] & (target[chosen] == 0)
                score = float((ahead[pairs] > 0).float().mean())
                if score >= best:
                    best, kept = score, {k: v.clone() for k, v in layers.state_dict().items()}
        if settings.choose != "last":
            layers.load_state_dict(kept)
        drop.eval()
        with torch.no_grad():
            out.append(read(layers, x[test]).numpy())
    return np.stack(out)


def measure_product_rate(peer: str) -> float:
    """Operations a second of a square float32 product: the best of several."""
    seconds = []
    if peer == "ours":
        matrix = jnp.ones((SIDE, SIDE))
        product = jax.jit(lambda m: m @ m)
        call = lambda: product(matrix).block_until_ready()  # noqa: E731
    else:
        torch: Any = importlib.import_module("torch")
        ones = torch.ones((SIDE, SIDE))
        call = lambda: ones @ ones  # noqa: E731
    call()
    for _ in range(PRODUCTS):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return 2 * SIDE**3 / min(seconds)


def measure(peer: str) -> dict[str, object]:
    """Time one peer with one preset."""
    (preset,) = _PRESETS.value
    settings = PRESETS[preset]._replace(epochs=_EPOCHS.value)
    bags, label = make_bags(_DIM.value)
    if peer == "ours":
        bags = bags._replace(x=jnp.asarray(bags.x))
    run = {"ours": run_ours, "torch": run_torch}[peer]
    run(settings._replace(epochs=1), bags, label)  # warm-up; ours compiles once more below
    rates = [measure_product_rate(peer)]
    cpu: list[float] = []

    def call() -> None:
        start = time.process_time()
        run(settings, bags, label)
        cpu.append(time.process_time() - start)

    times = harness.time_calls(call, repeats=1)
    rates.append(measure_product_rate(peer))
    flops = _SPLITS.value * count_flops(settings, _DIM.value)
    return {
        "task": "mil",
        "peer": peer,
        "preset": preset,
        "bags": BAGS,
        "tiles": TILES,
        "dim": _DIM.value,
        "splits": _SPLITS.value,
        "epochs": settings.epochs,
        **times,
        "cpu_s": cpu[-1],
        "flops": flops,
        "product_rate": max(rates),
        "share_of_rate": flops / times["median_s"] / max(rates),
        "peak_bytes": cost.peak_bytes(),
        "device": jax.devices()[0].device_kind,
    }


def compare(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, object]:
    """Speedup beside the ratio of the two product rates."""
    return {
        "task": "mil",
        "preset": ours["preset"],
        "compare": "torch / ours",
        "speedup": theirs["median_s"] / ours["median_s"],
        "speedup_cpu": theirs["cpu_s"] / ours["cpu_s"],
        "ratio_of_product_rates": ours["product_rate"] / theirs["product_rate"],
    }


def main(argv: list[str]) -> None:
    """Measure one peer, or all peers in separate processes."""
    del argv
    if _PEER.value:
        harness.answer(measure(_PEER.value))
        return
    path = os.path.join(_RESULTS.value, "mil.jsonl") if _RESULTS.value else None
    for preset in _PRESETS.value:
        rows = {}
        for peer in _PEERS.value:
            passed = [f"--{f.name}={f.value}" for f in (_EPOCHS, _SPLITS, _DIM)]
            rows[peer] = harness.run_peer(
                MODULE, [f"--peer={peer}", f"--presets={preset}", *passed]
            )
            harness.emit(rows[peer], path=path)
        if {"ours", "torch"} <= set(rows):
            harness.emit(compare(rows["ours"], rows["torch"]), path=path)


if __name__ == "__main__":
    app.run(main)
