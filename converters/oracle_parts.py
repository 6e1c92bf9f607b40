"""What the PyTorch networks of ``oracles_other`` and ``oracles_clip`` are made of."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

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


def load_exactly(module: Any, state: dict[str, Any]) -> None:
    """Load exactly the tensors of the state, except for the counters of batch norms."""
    counters = {k: x for k, x in module.state_dict().items() if k.endswith("num_batches_tracked")}
    module.load_state_dict(counters | state)


def timm_vit(config: ViTConfig, *, image_px: int | None = None, **kwargs: Any) -> Any:
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


def stages_of(stem: Any, blocks: Any) -> dict[str, Any]:
    """Submodules whose outputs are the stages of a ViT, by our names."""
    return {"stem": stem} | {f"block_{i:02}": block for i, block in enumerate(blocks)}


def pool_all(tokens: Any, head: Any) -> dict[str, Any]:
    """Embeddings of tokens [B, 1 + T, D] after the norm, by pooling."""
    import torch

    cls, mean = tokens[:, 0], tokens[:, 1:].mean(1)
    return {"cls": cls, "mean": mean, "clsmean": torch.cat([cls, mean], dim=1), "head": head}


def attention_pooler(config: Any, n_queries: int) -> Any:
    """Learned queries that attend to the tokens of a tower, with torch's attention."""
    import torch
    from torch import nn

    dim, out = config.dim, config.head_out

    class Pooler(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query = nn.Parameter(torch.zeros(n_queries, out))
            self.attn = nn.MultiheadAttention(
                out, config.query_heads, kdim=dim, vdim=dim, batch_first=True
            )
            self.ln_q = nn.LayerNorm(out, eps=config.head_eps)
            self.ln_k = nn.LayerNorm(dim, eps=config.head_eps)

        def forward(self, tokens: Any) -> Any:
            keys = self.ln_k(tokens)
            query = self.ln_q(self.query).expand(len(tokens), -1, -1)
            return self.attn(query, keys, keys, need_weights=False)[0]

    return Pooler()
