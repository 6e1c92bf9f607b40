"""Write the spec of a plain ViT of timm, as the network and its settings in timm have it."""

import os
from typing import Any

import yaml

from pathorob_jax.core import files
from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.core.plain import as_plain
from pathorob_jax.models import registry, weights
from pathorob_jax.models.preprocess import Preprocess
from pathorob_jax.models.spec import ModelSpec, make_spec
from pathorob_jax.models.vit import POOLINGS, ViTConfig

from . import oracles, rules, schemes_vit

_HEAD = (
    "# Written from timm {version}'s {name}, for weights of that architecture. Check licence and\n"
    "# preprocessing: those of your own training may differ. Fields: docs/encoders.md.\n"
)


def write_spec(name: str, path: str, *, overwrite: bool = False) -> ModelSpec:
    """Write the spec of a ViT of timm as YAML.

    Args:
        name: name of the model in timm, with or without the tag of its weights.
        path: the YAML file.
        overwrite: replace a file that is there.

    Raises:
        UsageError: timm has no such model, or the path is no YAML file.
        InputError: the model is no plain ViT, or the file exists.
        ImportError: timm is not installed.
    """
    if not path.endswith((".yaml", ".yml")):
        raise UsageError(f"spec: expected the name of a YAML file, found {path!r}.")
    if os.path.exists(path) and not overwrite:
        raise InputError(f"{path}: exists; give --overwrite to replace it.")
    entry = describe(name)
    plain_name = name.partition(".")[0]
    spec = make_spec(plain_name, entry, where=name)
    import timm

    head = _HEAD.format(version=timm.__version__, name=name)
    text = yaml.safe_dump({plain_name: entry}, sort_keys=False, default_flow_style=None, width=100)
    files.write_bytes(path, (head + text).encode())
    return spec


def describe(name: str) -> dict[str, Any]:
    """The fields of the spec of a ViT of timm.

    Raises:
        UsageError: timm has no such model.
        InputError: it is no plain ViT, or one that the network here cannot be.
    """
    module = oracles.make_timm(name)
    config = _network(name, module)
    _check_fits(name, module, config)
    token = getattr(module, "global_pool", "") in ("", "token")
    return {
        "summary": f"{name} of timm.",
        "network": {"family": "vit"} | _without_defaults(config),
        "preprocess": as_plain(_preprocess(module)),
        "poolings": list(POOLINGS),
        "default_pooling": "cls" if token else "mean",
        "weights": {"schemes": [schemes_vit.TIMM.name], "resample": "timm"},
        "torch": {"library": "timm", "constructor": name},
    }


def _network(name: str, module: Any) -> ViTConfig:
    import torch
    from timm.layers import QuickGELU
    from timm.models.vision_transformer import VisionTransformer

    def refuse(why: str) -> InputError:
        return InputError(f"{name}: {why}; write its spec by hand, or import its embeddings.")

    if type(module) is not VisionTransformer:
        raise refuse(f"timm builds a {type(module).__name__}, which is no plain ViT")
    first: Any = module.blocks[0]
    kinds = (type(first).__name__, type(first.attn).__name__)
    if kinds != ("Block", "Attention"):
        raise refuse(f"its blocks are {' with '.join(kinds)}")
    if not isinstance(first.norm1, torch.nn.LayerNorm):
        raise refuse(f"its norms are {type(first.norm1).__name__}")
    if not isinstance(module.fc_norm, torch.nn.Identity):
        raise refuse("it pools before its last norm")
    if module.cls_token is None:
        raise refuse("it has no class token")
    sides, patches = module.patch_embed.img_size, module.patch_embed.patch_size
    if sides[0] != sides[1] or patches[0] != patches[1]:
        raise refuse("its images or patches are not square")
    activations = {torch.nn.GELU: "gelu", QuickGELU: "quick_gelu", torch.nn.SiLU: "swiglu"}
    mlp = activations.get(type(first.mlp.act), "")
    is_gated = type(first.mlp).__name__ == "GluMlp" and not first.mlp.gate_last
    if is_gated != (mlp == "swiglu") or not mlp:
        raise refuse(f"its MLP is {type(first.mlp).__name__} with {type(first.mlp.act).__name__}")
    identity = torch.nn.Identity
    n_registers = module.num_reg_tokens
    learned = "patch" if module.no_embed_class else "all" if n_registers else "cls_patch"
    values: dict[str, Any] = {
        "image_px": sides[0],
        "patch_px": patches[0],
        "dim": module.embed_dim,
        "depth": len(module.blocks),
        "heads": first.attn.num_heads,
        "mlp_hidden": first.mlp.fc1.out_features // (2 if is_gated else 1),
        "mlp": mlp,
        "n_registers": n_registers,
        "pos_embed": "none" if module.pos_embed is None else learned,
        "qkv_bias": first.attn.qkv.bias is not None,
        "qk_norm": not isinstance(first.attn.q_norm, identity),
        "patch_bias": module.patch_embed.proj.bias is not None,
        "pre_norm": not isinstance(module.norm_pre, identity),
        "layer_scale": not isinstance(first.ls1, identity),
        "eps": float(first.norm1.eps),
    }
    return ViTConfig(**values)


def _check_fits(name: str, module: Any, config: ViTConfig) -> None:
    """Check that timm's tensors fill the network described."""
    shapes = {key: tuple(x.shape) for key, x in module.state_dict().items()}
    abstract = weights.flatten(registry.network_of(config)[1])
    target = {path: tuple(leaf.shape) for path, leaf in abstract.items()}
    _, problems = rules.match_scheme(schemes_vit.TIMM, shapes, target, config=config)
    if problems:
        raise InputError(
            f"{name}: its tensors do not fit a plain ViT: {'; '.join(problems[:5])}. Write its "
            "spec by hand, or import its embeddings."
        )


def _preprocess(module: Any) -> Preprocess:
    """Resize, crop and normalisation of timm's evaluation."""
    from timm.data.config import resolve_model_data_config

    found = resolve_model_data_config(module)
    crop = found["input_size"][-1]
    return Preprocess(
        resize_px=int(crop / found["crop_pct"]),
        crop_px=crop,
        interpolation=found["interpolation"],
        mean=tuple(found["mean"]),
        std=tuple(found["std"]),
    )


def _without_defaults(config: ViTConfig) -> dict[str, Any]:
    """The fields of a configuration that differ from their defaults."""
    needed = {"image_px", "patch_px", "dim", "depth", "heads", "mlp_hidden"}
    default = ViTConfig(**{key: getattr(config, key) for key in needed})
    plain, same = as_plain(config), as_plain(default)
    return {key: x for key, x in plain.items() if key in needed or x != same[key]}
