"""Attention: one result from every implementation, and which one is taken where.

What runs on NVIDIA GPUs is lowered for them here, not run: the program's text says what would be.
"""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax._src.cudnn import fused_attention_stablehlo

from pathorob_jax.core import devices
from pathorob_jax.core.checks import UsageError
from pathorob_jax.models import layers, registry
from pathorob_jax.models.clip import ClipConfig
from pathorob_jax.models.vit import ViTConfig

FLASH = "__cudnn$fmha"
ON_CPU = ("products", "xla")
SMALL = {"image_px": 12, "patch_px": 4, "dim": 32, "depth": 2, "heads": 4, "mlp_hidden": 16}


@pytest.fixture
def on_gpu(monkeypatch):
    """A default device that has flash attention, as far as choosing and lowering go."""
    device = SimpleNamespace(
        client=SimpleNamespace(platform_version="cuda 13000"), compute_capability="9.0"
    )
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    return device


def oracle(query, key, value):
    """softmax(Q K^T) V of each head in float64: [B, T, H * d]."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    scores = np.einsum("bqhd,bkhd->bhqk", query, key)
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights = scores / scores.sum(axis=-1, keepdims=True)
    mixed = np.einsum("bhqk,bkhd->bqhd", weights, value)
    return mixed.reshape(*mixed.shape[:2], -1)


def draw(rng, n_queries, n_keys, heads=2, head_dim=8, batch=3):
    """Queries, keys and values whose scores reach about 40: rounding these would show."""
    query, key, value = (
        jnp.asarray(rng.standard_normal((batch, n, heads, head_dim)), jnp.float32)
        for n in (n_queries, n_keys, n_keys)
    )
    return 4 * query, key, value


def attend(query, key, value, dtype):
    """Compiled anew: a cached program would keep the implementation of the test before."""
    return jax.jit(lambda q, k, v: layers.attend(q, k, v, dtype))(query, key, value)


def lower(attended, *shapes):
    """Text of the program for NVIDIA GPUs."""
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(attended).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()


def lower_attend(n_tokens, head_dim, dtype):
    shape = (2, n_tokens, 3, head_dim)
    return lower(lambda q, k, v: layers.attend(q, k, v, dtype), shape, shape, shape)


def lower_network(config, dtype=jnp.bfloat16):
    graph, params = registry.network_of(config)
    images = jax.ShapeDtypeStruct((2, config.image_px, config.image_px, 3), jnp.float32)
    call = jax.jit(lambda params, images: nnx.merge(graph, params)(images, dtype=dtype)[0])
    return call.trace(params, images).lower(lowering_platforms=("cuda",)).as_text()


class TestResult:
    @pytest.mark.slow
    @pytest.mark.parametrize("implementation", ON_CPU)
    @pytest.mark.parametrize("n_queries", [1, 7])
    def test_float32(self, implementation, n_queries, rng):
        arrays = draw(rng, n_queries, 11)
        with layers.use_attention(implementation):
            found = attend(*arrays, jnp.float32)
        assert found.dtype == jnp.float32
        # Scores of 40 in float32 are off by 2e-6, and so are the weights, relatively.
        np.testing.assert_allclose(found, oracle(*arrays), atol=2e-5)

    @pytest.mark.slow
    @pytest.mark.parametrize("implementation", ON_CPU)
    def test_bfloat16_rounds_operands_alone(self, implementation, rng):
        arrays = draw(rng, 7, 11)
        rounded = [x.astype(jnp.bfloat16).astype(jnp.float32) for x in arrays]
        with layers.use_attention(implementation):
            found = attend(*arrays, jnp.bfloat16)
        assert found.dtype == jnp.float32
        # Weights are operands too, and xla's result: 2^-9 each. Rounded scores would be off by 0.1.
        np.testing.assert_allclose(found, oracle(*rounded), atol=2 * 2**-9 * 3)

    @pytest.mark.slow
    def test_networks_do_not_depend_on_it(self, rng):
        config = ViTConfig(**SMALL, qk_norm=True, rope_theta=100.0, pos_embed="none")
        graph, abstract = registry.network_of(config)
        params = jax.tree.map(lambda x: rng.uniform(-0.3, 0.3, x.shape).astype(x.dtype), abstract)
        images = jnp.asarray(rng.standard_normal((2, 12, 12, 3)), jnp.float32)
        patches = []
        for implementation in ON_CPU:
            with layers.use_attention(implementation):
                run = jax.jit(lambda params, images: nnx.merge(graph, params)(images)[0].patches)
                patches.append(run(params, images))
        assert np.std(patches[0]) > 0.1
        for other in patches[1:]:
            np.testing.assert_allclose(np.asarray(patches[0]), np.asarray(other), atol=1e-5)


class TestChoice:
    def test_cpu_takes_products(self):
        assert layers.attention_implementation(jnp.bfloat16, n_queries=9, head_dim=64) == "products"

    @pytest.mark.parametrize(
        ("dtype", "n_queries", "head_dim", "expected"),
        [
            (jnp.bfloat16, 197, 64, "cudnn"),
            (jnp.bfloat16, 2, 128, "cudnn"),
            (jnp.bfloat16, 197, 8, "cudnn"),
            (jnp.float32, 197, 64, "products"),
            (jnp.bfloat16, 1, 64, "products"),
            (jnp.bfloat16, 197, 60, "products"),
            (jnp.bfloat16, 197, 136, "products"),
        ],
    )
    def test_gpu_by_shape_and_type(self, on_gpu, dtype, n_queries, head_dim, expected):
        found = layers.attention_implementation(dtype, n_queries=n_queries, head_dim=head_dim)
        assert found == expected

    @pytest.mark.parametrize(
        ("platform", "capability", "expected"),
        [
            ("cuda 12090", "8.0", "cudnn"),
            ("cuda 13000", "10.0", "cudnn"),
            ("cuda 12090", "7.5", "products"),
            ("rocm 70000", "gfx942", "products"),
        ],
    )
    def test_gpu_by_kind(self, on_gpu, platform, capability, expected):
        on_gpu.client.platform_version, on_gpu.compute_capability = platform, capability
        found = layers.attention_implementation(jnp.bfloat16, n_queries=197, head_dim=64)
        assert found == expected

    def test_given_one_holds_meanwhile(self):
        with layers.use_attention("xla"):
            found = layers.attention_implementation(jnp.bfloat16, n_queries=9, head_dim=64)
            assert found == "xla"
        self.test_cpu_takes_products()

    def test_unknown_one_is_refused(self):
        with (
            pytest.raises(UsageError, match="attention: unknown name 'flash'"),
            layers.use_attention("flash"),
        ):
            pass


class TestLoweredForGpus:
    @pytest.mark.parametrize("n_tokens", [50, 197, 201, 261, 1025])
    @pytest.mark.parametrize("head_dim", [64, 80, 88, 96, 128])
    def test_bfloat16_by_flash_attention(self, on_gpu, n_tokens, head_dim):
        text = lower_attend(n_tokens, head_dim, jnp.bfloat16)
        assert text.count(FLASH) == 1
        # The one that JAX writes after the call, which its layout makes free.
        assert text.count("stablehlo.transpose") == 1

    def test_every_encoder_by_flash_attention(self, on_gpu):
        networks = [spec.network for spec in registry.MODELS.values()]
        shapes = {
            (config.n_patches + 1 + config.n_registers, config.head_dim)
            for config in networks
            if isinstance(config, ViTConfig)
        }
        assert len(shapes) >= 8
        for n_tokens, head_dim in sorted(shapes):
            assert lower_attend(n_tokens, head_dim, jnp.bfloat16).count(FLASH) == 1

    @pytest.mark.parametrize(
        ("n_tokens", "head_dim", "dtype"),
        [(197, 64, jnp.float32), (1, 64, jnp.bfloat16), (197, 60, jnp.bfloat16)],
    )
    def test_products_otherwise(self, on_gpu, n_tokens, head_dim, dtype):
        assert FLASH not in lower_attend(n_tokens, head_dim, dtype)

    @pytest.mark.parametrize("more", [{}, {"qk_norm": True, "rope_theta": 100.0}])
    def test_blocks_bring_no_transposes(self, on_gpu, more):
        text = lower_network(ViTConfig(**SMALL, **more))
        assert text.count(FLASH) == 1
        assert text.count("stablehlo.transpose") == 2  # patches, and JAX's after the call

    def test_query_of_a_head_by_products(self, on_gpu):
        config = ClipConfig(**SMALL, head="attention", head_out=16, query_heads=2)
        assert lower_network(config).count(FLASH) == 1

    @pytest.mark.slow
    def test_split_over_devices(self, on_gpu):
        split = devices.row_sharding(devices.make_mesh(jax.devices()))
        array = jax.ShapeDtypeStruct((16, 197, 3, 64), jnp.float32)
        attended = jax.jit(
            lambda q, k, v: layers.attend(q, k, v, jnp.bfloat16),
            in_shardings=split,
            out_shardings=split,
        )
        text = attended.trace(array, array, array).lower(lowering_platforms=("cuda",)).as_text()
        # Its own rule splits the call by batch; there is no gathering before it.
        assert text.count("@CustomSPMDPartitioning") == 1
        assert "all_gather" not in text
