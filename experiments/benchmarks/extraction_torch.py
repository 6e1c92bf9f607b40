"""PyTorch part of the extraction benchmark: timm's networks, eager or compiled, on one device."""

import io
import time
from typing import Any

import numpy as np
from PIL import Image

from converters import oracles
from experiments.benchmarks import harness
from pathorob_jax.core.checks import UsageError
from pathorob_jax.core.hosts import n_cores
from pathorob_jax.data import tileset as images
from pathorob_jax.models.spec import ModelSpec, TorchNetwork

PEERS = ("torch", "torch_compile")


def choose_device() -> Any:
    """The GPU if there is one, else the CPU with all its cores."""
    import torch

    torch.set_num_threads(n_cores())
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def describe_device() -> dict[str, Any]:
    """Name and peak memory of the device; the memory is None for the CPU."""
    import torch

    if not torch.cuda.is_available():
        return {"device": "cpu", "device_peak_bytes": None}
    peak = torch.cuda.max_memory_allocated()
    return {"device": torch.cuda.get_device_name(), "device_peak_bytes": peak}


def wait(_: Any) -> None:
    """Return once the device is idle."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def load(peer: str, network: TorchNetwork, dtype: str, *, compile_mode: str) -> Any:
    """The network of timm with random weights; weights and activations have one dtype."""
    import torch

    module = oracles.make_module(network).to(device=choose_device(), dtype=getattr(torch, dtype))
    return torch.compile(module, mode=compile_mode) if peer == "torch_compile" else module


def run(module: Any, shape: tuple[int, ...], dtype: str, **timing: Any) -> dict[str, Any]:
    """Time batches of normalised images [B, 3, S, S] that are already on the device."""
    import torch

    inputs = torch.randn(shape, device=choose_device(), dtype=getattr(torch, dtype))
    with torch.inference_mode():
        return harness.time_batches(lambda: module(inputs), wait, **timing)


class Tiles:
    """Tiles prepared one by one with PIL and torchvision, for a DataLoader."""

    def __init__(self, tileset: images.Tileset, transform: Any):
        self._reader, self._n, self._transform = tileset.reader, len(tileset), transform

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, row: int) -> Any:
        data, _ = self._reader.read(row)
        return self._transform(Image.open(io.BytesIO(data)).convert("RGB"))


def make_transform(spec: ModelSpec) -> Any:
    """Preprocessing of the encoder in torchvision."""
    oracles.import_torchvision()
    from torchvision import transforms

    preprocess = spec.preprocess
    if preprocess is None or preprocess.resize_px is None:
        raise UsageError(f"models: {spec.name} has no preprocessing to compare with.")
    mode = transforms.InterpolationMode(preprocess.interpolation)
    return transforms.Compose(
        [
            transforms.Resize(preprocess.resize_px, interpolation=mode),
            transforms.CenterCrop(preprocess.crop_px),
            transforms.ToTensor(),
            transforms.Normalize(preprocess.mean, preprocess.std),
        ]
    )


def extract(
    module: Any,
    tiles: Any,
    shape: tuple[int, ...],
    dtype: str,
    *,
    workers: int,
    repeats: int,
) -> dict[str, Any]:
    """Time tileset to embeddings in memory, from the first decoded batch; drop a short last batch.

    Args:
        module: network on its device.
        tiles: object with ``__getitem__`` for a DataLoader.
        shape: [B, 3, S, S].
        dtype: dtype of the module.
        workers: processes that decode; 0: one per core.
        repeats: passes over the tiles.
    """
    import torch

    device, torch_dtype = choose_device(), getattr(torch, dtype)
    loader: Any = torch.utils.data.DataLoader(
        tiles,
        batch_size=shape[0],
        num_workers=workers or n_cores(),
        pin_memory=device.type == "cuda",
        drop_last=True,
    )
    seconds, wait_s = [], []
    with torch.inference_mode():
        start = time.perf_counter()
        module(torch.randn(shape, device=device, dtype=torch_dtype))
        wait(None)
        first_s = time.perf_counter() - start
        for _ in range(repeats):
            waited = 0.0
            batches = iter(loader)
            batch = next(batches, None)
            start = time.perf_counter()
            while batch is not None:
                inputs = batch.to(device=device, dtype=torch_dtype, non_blocking=True)
                module(inputs).float().cpu().numpy()
                asked = time.perf_counter()
                batch = next(batches, None)
                waited += time.perf_counter() - asked
            seconds.append(time.perf_counter() - start)
            wait_s.append(waited)
    return {
        "first_s": first_s,
        **harness.spread_over_batches(seconds, batches=len(loader)),
        "tiles": len(loader) * shape[0],
        "wait_share": float(np.median(np.divide(wait_s, seconds))),
    }


def multiply(dtype: str, side: int, n_products: int, **timing: Any) -> dict[str, Any]:
    """Time a chain of square products, with operands and results of ``dtype``."""
    import torch

    device = choose_device()
    a, b = (torch.randn(side, side, device=device).to(getattr(torch, dtype)) for _ in range(2))
    a = a * side**-0.5  # so that the values neither overflow nor vanish

    def chain() -> Any:
        x = b
        for _ in range(n_products):
            x = a @ x
        return x

    with torch.inference_mode():
        return harness.time_batches(chain, wait, **timing)
