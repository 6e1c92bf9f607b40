"""PyTorch networks for tests: timm and torchvision made importable, filled, shrunk and saved."""

import dataclasses
import functools
import os
from types import ModuleType

import numpy as np
import pytest

from converters import oracles


@functools.cache
def import_torchvision() -> ModuleType:
    """torchvision; skips the test where torch or torchvision is not installed."""
    pytest.importorskip("torch")
    try:
        return oracles.import_torchvision()
    except ModuleNotFoundError as error:
        pytest.skip(str(error))


@functools.cache
def import_timm() -> ModuleType:
    """timm; skips the test where it or torch is not installed."""
    import_torchvision()
    return pytest.importorskip("timm")


@functools.cache
def import_transformers() -> ModuleType:
    """transformers; skips the test where it or torch is not installed."""
    import_torchvision()
    return pytest.importorskip("transformers")


def fill(module, seed=0):
    """Every parameter random, all values distinct, none 0 or 1, activations near 1.

    Tokens enter the first block with a variance near 0.01, so that eps of its norm counts.
    """
    import torch

    rng = np.random.default_rng(seed)
    owners = dict(module.named_modules())
    for name, parameter in module.named_parameters():
        owner, _, leaf = name.rpartition(".")
        kind, shape = type(owners[owner]).__name__, tuple(parameter.shape)
        value = rng.standard_normal(shape)
        if "LayerNorm" in kind and leaf == "weight":
            value = rng.uniform(0.5, 1.5, shape)
        elif leaf in ("gamma", "lambda1"):
            value = rng.uniform(0.3, 0.9, shape)
        elif "Conv" in kind and leaf == "weight":
            value *= 0.07 / np.sqrt(np.prod(shape[1:]))
        elif "Linear" in kind and leaf == "weight":
            value *= 1.5 / np.sqrt(shape[1])
        elif leaf == "bias":
            value *= 0.3
        else:  # tokens and positions
            value *= 0.07
        parameter.data = torch.from_numpy(value.astype(np.float32))
    # Of the module itself: what no branch above has filled is seen too.
    check_no_neutral_values({n: p.detach().numpy() for n, p in module.named_parameters()})
    return module


def check_no_neutral_values(state):
    """No value is exactly 0 or 1: a term or factor that a network leaves out would not show."""
    for name, value in state.items():
        neutral = int(np.isin(value, (0.0, 1.0)).sum())
        assert not neutral, f"{name}: {neutral} of {np.size(value)} values are 0 or 1"


def save_as_library(module, folder):
    """Path of the file that the library itself writes, in the names of files on the hub."""
    from safetensors.torch import save_file

    path = os.path.join(folder, "model.safetensors")
    if hasattr(module, "save_pretrained"):
        module.save_pretrained(folder)
    else:
        save_file({k: x.contiguous() for k, x in module.state_dict().items()}, path)
    return path


def shrink(spec, *, grid=3, stored_grid=5):
    """The encoder with two narrow blocks on a small image, every option of the real one kept.

    A position embedding that is stored on another grid is so here too: larger where the real one
    is larger. The network of the library is shrunk in the same way.
    """
    config, where = spec.network, spec.weights
    dim, heads, hidden = 48, 3, 128 if config.mlp == "swiglu" else 192
    if where.stored_px and where.stored_px < config.image_px:
        grid, stored_grid = stored_grid, grid
    image_px = grid * config.patch_px
    stored_px = stored_grid * config.patch_px if where.stored_px else None
    small = dataclasses.replace(
        config, image_px=image_px, dim=dim, depth=2, heads=heads, mlp_hidden=hidden
    )
    kwargs = dict(spec.torch.kwargs)
    if spec.torch.library == "timm":
        # timm's rule runs in timm; DINO's is in no library and is applied to its tensors.
        side = stored_px if where.resample == "timm" else None
        kwargs |= {"embed_dim": dim, "depth": 2, "num_heads": heads, "img_size": side or image_px}
    elif spec.torch.library == "transformers":
        side = stored_px if spec.torch.constructor.startswith("Dinov2") else None
        kwargs |= {
            "hidden_size": dim,
            "num_hidden_layers": 2,
            "num_attention_heads": heads,
            "image_size": side or image_px,
        }
        if "intermediate_size" in kwargs:
            kwargs["intermediate_size"] = hidden
    return dataclasses.replace(
        spec,
        network=small,
        preprocess=dataclasses.replace(spec.preprocess, resize_px=image_px, crop_px=image_px),
        weights=dataclasses.replace(where, stored_px=stored_px),
        torch=dataclasses.replace(spec.torch, kwargs=kwargs),
    )
