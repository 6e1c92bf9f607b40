"""Encoders of 2026: their facts, and towers whose head takes tokens before the last norm.

Plain ViTs among them are compared in ``test_parity_vit``, CRISP's update in ``test_adapters``.
"""

import dataclasses
import functools
from typing import NamedTuple

import encoder_parity as parity
import newer_encoders
import numpy as np
import pytest
import torch_oracles

from converters import oracles_other
from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.models import registry
from pathorob_jax.models.registry import MODELS

TINY = {"patch_px": 8, "dim": 48, "depth": 3, "heads": 4, "mlp_hidden": 192, "image_px": 32}
CONFIGS = {
    "omiclip": parity.small("omiclip", **TINY, head_out=32),
    "isight": parity.small("isight", **TINY, head_out=20),
    "pathoduet_he": parity.small("pathoduet_he", **TINY, head_out=48),
    "quiltnet_b16_pmb": parity.small("quiltnet_b16_pmb", **TINY, head_out=20),
}
SMALL = ("patch", "conv1", "class_embedding", "position", "token", "pos_embed", "query")
# What the files hold beside: texts, training, and norms that the embedding does not pass.
BESIDE = {
    "omiclip": {"text.a.weight": (3, 3), "text_decoder.b": (2,), "logit_scale": ()},
    "isight": {
        "patch_encoder.text_model.a": (3,),
        "patch_encoder.text_projection.weight": (3, 3),
        "patch_encoder.logit_scale": (),
        "attention_net.attention_a.0.weight": (3, 3),
        "text_projection_to_visual_dim.bias": (3,),
        "classifiers.4.bias": (2,),
    },
    "pathoduet_he": {"head.weight": (3, 3), "head.bias": (3,), "bridge_token": (1, 1, 3)},
    "quiltnet_b16_pmb": {"text.transformer.a": (3,), "logit_scale": ()},
}


class Case(NamedTuple):
    """One encoder's file, images, and what its PyTorch network makes of them."""

    state: dict
    images: np.ndarray
    expected: oracles_other.Run


@functools.cache
def _oracle(name):
    torch_oracles.import_timm()
    torch_oracles.import_transformers()
    config, rng = CONFIGS[name], np.random.default_rng(13)
    scheme = MODELS[name].weights.schemes[0]
    module = oracles_other.make_oracle(config, scheme).module
    shapes = parity.shapes_of(module)
    needed = parity.fill(shapes, rng, small=SMALL)
    images = parity.random_images(config, rng)
    # iSight's file holds CLIP's last norm and projection; its embedding must not pass them.
    unread = ("post_layernorm", "visual_projection")
    read = {key: x for key, x in needed.items() if not any(part in key for part in unread)}
    expected = parity.expect(name, config, read, images)
    beside = {k: rng.standard_normal(s).astype(np.float32) for k, s in BESIDE[name].items()}
    return Case(needed | beside, images, expected)


@functools.cache
def _converted(name):
    return parity.convert(name, CONFIGS[name], _oracle(name).state)


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize("name", CONFIGS)
def test_every_stage_equals_the_oracle(name):
    case = _oracle(name)
    parity.check_parity(case.expected, *parity.run(CONFIGS[name], _converted(name), case.images))
    assert set(case.expected.pooled) == set(MODELS[name].poolings)


@pytest.mark.torch
@pytest.mark.parametrize("name", ["quiltnet_b16", "pathoduet_ihc"])
def test_encoders_that_differ_in_size_or_weights_alone_are_one_case(name):
    other, changes = {
        "quiltnet_b16": ("quiltnet_b32", {"patch_px": 32}),
        "pathoduet_ihc": ("pathoduet_he", {}),
    }[name]
    assert dataclasses.replace(MODELS[name].network, **changes) == MODELS[other].network
    assert MODELS[name].weights.schemes == MODELS[other].weights.schemes


@pytest.mark.torch
def test_the_oracle_of_omiclip_has_as_many_tensors_as_the_file():
    # 12 a block; the published tower has 24 blocks.
    visual = [key for key in _oracle("omiclip").state if key.startswith("visual.")]
    assert MODELS["omiclip"].weights.n_tensors == len(visual) + 12 * (24 - TINY["depth"])


@pytest.mark.campaign
@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize(
    ("name", "path", "change"),
    [
        ("omiclip", ("head", "proj", "kernel"), np.transpose),
        ("omiclip", ("head", "pool", "query"), lambda query: query[::-1]),
        ("omiclip", ("head", "pool", "norm", "scale"), np.ones_like),
        ("isight", ("head", "proj", "bias"), np.zeros_like),
        ("pathoduet_he", ("pos_embed",), lambda x: np.concatenate([x[1:2], x[:1], x[2:]])),
        ("pathoduet_he", ("registers",), np.zeros_like),
        ("quiltnet_b16_pmb", ("norm", "bias"), np.zeros_like),
    ],
    ids=lambda value: "change" if callable(value) else str(value),
)
def test_the_tolerance_sees_misplaced_weights(name, path, change):
    case = _oracle(name)
    params = parity.edit(_converted(name), path, change)
    found = parity.run(CONFIGS[name], params, case.images)[0].head
    assert parity.pooled_error(found, case.expected.pooled["head"]) > 100 * parity.POOLED_ERROR


@pytest.mark.torch
def test_only_the_first_query_of_coca_is_kept():
    queries = _oracle("omiclip").state["visual.attn_pool.query"]
    assert queries.shape == (256, 32)
    np.testing.assert_array_equal(_converted("omiclip")["head"]["pool"]["query"], queries[0])


@pytest.mark.slow
@pytest.mark.torch
def test_the_verify_command_agrees():
    parity.check_verify("omiclip", CONFIGS["omiclip"], _oracle("omiclip").state)


@pytest.mark.torch
def test_clips_last_norm_is_no_parameter_of_isight():
    assert "norm" not in _converted("isight")
    state = {k: x for k, x in _oracle("isight").state.items() if "token_projection" not in k}
    with pytest.raises(InputError, match="for want of visual_token_projection.weight"):
        parity.convert("isight", CONFIGS["isight"], state)


def test_heads_of_another_length_are_refused():
    with pytest.raises(UsageError, match="head_out must be 1 \\* dim for the head 'mean_norm'"):
        dataclasses.replace(CONFIGS["pathoduet_he"], head_out=9)
    with pytest.raises(UsageError, match="head_out must be a multiple of query_heads"):
        dataclasses.replace(CONFIGS["omiclip"], head_out=30)


# Facts


@pytest.mark.parametrize("row", newer_encoders.ENCODERS, ids=lambda row: row[0])
def test_a_newer_entry_says_what_its_sources_say(row):
    name, *arch, kind, registers, length, pooling = row
    spec, net = MODELS[name], MODELS[name].network
    assert arch == [net.image_px, net.patch_px, net.dim, net.depth, net.heads, net.mlp_hidden]
    assert (net.mlp, net.n_registers, spec.default_pooling) == (kind, registers, pooling)
    width = {"cls": net.dim, "clsmean": 2 * net.dim, "head": getattr(net, "head_out", 0)}
    assert width[pooling] == length
    assert spec.sources
    assert spec.preprocess.crop_px == net.image_px


def test_the_vits_without_layer_scale_and_the_norms_of_clip():
    found = {name for name in newer_encoders.NAMES if not MODELS[name].network.layer_scale}
    assert found == {
        *("prost40m", "quiltnet_b16", "quiltnet_b16_pmb", "omiclip", "isight"),
        *("pathoduet_he", "pathoduet_ihc"),
    }
    for name in ("omiclip", "isight", "quiltnet_b16"):
        assert MODELS[name].network.pre_norm
        assert MODELS[name].network.eps == 1e-5
    assert MODELS["omiclip"].unit_norm


def test_rudolfv2_is_refused_with_what_is_missing():
    for name, mlp in (("rudolfv2", False), ("rudolfv2_b", True), ("rudolfv2_s", True)):
        with pytest.raises(
            UsageError, match="epsilon of its norms; periods of its rotary"
        ) as found:
            registry.load_encoder(name)
        assert ("kind of its MLP" in str(found.value)) == mlp
        assert f"gated repo {MODELS[name].weights.repo}" in str(found.value)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dim"), [("conch", 512), ("conch_v1_5", 768)])
def test_pathorob_took_the_embedding_of_the_authors_of_conch(name, dim):
    use, spec = MODELS[name].pathorob, MODELS[name]
    assert (use.pooling, use.confidence, use.dim) == ("head", "reproduced", dim)
    assert use.pooling == spec.default_pooling
    assert use.dim == spec.network.head_out
    assert use.preprocess is None
