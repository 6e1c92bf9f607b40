"""Floating-point operations of an encoder, counted from its architecture."""

from pathorob_jax.models.vit import ViTConfig


def vit_flops(config: ViTConfig) -> int:
    """2 x multiply-adds of all products for one image of a plain ViT.

    With T tokens of width D, P patches of p x p pixels, hidden width h, and n = 3 products in an
    MLP with SwiGLU (gate, value, out) or else 2, a block takes 3 T D^2 (queries, keys, values)
    + 2 T^2 D (scores, and their product with the values) + T D^2 (projection) + n T D h
    multiply-adds; the patches take 3 p^2 P D once. A network that sees one colour at a time runs
    its blocks three times, and its patches with a third of the pixels each. Resize, norms, softmax
    and activations are not counted.
    """
    dim, n_tokens = config.dim, config.n_patches + 1 + config.n_registers
    mlp_products = 3 if config.mlp == "swiglu" else 2
    block = n_tokens * dim * (4 * dim + 2 * n_tokens + mlp_products * config.mlp_hidden)
    patches = 3 * config.patch_px**2 * config.n_patches * dim
    passes = 3 if config.per_channel else 1
    return 2 * (passes * config.depth * block + patches)
