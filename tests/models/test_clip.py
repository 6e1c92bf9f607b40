"""Vision towers with heads: equal to transformers, timm and torch after conversion."""

import dataclasses
import functools
from typing import NamedTuple

import encoder_parity as parity
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_oracles

from converters import oracles_other
from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.models import registry

TINY = {"patch_px": 8, "dim": 48, "depth": 3, "heads": 4, "mlp_hidden": 192}
STORED_SIDE = 3  # CONCHv1.5 stores positions for half as many patches a side as it sees
CONFIGS = {
    "plip": parity.small("plip", **TINY, image_px=32, head_out=20),
    "quiltnet_b32": parity.small("quiltnet_b32", **TINY, image_px=32, head_out=20),
    "keep": parity.small("keep", **TINY, image_px=32, head_out=36),
    "conch": parity.small("conch", **TINY, image_px=40, head_out=32),
    "conch_v1_5": parity.small("conch_v1_5", **TINY, image_px=48, head_out=24),
    "mettle": parity.small(
        "mettle", **TINY, image_px=32, head_out=96, refine_atoms=3, refine_rank=2, refine_hidden=20
    ),
}
PLIP, CONCH = CONFIGS["plip"], CONFIGS["conch"]
SMALL = ("patch", "conv1", "class_embedding", "position", "cls_token", "pos_embed", "query")
TEXT = {"text.a.weight": (3, 3), "logit_scale": ()}  # stands for the text towers
PUBLISHED = {
    "plip": 87_849_216,
    "quiltnet_b32": 87_849_216,
    "keep": 304_728_576,
    "conch": 87_567_104,
    "conch_v1_5": 306_109_184,
    "mettle": 1_136_353_296,
}


class Case(NamedTuple):
    """One encoder's file, images, and what its PyTorch network makes of them."""

    state: dict
    images: np.ndarray
    expected: oracles_other.Run


def _hf_clip_shapes(config):
    """PLIP's file is transformers' CLIPModel, text tower and all."""
    from transformers import CLIPConfig, CLIPModel

    vision = {
        "hidden_size": config.dim,
        "intermediate_size": config.mlp_hidden,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "image_size": config.image_px,
        "patch_size": config.patch_px,
    }
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    return parity.shapes_of(
        CLIPModel(
            CLIPConfig(
                text_config=text | {"num_attention_heads": 2},
                vision_config=vision,
                projection_dim=config.head_out,
            )
        )
    )


def _open_clip_shapes(config):
    """Names and shapes of an open_clip ViT checkpoint, by open_clip's modules."""
    dim, hidden, patch = config.dim, config.mlp_hidden, config.patch_px
    block = {
        "ln_1.weight": (dim,),
        "ln_1.bias": (dim,),
        "attn.in_proj_weight": (3 * dim, dim),
        "attn.in_proj_bias": (3 * dim,),
        "attn.out_proj.weight": (dim, dim),
        "attn.out_proj.bias": (dim,),
        "ln_2.weight": (dim,),
        "ln_2.bias": (dim,),
        "mlp.c_fc.weight": (hidden, dim),
        "mlp.c_fc.bias": (hidden,),
        "mlp.c_proj.weight": (dim, hidden),
        "mlp.c_proj.bias": (dim,),
    }
    shapes = {
        "visual.class_embedding": (dim,),
        "visual.positional_embedding": (config.n_pos, dim),
        "visual.proj": (dim, config.head_out),
        "visual.conv1.weight": (dim, 3, patch, patch),
        "visual.ln_pre.weight": (dim,),
        "visual.ln_pre.bias": (dim,),
        "visual.ln_post.weight": (dim,),
        "visual.ln_post.bias": (dim,),
    }
    for i in range(config.depth):
        shapes |= {f"visual.transformer.resblocks.{i}.{k}": v for k, v in block.items()}
    text = {f"transformer.resblocks.0.{name}": shape for name, shape in block.items()}
    text |= {"positional_embedding": (7, dim), "text_projection": (dim, config.head_out)}
    text |= {"token_embedding.weight": (9, dim), "ln_final.weight": (dim,), "ln_final.bias": (dim,)}
    return shapes | text | {"logit_scale": ()}


def _module_shapes(name, config):
    """Names and shapes by the oracle's own module, with what the file holds besides."""
    scheme = registry.get_spec(name).weights.schemes[0]
    stored_px = STORED_SIDE * config.patch_px
    module = oracles_other.make_oracle(config, scheme, stored_px=stored_px).module
    shapes = parity.shapes_of(module)
    if name == "keep":  # the file calls LayerScale's gamma weight
        return {k.replace(".gamma", ".weight"): v for k, v in shapes.items()} | TEXT
    if name == "conch":
        caption = {
            k.replace("contrast", "caption"): v for k, v in shapes.items() if "contrast" in k
        }
        return shapes | caption | TEXT | {"visual.proj_contrast": (config.head_out,) * 2}
    return shapes


def _is_dropped(name, key):
    if name in ("plip", "quiltnet_b32"):
        return not key.startswith(("vision_model.", "visual_projection.", "visual."))
    return key in TEXT or "caption" in key or key.endswith("proj_contrast")


@functools.cache
def _oracle(name):
    """The tensors of a file, images, and what the PyTorch network makes of them."""
    torch_oracles.import_timm()
    torch_oracles.import_transformers()
    config, rng = CONFIGS[name], np.random.default_rng(13)
    if name == "plip":
        shapes = _hf_clip_shapes(config)
    elif name == "quiltnet_b32":
        shapes = _open_clip_shapes(config)
    else:
        shapes = _module_shapes(name, config)
    state = parity.fill(shapes, rng, small=SMALL)
    images = parity.random_images(config, rng)
    needed = {key: value for key, value in state.items() if not _is_dropped(name, key)}
    stored_px = STORED_SIDE * config.patch_px if name == "conch_v1_5" else None
    expected = parity.expect(name, config, needed, images, stored_px=stored_px)
    if name == "plip":  # files of its time hold these buffers too
        state["vision_model.embeddings.position_ids"] = np.arange(17)[None]
        state["text_model.embeddings.position_ids"] = np.arange(77)[None]
    return Case(state, images, expected)


@functools.cache
def _converted(name):
    return parity.convert(name, CONFIGS[name], _oracle(name).state)


def _head(config, params, images, dtype=jnp.float32):
    return parity.run(config, params, images, dtype)[0].head


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize("name", CONFIGS)
def test_every_stage_equals_the_oracle(name):
    case = _oracle(name)
    parity.check_parity(case.expected, *parity.run(CONFIGS[name], _converted(name), case.images))
    assert set(case.expected.pooled) == set(registry.get_spec(name).poolings)


@pytest.mark.torch
@pytest.mark.parametrize(("name", "n_tensors"), [("conch_v1_5", 352), ("mettle", 577)])
def test_the_oracle_has_as_many_tensors_as_the_file(name, n_tensors):
    # 14 a block; the published files have depths of 24 and 40.
    spec = registry.get_spec(name)
    assert spec.weights.n_tensors == n_tensors
    assert len(_oracle(name).state) == n_tensors - 14 * (spec.network.depth - TINY["depth"])


def _swap_parts(n_parts, i, j):
    def swap(array):
        parts = np.split(array, n_parts, axis=-1)
        parts[i], parts[j] = parts[j], parts[i]
        return np.concatenate(parts, axis=-1)

    return swap


@pytest.mark.campaign
@pytest.mark.torch
class TestToleranceSees:
    """Each of these mistakes must exceed the tolerance, or the parity above proves little."""

    def _error(self, name, params=None, **wrong):
        config = dataclasses.replace(CONFIGS[name], **wrong)
        found = _head(config, params or _converted(name), _oracle(name).images)
        return parity.pooled_error(found, _oracle(name).expected.pooled["head"])

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("name", "wrong"),
        [
            ("plip", {"mlp": "gelu"}),
            ("plip", {"eps": 1e-6}),
            ("keep", {"eps": 1e-5}),
            ("keep", {"mlp": "quick_gelu"}),
            ("conch", {"head_eps": 1e-6}),
            ("conch", {"query_heads": 4}),
            ("conch_v1_5", {"head_eps": 1e-6}),
        ],
        ids=str,
    )
    def test_wrong_options(self, name, wrong):
        assert self._error(name, **wrong) > 5 * parity.POOLED_ERROR

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("name", "path", "change"),
        [
            ("plip", ("blocks", "qkv", "kernel"), _swap_parts(3, 0, 1)),
            ("plip", ("blocks", "qkv", "bias"), _swap_parts(3, 0, 2)),
            ("conch", ("head", "to_key_value", "kernel"), _swap_parts(2, 0, 1)),
            ("conch", ("head", "bias"), _swap_parts(3, 0, 2)),
            ("conch", ("head", "to_query", "kernel"), np.transpose),
            ("conch_v1_5", ("head", "to_key_value", "kernel"), _swap_parts(2, 0, 1)),
            ("conch_v1_5", ("pos_embed",), lambda pos: np.roll(pos, 1, axis=0)),
            ("keep", ("head", "fc2", "kernel"), np.transpose),
            ("mettle", ("head", "down"), lambda down: down[::-1]),
            ("mettle", ("head", "mix2", "bias"), np.zeros_like),
        ],
        ids=lambda v: "change" if callable(v) else str(v),
    )
    def test_misplaced_weights(self, name, path, change):
        params = parity.edit(_converted(name), path, change)
        assert self._error(name, params) > 100 * parity.POOLED_ERROR

    @pytest.mark.slow
    def test_tanh_gelu(self, monkeypatch):
        exact = jax.nn.gelu
        monkeypatch.setattr(jax.nn, "gelu", lambda x, approximate: exact(x, approximate=True))
        parity.make_step.cache_clear()
        try:
            assert self._error("keep") > 5 * parity.POOLED_ERROR
        finally:
            parity.make_step.cache_clear()


@pytest.mark.torch
def test_keep_has_unit_length():
    found = _head(CONFIGS["keep"], _converted("keep"), _oracle("keep").images)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize("name", ["plip", "conch_v1_5"])
def test_the_verify_command_agrees(name):
    stored_px = STORED_SIDE * TINY["patch_px"] if name == "conch_v1_5" else None
    parity.check_verify(name, CONFIGS[name], _oracle(name).state, stored_px=stored_px)


@pytest.mark.torch
def test_a_text_tower_alone_is_refused():
    text = {k: v for k, v in _oracle("plip").state.items() if k.startswith("text_model.")}
    with pytest.raises(InputError, match=r"unfilled: cls for want of vision_model\.embeddings\."):
        parity.convert("plip", PLIP, text)


@pytest.mark.torch
def test_a_key_without_a_rule_is_refused():
    state = _oracle("conch").state | {"visual.head.proj.weight": np.ones((2, 2), np.float32)}
    with pytest.raises(InputError, match=r"unused: visual\.head\.proj\.weight \[2, 2\]"):
        parity.convert("conch", CONCH, state)


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_at_full_size(name):
    # CONCHv1.5 is counted as stored, with positions for 14 x 14 patches; it sees 28 x 28.
    resampled = (28 * 28 - 14 * 14) * 1024 if name == "conch_v1_5" else 0
    assert parity.n_params(name) - resampled == PUBLISHED[name]
    assert registry.get_spec(name).n_params == PUBLISHED[name]


@pytest.mark.torch
def test_quiltnet_in_the_names_of_transformers():
    # Its repo has both files; one network of one state dict is not to be had, so PLIP's serves.
    state = _oracle("plip").state
    found = parity.convert("quiltnet_b32", PLIP, state, file="model.safetensors")
    jax.tree.map(np.testing.assert_array_equal, found, _converted("plip"))


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize("name", ["plip", "keep", "conch"])
def test_bfloat16_points_the_same_way_as_float32(name):
    # bfloat16 keeps 8 bits; the residual stream and the norms stay in float32.
    config, images = CONFIGS[name], _oracle(name).images
    exact = _head(config, _converted(name), images)
    rounded = _head(config, _converted(name), images, jnp.bfloat16)
    assert rounded.dtype == np.float32
    assert parity.cosines(exact, rounded).min() >= 0.999
    assert parity.pooled_error(rounded, exact) > 1e-4, "products did not round"


@pytest.mark.campaign
@pytest.mark.slow
@pytest.mark.torch
def test_parameters_in_bfloat16_leave_the_norms_in_float32():
    # The parameters alone are rounded: sums and statistics over them are not.
    images, exact = _oracle("conch").images, _converted("conch")
    rounded = jax.tree.map(lambda x: np.asarray(x, np.float32), parity.in_bfloat16(exact))
    found = _head(CONCH, parity.in_bfloat16(exact), images)
    assert found.dtype == np.float32
    assert parity.pooled_error(found, _head(CONCH, rounded, images)) <= parity.POOLED_ERROR


@pytest.mark.slow
def test_configurations_that_do_not_fit_are_refused():
    with pytest.raises(UsageError, match="ClipConfig: head: unknown name .conv.. Known: att"):
        dataclasses.replace(PLIP, head="conv")
    with pytest.raises(
        UsageError, match="head_out must be a multiple of query_heads, found 30 and"
    ):
        dataclasses.replace(CONCH, head_out=30)
    with pytest.raises(
        UsageError, match="head_out must be 2 \\* dim for the head 'refine', found 9"
    ):
        dataclasses.replace(CONFIGS["mettle"], head_out=9)
    with pytest.raises(UsageError, match="image_px must be a multiple of patch_px"):
        dataclasses.replace(CONCH, image_px=30)
