"""Operations of a network, as the benchmark of extraction counts them."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from experiments.benchmarks.flops import vit_flops
from pathorob_jax.models import registry
from pathorob_jax.models.vit import ViTConfig


def test_published_counts():
    specs = [s for s in registry.MODELS.values() if type(s.network) is ViTConfig and s.gflops]
    assert len(specs) > 40
    for spec in specs:
        assert vit_flops(spec.network) * 1e-9 == pytest.approx(spec.gflops, abs=0.006), spec.name


@pytest.mark.slow
@pytest.mark.parametrize("mlp", ["gelu", "swiglu"])
def test_what_xla_counts(mlp):
    # One block: XLA counts the body of a loop once. It adds norms and activations.
    config = ViTConfig(
        image_px=56, patch_px=14, dim=256, depth=1, heads=4, mlp_hidden=640, mlp=mlp, n_registers=4
    )
    graph, params = registry.network_of(config)
    images = jax.ShapeDtypeStruct((2, 56, 56, 3), jnp.float32)
    call = jax.jit(lambda params, images: nnx.merge(graph, params)(images)[0].cls)
    counted = call.lower(params, images).cost_analysis()["flops"] / 2
    assert vit_flops(config) <= counted <= 1.05 * vit_flops(config)
