"""MUSK's network: equal to timm's BEiT-3 after conversion, at one scale and at two."""

import dataclasses
import functools

import encoder_parity as parity
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_oracles
from flax import nnx

from pathorob_jax.core.checks import InputError
from pathorob_jax.models import beit3, registry

SMALL = parity.small("musk", image_px=24, patch_px=8, dim=48, depth=3, heads=4, mlp_hidden=192)


def _shapes(config):
    """Names and shapes of MUSK's file, by the modules of torchscale's BEiT3."""
    dim, hidden, patch = config.dim, config.mlp_hidden, config.patch_px
    shapes = {
        "beit3.text_embed.weight": (7, dim),
        "beit3.vision_embed.mask_token": (1, 1, dim),
        "beit3.vision_embed.cls_token": (1, 1, dim),
        "beit3.vision_embed.proj.weight": (dim, 3, patch, patch),
        "beit3.vision_embed.proj.bias": (dim,),
        "beit3.encoder.embed_positions.A.weight": (config.n_pos + 2, dim),
        "beit3.encoder.embed_positions.B.weight": (11, dim),
        "vision_head.weight": (dim, dim),
        "language_head.weight": (dim, dim),
        "logit_scale": (),
    }
    for way in "AB":
        shapes |= _pair(f"beit3.encoder.layer_norm.{way}", dim)
        for i in range(config.depth):
            at = f"beit3.encoder.layers.{i}"
            for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
                shapes |= _pair(f"{at}.self_attn.{part}.{way}", dim, dim)
            shapes |= _pair(f"{at}.self_attn.inner_attn_ln.{way}", dim)
            shapes |= _pair(f"{at}.self_attn_layer_norm.{way}", dim)
            shapes |= _pair(f"{at}.final_layer_norm.{way}", dim)
            shapes |= _pair(f"{at}.ffn.{way}.fc1", hidden, dim)
            shapes |= _pair(f"{at}.ffn.{way}.fc2", dim, hidden)
            shapes |= _pair(f"{at}.ffn.{way}.ffn_layernorm", hidden)
    return shapes


def _pair(name, *shape):
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


@functools.cache
def _oracle():
    """The tensors of a file, images, and what timm makes of them."""
    torch_oracles.import_timm()
    rng = np.random.default_rng(19)
    state = parity.fill(
        _shapes(SMALL), rng, small=("vision_embed", "embed_positions", "text_embed")
    )
    images = parity.random_images(SMALL, rng)
    left_out = ("vision_head.weight", "language_head.weight", "logit_scale")  # unknown to timm
    needed = {k: v for k, v in state.items() if k not in left_out}
    return state, images, parity.expect("musk", SMALL, needed, images)


@functools.cache
def _converted():
    return parity.convert("musk", SMALL, _oracle()[0])


@pytest.mark.slow
@pytest.mark.torch
def test_every_stage_equals_timm():
    _, images, expected = _oracle()
    parity.check_parity(expected, *parity.run(SMALL, _converted(), images))
    assert set(expected.pooled) == {"cls", "mean", "clsmean", "head"}


@pytest.mark.torch
@pytest.mark.parametrize("side", [1, 2, 24, 33])
def test_quarters_are_enlarged_as_torch_does(side, rng):
    import torch

    images = rng.standard_normal((2, side, side, 3), np.float32)
    inputs = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    larger = torch.nn.functional.interpolate(inputs, size=2 * side, mode="bicubic").numpy()
    expected = [
        larger[:, :, top : top + side, left : left + side].transpose(0, 2, 3, 1)
        for top in (0, side)
        for left in (0, side)
    ]
    found = np.asarray(jax.jit(beit3._quarters)(images))
    # Values up to 5, sums of 16 terms.
    np.testing.assert_allclose(found, np.concatenate(expected), rtol=0, atol=5e-6)


@pytest.mark.campaign
@pytest.mark.torch
class TestToleranceSees:
    """Each of these mistakes must exceed the tolerance, or the parity above proves little."""

    def _error(self, params=None, **wrong):
        config = dataclasses.replace(SMALL, **wrong)
        tokens, _ = parity.run(config, params or _converted(), _oracle()[1])
        return parity.pooled_error(tokens.head, _oracle()[2].pooled["head"])

    @pytest.mark.slow
    def test_wrong_eps(self):
        assert self._error(eps=1e-5) > 5 * parity.POOLED_ERROR

    @pytest.mark.slow
    @pytest.mark.parametrize("norm", ["attended_norm", "hidden_norm"])
    def test_scales_of_the_sub_norms(self, norm):
        params = parity.edit(_converted(), ("blocks", norm, "scale"), np.ones_like)
        assert self._error(params) > 100 * parity.POOLED_ERROR

    @pytest.mark.slow
    def test_no_sub_norms(self):
        params = _converted()
        left_out = ("attended_norm", "hidden_norm")
        blocks = {k: v for k, v in params["blocks"].items() if k not in left_out}
        assert self._error(params | {"blocks": blocks}, sub_norm=False) > 100 * parity.POOLED_ERROR

    @pytest.mark.slow
    def test_positions_with_the_reserved_rows(self):
        table = _oracle()[0]["beit3.encoder.embed_positions.A.weight"]
        assert self._error(_converted() | {"pos_embed": table[:-2]}) > 100 * parity.POOLED_ERROR

    @pytest.mark.slow
    def test_another_cubic(self, monkeypatch):
        monkeypatch.setattr(beit3, "CUBIC_A", -0.5)
        parity.make_step.cache_clear()
        try:
            assert self._error() > 100 * parity.POOLED_ERROR
        finally:
            parity.make_step.cache_clear()


@pytest.mark.slow
@pytest.mark.torch
def test_the_verify_command_agrees():
    parity.check_verify("musk", SMALL, _oracle()[0])


@pytest.mark.torch
def test_the_branch_of_the_text_is_not_taken_for_the_images():
    swapped = {
        name.replace(".A.", ".C.").replace(".B.", ".A.").replace(".C.", ".B."): value
        for name, value in _oracle()[0].items()
        if "embed_positions" not in name
    }
    with pytest.raises(InputError, match=r"unfilled: pos_embed for want of beit3\.encoder\.embed"):
        parity.convert("musk", SMALL, swapped)


def test_parameter_count_at_full_size():
    # As stored: the mask token and the two reserved rows of the positions are not ours.
    spec = registry.get_spec("musk")
    assert spec.weights.unused_params == 3 * 1024
    assert parity.n_params("musk") + 3 * 1024 == spec.n_params == 303_939_584


@pytest.mark.slow
def test_one_scale_costs_one_pass():
    # What is not used is not computed: the authors' other embedding, the class token, is cheap.
    graph, shapes = parity.network(SMALL)
    images = jax.ShapeDtypeStruct((2, 24, 24, 3), jnp.float32)

    def flops(part):
        step = jax.jit(lambda p, x: getattr(nnx.merge(graph, p)(x)[0], part))
        return step.lower(shapes, images).compile().cost_analysis()["flops"]

    assert flops("head") > 4 * flops("cls")


@pytest.mark.campaign
@pytest.mark.slow
@pytest.mark.torch
def test_bfloat16_points_the_same_way_as_float32():
    # bfloat16 keeps 8 bits; the residual stream and the norms stay in float32.
    images = _oracle()[1]
    exact = parity.run(SMALL, _converted(), images)[0].head
    rounded = parity.run(SMALL, _converted(), images, jnp.bfloat16)[0].head
    assert rounded.dtype == np.float32
    assert parity.cosines(exact, rounded).min() >= 0.999
    assert parity.pooled_error(rounded, exact) > 1e-4, "products did not round"
