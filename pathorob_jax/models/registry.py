"""What an encoder's name stands for, and encoders ready to embed.

Enters: a name, or a spec of one's own. Leaves: a ``ModelSpec``, or an ``Encoder`` that embeds uint8
tiles. The entries are data: ``specs/*.yaml`` beside this module, and three demo encoders below.
"""

import functools
import pathlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from flax import nnx
from jax.sharding import Sharding

from pathorob_jax import checks
from pathorob_jax.checks import InputError, UsageError
from pathorob_jax.models import baselines, weights
from pathorob_jax.models.families import NetworkConfig
from pathorob_jax.models.preprocess import Preprocess
from pathorob_jax.models.spec import ComputeDtype, ModelSpec, plain_json, read_specs
from pathorob_jax.models.vit import POOLINGS, Pooling, ViTConfig, pool
from pathorob_jax.typing import Array, Float, UInt8

__all__ = [
    "COMPUTE_DTYPES",
    "MODELS",
    "PRESETS",
    "Encoder",
    "ModelSpec",
    "check_encoder",
    "embedding_dim",
    "get_spec",
    "load_encoder",
    "network_of",
    "read_specs",
    "runnable",
]

COMPUTE_DTYPES: tuple[ComputeDtype, ...] = ("float32", "bfloat16")
PRESETS = ("authors", "pathorob")
_SPECS = pathlib.Path(__file__).parent / "specs"


@dataclass(frozen=True, eq=False)
class Encoder:
    """An encoder with its parameters.

    Attributes:
        name: ``<model>``, ``<model>_<pooling>`` for a pooling that is not the default, or
            ``<model>_<preset>`` for a preset that is not the authors'.
        params: pytree of arrays; empty for networks without parameters.
        apply: (params, uint8[B, H, W, 3]) -> float32[B, D]; jit it.
        identity: what its embeddings depend on, as plain JSON.
    """

    name: str
    params: Any
    apply: Callable[[Any, UInt8[Array, "B H W 3"]], Float[Array, "B D"]]
    identity: dict[str, Any]


_DEMO = (
    ModelSpec(
        name="color_stats",
        summary="Colour statistics: sees the stain, hence the centre (control).",
        function=baselines.color_stats,
    ),
    ModelSpec(
        name="nuclear_texture",
        summary="Texture of the haematoxylin channel: sees the morphology (control).",
        function=baselines.nuclear_texture,
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


def _read_all() -> dict[str, ModelSpec]:
    found = {spec.name: spec for spec in _DEMO}
    for path in sorted(_SPECS.glob("*.yaml")):
        for name, spec in read_specs(str(path)).items():
            if name in found:
                raise UsageError(f"{path}: {name}: there is an encoder of that name already.")
            found[name] = spec
    return found


MODELS: dict[str, ModelSpec] = _read_all()


def get_spec(name: str) -> ModelSpec:
    """The spec of a name.

    Raises:
        UsageError: unknown name; lists the known ones.
    """
    checks.check_known(name, MODELS, what="model")
    return MODELS[name]


@dataclass(frozen=True)
class _Use:
    """A spec with the choices made."""

    spec: ModelSpec
    name: str
    pooling: Pooling | None
    preprocess: Preprocess | None
    dtype: str
    identity: dict[str, Any]


def check_encoder(
    model: str | ModelSpec,
    *,
    pooling: str = "default",
    preset: str = "authors",
    compute_dtype: str = "default",
    weights_dir: str | None = None,
) -> None:
    """Raise what ``load_encoder`` would raise, without loading anything."""
    use = _choose(model, pooling, preset, compute_dtype)
    if _needs_weights(use.spec):
        _open_weights(use.spec, weights_dir)


def load_encoder(
    model: str | ModelSpec,
    *,
    pooling: str = "default",
    preset: str = "authors",
    compute_dtype: str = "default",
    weights_dir: str | None = None,
    param_dtype: str = "float32",
    sharding: Sharding | None = None,
) -> Encoder:
    """An encoder ready to embed.

    Args:
        model: key of ``MODELS``, or a spec.
        pooling: ``default`` (the authors'), ``cls``, ``mean``, ``clsmean`` or ``head``.
        preset: ``authors``; or ``pathorob``, which sets pooling and preprocessing to PathoROB's.
        compute_dtype: ``default`` (the spec's), ``float32`` or ``bfloat16``.
        weights_dir: folder of all converted weights; needed by encoders that have any.
        param_dtype: in which parameters are held, ``float32`` or ``bfloat16``.
        sharding: of every parameter that is read from ``weights_dir``; None: the default device.

    Raises:
        UsageError: unknown name, or a pooling, preset or type that the encoder does not offer.
        InputError: the weights are missing or were converted for another network.
    """
    use = _choose(model, pooling, preset, compute_dtype)
    spec, identity = use.spec, use.identity
    if spec.function is not None:
        function = spec.function
        return Encoder(use.name, {}, lambda _, images: function(images), identity)
    network = runnable(spec)
    if _needs_weights(spec):
        checks.check_known(param_dtype, COMPUTE_DTYPES, what="param_dtype")
        found = _open_weights(spec, weights_dir)
        graph, abstract = network_of(network)
        params = weights.restore(found, abstract, dtype=param_dtype, sharding=sharding)
        identity = identity | {"weights": found.identity, "param_dtype": param_dtype}
    else:
        graph, params = _random_network(network, spec.seed or 0)

    def embed(params: Any, images: Array) -> Array:
        inputs = images if use.preprocess is None else use.preprocess(images)
        tokens, _ = nnx.merge(graph, params)(inputs, dtype=jnp.dtype(use.dtype))
        embedding = pool(tokens, use.pooling or "cls")
        if spec.unit_norm:
            embedding = embedding / jnp.linalg.norm(embedding, axis=-1, keepdims=True)
        return embedding

    return Encoder(use.name, params, embed, identity)


@functools.cache
def network_of(config: NetworkConfig) -> tuple[Any, Any]:
    """Graph definition, and shapes and types of the parameters as a nested dict; no memory."""
    graph, state = nnx.split(nnx.eval_shape(lambda: config.make(rngs=nnx.Rngs(0))))
    return graph, nnx.to_pure_dict(state)


@functools.cache
def _random_network(config: NetworkConfig, seed: int) -> tuple[Any, Any]:
    """Graph definition and parameters of a network with random weights."""
    graph, _ = network_of(config)
    make = jax.jit(lambda: nnx.to_pure_dict(nnx.state(config.make(rngs=nnx.Rngs(seed)))))
    return graph, make()


def embedding_dim(encoder: Encoder, height_px: int, width_px: int) -> int:
    """Length D of the embedding of a tile of that size, without computing one."""
    tile = jax.ShapeDtypeStruct((1, height_px, width_px, 3), jnp.uint8)
    return int(jax.eval_shape(encoder.apply, encoder.params, tile).shape[1])


def runnable(spec: ModelSpec) -> NetworkConfig:
    """The network of a spec.

    Raises:
        UsageError: it has none; says why.
    """
    if spec.network is None:
        raise UsageError(
            f"model: {spec.name} cannot be run. {spec.unavailable}"
            if spec.unavailable
            else f"model: {spec.name} has no weights."
        )
    return spec.network


def _needs_weights(spec: ModelSpec) -> bool:
    return spec.network is not None and spec.seed is None


def _open_weights(spec: ModelSpec, weights_dir: str | None) -> weights.Converted:
    command = f"python -m converters.convert --model={spec.name} --output=<folder>"
    if weights_dir is None:
        raise UsageError(
            f"weights: {spec.name} needs converted weights; make them with {command} and give "
            "--weights=<folder>."
        )
    found = weights.open_converted(weights_dir, spec.name)
    if found.info["network"] != plain_json(spec.network):
        raise InputError(
            f"{found.path}: converted for another network than {spec.name} is now; convert again "
            f"with {command} --overwrite."
        )
    return found


def _choose(model: str | ModelSpec, pooling: str, preset: str, compute_dtype: str) -> _Use:
    spec = get_spec(model) if isinstance(model, str) else model
    if spec.function is None:
        runnable(spec)
    checks.check_known(preset, PRESETS, what="preset")
    chosen, preprocess = _choose_pooling(spec, pooling), spec.preprocess
    dtype = _choose_dtype(spec, compute_dtype)
    name = spec.name if chosen == spec.default_pooling else f"{spec.name}_{chosen}"
    identity = {
        "model": spec.name,
        "revision": spec.revision,
        "pooling": chosen,
        "network": plain_json(spec.network) if spec.network else spec.name,
        "preprocess": plain_json(preprocess) if preprocess else None,
        "compute_dtype": dtype,
        "weights": "none" if spec.seed is None else f"random, seed {spec.seed}",
    }
    if spec.unit_norm:
        identity["unit_norm"] = True
    if preset == "authors":
        return _Use(spec, name, chosen, preprocess, dtype, identity)
    use = spec.pathorob
    if use is None:
        raise UsageError(
            f"preset: how PathoROB used {spec.name} is not known, or it did not; give --pooling."
        )
    if pooling != "default":
        raise UsageError("pooling: --preset=pathorob sets the pooling; give one of the two.")
    if use.confidence == "inferred":
        logging.warning("%s: PathoROB's use is inferred, not read from its code", spec.name)
    preprocess = use.preprocess or preprocess
    identity |= {
        "pooling": use.pooling,
        "preprocess": plain_json(preprocess) if preprocess else None,
        "preset": {"name": preset, "confidence": use.confidence},
    }
    return _Use(spec, f"{spec.name}_{preset}", use.pooling, preprocess, dtype, identity)


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
    if dtype != spec.compute_dtype and spec.network is None:
        raise UsageError(
            f"compute_dtype: {spec.name} does not offer {dtype!r}; it offers {spec.compute_dtype}."
        )
    return dtype
