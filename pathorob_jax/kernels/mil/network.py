"""The network: every tile passes a layer, attention weighs the tiles, a linear head reads the sum.

z = sum_n a_n h_n with h_n = relu(P x_n) and a = softmax over the tiles of a bag of
w . tanh(V h_n), with a gate w . (tanh(V h_n) * sigmoid(U h_n)); logits = W z + b (Ilse 2018).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from pathorob_jax.core.typing import Array, Bool, Float
from pathorob_jax.kernels.mil.presets import MilSettings

Params = dict[str, dict[str, Array]]


class Sizes(NamedTuple):
    """Sizes of a network; for ``projection``, ``attention`` and ``gated`` see ``MilSettings``."""

    dim: int
    projection: int
    attention: int
    gated: bool
    n_classes: int


class Dropout(NamedTuple):
    """Factors of the units of a step: 0 where one is dropped, else 1 / (1 - dropout).

    Attributes:
        projection: float32[..., n, P].
        attention: float32[..., n, A], or [..., n, 2 A] with those of the gate last.
    """

    projection: Float[Array, "... n P"]
    attention: Float[Array, "... n A"]


class TileReadings(NamedTuple):
    """What the network reads off single tiles, from which answers about bags follow.

    Attributes:
        score: float32[..., n] the attention of tiles before the softmax.
        evidence: float32[..., n, C] W h + b: the logits of a bag that held this tile alone; those
            of a bag are the mean of its tiles' by attention.
    """

    score: Float[Array, "... n"]
    evidence: Float[Array, "... n C"]


class MilNetwork(nnx.Module):
    """Layers of the network. The gate's units are the second half of ``attention``.

    The score has no bias: a softmax would not see it.
    """

    def __init__(self, sizes: Sizes, *, rngs: nnx.Rngs):
        units = sizes.attention * (2 if sizes.gated else 1)
        # All bits of float32, where a GPU would multiply ten bits.
        linear = functools.partial(nnx.Linear, precision=lax.Precision.HIGHEST, rngs=rngs)
        self.projection = linear(sizes.dim, sizes.projection)
        self.attention = linear(sizes.projection, units)
        self.score = linear(sizes.attention, 1, use_bias=False)
        self.head = linear(sizes.projection, sizes.n_classes)

    def weigh(
        self, x: Float[Array, "... n D"], dropout: Dropout | None = None
    ) -> tuple[Float[Array, "... n P"], Float[Array, "... n"]]:
        """Hidden units of tiles, and their scores."""
        hidden = jax.nn.relu(self.projection(x))
        if dropout is not None:
            hidden = hidden * dropout.projection
        units = self.attention(hidden)
        n = self.score.in_features
        tanh, gate = jnp.tanh(units[..., :n]), jax.nn.sigmoid(units[..., n:])
        if dropout is not None:
            tanh, gate = tanh * dropout.attention[..., :n], gate * dropout.attention[..., n:]
        if units.shape[-1] > n:
            tanh = tanh * gate
        return hidden, self.score(tanh)[..., 0]


def init_params(key: Array, dim: int, n_classes: int, settings: MilSettings) -> Params:
    """Parameters before training: kernels as Flax draws them (LeCun normal), biases 0."""
    sizes = Sizes(dim, settings.projection, settings.attention, settings.gated, n_classes)
    network = MilNetwork(sizes, rngs=nnx.Rngs(key))
    return nnx.to_pure_dict(nnx.split(network)[1])


def apply(
    params: Params,
    x: Float[Array, "... n D"],
    mask: Bool[Array, "... n"],
    dropout: Dropout | None = None,
) -> tuple[Float[Array, "... C"], Float[Array, "... n"]]:
    """Logits of bags, and the attention of their tiles.

    Args:
        params: parameters of one network.
        x: float32[..., n, D] tiles of bags, with padding that is finite.
        mask: bool[..., n] False for padding.
        dropout: factors of the units; None: all 1.

    Returns:
        float32[..., C], and float32[..., n] of sum 1 in each bag, 0 for padding.
    """
    network = _network(params)
    # The tiles of all bags as rows of one matrix: gradients are then plain products.
    x, dropout = jax.tree.map(lambda a: a.reshape(-1, a.shape[-1]), (x, dropout))
    hidden, score = (a.reshape(*mask.shape, *a.shape[1:]) for a in network.weigh(x, dropout))
    # A finite least value: a bag of padding alone, whose loss does not count, stays finite.
    weights = jax.nn.softmax(jnp.where(mask, score, -1e30), axis=-1)
    pooled = jnp.einsum("...n,...np->...p", weights, hidden, precision=lax.Precision.HIGHEST)
    return network.head(pooled), weights


def read_tiles(params: Params, x: Float[Array, "n D"]) -> TileReadings:
    """Scores and evidence of single tiles."""
    network = _network(params)
    hidden, score = network.weigh(x)
    return TileReadings(score, network.head(hidden))


def _network(params: Params) -> Any:
    """The network with given parameters; their shapes say what it is."""
    dim, projection = params["projection"]["kernel"].shape
    attention = params["score"]["kernel"].shape[0]
    gated = params["attention"]["kernel"].shape[1] > attention
    sizes = Sizes(dim, projection, attention, gated, params["head"]["bias"].shape[0])
    graph = nnx.split(nnx.eval_shape(lambda: MilNetwork(sizes, rngs=nnx.Rngs(0))))[0]
    return nnx.merge(graph, params)
