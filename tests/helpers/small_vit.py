"""A small ViT for tests of the converter: its spec, tensors in timm's names, and where they go."""

import dataclasses

import numpy as np

from pathorob_jax.models import registry

# A small UNI: every option of the real one, named as the real one's file.
UNI = registry.get_spec("uni")
CONFIG = dataclasses.replace(
    UNI.network, image_px=32, dim=24, depth=2, heads=2, mlp_hidden=40, n_registers=2
)
SPEC = dataclasses.replace(
    UNI,
    name="small",
    network=CONFIG,
    preprocess=dataclasses.replace(UNI.preprocess, resize_px=32, crop_px=32),
)


def with_schemes(*names):
    """The encoder with files of other naming schemes."""
    return dataclasses.replace(SPEC, weights=dataclasses.replace(SPEC.weights, schemes=names))


def make_state(config=CONFIG, seed=0):
    """Random tensors in timm's names."""
    d, h, p = config.dim, config.mlp_hidden, config.patch_px
    shapes = {
        "cls_token": (1, 1, d),
        "reg_token": (1, config.n_registers, d),
        "pos_embed": (1, config.n_pos, d),
        "patch_embed.proj.weight": (d, 3, p, p),
        "patch_embed.proj.bias": (d,),
        "norm.weight": (d,),
        "norm.bias": (d,),
    }
    for i in range(config.depth):
        block = {
            "norm1.weight": (d,), "norm1.bias": (d,), "attn.qkv.weight": (3 * d, d),
            "attn.qkv.bias": (3 * d,), "attn.proj.weight": (d, d), "attn.proj.bias": (d,),
            "ls1.gamma": (d,), "norm2.weight": (d,), "norm2.bias": (d,), "mlp.fc1.weight": (h, d),
            "mlp.fc1.bias": (h,), "mlp.fc2.weight": (d, h), "mlp.fc2.bias": (d,), "ls2.gamma": (d,),
        }  # fmt: skip
        shapes |= {f"blocks.{i}.{name}": shape for name, shape in block.items()}
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def expected(state):
    """The parameters of the network with these tensors, put there by hand."""

    def stack(name, change=np.asarray):
        return np.stack([change(state[f"blocks.{i}.{name}"]) for i in range(CONFIG.depth)])

    def norm(name):
        return {"scale": stack(f"{name}.weight"), "bias": stack(f"{name}.bias")}

    def linear(name):
        return {"kernel": stack(f"{name}.weight", np.transpose), "bias": stack(f"{name}.bias")}

    patch = state["patch_embed.proj.weight"].transpose(2, 3, 1, 0).reshape(-1, CONFIG.dim)
    return {
        "cls": state["cls_token"][0, 0],
        "registers": state["reg_token"][0],
        "pos_embed": state["pos_embed"][0],
        "patch": {"kernel": patch, "bias": state["patch_embed.proj.bias"]},
        "norm": {"scale": state["norm.weight"], "bias": state["norm.bias"]},
        "blocks": {
            "norm1": norm("norm1"),
            "norm2": norm("norm2"),
            "qkv": linear("attn.qkv"),
            "proj": linear("attn.proj"),
            "fc1": linear("mlp.fc1"),
            "fc2": linear("mlp.fc2"),
            "scale1": stack("ls1.gamma"),
            "scale2": stack("ls2.gamma"),
        },
    }
