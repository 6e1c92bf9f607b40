"""The PyTorch networks of image-text models: towers of timm and transformers with their heads.

Heads that no library has are minimal modules after the authors' public code.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, cast

from pathorob_jax.models.clip import ClipConfig

from .oracle_parts import (
    Oracle,
    attention_pooler,
    load_exactly,
    pool_all,
    stages_of,
    timm_vit,
)
from .oracles_towers import (
    make_isight,
    make_open_clip_coca,
    make_open_clip_timm,
    make_pathoduet,
)


def make_clip(config: ClipConfig, scheme: str, *, stored_px: int | None = None) -> Oracle | None:
    """The network of a configuration, with random weights; None where none is known.

    Args:
        config: configuration of our network.
        scheme: naming scheme of the files to load.
        stored_px: side of the image that the file's position embedding fits; None: the network's.
    """
    if scheme == "conch_v1_5":
        return _make_conch_v1_5(config, stored_px or config.image_px)
    return _CLIP[scheme](config) if scheme in _CLIP else None


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
        return pool_all(tokens, module(images).image_embeds)

    parts = stages_of(tower.pre_layrnorm, tower.encoder.layers)
    return Oracle(module, functools.partial(load_exactly, module), parts, embed)


def _make_open_clip(config: ClipConfig) -> Oracle:
    """The ViT of timm with a classifier for projection; timm reads these names."""
    from timm.models.vision_transformer import checkpoint_filter_fn

    module = timm_vit(config, act_layer=config.mlp, num_classes=config.head_out)

    def embed(images: Any) -> dict[str, Any]:
        tokens = module.forward_features(images)
        return pool_all(tokens, module.forward_head(tokens))

    return Oracle(
        module,
        lambda state: load_exactly(module, checkpoint_filter_fn(state, module)),
        stages_of(module.norm_pre, module.blocks),
        embed,
    )


def _make_keep(config: ClipConfig) -> Oracle:
    """The ViT of timm and two layers, after KEEP's modeling_keep.py."""
    from torch import nn

    class Keep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.visual = timm_vit(config)
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
        load_exactly(module, renamed)

    def embed(images: Any) -> dict[str, Any]:
        tokens = trunk.forward_features(images)
        head = nn.functional.normalize(module.visual_head(tokens[:, 0]), dim=-1)
        return pool_all(tokens, head)

    return Oracle(module, load, stages_of(trunk.norm_pre, trunk.blocks), embed)


def _make_conch(config: ClipConfig) -> Oracle:
    """The ViT of timm and a pooler with torch's attention, after CONCH's vision_tower.py."""
    from torch import nn

    class Conch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.visual = nn.Module()
            self.visual.trunk = timm_vit(config)
            self.visual.attn_pool_contrast = attention_pooler(config, 1)
            self.visual.ln_contrast = nn.LayerNorm(config.head_out, eps=config.head_eps)

    module = Conch().eval()
    visual = cast(Any, module.visual)

    def embed(images: Any) -> dict[str, Any]:
        tokens = visual.trunk.forward_features(images)
        return pool_all(tokens, visual.ln_contrast(visual.attn_pool_contrast(tokens)[:, 0]))

    parts = stages_of(visual.trunk.norm_pre, visual.trunk.blocks)
    return Oracle(module, functools.partial(load_exactly, module), parts, embed)


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
            self.trunk = timm_vit(config, image_px=stored_px)
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
        return pool_all(tokens, module.ln_contrast(module.attn_pool_contrast(tokens)[:, 0]))

    parts = stages_of(trunk.norm_pre, trunk.blocks)
    return Oracle(module, functools.partial(load_exactly, module), parts, embed)


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
            self.backbone = timm_vit(config)
            self.head = Head()

    module = Mettle().eval()
    trunk = cast(Any, module.backbone)

    def embed(images: Any) -> dict[str, Any]:
        tokens = trunk.forward_features(images)
        cls, patches = tokens[:, 0], tokens[:, 1 + config.n_registers :]
        head = torch.cat([module.head(cls), patches.mean(1)], dim=1)
        return pool_all(torch.cat([cls[:, None], patches], dim=1), head)

    parts = stages_of(trunk.norm_pre, trunk.blocks)
    return Oracle(module, functools.partial(load_exactly, module), parts, embed)


_CLIP: Mapping[str, Callable[[ClipConfig], Oracle]] = {
    "hf_clip": _make_hf_clip,
    "open_clip": _make_open_clip,
    "keep": _make_keep,
    "conch": _make_conch,
    "mettle": _make_mettle,
    "open_clip_coca": make_open_clip_coca,
    "open_clip_timm": make_open_clip_timm,
    "isight": make_isight,
    "pathoduet": make_pathoduet,
}
