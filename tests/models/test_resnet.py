"""The residual networks: equal to torchvision stage by stage after conversion."""

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

from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.models import registry
from pathorob_jax.models.resnet import ResNetConfig
from pathorob_jax.models.vit import pool

# Odd sides: every map has a border that a wrong padding would move. 65 -> 33, 17, 9, 5, 3.
BASIC = parity.small("ciga", image_px=65)
BOTTLENECK = parity.small("retccl", image_px=65, depths=(2, 2, 1, 1))
VARIANTS = {"basic": BASIC, "bottleneck": BOTTLENECK}
NAMES = {BASIC: "ciga", BOTTLENECK: "retccl"}
RESNETS = [n for n, spec in registry.MODELS.items() if isinstance(spec.network, ResNetConfig)]


@functools.cache
def _oracle(config):
    """torchvision's state dict, images, and what it makes of them."""
    torchvision = torch_oracles.import_torchvision()
    kind = torchvision.models.resnet18 if config is BASIC else torchvision.models.resnet50
    rng = np.random.default_rng(11)
    shapes = parity.shapes_of(kind(num_classes=7))
    n_blocks = dict(zip("1234", config.depths, strict=True))
    kept = {
        name: shape
        for name, shape in shapes.items()
        if not (found := re.match(r"layer(\d)\.(\d)", name)) or int(found[2]) < n_blocks[found[1]]
    }
    state, images = parity.fill(kept, rng), parity.random_images(config, rng)
    needed = {k: v for k, v in state.items() if not k.startswith("fc.")}
    return state, images, parity.expect(NAMES[config], config, needed, images)


@functools.cache
def _converted(config):
    return parity.convert(NAMES[config], config, _oracle(config)[0])


def _embed(config, params, images, dtype=jnp.float32):
    return np.asarray(pool(parity.run(config, params, images, dtype)[0], "mean"))


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_every_stage_equals_torchvision(config):
    _, images, expected = _oracle(config)
    tokens, stages = parity.run(config, _converted(config), images)
    parity.check_parity(expected, tokens, stages)
    assert tokens.cls is None
    assert tokens.head is None


@pytest.mark.campaign
@pytest.mark.torch
class TestToleranceSees:
    """Each of these mistakes must exceed the tolerance, or the parity above proves little."""

    def _error(self, config, params=None, wrong=None):
        _, images, expected = _oracle(config)
        params = params or _converted(config)
        return parity.pooled_error(_embed(wrong or config, params, images), expected.pooled["mean"])

    @pytest.mark.slow
    def test_wrong_eps(self):
        wrong = dataclasses.replace(BASIC, eps=1e-6)
        assert self._error(BASIC, wrong=wrong) > 5 * parity.POOLED_ERROR

    @pytest.mark.slow
    @pytest.mark.parametrize("leaf", ["mean", "variance"])
    def test_running_statistics_left_out(self, leaf):
        reset = np.zeros_like if leaf == "mean" else np.ones_like
        params = parity.edit(_converted(BOTTLENECK), ("stages", "1", "0", "bn2", leaf), reset)
        assert self._error(BOTTLENECK, params) > 100 * parity.POOLED_ERROR

    def test_swapped_rows_and_columns(self):
        def transpose(kernel):
            return kernel.transpose(1, 0, 2, 3)

        params = parity.edit(_converted(BASIC), ("conv1", "kernel"), transpose)
        assert self._error(BASIC, params) > 100 * parity.POOLED_ERROR

    def test_swapped_channels(self):
        params = parity.edit(_converted(BASIC), ("conv1", "kernel"), lambda k: k[:, :, ::-1])
        assert self._error(BASIC, params) > 100 * parity.POOLED_ERROR


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize(
    ("name", "prefix", "file", "wrap"),
    [
        # Ciga's own loader drops what does not match without a word.
        ("ciga", "model.resnet.", None, "state_dict"),
        ("ciga", "resnet.", "pytorchnative_tenpercent_resnet18.ckpt", "state_dict"),
        ("retccl", "module.", None, None),
        ("lunit_rn50_bt", "", "model.safetensors", None),
    ],
    ids=str,
)
def test_wrappings_of_published_files(name, prefix, file, wrap):
    config = BASIC if name == "ciga" else BOTTLENECK
    state = {prefix + key: value for key, value in _oracle(config)[0].items()}
    found = parity.convert(name, config, state, file=file, wrap=wrap)
    jax.tree.map(np.testing.assert_array_equal, found, _converted(config))


@pytest.mark.slow
@pytest.mark.torch
def test_the_verify_command_agrees():
    state = {f"model.resnet.{key}": value for key, value in _oracle(BASIC)[0].items()}
    parity.check_verify("ciga", BASIC, state, wrap="state_dict")


@pytest.mark.torch
def test_a_file_of_another_depth_is_refused():
    deeper = dataclasses.replace(BASIC, depths=(2, 2, 2, 3))
    with pytest.raises(
        InputError, match=r"unfilled: stages/4/2/conv1/kernel for want of layer4\.2"
    ):
        parity.convert("ciga", deeper, _oracle(BASIC)[0])
    shallower = dataclasses.replace(BASIC, depths=(2, 2, 2, 1))
    with pytest.raises(InputError, match=r"unused: layer4\.1\.conv1\.weight"):
        parity.convert("ciga", shallower, _oracle(BASIC)[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", RESNETS)
def test_parameter_counts_at_full_size(name):
    assert parity.n_params(name) == registry.get_spec(name).n_params
    assert parity.n_params(name) == (11_176_512 if name == "ciga" else 23_508_032)


def test_stages_are_empty_unless_asked_for():
    graph, shapes = parity.network(BASIC)
    images = jax.ShapeDtypeStruct((2, 65, 65, 3), jnp.float32)
    tokens, stages = jax.eval_shape(lambda p, x: nnx.merge(graph, p)(x), shapes, images)
    assert stages == {}
    assert tokens.patches.shape == (2, 3 * 3, 512)


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_bfloat16_points_the_same_way_as_float32(config):
    # bfloat16 keeps 8 bits; the residual stream and the norms stay in float32.
    images = _oracle(config)[1]
    exact = _embed(config, _converted(config), images)
    tokens, stages = parity.run(config, _converted(config), images, jnp.bfloat16)
    rounded = np.asarray(pool(tokens, "mean"))
    assert {stage.dtype for stage in stages.values()} == {np.dtype(np.float32)}
    assert parity.cosines(exact, rounded).min() >= 0.999
    assert parity.pooled_error(rounded, exact) > 1e-4, "products did not round"


@pytest.mark.slow
@pytest.mark.torch
def test_parameters_in_bfloat16_leave_the_norms_in_float32():
    # The parameters alone are rounded: sums and statistics over them are not.
    images, exact = _oracle(BASIC)[1], _converted(BASIC)
    rounded = jax.tree.map(lambda x: np.asarray(x, np.float32), parity.in_bfloat16(exact))
    found = _embed(BASIC, parity.in_bfloat16(exact), images)
    assert found.dtype == np.float32
    assert parity.pooled_error(found, _embed(BASIC, rounded, images)) <= parity.POOLED_ERROR


@pytest.mark.slow
def test_a_block_that_does_not_exist_is_refused():
    with pytest.raises(
        UsageError, match="ResNetConfig: block: unknown name 'wide'. Known: basic, "
    ):
        ResNetConfig(image_px=64, depths=(1,), block="wide")
