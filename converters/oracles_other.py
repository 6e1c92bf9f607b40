"""The PyTorch networks against which encoders other than plain ViTs are verified.

``make_oracle`` returns a network with random weights, ``run_checkpoint`` stages and embeddings with
the tensors of a checkpoint. Networks and the mapping of names come from torchvision, timm or
transformers if one of them has them. Otherwise minimal modules after the authors' public code are
used: the heads in ``oracles_clip``, the stem of CTransPath, and MUSK's two scales. This module does
not use our rules.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import numpy as np

from pathorob_jax.core.checks import UsageError
from pathorob_jax.models.beit3 import Beit3Config
from pathorob_jax.models.clip import ClipConfig
from pathorob_jax.models.resnet import ResNetConfig
from pathorob_jax.models.spec import ModelSpec
from pathorob_jax.models.swin import SwinConfig

from . import oracles
from .oracle_parts import Oracle, load_exactly, pool_all, stages_of, timm_vit
from .oracles_clip import make_clip


class Run(NamedTuple):
    """Stages and embeddings of images.

    Attributes:
        stages: by our names, in our layout.
        pooled: float32[B, E] by pooling.
    """

    stages: dict[str, np.ndarray]
    pooled: dict[str, np.ndarray]


def make_oracle(config: Any, scheme: str, *, stored_px: int | None = None) -> Oracle:
    """The network of a configuration, with random weights.

    Args:
        config: configuration of our network.
        scheme: naming scheme of the files to load.
        stored_px: side of the image that the file's position embedding fits; None: the network's.

    Raises:
        UsageError: there is no PyTorch network for it.
        ImportError: torch, torchvision, timm or transformers is not installed.
    """
    oracles.import_torchvision()
    if isinstance(config, ResNetConfig):
        return _make_resnet(config)
    if isinstance(config, SwinConfig):
        return _make_swin(config)
    if isinstance(config, Beit3Config):
        return _make_beit3(config)
    if isinstance(config, ClipConfig):
        found = make_clip(config, scheme, stored_px=stored_px)
        if found is not None:
            return found
    raise UsageError(f"verify: no PyTorch network is known for files named as {scheme!r}.")


def run_checkpoint(
    spec: ModelSpec,
    tensors: Mapping[str, Any],
    images: np.ndarray,
    *,
    scheme: str,
    prefix: str,
    dropped: list[str],
) -> Run:
    """Run the network of an encoder on images, with the tensors of its checkpoint.

    Args:
        spec: the encoder.
        tensors: torch tensors by the keys of the file.
        images: float32[B, S, S, 3], normalised.
        scheme: naming scheme of the file.
        prefix: prefix of every key.
        dropped: keys that the scheme leaves out.
    """
    stored_px = spec.weights.stored_px if spec.weights else None
    oracle = make_oracle(spec.network, scheme, stored_px=stored_px)
    oracle.load({k.removeprefix(prefix): x for k, x in tensors.items() if k not in dropped})
    return run_oracle(oracle, images)


def run_oracle(oracle: Oracle, images: np.ndarray) -> Run:
    """Stages and embeddings of float32[B, S, S, 3]."""
    import torch

    found: dict[str, Any] = {}

    def keep(name: str) -> Any:
        def hook(_: Any, __: Any, out: Any) -> None:
            found.setdefault(name, out[0] if isinstance(out, tuple) else out)

        return hook

    handles = [part.register_forward_hook(keep(name)) for name, part in oracle.parts.items()]
    with torch.inference_mode():
        inputs = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        pooled = oracle.embed(inputs)
    for handle in handles:
        handle.remove()
    if oracle.channels_first:
        found = {name: out.permute(0, 2, 3, 1) for name, out in found.items()}
    return Run({k: x.numpy() for k, x in found.items()}, {k: x.numpy() for k, x in pooled.items()})


def _make_resnet(config: ResNetConfig) -> Oracle:
    """The network of torchvision without its classifier."""
    import torch
    from torchvision.models import resnet

    block = resnet.BasicBlock if config.block == "basic" else resnet.Bottleneck
    norm = functools.partial(torch.nn.BatchNorm2d, eps=config.eps)
    module = resnet.ResNet(block, list(config.depths), norm_layer=norm).eval()
    module.fc = torch.nn.Identity()

    parts = {"stem": module.maxpool} | {
        f"stage{i + 1}": getattr(module, f"layer{i + 1}") for i in range(len(config.depths))
    }
    return Oracle(
        module,
        functools.partial(load_exactly, module),
        parts,
        lambda images: {"mean": module(images)},
        channels_first=True,
    )


def _make_swin(config: SwinConfig) -> Oracle:
    """The Swin of timm, which knows names of its old versions; stem after TransPath's ctran.py."""
    import torch
    from timm.models.swin_transformer import SwinTransformer, checkpoint_filter_fn
    from torch import nn

    class ConvStem(nn.Module):
        def __init__(
            self, img_size: int, patch_size: int, in_chans: int, embed_dim: int, norm_layer: Any,
            **_: Any,
        ):  # fmt: skip
            super().__init__()
            self.grid_size = (img_size // patch_size,) * 2
            widths = (in_chans, embed_dim // 8, embed_dim // 4)
            parts: list[nn.Module] = []
            for before, after in zip(widths[:-1], widths[1:], strict=True):
                parts.append(nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False))
                parts += [nn.BatchNorm2d(after, eps=config.batch_norm_eps), nn.ReLU()]
            self.proj = nn.Sequential(*parts, nn.Conv2d(widths[-1], embed_dim, 1))
            self.norm = norm_layer(embed_dim)

        def forward(self, x: Any) -> Any:
            return self.norm(self.proj(x).permute(0, 2, 3, 1))

    module = SwinTransformer(
        img_size=config.image_px,
        embed_dim=config.width,
        depths=config.depths,
        num_heads=config.heads,
        window_size=config.window,
        mlp_ratio=config.mlp_ratio,
        embed_layer=ConvStem,
        norm_layer=cast(Any, functools.partial(torch.nn.LayerNorm, eps=config.eps)),
        num_classes=0,
    ).eval()
    parts: dict[str, Any] = {"stem": module.patch_embed}
    parts |= {f"stage{i}": layer.blocks for i, layer in enumerate(cast(Any, module.layers))}
    return Oracle(
        module,
        lambda state: load_exactly(module, checkpoint_filter_fn(state, module)),
        parts,
        lambda images: {"mean": module(images)},
    )


def _make_beit3(config: Beit3Config) -> Oracle:
    """The BEiT-3 of timm, which reads its names; two scales after MUSK's utils.py."""
    import torch
    from timm.models.vision_transformer import checkpoint_filter_fn

    module = timm_vit(config)

    def load(state: dict[str, Any]) -> None:
        read = checkpoint_filter_fn(state, module)
        # timm knows BEiT-3 without a norm at the end; MUSK has one (normalize_output).
        load_exactly(module, {name.replace("layer_norm.", "norm."): x for name, x in read.items()})

    def embed(images: Any) -> dict[str, Any]:
        tokens = module.forward_features(images)
        side = config.image_px
        larger = torch.nn.functional.interpolate(images, size=2 * side, mode="bicubic")
        quarters = [part for row in larger.chunk(2, dim=2) for part in row.chunk(2, dim=3)]
        closer = torch.stack([module.forward_features(part)[:, 0] for part in quarters]).mean(0)
        return pool_all(tokens, torch.cat([tokens[:, 0], closer], dim=1))

    return Oracle(module, load, stages_of(module.norm_pre, module.blocks), embed)
