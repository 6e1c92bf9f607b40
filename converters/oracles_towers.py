"""The PyTorch networks of towers whose head takes tokens before a norm, and of open_clip with timm.

CoCa of open_clip is a module after its public code, iSight and PathoDuet are those of transformers
and timm with the authors' heads.
"""

import dataclasses
import functools
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

N_QUERIES = 256  # of open_clip's CoCa


def make_open_clip_coca(config: ClipConfig) -> Oracle:
    """The vision tower of open_clip's CoCa, with all its queries; after its transformer.py."""
    import torch
    from torch import nn

    dim, out = config.dim, config.head_out

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ln_1 = nn.LayerNorm(dim, eps=config.eps)
            self.attn = nn.MultiheadAttention(dim, config.heads, batch_first=True)
            self.ln_2 = nn.LayerNorm(dim, eps=config.eps)
            self.mlp = nn.Sequential()
            self.mlp.add_module("c_fc", nn.Linear(dim, config.mlp_hidden))
            self.mlp.add_module("gelu", nn.GELU())
            self.mlp.add_module("c_proj", nn.Linear(config.mlp_hidden, dim))

        def forward(self, x: Any) -> Any:
            normed = self.ln_1(x)
            x = x + self.attn(normed, normed, normed, need_weights=False)[0]
            return x + self.mlp(self.ln_2(x))

    class Visual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(3, dim, config.patch_px, stride=config.patch_px, bias=False)
            self.class_embedding = nn.Parameter(torch.zeros(dim))
            self.positional_embedding = nn.Parameter(torch.zeros(config.n_pos, dim))
            self.ln_pre = nn.LayerNorm(dim, eps=config.eps)
            self.transformer = nn.Module()
            self.transformer.resblocks = nn.ModuleList(Block() for _ in range(config.depth))
            self.attn_pool = attention_pooler(config, N_QUERIES)
            self.ln_post = nn.LayerNorm(out, eps=config.head_eps)
            self.proj = nn.Parameter(torch.zeros(out, out))

        def forward(self, images: Any) -> tuple[Any, Any]:
            x = self.conv1(images).flatten(2).transpose(1, 2)
            x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1)
            x = self.ln_pre(x + self.positional_embedding)
            for block in cast(Any, self.transformer.resblocks):
                x = block(x)
            return x, self.ln_post(self.attn_pool(x))[:, 0] @ self.proj

    class CoCa(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.visual = Visual()

    module = CoCa().eval()
    visual = cast(Any, module.visual)
    parts = stages_of(visual.ln_pre, visual.transformer.resblocks)
    return Oracle(
        module,
        functools.partial(load_exactly, module),
        parts,
        lambda images: pool_all(*visual(images)),
    )


def make_open_clip_timm(config: ClipConfig) -> Oracle:
    """The ViT of timm with a projection of its class token; after open_clip's timm_model.py."""
    from torch import nn

    class Tower(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.visual = nn.Module()
            self.visual.trunk = timm_vit(config)
            self.visual.head = nn.Sequential()
            self.visual.head.add_module("proj", nn.Linear(config.dim, config.head_out, bias=False))

    module = Tower().eval()
    visual = cast(Any, module.visual)

    def embed(images: Any) -> dict[str, Any]:
        return pool_all(visual.trunk.forward_features(images), visual.head(visual.trunk(images)))

    parts = stages_of(visual.trunk.norm_pre, visual.trunk.blocks)
    return Oracle(module, functools.partial(load_exactly, module), parts, embed)


def make_isight(config: ClipConfig) -> Oracle:
    """CLIP of transformers without its last norm; after iSight's patch_encoder_with_clam.py."""
    from torch import nn
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    class ISight(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch_encoder = CLIPVisionModelWithProjection(
                CLIPVisionConfig(
                    hidden_size=config.dim,
                    intermediate_size=config.mlp_hidden,
                    num_hidden_layers=config.depth,
                    num_attention_heads=config.heads,
                    image_size=config.image_px,
                    patch_size=config.patch_px,
                    hidden_act=config.mlp,
                    layer_norm_eps=config.eps,
                )
            )
            self.visual_token_projection = nn.Linear(config.dim, config.head_out)

    module = ISight().eval()
    tower = cast(Any, module.patch_encoder).vision_model
    unused = ("post_layernorm", "visual_projection")

    def load(state: dict[str, Any]) -> None:
        own = {k: x for k, x in module.state_dict().items() if any(part in k for part in unused)}
        load_exactly(module, own | state)

    def embed(images: Any) -> dict[str, Any]:
        tokens = tower(images, output_hidden_states=True).hidden_states[-1]
        return pool_all(tokens, module.visual_token_projection(tokens).mean(1))

    return Oracle(module, load, stages_of(tower.pre_layrnorm, tower.encoder.layers), embed)


def make_pathoduet(config: ClipConfig) -> Oracle:
    """The ViT of timm with a token before the class token; after PathoDuet's vits.py.

    The stages have our order of tokens: class token, pretext token, patches.
    """
    import torch
    from torch import nn

    plain = dataclasses.replace(config, n_registers=0, pos_embed="cls_patch")
    module = timm_vit(plain, global_pool="avg")
    module.pretext_token = nn.Parameter(torch.zeros(1, 1, config.dim))
    module.pos_embed = nn.Parameter(torch.zeros(1, config.n_pos, config.dim))
    module.num_prefix_tokens = 2

    def embed_positions(x: Any) -> Any:
        prefix = [
            token.expand(len(x), -1, -1) for token in (module.pretext_token, module.cls_token)
        ]
        return torch.cat([*prefix, x], dim=1) + module.pos_embed

    module._pos_embed = embed_positions

    class Reordered(nn.Module):
        def forward(self, tokens: Any) -> Any:
            return torch.cat([tokens[:, 1:2], tokens[:, :1], tokens[:, 2:]], dim=1)

    def reordered(part: Any) -> Any:
        shown = Reordered()

        def show(_part: Any, _inputs: Any, out: Any) -> None:
            shown(out)

        part.register_forward_hook(show)
        return shown

    def embed(images: Any) -> dict[str, Any]:
        tokens = module.forward_features(images)
        return pool_all(tokens[:, 1:], module.forward_head(tokens, pre_logits=True))

    parts = {name: reordered(x) for name, x in stages_of(module.norm_pre, module.blocks).items()}
    return Oracle(module, functools.partial(load_exactly, module), parts, embed)
