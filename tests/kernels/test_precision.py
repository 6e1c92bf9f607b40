"""Small networks multiply all bits of float32: a GPU would take ten of them if it were not told."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from pathorob_jax.kernels import adversarial
from pathorob_jax.kernels.mil import network
from pathorob_jax.kernels.mil.presets import PRESETS
from pathorob_jax.kernels.mlp import Mlp


def mlp():
    graph, params = nnx.split(Mlp(8, 6, 3, rngs=nnx.Rngs(0)))
    return lambda params, x: nnx.merge(graph, params)(x), params, jnp.ones((5, 8))


def multiple_instances():
    params = network.init_params(jax.random.key(0), 8, 3, next(iter(PRESETS.values())))
    mask = jnp.ones((2, 5), bool)
    return lambda params, x: network.apply(params, x, mask)[0], params, jnp.ones((2, 5, 8))


def adversarial_layers():
    params = {
        name: {"kernel": jnp.ones((8, 8)), "bias": jnp.ones(8)} for name in ("hidden", "label")
    }
    return adversarial._logits, params, jnp.ones((5, 8))


@pytest.mark.parametrize("make", [mlp, multiple_instances, adversarial_layers])
def test_products_and_their_gradients_keep_all_bits(make):
    apply, params, x = make()
    loss = jax.jit(jax.value_and_grad(lambda params: (apply(params, x) ** 2).sum()))
    products = [line for line in loss.lower(params).as_text().splitlines() if "dot_general" in line]
    assert len(products) >= 4
    assert [line for line in products if "precision = [HIGHEST, HIGHEST]" not in line] == []
