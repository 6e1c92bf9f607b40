"""The PyTorch networks against which encoders other than plain ViTs are verified.

``make_oracle`` returns a network with random weights, ``run_checkpoint`` stages and embeddings with
the tensors of a checkpoint. Networks and the mapping of names come from torchvision, timm or
transformers if one of them has them. Otherwise minimal modules after the authors' public code are
used: the heads of KEEP, CONCH, CONCHv1.5
and Mettle, the stem of CTransPath, and MUSK's two scales. This module does not use our
rules.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import numpy as np

from converters import oracles
from pathorob_jax.core.checks import UsageError
from pathorob_jax.models.beit3 import Beit3Config
from pathorob_jax.models.clip import ClipConfig
from pathorob_jax.models.resnet import ResNetConfig
from pathorob_jax.models.spec import ModelSpec
from pathorob_jax.models.swin import SwinConfig
from pathorob_jax.models.vit import ViTConfig


class Oracle(NamedTuple):
    """A PyTorch network.

    Attributes:
        module: the network, in inference mode.
        load: loads the tensors of a file into the module, by their names in the file.
        parts: submodules whose outputs are our stages, by our names.
        embed: images [B, 3, S, S] -> embeddings by pooling.
        channels_first: whether the parts return [B, C, H, W].
    """

    module: Any
    load: Callable[[dict[str, Any]], None]
    parts: Mapping[str, Any]
    embed: Callable[[Any], dict[str, Any]]
    channels_first: bool = False


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
    if isinstance(config, ClipConfig) and scheme == "conch_v1_5":
        return _make_conch_v1_5(config, stored_px or config.image_px)
    if isinstance(config, ClipConfig) and scheme in _CLIP:
        return _CLIP[scheme](config)
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


def _load(module: Any, state: dict[str, Any]) -> None:
    """Load exactly the tensors of the state, except for the counters of batch norms."""
    counters = {k: x for k, x in module.state_dict().items() if k.endswith("num_batches_tracked")}
    module.load_state_dict(counters | state)


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
        functools.partial(_load, module),
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
        lambda state: _load(module, checkpoint_filter_fn(state, module)),
        parts,
        lambda images: {"mean": module(images)},
    )


def _timm_vit(config: ViTConfig, *, image_px: int | None = None, **kwargs: Any) -> Any:
    """The ViT of timm with the options of a configuration."""
    import torch
    from timm.layers.mlp import SwiGLUPacked
    from timm.models.vision_transformer import VisionTransformer

    ratio = config.mlp_hidden / config.dim
    if config.mlp == "swiglu":
        kwargs |= {"mlp_layer": SwiGLUPacked, "act_layer": torch.nn.SiLU}
        ratio *= 2
    return VisionTransformer(
        img_size=image_px or config.image_px,
        patch_size=config.patch_px,
        embed_dim=config.dim,
        depth=config.depth,
        num_heads=config.heads,
        mlp_ratio=ratio,
        reg_tokens=config.n_registers,
        no_embed_class=config.pos_embed == "patch",
        init_values=1.0 if config.layer_scale else None,
        pre_norm=config.pre_norm,
        norm_layer=functools.partial(torch.nn.LayerNorm, eps=config.eps),
        scale_attn_norm=config.sub_norm,
        scale_mlp_norm=config.sub_norm,
        num_classes=kwargs.pop("num_classes", 0),
        **kwargs,
    ).eval()


def _parts(stem: Any, blocks: Any) -> dict[str, Any]:
    return {"stem": stem} | {f"block_{i:02}": block for i, block in enumerate(blocks)}


def _pool(tokens: Any, head: Any) -> dict[str, Any]:
    """Embeddings of tokens [B, 1 + T, D] after the norm, by pooling."""
    import torch

    cls, mean = tokens[:, 0], tokens[:, 1:].mean(1)
    return {"cls": cls, "mean": mean, "clsmean": torch.cat([cls, mean], dim=1), "head": head}


def _make_hf_clip(config: ClipConfig) -> Oracle:
    """The vision tower of transformers."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    module = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=config.dim,
            intermediate_size=config.mlp_hidden,
            num_hidden_layers=config.depth,
            num_attention_heads=config.heads,
            image_size=config.image_px,
            patch_size=config.patch_px,
            hidden_act=config.mlp,
            layer_norm_eps=config.eps,
            projection_dim=config.head_out,
        )
    ).eval()
    tower = module.vision_model

    def embed(images: Any) -> dict[str, Any]:
        tokens = tower.post_layernorm(tower(images).last_hidden_state)
        return _pool(tokens, module(images).image_embeds)

    parts = _parts(tower.pre_layrnorm, tower.encoder.layers)
    return Oracle(module, functools.partial(_load, module), parts, embed)


def _make_open_clip(config: ClipConfig) -> Oracle:
    """The ViT of timm with a classifier for projection; timm reads these names."""
    from timm.models.vision_transformer import checkpoint_filter_fn

    module = _timm_vit(config, act_layer=config.mlp, num_classes=config.head_out)

    def embed(images: Any) -> dict[str, Any]:
        tokens = module.forward_features(images)
        return _pool(tokens, module.forward_head(tokens))

    return Oracle(
        module,
        lambda state: _load(module, checkpoint_filter_fn(state, module)),
        _parts(module.norm_pre, module.blocks),
        embed,
    )


def _make_keep(config: ClipConfig) -> Oracle:
    """The ViT of timm and two layers, after KEEP's modeling_keep.py."""
    from torch import nn

    class Keep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.visual = _timm_vit(config)
            self.visual_head = nn.Sequential(
                nn.Linear(config.dim, config.head_out),
                nn.GELU(),
                nn.Linear(config.head_out, config.head_out),
            )

    module = Keep().eval()
    trunk = module.visual

    def load(state: dict[str, Any]) -> None:
        # The file calls LayerScale's gamma weight.
        renamed = {k.replace(".weight", ".gamma") if ".ls" in k else k: x for k, x in state.items()}
        _load(module, renamed)

    def embed(images: Any) -> dict[str, Any]:
        tokens = trunk.forward_features(images)
        head = nn.functional.normalize(module.visual_head(tokens[:, 0]), dim=-1)
        return _pool(tokens, head)

    return Oracle(module, load, _parts(trunk.norm_pre, trunk.blocks), embed)


def _make_conch(config: ClipConfig) -> Oracle:
    """The ViT of timm and a pooler with torch's attention, after CONCH's vision_tower.py."""
    import torch
    from torch import nn

    class Pooler(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            dim, out = config.dim, config.head_out
            self.query = nn.Parameter(torch.zeros(1, out))
            self.attn = nn.MultiheadAttention(
                out, config.query_heads, kdim=dim, vdim=dim, batch_first=True
            )
            self.ln_q = nn.LayerNorm(out, eps=config.head_eps)
            self.ln_k = nn.LayerNorm(dim, eps=config.head_eps)

        def forward(self, tokens: Any) -> Any:
            keys = self.ln_k(tokens)
            query = self.ln_q(self.query).expand(len(tokens), -1, -1)
            return self.attn(query, keys, keys, need_weights=False)[0]

    class Conch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.visual = nn.Module()
            self.visual.trunk = _timm_vit(config)
            self.visual.attn_pool_contrast = Pooler()
            self.visual.ln_contrast = nn.LayerNorm(config.head_out, eps=config.head_eps)

    module = Conch().eval()
    visual = cast(Any, module.visual)

    def embed(images: Any) -> dict[str, Any]:
        tokens = visual.trunk.forward_features(images)
        return _pool(tokens, visual.ln_contrast(visual.attn_pool_contrast(tokens)[:, 0]))

    parts = _parts(visual.trunk.norm_pre, visual.trunk.blocks)
    return Oracle(module, functools.partial(_load, module), parts, embed)


def _make_conch_v1_5(config: ClipConfig, stored_px: int) -> Oracle:
    """A ViT that resamples its positions on the way, and a pooler without biases.

    After TRIDENT's conchv1_5.py; all but the positions is timm's ViT.
    """
    import torch
    from torch import nn

    class Pooler(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            dim, out = config.dim, config.head_out
            self.query = nn.Parameter(torch.zeros(1, out))
            self.ln_k = nn.LayerNorm(dim, eps=config.head_eps)
            self.ln_q = nn.LayerNorm(out, eps=config.head_eps)
            self.to_q = nn.Linear(out, out, bias=False)
            self.to_kv = nn.Linear(dim, 2 * out, bias=False)
            self.to_out = nn.Linear(out, out, bias=False)

        def forward(self, tokens: Any) -> Any:
            def heads(x: Any) -> Any:
                return x.unflatten(-1, (config.query_heads, -1)).transpose(1, 2)

            query = heads(self.to_q(self.ln_q(self.query).expand(len(tokens), -1, -1)))
            key, value = map(heads, self.to_kv(self.ln_k(tokens)).chunk(2, dim=-1))
            scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
            return self.to_out((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))

    class Tower(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = _timm_vit(config, image_px=stored_px)
            self.attn_pool_contrast = Pooler()
            self.ln_contrast = nn.LayerNorm(config.head_out, eps=config.head_eps)

    module = Tower().eval()
    trunk = cast(Any, module.trunk)
    old, new = stored_px // config.patch_px, config.image_px // config.patch_px

    def embed_positions(x: Any) -> Any:
        prefix, grid = trunk.pos_embed[:, :1], trunk.pos_embed[:, 1:]
        if old != new:
            grid = grid.unflatten(1, (old, old)).permute(0, 3, 1, 2)
            grid = nn.functional.interpolate(
                grid, scale_factor=((new + 0.1) / old,) * 2, mode="bicubic"
            )
            grid = grid.permute(0, 2, 3, 1).flatten(1, 2)
        x = torch.cat([trunk.cls_token.expand(len(x), -1, -1), x], dim=1)
        return x + torch.cat([prefix, grid], dim=1)

    trunk.patch_embed.strict_img_size = False
    trunk._pos_embed = embed_positions

    def embed(images: Any) -> dict[str, Any]:
        tokens = trunk.forward_features(images)
        return _pool(tokens, module.ln_contrast(module.attn_pool_contrast(tokens)[:, 0]))

    parts = _parts(trunk.norm_pre, trunk.blocks)
    return Oracle(module, functools.partial(_load, module), parts, embed)


def _make_mettle(config: ClipConfig) -> Oracle:
    """The ViT of timm and a head of low rank, after slide2vec's copy of Mettle's."""
    import torch
    from torch import nn

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            dim, hidden = config.dim, config.refine_hidden
            shape = (config.refine_atoms, dim, config.refine_rank)
            self.P, self.Q = nn.Parameter(torch.zeros(shape)), nn.Parameter(torch.zeros(shape))
            self.mix, self.shift = (
                nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, out))
                for out in (config.refine_atoms, dim)
            )

        def forward(self, x: Any) -> Any:
            narrow = torch.einsum("bd,kdr->bkr", x, self.P)
            wide = torch.einsum("bkr,kdr->bkd", narrow, self.Q)
            return x + (self.mix(x).unsqueeze(-1) * wide).sum(1) + self.shift(x)

    class Mettle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = _timm_vit(config)
            self.head = Head()

    module = Mettle().eval()
    trunk = cast(Any, module.backbone)

    def embed(images: Any) -> dict[str, Any]:
        tokens = trunk.forward_features(images)
        cls, patches = tokens[:, 0], tokens[:, 1 + config.n_registers :]
        head = torch.cat([module.head(cls), patches.mean(1)], dim=1)
        return _pool(torch.cat([cls[:, None], patches], dim=1), head)

    parts = _parts(trunk.norm_pre, trunk.blocks)
    return Oracle(module, functools.partial(_load, module), parts, embed)


_CLIP: Mapping[str, Callable[[ClipConfig], Oracle]] = {
    "hf_clip": _make_hf_clip,
    "open_clip": _make_open_clip,
    "keep": _make_keep,
    "conch": _make_conch,
    "mettle": _make_mettle,
}


def _make_beit3(config: Beit3Config) -> Oracle:
    """The BEiT-3 of timm, which reads its names; two scales after MUSK's utils.py."""
    import torch
    from timm.models.vision_transformer import checkpoint_filter_fn

    module = _timm_vit(config)

    def load(state: dict[str, Any]) -> None:
        read = checkpoint_filter_fn(state, module)
        # timm knows BEiT-3 without a norm at the end; MUSK has one (normalize_output).
        _load(module, {name.replace("layer_norm.", "norm."): x for name, x in read.items()})

    def embed(images: Any) -> dict[str, Any]:
        tokens = module.forward_features(images)
        side = config.image_px
        larger = torch.nn.functional.interpolate(images, size=2 * side, mode="bicubic")
        quarters = [part for row in larger.chunk(2, dim=2) for part in row.chunk(2, dim=3)]
        closer = torch.stack([module.forward_features(part)[:, 0] for part in quarters]).mean(0)
        return _pool(tokens, torch.cat([tokens[:, 0], closer], dim=1))

    return Oracle(module, load, _parts(module.norm_pre, module.blocks), embed)
