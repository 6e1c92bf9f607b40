"""Layers of blocks in 16 bits: what is rounded where, and what it costs."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import ndtr

from pathorob_jax.models import layers, registry
from pathorob_jax.models.clip import ClipConfig
from pathorob_jax.models.swin import SwinConfig
from pathorob_jax.models.vit import ViTConfig

SMALL = {"image_px": 12, "patch_px": 4, "dim": 64, "depth": 3, "heads": 4, "mlp_hidden": 128}


@pytest.fixture
def accelerator(monkeypatch):
    """As if the default device were one, as far as rounding goes."""
    monkeypatch.setattr(layers, "rounds_sums", lambda: True)


def products_of(config, dtype):
    """Types of the results of all products of a network, in order; layers are scanned once."""
    graph, params = registry.network_of(config)
    images = jax.ShapeDtypeStruct((2, config.image_px, config.image_px, 3), jnp.float32)
    call = jax.jit(lambda params, images: nnx.merge(graph, params)(images, dtype=dtype)[0])
    text = call.trace(params, images).lower().as_text()
    return re.findall(r"dot_general.*-> tensor<([\dx]*x\w+)>", text)


def types_of(products):
    return [shape.rpartition("x")[2] for shape in products]


def embed(config, dtype, seed=0):
    graph, _ = registry.network_of(config)
    params = registry._random_params(config, seed)
    images = np.random.default_rng(seed).normal(size=(8, 12, 12, 3)).astype(np.float32)
    network = jax.jit(lambda params, x: nnx.merge(graph, params)(x, dtype=dtype)[0].cls)
    return np.asarray(network(params, images), np.float64)


def test_on_cpu_all_sums_stay_float32():
    assert not layers.rounds_sums()
    assert set(types_of(products_of(ViTConfig(**SMALL), jnp.bfloat16))) == {"f32"}


def test_accelerators_round_the_four_products_of_a_block(accelerator):
    found = types_of(products_of(ViTConfig(**SMALL), jnp.bfloat16))
    # Patches in float32; then of one block qkv, scores, values, proj, fc1, fc2.
    assert found == ["f32", "bf16", "f32", "f32", *["bf16"] * 3]


def test_the_answer_of_a_network_is_not_rounded(accelerator):
    config = ClipConfig(**SMALL, head="linear", head_out=16)
    found = products_of(config, jnp.bfloat16)
    assert "2x16xf32" in found
    assert types_of(found).count("bf16") == 4


def test_float32_is_not_rounded(accelerator):
    assert set(types_of(products_of(ViTConfig(**SMALL), jnp.float32))) == {"f32"}


@pytest.mark.slow
def test_rounded_sums_cost_no_digits(monkeypatch):
    config = ViTConfig(**SMALL)
    exact, plain = embed(config, jnp.float32), embed(config, jnp.bfloat16)
    monkeypatch.setattr(layers, "rounds_sums", lambda: True)
    rounded = embed(config, jnp.bfloat16)
    errors = [np.linalg.norm(found - exact) / np.linalg.norm(exact) for found in (plain, rounded)]
    assert 0 < errors[1] < 1.3 * errors[0]
    assert (rounded != plain).any()
    np.testing.assert_array_equal(embed(config, jnp.float32), exact)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gelu_is_x_times_the_normal_distribution(dtype):
    x = np.linspace(-12, 12, 4001).astype(np.float32)
    found = np.asarray(jax.jit(lambda x: layers.gelu(x, dtype))(x), np.float64)
    exact = x * ndtr(x.astype(np.float64))
    # 1 + erf loses what is below float32's last digit of 1.
    bound = 1e-6 * np.abs(exact) + (1e-9 if dtype == jnp.float32 else 6e-7)
    assert (np.abs(found - exact) <= bound).all()
    if dtype == jnp.bfloat16:
        assert (found[x < -9] == 0).all()


@pytest.mark.parametrize("config", [ViTConfig(**SMALL), SwinConfig])
def test_blocks_take_the_gelu_of_their_type(config, monkeypatch):
    asked = []
    whole = layers.gelu
    for module in ("vit", "swin"):
        monkeypatch.setattr(
            f"pathorob_jax.models.{module}.gelu",
            lambda x, dtype: asked.append(dtype) or whole(x, dtype),
        )
    if config is SwinConfig:
        config = next(
            spec.network
            for spec in registry.MODELS.values()
            if isinstance(spec.network, SwinConfig)
        )
    products_of(config, jnp.bfloat16)
    assert asked
    assert set(asked) == {jnp.bfloat16}
