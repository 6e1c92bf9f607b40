"""CTransPath's network: equal to timm's Swin with a convolutional stem after conversion."""

import dataclasses
import functools
import re

import encoder_parity as parity
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_oracles
from flax import nnx

from converters import oracles_other
from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.models import registry, swin
from pathorob_jax.models.vit import pool

# Maps of 24, 12, 6 and 3 tokens a side: as at full size, the last is a single window, of odd side.
SMALL = parity.small("ctranspath", image_px=96, width=24, depths=(2, 2, 2, 2), window=3)


def _old_name(name):
    """timm 0.5.4's name of a tensor: tokens are merged at the end of a stage."""
    return re.sub(r"layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", name)


@functools.cache
def _oracle():
    """The tensors of a file, images, and what timm makes of them."""
    torch_oracles.import_timm()
    rng = np.random.default_rng(17)
    module = oracles_other.make_oracle(SMALL, "old_timm_swin").module
    shapes = {_old_name(name): shape for name, shape in parity.shapes_of(module).items()}
    state = parity.fill(shapes, rng, small=("patch_embed.proj.6",))
    images = parity.random_images(SMALL, rng, 2)
    expected = parity.expect("ctranspath", SMALL, state, images)
    # Old files hold the buffers too.
    for block in ("layers.0.blocks.0", "layers.0.blocks.1"):
        state[f"{block}.attn.relative_position_index"] = np.zeros((9, 9), np.int64)
    state["layers.0.blocks.1.attn_mask"] = np.zeros((64, 9, 9), np.float32)
    return state, images, expected


@functools.cache
def _converted():
    return parity.convert("ctranspath", SMALL, _oracle()[0], file="ctranspath.pth", wrap="model")


def _embed(config, params, images, dtype=jnp.float32):
    return np.asarray(pool(parity.run(config, params, images, dtype)[0], "mean"))


@pytest.mark.slow
@pytest.mark.torch
def test_every_stage_equals_timm():
    _, images, expected = _oracle()
    tokens, stages = parity.run(SMALL, _converted(), images)
    parity.check_parity(expected, tokens, stages)
    assert tokens.cls is None
    assert tokens.head is None


@pytest.mark.slow
@pytest.mark.torch
def test_names_of_new_timm_fill_the_same_places():
    new = {
        re.sub(r"layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) + 1}.downsample", name): x
        for name, x in _oracle()[0].items()
    }
    found = parity.convert("ctranspath", SMALL, new, file="model.safetensors")
    jax.tree.map(np.testing.assert_array_equal, found, _converted())


@pytest.mark.campaign
@pytest.mark.torch
class TestToleranceSees:
    """Each of these mistakes must exceed the tolerance, or the parity above proves little."""

    def _error(self, params=None, **wrong):
        config = dataclasses.replace(SMALL, **wrong)
        found = _embed(config, params or _converted(), _oracle()[1])
        return parity.pooled_error(found, _oracle()[2].pooled["mean"])

    @pytest.mark.slow
    @pytest.mark.parametrize("wrong", [{"eps": 1e-6}, {"batch_norm_eps": 1e-6}], ids=str)
    def test_wrong_eps(self, wrong):
        assert self._error(**wrong) > 5 * parity.POOLED_ERROR

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["_scores_mask", "_offsets"])
    def test_windows_that_are_left_out(self, name, monkeypatch):
        right = getattr(swin, name)
        monkeypatch.setattr(swin, name, lambda *args: np.zeros_like(right(*args)))
        parity.make_step.cache_clear()
        try:
            assert self._error() > 100 * parity.POOLED_ERROR
        finally:
            parity.make_step.cache_clear()

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("path", "change"),
        [
            (("stages", "1", "merge", "kernel"), lambda k: np.concatenate(np.split(k, 4)[::-1])),
            (("stages", "0", "blocks", "1", "position_bias"), lambda table: table[::-1]),
            (("stem", "conv2", "kernel"), lambda k: k.transpose(1, 0, 2, 3)),
            (("stem", "bn2", "mean"), np.zeros_like),
        ],
        ids=lambda v: "change" if callable(v) else str(v),
    )
    def test_misplaced_weights(self, path, change):
        assert self._error(parity.edit(_converted(), path, change)) > 50 * parity.POOLED_ERROR


@pytest.mark.campaign
@pytest.mark.slow
@pytest.mark.torch
def test_the_verify_command_agrees():
    parity.check_verify("ctranspath", SMALL, _oracle()[0], file="ctranspath.pth", wrap="model")


@pytest.mark.torch
def test_a_file_of_another_depth_is_refused():
    deeper = dataclasses.replace(SMALL, depths=(2, 2, 2, 3))
    with pytest.raises(InputError, match=r"unfilled: stages/3/blocks/2/norm1/scale for want of"):
        parity.convert("ctranspath", deeper, _oracle()[0])


def test_parameter_count_at_full_size():
    assert parity.n_params("ctranspath") == registry.get_spec("ctranspath").n_params == 27_520_038


@pytest.mark.slow
def test_shapes_at_full_size():
    graph, shapes = parity.network(registry.get_spec("ctranspath").network)
    images = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    tokens, stages = jax.eval_shape(lambda p, x: nnx.merge(graph, p)(x), shapes, images)
    assert stages == {}
    assert tokens.patches.shape == (2, 49, 768)


@pytest.mark.campaign
@pytest.mark.slow
@pytest.mark.torch
def test_bfloat16_points_the_same_way_as_float32():
    # bfloat16 keeps 8 bits; the residual stream and the norms stay in float32.
    images = _oracle()[1]
    exact = _embed(SMALL, _converted(), images)
    tokens, stages = parity.run(SMALL, _converted(), images, jnp.bfloat16)
    rounded = np.asarray(pool(tokens, "mean"))
    assert {stage.dtype for stage in stages.values()} == {np.dtype(np.float32)}
    assert parity.cosines(exact, rounded).min() >= 0.999
    assert parity.pooled_error(rounded, exact) > 1e-4, "products did not round"


@pytest.mark.slow
def test_configurations_that_do_not_fit_are_refused():
    with pytest.raises(UsageError, match="multiple of the last windows, found 256 and 224"):
        parity.small("ctranspath", image_px=256)
    with pytest.raises(UsageError, match="one entry of heads for each of depths, found 4 and 3"):
        parity.small("ctranspath", depths=(2, 2, 6))
    with pytest.raises(
        UsageError, match="stage 1 must be a multiple of its heads, found 192 and 5"
    ):
        parity.small("ctranspath", heads=(3, 5, 12, 24))
