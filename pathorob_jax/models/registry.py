"""What an encoder's name stands for: network, preprocessing, pooling and where its weights are.

Enters: a name. Leaves: a ``ModelSpec``, or an ``Encoder`` ready to embed uint8 tiles. Adding an
encoder is one entry in ``MODELS``.
"""

import dataclasses
import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from pathorob_jax import checks
from pathorob_jax.checks import UsageError
from pathorob_jax.models import baselines
from pathorob_jax.models.preprocess import Preprocess
from pathorob_jax.models.vit import POOLINGS, Pooling, ViT, ViTConfig, pool
from pathorob_jax.typing import Array, Float, UInt8

ComputeDtype = Literal["float32", "bfloat16"]
COMPUTE_DTYPES: tuple[ComputeDtype, ...] = ("float32", "bfloat16")


@dataclass(frozen=True)
class ModelSpec:
    """One encoder. Preprocessing and pooling travel with the name.

    Attributes:
        name: what flags and folders call it.
        summary: one line for tables.
        network: a ViT's architecture, or a function uint8[B, H, W, 3] -> float32[B, D] without
            parameters.
        preprocess: tiles -> network inputs; None where the network takes the tiles themselves.
        poolings: those that it offers; empty where there are no tokens to pool.
        default_pooling: the authors'.
        compute_dtype: default type of the products' operands.
        seed: of random weights, for encoders that have no others.
        licence: SPDX identifier of the weights.
        revision: raised whenever the same name gives other embeddings; stores record it.
    """

    name: str
    summary: str
    network: ViTConfig | Callable[[Array], Array]
    preprocess: Preprocess | None = None
    poolings: tuple[Pooling, ...] = ()
    default_pooling: Pooling | None = None
    compute_dtype: ComputeDtype = "float32"
    seed: int | None = None
    licence: str = "Apache-2.0"
    revision: int = 1


@dataclass(frozen=True, eq=False)
class Encoder:
    """An encoder with its parameters.

    Attributes:
        name: ``<model>``, or ``<model>_<pooling>`` for a pooling that is not the default.
        params: pytree of arrays; empty for networks without parameters.
        apply: (params, uint8[B, H, W, 3]) -> float32[B, D]; jit it.
        identity: what its embeddings depend on, as plain JSON.
    """

    name: str
    params: Any
    apply: Callable[[Any, UInt8[Array, "B H W 3"]], Float[Array, "B D"]]
    identity: dict[str, Any]


MODELS: dict[str, ModelSpec] = {
    spec.name: spec
    for spec in (
        ModelSpec(
            name="color_stats",
            summary="Colour statistics: sees the stain, hence the centre (control).",
            network=baselines.color_stats,
        ),
        ModelSpec(
            name="nuclear_texture",
            summary="Texture of the haematoxylin channel: sees the morphology (control).",
            network=baselines.nuclear_texture,
        ),
        ModelSpec(
            name="vit_random",
            summary="ViT-Ti/16, four blocks, seeded random weights (control).",
            network=ViTConfig(image_px=224, patch_px=16, dim=192, depth=4, heads=3, mlp_hidden=768),
            preprocess=Preprocess(resize_px=224, crop_px=224),
            poolings=POOLINGS,
            default_pooling="cls",
            seed=0,
        ),
    )
}


def get_spec(name: str) -> ModelSpec:
    """The spec of a name.

    Raises:
        UsageError: unknown name; lists the known ones.
    """
    checks.check_known(name, MODELS, what="model")
    return MODELS[name]


def load_encoder(name: str, *, pooling: str = "default", compute_dtype: str = "default") -> Encoder:
    """An encoder ready to embed.

    Args:
        name: key of ``MODELS``.
        pooling: ``default`` (the authors'), ``cls``, ``mean`` or ``clsmean``.
        compute_dtype: ``default`` (the spec's), ``float32`` or ``bfloat16``.

    Raises:
        UsageError: unknown name, or a pooling or type that the encoder does not offer.
    """
    spec = get_spec(name)
    chosen = _choose_pooling(spec, pooling)
    dtype = _choose_dtype(spec, compute_dtype)
    identity = {
        "model": name,
        "revision": spec.revision,
        "pooling": chosen,
        "network": _plain_json(spec.network) if isinstance(spec.network, ViTConfig) else name,
        "preprocess": _plain_json(spec.preprocess) if spec.preprocess else None,
        "compute_dtype": dtype,
        "weights": "none" if spec.seed is None else f"random, seed {spec.seed}",
    }
    full_name = name if chosen == spec.default_pooling else f"{name}_{chosen}"
    if not isinstance(spec.network, ViTConfig):
        network = spec.network
        return Encoder(full_name, {}, lambda _, images: network(images), identity)
    graph, params = _random_vit(spec.network, spec.seed or 0)

    def embed(params: Any, images: Array) -> Array:
        inputs = images if spec.preprocess is None else spec.preprocess(images)
        tokens, _ = nnx.merge(graph, params)(inputs, dtype=jnp.dtype(dtype))
        return pool(tokens, chosen or "cls")

    return Encoder(full_name, params, embed, identity)


@functools.cache
def _random_vit(config: ViTConfig, seed: int) -> tuple[Any, Any]:
    """Graph definition and parameters of a ViT with random weights."""

    def make() -> ViT:
        return ViT(config, rngs=nnx.Rngs(seed))

    graph, _ = nnx.split(nnx.eval_shape(make))
    return graph, jax.jit(lambda: nnx.to_pure_dict(nnx.state(make())))()


def embedding_dim(encoder: Encoder, height_px: int, width_px: int) -> int:
    """Length D of the embedding of a tile of that size, without computing one."""
    tile = jax.ShapeDtypeStruct((1, height_px, width_px, 3), jnp.uint8)
    return int(jax.eval_shape(encoder.apply, encoder.params, tile).shape[1])


def _choose_pooling(spec: ModelSpec, pooling: str) -> Pooling | None:
    if pooling == "default":
        return spec.default_pooling
    for offered in spec.poolings:
        if offered == pooling:
            return offered
    offers = ", ".join(spec.poolings) or "none: it has no tokens to pool"
    raise UsageError(f"pooling: {spec.name} does not offer {pooling!r}; it offers {offers}.")


def _choose_dtype(spec: ModelSpec, compute_dtype: str) -> str:
    dtype = spec.compute_dtype if compute_dtype == "default" else compute_dtype
    checks.check_known(dtype, COMPUTE_DTYPES, what="compute_dtype")
    if dtype != spec.compute_dtype and not isinstance(spec.network, ViTConfig):
        raise UsageError(
            f"compute_dtype: {spec.name} does not offer {dtype!r}; it offers {spec.compute_dtype}."
        )
    return dtype


def _plain_json(record: ViTConfig | Preprocess) -> dict[str, Any]:
    """A record as JSON holds it (lists, no tuples)."""
    return json.loads(json.dumps(dataclasses.asdict(record)))
