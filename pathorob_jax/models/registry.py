"""The registry of encoders, and loading them.

``get_spec`` returns the ``ModelSpec`` of a name; ``load_encoder`` returns an ``Encoder`` of uint8
tiles, by name or from your own spec. The entries are data: ``specs/*.yaml`` next to this
module, and the controls below (``names.CONTROLS``).
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from absl import logging
from flax import nnx
from jax.sharding import Mesh

from pathorob_jax.core import checks
from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.core.plain import as_plain
from pathorob_jax.core.typing import Array, Float, UInt8
from pathorob_jax.models import baselines, names, weights
from pathorob_jax.models.families import NetworkConfig
from pathorob_jax.models.parameter_sharding import (
    ShardingOf,
    gathering,
    parameter_sharding,
    parameters_fit,
)
from pathorob_jax.models.preprocess import Preprocess
from pathorob_jax.models.spec import ComputeDtype, ModelSpec, read_specs
from pathorob_jax.models.vit import POOLINGS, Pooling, Tokens, ViTConfig, pool

__all__ = [
    "COMPUTE_DTYPES",
    "MODELS",
    "PARAM_SHARDINGS",
    "PRESETS",
    "Encoder",
    "ModelSpec",
    "check_encoder",
    "choose_sharding",
    "embedding_dim",
    "get_spec",
    "load_encoder",
    "identify",
    "load_encoders",
    "needs_weights",
    "network_of",
    "read_specs",
    "runnable",
]

COMPUTE_DTYPES: tuple[ComputeDtype, ...] = ("float32", "bfloat16")
PRESETS = ("authors", "pathorob")
ParamSharding = Literal["auto", "replicated", "split"]
PARAM_SHARDINGS: tuple[ParamSharding, ...] = ("auto", "replicated", "split")


@dataclass(frozen=True, eq=False)
class Encoder:
    """An encoder with its parameters.

    Encoders that differ only in pooling share the objects ``params`` and ``forward``, so that
    embedding with several of them runs the network once.

    Attributes:
        name: ``<model>``, ``<model>_<pooling>`` for a pooling that is not the default, or
            ``<model>_<preset>`` for a preset that is not the authors'.
        params: pytree of arrays; empty for networks without parameters.
        forward: (params, uint8[B, H, W, 3]) -> output of the network.
        identity: what the embeddings depend on, as plain JSON.
        pooled: output of the network -> float32[B, D].
    """

    name: str
    params: Any
    forward: Callable[[Any, UInt8[Array, "B H W 3"]], Any]
    identity: dict[str, Any]
    pooled: Callable[[Any], Float[Array, "B D"]] = lambda embedding: embedding

    def apply(self, params: Any, images: UInt8[Array, "B H W 3"]) -> Float[Array, "B D"]:
        """Embeddings float32[B, D] of uint8 tiles. It is not jitted; jit it."""
        return self.pooled(self.forward(params, images))


_CONTROLS = (
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
    found = {spec.name: spec for spec in _CONTROLS}
    for path in sorted(names.SPECS.glob("*.yaml")):
        for name, spec in read_specs(str(path)).items():
            if name in found:
                raise UsageError(f"{path}: {name}: there is an encoder of that name already.")
            found[name] = spec
    return found


MODELS: dict[str, ModelSpec] = _read_all()


def get_spec(name: str) -> ModelSpec:
    """The spec of a name.

    Raises:
        UsageError: unknown name; the message lists the known names.
    """
    checks.check_known(name, MODELS, what="model")
    return MODELS[name]


@dataclass(frozen=True)
class _Use:
    """A spec with the chosen poolings, preset and types."""

    spec: ModelSpec
    name: str
    pooling: Pooling | None
    preprocess: Preprocess | None
    dtype: str
    identity: dict[str, Any]


def check_encoder(
    model: str | ModelSpec,
    *,
    poolings: Sequence[str] = ("default",),
    preset: str = "authors",
    compute_dtype: str = "default",
    weights_dir: str | None = None,
) -> None:
    """Raise the errors of ``load_encoders`` without loading anything."""
    for pooling in poolings:
        use = _choose(model, pooling, preset, compute_dtype)
        if needs_weights(use.spec):
            _open_weights(use.spec, weights_dir)


class Identity(NamedTuple):
    """Name and identity that a loaded encoder would have."""

    name: str
    identity: dict[str, Any]


def identify(
    model: str | ModelSpec,
    *,
    preset: str = "authors",
    weights_dir: str | None = None,
) -> Identity:
    """What ``load_encoder`` would call an encoder, without loading it; errors as of that."""
    use = _choose(model, "default", preset, "default")
    return Identity(use.name, use.identity | _of_weights(use.spec, weights_dir, "float32")[0])


def name_of(model: str | ModelSpec, *, preset: str = "authors") -> str:
    """Name of an encoder, and of the folder of its stores; its weights need not be there."""
    return _choose(model, "default", preset, "default").name


def load_encoder(model: str | ModelSpec, *, pooling: str = "default", **choices: Any) -> Encoder:
    """Load an encoder: ``load_encoders`` with one pooling.

    >>> import pathorob_jax as pr
    >>> pr.load_encoder("color_stats").name
    'color_stats'
    """
    (encoder,) = load_encoders(model, poolings=[pooling], **choices)
    return encoder


def load_encoders(
    model: str | ModelSpec,
    *,
    poolings: Sequence[str] = ("default",),
    preset: str = "authors",
    compute_dtype: str = "default",
    weights_dir: str | None = None,
    param_dtype: str = "float32",
    sharding: ShardingOf | None = None,
    params: Any = None,
) -> list[Encoder]:
    """Load an encoder, once per pooling. All of them share one network in memory.

    Args:
        model: key of ``MODELS``, or a spec.
        poolings: each ``default`` (the authors'), ``cls``, ``mean``, ``clsmean`` or ``head``.
        preset: ``authors``, or ``pathorob`` for the pooling and preprocessing of PathoROB.
        compute_dtype: ``default`` (that of the spec), ``float32`` or ``bfloat16``.
        weights_dir: folder of all converted weights, for encoders with weights.
        param_dtype: type of the parameters in memory, ``float32`` or ``bfloat16``.
        sharding: shape of a parameter -> its sharding; None: all on the default device.
        params: parameters in the place of those on disk, to measure the encoder without them.

    Raises:
        UsageError: unknown name, or a pooling, preset or type that the encoder does not offer.
        InputError: the weights are missing or were converted for another network.
    """
    uses = [_choose(model, pooling, preset, compute_dtype) for pooling in poolings]
    uses = list({use.name: use for use in uses}.values())
    spec, preprocess, dtype = uses[0].spec, uses[0].preprocess, uses[0].dtype
    if spec.function is not None:
        function = spec.function
        return [Encoder(u.name, {}, lambda _, images: function(images), u.identity) for u in uses]
    network = runnable(spec)
    graph, abstract = network_of(network)
    more: dict[str, Any] = {}
    if params is not None:
        more = {"weights": "other"}
    elif needs_weights(spec):
        more, found = _of_weights(spec, weights_dir, param_dtype)
        params = weights.restore(found, abstract, dtype=param_dtype, sharding=sharding)
    else:
        params = _random_params(network, spec.seed or 0)
        if sharding is not None:
            params = jax.tree.map(lambda x: jax.device_put(x, sharding(x.shape)), params)

    loaded = params

    def forward(params: Any, images: Array) -> Tokens:
        inputs = images if preprocess is None else preprocess(images)
        with gathering(loaded):
            tokens, _ = nnx.merge(graph, params)(inputs, dtype=jnp.dtype(dtype))
        return tokens

    def make_pooled(pooling: Pooling) -> Callable[[Tokens], Array]:
        def pooled(tokens: Tokens) -> Array:
            embedding = pool(tokens, pooling)
            if spec.unit_norm:
                embedding = embedding / jnp.linalg.norm(embedding, axis=-1, keepdims=True)
            return embedding

        return pooled

    return [
        Encoder(u.name, params, forward, u.identity | more, make_pooled(u.pooling or "cls"))
        for u in uses
    ]


@functools.cache
def network_of(config: NetworkConfig) -> tuple[Any, Any]:
    """Graph definition, and a nested dict of shapes and types of the parameters, not allocated."""
    graph, state = nnx.split(nnx.eval_shape(lambda: config.make(rngs=nnx.Rngs(0))))
    return graph, nnx.to_pure_dict(state)


@functools.cache
def _random_params(config: NetworkConfig, seed: int) -> Any:
    """Parameters of a network with random weights."""
    return jax.jit(lambda: nnx.to_pure_dict(nnx.state(config.make(rngs=nnx.Rngs(seed)))))()


def embedding_dim(encoder: Encoder, height_px: int, width_px: int) -> int:
    """Length D of the embedding of a tile of that size, without computing an embedding."""
    tile = jax.ShapeDtypeStruct((1, height_px, width_px, 3), jnp.uint8)
    return int(jax.eval_shape(encoder.apply, encoder.params, tile).shape[1])


def runnable(spec: ModelSpec) -> NetworkConfig:
    """The network of a spec.

    Raises:
        UsageError: the spec has no network; the message says why.
    """
    if spec.network is None:
        raise UsageError(
            f"model: {spec.name} cannot be run. {spec.unavailable}"
            if spec.unavailable
            else f"model: {spec.name} has no weights."
        )
    return spec.network


def choose_sharding(
    spec: ModelSpec, mesh: Mesh, *, param_dtype: str = "float32", how: ParamSharding = "auto"
) -> ShardingOf:
    """Choose the sharding of the parameters of a network over the devices of one process.

    Args:
        spec: the encoder.
        mesh: devices.
        param_dtype: type of the parameters in memory.
        how: ``replicated``, ``split``, or ``auto``: split if a device cannot hold them all.
    """
    if how == "auto" and spec.network is not None:
        n_params = weights.count_params(network_of(spec.network)[1])
        fits = parameters_fit(n_params * jnp.dtype(param_dtype).itemsize, mesh)
        if not fits:
            logging.info("%s: parameters are split over %d devices", spec.name, mesh.size)
        return parameter_sharding(mesh, split=not fits)
    return parameter_sharding(mesh, split=how == "split")


def needs_weights(spec: ModelSpec) -> bool:
    """Whether an encoder has weights that must be converted."""
    return spec.network is not None and spec.seed is None


def _of_weights(
    spec: ModelSpec, weights_dir: str | None, param_dtype: str
) -> tuple[dict[str, Any], Any]:
    """What the identity holds of weights, and the weights; empty and None where there are none."""
    if not needs_weights(spec):
        return {}, None
    checks.check_known(param_dtype, COMPUTE_DTYPES, what="param_dtype")
    found = _open_weights(spec, weights_dir)
    return {"weights": found.identity, "param_dtype": param_dtype}, found


def _open_weights(spec: ModelSpec, weights_dir: str | None) -> weights.Converted:
    which = f"--model={spec.name}" if MODELS.get(spec.name) is spec else "--spec=<file.yaml>"
    if weights_dir is None:
        raise names.lacks_weights(spec.name, which)
    found = weights.open_converted(weights_dir, spec.name)
    if found.info["network"] != as_plain(spec.network):
        raise InputError(
            f"{found.path}: converted for another network than {spec.name} is now; convert again "
            f"with {names.convert_command(which)} --overwrite."
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
        "network": as_plain(spec.network) if spec.network else spec.name,
        "preprocess": as_plain(preprocess) if preprocess else None,
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
        "preprocess": as_plain(preprocess) if preprocess else None,
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
