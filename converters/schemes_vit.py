"""Naming schemes of plain ViTs: rule tables, see ``rules``."""

from .rules import Constant, Rule, Scheme


def norm(source: str, target: str, index: str = "") -> tuple[Rule, ...]:
    """Weight and bias of a LayerNorm."""
    return (
        Rule(f"{source}.weight", f"{target}/scale{index}"),
        Rule(f"{source}.bias", f"{target}/bias{index}"),
    )


def linear(
    source: str, target: str, index: str = "", part: tuple[int, int] | None = None
) -> tuple[Rule, ...]:
    """Weight and bias of a linear layer."""
    return (
        Rule(f"{source}.weight", f"{target}/kernel{index}", "transpose", part),
        Rule(f"{source}.bias", f"{target}/bias{index}", "same", part),
    )


def patch(source: str) -> tuple[Rule, ...]:
    """Weight and bias of the convolution that embeds patches."""
    return (
        Rule(f"{source}.weight", "patch/kernel", "patch_kernel"),
        Rule(f"{source}.bias", "patch/bias"),
    )


def _timm_block(at: str) -> tuple[Rule, ...]:
    """A block in the names of timm, DINO, DINOv2 and DINOv3, without the MLP."""
    return (
        *norm(f"{at}.norm1", "blocks/norm1", "[i]"),
        Rule(f"{at}.attn.qkv.weight", "blocks/qkv/kernel[i]", "transpose"),
        *norm(f"{at}.attn.q_norm", "blocks/q_norm", "[i]"),
        *norm(f"{at}.attn.k_norm", "blocks/k_norm", "[i]"),
        *linear(f"{at}.attn.proj", "blocks/proj", "[i]"),
        Rule(f"{at}.ls1.gamma", "blocks/scale1[i]"),
        *norm(f"{at}.norm2", "blocks/norm2", "[i]"),
        Rule(f"{at}.ls2.gamma", "blocks/scale2[i]"),
    )


def _timm_mlp(at: str) -> tuple[Rule, ...]:
    """Two layers; for SwiGLU the first has gate and value."""
    return (
        *linear(f"{at}.mlp.fc1", "blocks/fc1", "[i]"),
        *linear(f"{at}.mlp.fc2", "blocks/fc2", "[i]"),
    )


def _qkv_bias(at: str) -> Rule:
    return Rule(f"{at}.attn.qkv.bias", "blocks/qkv/bias[i]")


_TIMM_ENDS = (
    Rule("cls_token", "cls", "squeeze"),
    *patch("patch_embed.proj"),
    *norm("norm_pre", "pre_norm"),
    *norm("norm", "norm"),
)
_TIMM_RULES = (
    *_TIMM_ENDS,
    Rule("reg_token", "registers", "squeeze"),
    *_timm_block("blocks.{i}"),
    _qkv_bias("blocks.{i}"),
    *_timm_mlp("blocks.{i}"),
)
_TIMM_DROP = ("head.weight", "head.bias", "fc_norm.weight", "fc_norm.bias")

TIMM = Scheme(
    name="timm",
    rules=(*_TIMM_RULES, Rule("pos_embed", "pos_embed", "pos_embed")),
    drop=_TIMM_DROP,
)

# timm's files of DINOv2 with registers: the class token's position is in cls_token already.
TIMM_FOLDED = Scheme(
    name="timm_folded",
    rules=(*_TIMM_RULES, Rule("pos_embed", "pos_embed", "pos_embed_of_patches")),
    drop=_TIMM_DROP,
)

# PathoDuet: its pretext token stands before the class token, and its norm after the pooling.
PATHODUET = Scheme(
    name="pathoduet",
    rules=(
        Rule("cls_token", "cls", "squeeze"),
        Rule("pretext_token", "registers", "squeeze"),
        Rule("pos_embed", "pos_embed", "register_first"),
        *patch("patch_embed.proj"),
        *_timm_block("blocks.{i}"),
        _qkv_bias("blocks.{i}"),
        *_timm_mlp("blocks.{i}"),
        *norm("fc_norm", "head/norm"),
    ),
    drop=("head.weight", "head.bias", "bridge_token"),
)

# DINO (v1) and iBOT: timm's names, wrapped, with a projection head for training.
DINO = Scheme(
    name="dino",
    rules=TIMM.rules,
    drop=(
        "head.mlp.{layer}.weight",
        "head.mlp.{layer}.bias",
        "head.last_layer.weight",
        "head.last_layer.weight_g",
        "head.last_layer.weight_v",
        "head.last_layer2.weight_g",
        "head.last_layer2.weight_v",
        "masked_embed",
    ),
)

_DINOV2_HEADS = tuple(
    f"{head}.{name}"
    for head in ("dino_head", "ibot_head")
    for name in (
        "mlp.{layer}.weight",
        "mlp.{layer}.bias",
        "last_layer.weight",
        "last_layer.weight_g",
        "last_layer.weight_v",
        "last_layer.parametrizations.weight.original0",
        "last_layer.parametrizations.weight.original1",
    )
)


def _dinov2_blocks(at: str) -> tuple[Rule, ...]:
    return (
        *_timm_block(at),
        _qkv_bias(at),
        *_timm_mlp(at),
        *linear(f"{at}.mlp.w12", "blocks/fc1", "[i]"),
        *linear(f"{at}.mlp.w3", "blocks/fc2", "[i]"),
    )


# Training checkpoints of DINOv2 divide blocks into chunks: blocks.<chunk>.<index over all>.
DINOV2 = Scheme(
    name="dinov2",
    rules=(
        *_TIMM_ENDS,
        Rule("register_tokens", "registers", "squeeze"),
        Rule("pos_embed", "pos_embed", "pos_embed"),
        *_dinov2_blocks("blocks.{i}"),
        *_dinov2_blocks("blocks.{chunk}.{i}"),
    ),
    drop=("mask_token", *_DINOV2_HEADS),
)

# Native DINOv3: the third of the bias for keys is masked to zero, whatever the file has there.
DINOV3 = Scheme(
    name="dinov3",
    rules=(
        *_TIMM_ENDS,
        Rule("storage_tokens", "registers", "squeeze"),
        Rule("rope_embed.periods", "rope_periods"),
        *_timm_block("blocks.{i}"),
        Rule("blocks.{i}.attn.qkv.bias", "blocks/qkv/bias[i]", "mask_key_bias"),
        *_timm_mlp("blocks.{i}"),
        *linear("blocks.{i}.mlp.w1", "blocks/fc1", "[i]", (0, 2)),
        *linear("blocks.{i}.mlp.w2", "blocks/fc1", "[i]", (1, 2)),
        *linear("blocks.{i}.mlp.w3", "blocks/fc2", "[i]"),
    ),
    drop=(
        "mask_token",
        "blocks.{i}.attn.qkv.bias_mask",
        "local_cls_norm.weight",
        "local_cls_norm.bias",
        *_DINOV2_HEADS,
    ),
)


def _hf_attention(at: str) -> tuple[Rule, ...]:
    return (
        *linear(f"{at}.attention.attention.query", "blocks/qkv", "[i]", (0, 3)),
        *linear(f"{at}.attention.attention.key", "blocks/qkv", "[i]", (1, 3)),
        *linear(f"{at}.attention.attention.value", "blocks/qkv", "[i]", (2, 3)),
        *linear(f"{at}.attention.output.dense", "blocks/proj", "[i]"),
    )


_HF_ENDS = (
    Rule("embeddings.cls_token", "cls", "squeeze"),
    Rule("embeddings.position_embeddings", "pos_embed", "pos_embed"),
    *patch("embeddings.patch_embeddings.projection"),
    *norm("layernorm", "norm"),
)

HF_VIT = Scheme(
    name="hf_vit",
    rules=(
        *_HF_ENDS,
        *_hf_attention("encoder.layer.{i}"),
        *norm("encoder.layer.{i}.layernorm_before", "blocks/norm1", "[i]"),
        *norm("encoder.layer.{i}.layernorm_after", "blocks/norm2", "[i]"),
        *linear("encoder.layer.{i}.intermediate.dense", "blocks/fc1", "[i]"),
        *linear("encoder.layer.{i}.output.dense", "blocks/fc2", "[i]"),
    ),
    drop=("embeddings.mask_token", "pooler.dense.weight", "pooler.dense.bias"),
)

HF_DINOV2 = Scheme(
    name="hf_dinov2",
    rules=(
        *_HF_ENDS,
        Rule("embeddings.register_tokens", "registers", "squeeze"),
        *_hf_attention("encoder.layer.{i}"),
        *norm("encoder.layer.{i}.norm1", "blocks/norm1", "[i]"),
        Rule("encoder.layer.{i}.layer_scale1.lambda1", "blocks/scale1[i]"),
        *norm("encoder.layer.{i}.norm2", "blocks/norm2", "[i]"),
        *linear("encoder.layer.{i}.mlp.fc1", "blocks/fc1", "[i]"),
        *linear("encoder.layer.{i}.mlp.fc2", "blocks/fc2", "[i]"),
        *linear("encoder.layer.{i}.mlp.weights_in", "blocks/fc1", "[i]"),
        *linear("encoder.layer.{i}.mlp.weights_out", "blocks/fc2", "[i]"),
        Rule("encoder.layer.{i}.layer_scale2.lambda1", "blocks/scale2[i]"),
    ),
    drop=("embeddings.mask_token",),
)


def _hf_dinov3_blocks(at: str) -> tuple[Rule, ...]:
    return (
        *norm(f"{at}.norm1", "blocks/norm1", "[i]"),
        *linear(f"{at}.attention.q_proj", "blocks/qkv", "[i]", (0, 3)),
        *linear(f"{at}.attention.k_proj", "blocks/qkv", "[i]", (1, 3)),
        *linear(f"{at}.attention.v_proj", "blocks/qkv", "[i]", (2, 3)),
        *linear(f"{at}.attention.o_proj", "blocks/proj", "[i]"),
        Rule(f"{at}.layer_scale1.lambda1", "blocks/scale1[i]"),
        *norm(f"{at}.norm2", "blocks/norm2", "[i]"),
        Rule(f"{at}.layer_scale2.lambda1", "blocks/scale2[i]"),
        *linear(f"{at}.mlp.down_proj", "blocks/fc2", "[i]"),
    )


def _hf_dinov3(name: str, mlp: tuple[Rule, ...]) -> Scheme:
    """DINOv3 of transformers, where keys have no bias and periods are computed."""
    return Scheme(
        name=name,
        rules=(
            Rule("embeddings.cls_token", "cls", "squeeze"),
            Rule("embeddings.register_tokens", "registers", "squeeze"),
            *patch("embeddings.patch_embeddings"),
            *norm("norm", "norm"),
            *_hf_dinov3_blocks("layer.{i}"),
            *_hf_dinov3_blocks("model.layer.{i}"),
            *mlp,
        ),
        constants=(
            Constant("blocks/qkv/bias[i]", 0.0, (1, 3)),
            Constant("rope_periods", "rope_periods"),
        ),
        drop=("embeddings.mask_token",),
    )


HF_DINOV3 = _hf_dinov3(
    "hf_dinov3",
    (
        *linear("layer.{i}.mlp.up_proj", "blocks/fc1", "[i]"),
        *linear("model.layer.{i}.mlp.up_proj", "blocks/fc1", "[i]"),
    ),
)
HF_DINOV3_GATED = _hf_dinov3(
    "hf_dinov3_gated",
    (
        *linear("layer.{i}.mlp.gate_proj", "blocks/fc1", "[i]", (0, 2)),
        *linear("layer.{i}.mlp.up_proj", "blocks/fc1", "[i]", (1, 2)),
        *linear("model.layer.{i}.mlp.gate_proj", "blocks/fc1", "[i]", (0, 2)),
        *linear("model.layer.{i}.mlp.up_proj", "blocks/fc1", "[i]", (1, 2)),
    ),
)

SCHEMES: tuple[Scheme, ...] = (
    TIMM,
    TIMM_FOLDED,
    PATHODUET,
    DINO,
    DINOV2,
    DINOV3,
    HF_VIT,
    HF_DINOV2,
    HF_DINOV3,
    HF_DINOV3_GATED,
)
