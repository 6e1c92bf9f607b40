"""Naming schemes of networks other than plain ViTs: rule tables, see ``rules``."""

from .rules import Rule, Scheme
from .schemes_vit import linear, norm, patch


def _batch_norm(source: str, target: str) -> tuple[Rule, ...]:
    """Weight, bias and running statistics of a batch norm."""
    return (
        *norm(source, target),
        Rule(f"{source}.running_mean", f"{target}/mean"),
        Rule(f"{source}.running_var", f"{target}/variance"),
    )


def _conv(source: str, target: str) -> tuple[Rule, ...]:
    return (Rule(f"{source}.weight", f"{target}/kernel", "conv"),)


def _timm_vit(at: str, scale: str = "gamma") -> tuple[Rule, ...]:
    """The ViT of timm under a prefix; ``scale`` is the name of its LayerScale weights."""
    block = f"{at}blocks.{{i}}"
    return (
        Rule(f"{at}cls_token", "cls", "squeeze"),
        Rule(f"{at}reg_token", "registers", "squeeze"),
        Rule(f"{at}pos_embed", "pos_embed", "pos_embed"),
        *patch(f"{at}patch_embed.proj"),
        *norm(f"{block}.norm1", "blocks/norm1", "[i]"),
        *linear(f"{block}.attn.qkv", "blocks/qkv", "[i]"),
        *linear(f"{block}.attn.proj", "blocks/proj", "[i]"),
        Rule(f"{block}.ls1.{scale}", "blocks/scale1[i]"),
        *norm(f"{block}.norm2", "blocks/norm2", "[i]"),
        *linear(f"{block}.mlp.fc1", "blocks/fc1", "[i]"),
        *linear(f"{block}.mlp.fc2", "blocks/fc2", "[i]"),
        Rule(f"{block}.ls2.{scale}", "blocks/scale2[i]"),
        *norm(f"{at}norm", "norm"),
    )


def _hf_clip(at: str) -> tuple[Rule, ...]:
    """The vision tower of transformers' CLIP under a prefix, without norm and projection."""
    layer = f"{at}vision_model.encoder.layers.{{i}}"
    return (
        Rule(f"{at}vision_model.embeddings.class_embedding", "cls"),
        *patch(f"{at}vision_model.embeddings.patch_embedding"),
        Rule(f"{at}vision_model.embeddings.position_embedding.weight", "pos_embed"),
        *norm(f"{at}vision_model.pre_layrnorm", "pre_norm"),  # spelled like this by its authors
        *norm(f"{layer}.layer_norm1", "blocks/norm1", "[i]"),
        *linear(f"{layer}.self_attn.q_proj", "blocks/qkv", "[i]", (0, 3)),
        *linear(f"{layer}.self_attn.k_proj", "blocks/qkv", "[i]", (1, 3)),
        *linear(f"{layer}.self_attn.v_proj", "blocks/qkv", "[i]", (2, 3)),
        *linear(f"{layer}.self_attn.out_proj", "blocks/proj", "[i]"),
        *norm(f"{layer}.layer_norm2", "blocks/norm2", "[i]"),
        *linear(f"{layer}.mlp.fc1", "blocks/fc1", "[i]"),
        *linear(f"{layer}.mlp.fc2", "blocks/fc2", "[i]"),
    )


HF_CLIP = Scheme(
    name="hf_clip",
    rules=(
        *_hf_clip(""),
        *norm("vision_model.post_layernorm", "norm"),
        Rule("visual_projection.weight", "head/proj/kernel", "transpose"),
    ),
    drop=(
        "text_model.{rest}",
        "text_projection.weight",
        "logit_scale",
        "vision_model.embeddings.position_ids",
    ),
)

# iSight takes the tokens before CLIP's last norm, which its training left as it was.
ISIGHT = Scheme(
    name="isight",
    rules=(*_hf_clip("patch_encoder."), *linear("visual_token_projection", "head/proj")),
    drop=(
        *(f"patch_encoder.{key}" for key in HF_CLIP.drop),
        "patch_encoder.vision_model.post_layernorm.{rest}",
        "patch_encoder.visual_projection.weight",
        "attention_net.{rest}",
        "text_projection_to_visual_dim.{rest}",
        "cell_type_projection.{rest}",
        "classifiers.{rest}",
    ),
)

_OPEN_CLIP_BLOCK = "visual.transformer.resblocks.{i}"
_OPEN_CLIP_VIT = (
    Rule("visual.class_embedding", "cls"),
    *patch("visual.conv1"),
    Rule("visual.positional_embedding", "pos_embed"),
    *norm("visual.ln_pre", "pre_norm"),
    *norm(f"{_OPEN_CLIP_BLOCK}.ln_1", "blocks/norm1", "[i]"),
    Rule(f"{_OPEN_CLIP_BLOCK}.attn.in_proj_weight", "blocks/qkv/kernel[i]", "transpose"),
    Rule(f"{_OPEN_CLIP_BLOCK}.attn.in_proj_bias", "blocks/qkv/bias[i]"),
    *linear(f"{_OPEN_CLIP_BLOCK}.attn.out_proj", "blocks/proj", "[i]"),
    *norm(f"{_OPEN_CLIP_BLOCK}.ln_2", "blocks/norm2", "[i]"),
    *linear(f"{_OPEN_CLIP_BLOCK}.mlp.c_fc", "blocks/fc1", "[i]"),
    *linear(f"{_OPEN_CLIP_BLOCK}.mlp.c_proj", "blocks/fc2", "[i]"),
)
OPEN_CLIP = Scheme(
    name="open_clip",
    rules=(
        *_OPEN_CLIP_VIT,
        *norm("visual.ln_post", "norm"),
        Rule("visual.proj", "head/proj/kernel"),  # used as it is stored, [in, out]
    ),
    drop=(
        "transformer.{rest}",
        "token_embedding.weight",
        "positional_embedding",
        "ln_final.weight",
        "ln_final.bias",
        "text_projection",
        "logit_scale",
        "attn_mask",
    ),
)

# open_clip's towers of timm, as in BiomedCLIP.
OPEN_CLIP_TIMM = Scheme(
    name="open_clip_timm",
    rules=(
        *_timm_vit("visual.trunk."),
        Rule("visual.head.proj.weight", "head/proj/kernel", "transpose"),
    ),
    drop=("text.{rest}", "logit_scale"),
)


def _attention_pool(source: str, target: str) -> tuple[Rule, ...]:
    """Queries with torch's attention over tokens of another width, without the query itself."""
    return (
        *norm(f"{source}.ln_q", f"{target}/norm_query"),
        *norm(f"{source}.ln_k", f"{target}/norm_tokens"),
        Rule(f"{source}.attn.q_proj_weight", f"{target}/to_query/kernel", "transpose"),
        Rule(f"{source}.attn.k_proj_weight", f"{target}/to_key_value/kernel", "transpose", (0, 2)),
        Rule(f"{source}.attn.v_proj_weight", f"{target}/to_key_value/kernel", "transpose", (1, 2)),
        Rule(f"{source}.attn.in_proj_bias", f"{target}/bias"),
        *linear(f"{source}.attn.out_proj", f"{target}/proj"),
    )


# The queries do not see each other; the first gives the embedding, the others serve the captions.
OPEN_CLIP_COCA = Scheme(
    name="open_clip_coca",
    rules=(
        *_OPEN_CLIP_VIT,
        Rule("visual.attn_pool.query", "head/pool/query", "first_row"),
        *_attention_pool("visual.attn_pool", "head/pool"),
        *norm("visual.ln_post", "head/pool/norm"),
        Rule("visual.proj", "head/proj/kernel"),  # used as it is stored, [in, out]
    ),
    drop=("text.{rest}", "text_decoder.{rest}", "logit_scale"),
)

CONCH = Scheme(
    name="conch",
    rules=(
        *_timm_vit("visual.trunk."),
        Rule("visual.attn_pool_contrast.query", "head/query", "squeeze"),
        *_attention_pool("visual.attn_pool_contrast", "head"),
        *norm("visual.ln_contrast", "head/norm"),
    ),
    drop=(
        "visual.attn_pool_caption.{rest}",
        "visual.ln_caption.weight",
        "visual.ln_caption.bias",
        "visual.proj_contrast",  # not used by the authors for the image embedding
        "text.{rest}",
        "text_decoder.{rest}",
        "logit_scale",
    ),
)

CONCH_V1_5 = Scheme(
    name="conch_v1_5",
    rules=(
        *_timm_vit("trunk."),
        Rule("attn_pool_contrast.query", "head/query", "squeeze"),
        *norm("attn_pool_contrast.ln_q", "head/norm_query"),
        *norm("attn_pool_contrast.ln_k", "head/norm_tokens"),
        Rule("attn_pool_contrast.to_q.weight", "head/to_query/kernel", "transpose"),
        Rule("attn_pool_contrast.to_kv.weight", "head/to_key_value/kernel", "transpose"),
        Rule("attn_pool_contrast.to_out.weight", "head/proj/kernel", "transpose"),
        *norm("ln_contrast", "head/norm"),
    ),
)

KEEP = Scheme(
    name="keep",
    rules=(
        *_timm_vit("visual.", scale="weight"),
        *linear("visual_head.0", "head/fc1"),
        *linear("visual_head.2", "head/fc2"),
    ),
    drop=("text.{rest}", "logit_scale"),
)

METTLE = Scheme(
    name="mettle",
    rules=(
        *_timm_vit("backbone."),
        Rule("head.P", "head/down"),
        Rule("head.Q", "head/up"),
        *linear("head.mix.0", "head/mix1"),
        *linear("head.mix.2", "head/mix2"),
        *linear("head.shift.0", "head/shift1"),
        *linear("head.shift.2", "head/shift2"),
    ),
)

_BEIT3_LAYER = "beit3.encoder.layers.{i}"
_BEIT3_VISION = (  # A is the vision branch, B the text branch
    Rule("beit3.encoder.embed_positions.A.weight", "pos_embed", "without_two_rows"),
    *norm(f"{_BEIT3_LAYER}.self_attn_layer_norm.A", "blocks/norm1", "[i]"),
    *linear(f"{_BEIT3_LAYER}.self_attn.q_proj.A", "blocks/qkv", "[i]", (0, 3)),
    *linear(f"{_BEIT3_LAYER}.self_attn.k_proj.A", "blocks/qkv", "[i]", (1, 3)),
    *linear(f"{_BEIT3_LAYER}.self_attn.v_proj.A", "blocks/qkv", "[i]", (2, 3)),
    *norm(f"{_BEIT3_LAYER}.self_attn.inner_attn_ln.A", "blocks/attended_norm", "[i]"),
    *linear(f"{_BEIT3_LAYER}.self_attn.out_proj.A", "blocks/proj", "[i]"),
    *norm(f"{_BEIT3_LAYER}.final_layer_norm.A", "blocks/norm2", "[i]"),
    *linear(f"{_BEIT3_LAYER}.ffn.A.fc1", "blocks/fc1", "[i]"),
    *norm(f"{_BEIT3_LAYER}.ffn.A.ffn_layernorm", "blocks/hidden_norm", "[i]"),
    *linear(f"{_BEIT3_LAYER}.ffn.A.fc2", "blocks/fc2", "[i]"),
    *norm("beit3.encoder.layer_norm.A", "norm"),
)
BEIT3 = Scheme(
    name="beit3",
    rules=(
        Rule("beit3.vision_embed.cls_token", "cls", "squeeze"),
        *patch("beit3.vision_embed.proj"),
        *_BEIT3_VISION,
    ),
    drop=(
        *(rule.source.replace(".A.", ".B.") for rule in _BEIT3_VISION),
        "beit3.vision_embed.mask_token",
        "beit3.text_embed.weight",
        "vision_head.weight",
        "language_head.weight",
        "logit_scale",
    ),
)

_SWIN_BLOCK, _SWIN_TARGET = "layers.{s}.blocks.{i}", "stages/{s}/blocks/{i}"
_SWIN_RULES = (
    *_conv("patch_embed.proj.0", "stem/conv1"),
    *_batch_norm("patch_embed.proj.1", "stem/bn1"),
    *_conv("patch_embed.proj.3", "stem/conv2"),
    *_batch_norm("patch_embed.proj.4", "stem/bn2"),
    *_conv("patch_embed.proj.6", "stem/conv3"),
    Rule("patch_embed.proj.6.bias", "stem/conv3/bias"),
    *norm("patch_embed.norm", "stem/norm"),
    *norm(f"{_SWIN_BLOCK}.norm1", f"{_SWIN_TARGET}/norm1"),
    *linear(f"{_SWIN_BLOCK}.attn.qkv", f"{_SWIN_TARGET}/qkv"),
    Rule(f"{_SWIN_BLOCK}.attn.relative_position_bias_table", f"{_SWIN_TARGET}/position_bias"),
    *linear(f"{_SWIN_BLOCK}.attn.proj", f"{_SWIN_TARGET}/proj"),
    *norm(f"{_SWIN_BLOCK}.norm2", f"{_SWIN_TARGET}/norm2"),
    *linear(f"{_SWIN_BLOCK}.mlp.fc1", f"{_SWIN_TARGET}/fc1"),
    *linear(f"{_SWIN_BLOCK}.mlp.fc2", f"{_SWIN_TARGET}/fc2"),
    *norm("norm", "norm"),
)
_SWIN_DROP = (
    "patch_embed.proj.{k}.num_batches_tracked",
    f"{_SWIN_BLOCK}.attn.relative_position_index",
    f"{_SWIN_BLOCK}.attn_mask",
    "head.weight",
    "head.bias",
    "head.fc.weight",
    "head.fc.bias",
)
OLD_TIMM_SWIN = Scheme(
    name="old_timm_swin",
    rules=(
        *_SWIN_RULES,
        *norm("layers.{s}.downsample.norm", "stages/{s}/merge_norm"),
        Rule("layers.{s}.downsample.reduction.weight", "stages/{s}/merge/kernel", "transpose"),
    ),
    drop=_SWIN_DROP,
)
# Since 0.8 timm assigns the merging of tokens to the following stage.
TIMM_SWIN = Scheme(
    name="timm_swin",
    rules=(
        *_SWIN_RULES,
        *(
            rule
            for s in range(3)
            for rule in (
                *norm(f"layers.{s + 1}.downsample.norm", f"stages/{s}/merge_norm"),
                Rule(
                    f"layers.{s + 1}.downsample.reduction.weight",
                    f"stages/{s}/merge/kernel",
                    "transpose",
                ),
            )
        ),
    ),
    drop=_SWIN_DROP,
)

_RESNET_BLOCK, _RESNET_TARGET = "layer{s}.{i}", "stages/{s}/{i}"
TORCHVISION_RESNET = Scheme(
    name="torchvision_resnet",
    rules=(
        *_conv("conv1", "conv1"),
        *_batch_norm("bn1", "bn1"),
        *(
            rule
            for k in (1, 2, 3)
            for rule in (
                *_conv(f"{_RESNET_BLOCK}.conv{k}", f"{_RESNET_TARGET}/conv{k}"),
                *_batch_norm(f"{_RESNET_BLOCK}.bn{k}", f"{_RESNET_TARGET}/bn{k}"),
            )
        ),
        *_conv(f"{_RESNET_BLOCK}.downsample.0", f"{_RESNET_TARGET}/downsample_conv"),
        *_batch_norm(f"{_RESNET_BLOCK}.downsample.1", f"{_RESNET_TARGET}/downsample_bn"),
    ),
    drop=(
        "bn{k}.num_batches_tracked",
        f"{_RESNET_BLOCK}.bn{{k}}.num_batches_tracked",
        f"{_RESNET_BLOCK}.downsample.1.num_batches_tracked",
        "fc.{rest}",
    ),
)

SCHEMES: tuple[Scheme, ...] = (
    HF_CLIP,
    ISIGHT,
    OPEN_CLIP,
    OPEN_CLIP_TIMM,
    OPEN_CLIP_COCA,
    CONCH,
    CONCH_V1_5,
    KEEP,
    METTLE,
    BEIT3,
    OLD_TIMM_SWIN,
    TIMM_SWIN,
    TORCHVISION_RESNET,
)
