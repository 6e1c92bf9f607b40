"""The PyTorch networks that encoders are verified against, from timm and transformers.

``load_module`` returns the network of the library with the tensors of a checkpoint; ``run_module``
returns its stages on images. This module does not use our rules, so that errors in them are found:
the library itself maps the names of the file to its own.
"""

import contextlib
import functools
import math
import sys
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any, cast

import numpy as np

from pathorob_jax.core import checks
from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.models.spec import ModelSpec, TorchNetwork
from pathorob_jax.models.vit import ViTConfig

from .resampling import RESAMPLERS

_LIBRARIES: list[Any] = []  # torch drops the declarations when the library object is deleted
_NATIVE = ("timm", "timm_folded", "dino", "dinov2")  # names that timm reads


@functools.cache
def import_torchvision() -> ModuleType:
    """Torchvision.

    A torchvision built for CUDA lacks its compiled operators with a CPU build of torch, and fails
    at their names on import. Declaring them is enough: nothing here calls them.

    Raises:
        ImportError: torch or torchvision is not installed.
    """
    import torch

    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor x) -> Tensor")
        _LIBRARIES.append(library)
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        import torchvision
    return torchvision


def make_module(network: TorchNetwork) -> Any:
    """The network of the library with random weights, in inference mode.

    Raises:
        UsageError: no library has the network.
        ImportError: the library is not installed.
    """
    import_torchvision()
    if network.library == "timm":
        return _make_timm(network.constructor, network.kwargs)
    if network.library == "transformers":
        kind, config = _transformers(network)
        extra = {"add_pooling_layer": False} if network.constructor == "ViTModel" else {}
        return kind(config, **extra).eval()
    raise UsageError("verify: neither timm nor transformers has this network.")


def load_module(
    spec: ModelSpec, tensors: Mapping[str, Any], *, scheme: str, prefix: str, dropped: list[str]
) -> Any:
    """The network with the tensors of a checkpoint.

    Args:
        spec: the encoder.
        tensors: torch tensors by the keys of the file.
        scheme: naming scheme of the file.
        prefix: prefix of every key.
        dropped: keys that the scheme leaves out.

    Raises:
        UsageError: no library has the network or knows these names.
        InputError: tensors are missing or unexpected.
    """
    import_torchvision()
    state = {k.removeprefix(prefix): x for k, x in tensors.items() if k not in dropped}
    network = check_named(spec)
    if network.library == "timm" or scheme in _NATIVE:
        if network.library != "timm":
            network = timm_network(_config(spec))
        return _load_timm(network, state, spec, scheme)
    if network.library == "transformers" and scheme.startswith("hf_"):
        return _load_transformers(network, dict(tensors), spec)
    raise UsageError(
        f"verify: {network.library} has no reader for files named as {scheme!r}; give the file of "
        "the Hugging Face hub."
    )


def check_named(spec: ModelSpec) -> TorchNetwork:
    """The network of a library that a plain ViT names.

    Raises:
        UsageError: it names none; the message shows how.
    """
    if spec.torch is None:
        raise UsageError(
            f"verify: {spec.name} names no PyTorch network to compare with. Add to its entry "
            "torch: {library: timm, constructor: <name in timm>, kwargs: {<arguments>}}; see "
            "docs/encoders.md."
        )
    return spec.torch


def run_module(module: Any, images: np.ndarray) -> dict[str, np.ndarray]:
    """Stages of a network on float32[B, S, S, 3]: stem, block_00 ..., and tokens after the norm."""
    import torch

    blocks = _blocks(module)
    stem = getattr(module, "norm_pre", None) or module.embeddings
    found: dict[str, Any] = {}

    def keep(name: str) -> Any:
        def hook(_: Any, __: Any, out: Any) -> None:
            found[name] = out[0] if isinstance(out, tuple) else out

        return hook

    handles = [stem.register_forward_hook(keep("stem"))]
    handles += [b.register_forward_hook(keep(f"block_{i:02}")) for i, b in enumerate(blocks)]
    with torch.inference_mode():
        inputs = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        if hasattr(module, "forward_features"):
            found["tokens"] = module.forward_features(inputs)
        else:
            found["tokens"] = module(inputs).last_hidden_state
    for handle in handles:
        handle.remove()
    return {name: value.float().numpy() for name, value in found.items()}


def timm_network(config: ViTConfig) -> TorchNetwork:
    """Timm's network of a configuration, for files in names that timm reads."""
    swiglu = config.mlp == "swiglu"
    ratio = config.mlp_hidden * (2 if swiglu else 1) / config.dim
    # timm adds the position of DINOv2's class token to the token itself when it reads the file.
    kwargs: dict[str, Any] = {
        "img_size": config.image_px,
        "patch_size": config.patch_px,
        "embed_dim": config.dim,
        "depth": config.depth,
        "num_heads": config.heads,
        "mlp_ratio": ratio,
        "qkv_bias": config.qkv_bias,
        "qk_norm": config.qk_norm,
        "init_values": 1.0 if config.layer_scale else None,
        "no_embed_class": config.pos_embed == "patch" or config.n_registers > 0,
        "reg_tokens": config.n_registers,
        "num_classes": 0,
    }
    if config.pos_embed == "all":
        kwargs["no_embed_class"] = False
    if swiglu:
        kwargs |= {"mlp_layer": "SwiGLUPacked", "act_layer": "SiLU"}
    return TorchNetwork("timm", "", kwargs)


def _config(spec: ModelSpec) -> ViTConfig:
    if type(spec.network) is not ViTConfig:
        raise UsageError(f"verify: {spec.name} is no plain ViT.")
    return spec.network


def make_timm(name: str) -> Any:
    """A network of timm with random weights, in inference mode.

    Raises:
        UsageError: timm has no network of that name.
        ImportError: timm is not installed.
    """
    import_torchvision()
    return _make_timm(name, {})


def _make_timm(constructor: str, kwargs: Mapping[str, Any]) -> Any:
    import timm
    import torch
    from timm.layers.mlp import SwiGLUPacked
    from timm.models.vision_transformer import VisionTransformer

    named: dict[Any, Any] = {"SwiGLUPacked": SwiGLUPacked, "SiLU": torch.nn.SiLU}
    values: dict[str, Any] = {**kwargs, "num_classes": 0}
    for key in ("mlp_layer", "act_layer"):
        if key in values:
            checks.check_known(str(values[key]), named, what=f"torch.kwargs: {key}")
            values[key] = named[values[key]]
    norm: Any = functools.partial(torch.nn.LayerNorm, eps=1e-6)
    if constructor and not timm.is_model(constructor):
        # Only names of timm's own: others could be addresses, from which it would fetch.
        known = timm.list_models("*vit*")
        checks.check_known(constructor.partition(".")[0], known, what="timm: model")
    with _explaining("timm", constructor or "VisionTransformer"):
        if constructor:
            return timm.create_model(constructor, pretrained=False, **values).eval()
        return VisionTransformer(norm_layer=norm, **values).eval()


@contextlib.contextmanager
def _explaining(library: str, constructor: str) -> Iterator[None]:
    """A block that builds a network; what it does not accept becomes a UsageError."""
    try:
        yield
    except UsageError:
        raise
    except (TypeError, ValueError, RuntimeError, AttributeError, LookupError, AssertionError) as e:
        reason = (str(e).splitlines() or [""])[0][:200]
        raise UsageError(
            f"torch: {library}'s {constructor} cannot be built with these kwargs ({reason})."
        ) from e


def _load_timm(network: TorchNetwork, state: dict[str, Any], spec: ModelSpec, scheme: str) -> Any:
    from timm.models.vision_transformer import checkpoint_filter_fn

    module = _make_timm(network.constructor, network.kwargs)
    rule = spec.weights.resample if spec.weights else None
    if rule is not None and rule != "timm" and "pos_embed" in state:
        n_prefix = 0 if scheme == "timm_folded" else _config(spec).n_pos_prefix
        state["pos_embed"] = _resample(state["pos_embed"], spec, rule, n_prefix)
    if scheme == "dinov2":
        state["mask_token"] = state["cls_token"][0]  # by which timm knows these names; it drops it
        if any(key.split(".")[2].isdigit() for key in state if key.startswith("blocks.")):
            state = {_without_chunk(key): value for key, value in state.items()}
        state = checkpoint_filter_fn(state, module)
    elif scheme == "timm_folded":
        state = checkpoint_filter_fn(state, module)
    try:
        wrong = module.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise InputError(
            f"verify: timm's network of {spec.name} is of other shapes than the file: "
            f"{str(error)[:1000]}"
        ) from error
    if wrong.missing_keys or wrong.unexpected_keys:
        raise InputError(f"verify: timm's network of {spec.name} differs from the file: {wrong}")
    return module


def _without_chunk(key: str) -> str:
    parts = key.split(".")
    return ".".join(parts[:1] + parts[2:]) if parts[0] == "blocks" else key


def _resample(pos_embed: Any, spec: ModelSpec, rule: str, n_prefix: int) -> Any:
    """Resample the position embedding to the grid of the network, with PyTorch."""
    import torch

    side = _config(spec).image_px // _config(spec).patch_px
    prefix, rows = pos_embed[:, :n_prefix], pos_embed[:, n_prefix:]
    old = math.isqrt(rows.shape[1])
    if old == side:
        return pos_embed
    how = RESAMPLERS[rule]
    scale = {"scale_factor": (side + how.offset) / old} if how.offset else {"size": (side, side)}
    grid = rows.float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, mode=how.mode, antialias=how.antialias, **scale)
    return torch.cat([prefix, grid.permute(0, 2, 3, 1).reshape(1, side * side, -1)], dim=1)


def _transformers(network: TorchNetwork) -> tuple[Any, Any]:
    import transformers

    kind = getattr(transformers, network.constructor, None)
    is_network = isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)
    if not is_network:
        raise UsageError(f"torch: transformers has no network {network.constructor!r}.")
    with _explaining("transformers", network.constructor):
        return kind, cast(Any, kind).config_class(**network.kwargs)


def _load_transformers(network: TorchNetwork, tensors: dict[str, Any], spec: ModelSpec) -> Any:
    rule, key = spec.weights.resample if spec.weights else None, "embeddings.position_embeddings"
    if rule == "dino":  # transformers has another rule; see there
        tensors[key] = _resample(tensors[key], spec, rule, 1)
        kwargs = {**network.kwargs, "image_size": _config(spec).image_px}
        network = TorchNetwork(network.library, network.constructor, kwargs)
    kind, config = _transformers(network)
    extra = {"add_pooling_layer": False} if network.constructor == "ViTModel" else {}
    module, report = kind.from_pretrained(
        None, config=config, state_dict=tensors, output_loading_info=True, **extra
    )
    wrong = {k: report[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    if any(wrong.values()):
        raise InputError(f"verify: transformers' network of {spec.name} differs: {wrong}")
    return module.eval()


def _blocks(module: Any) -> Any:
    """The list of transformer blocks."""
    for path in ("blocks", "layers", "encoder.layer", "model.layer"):
        found: Any = module
        for part in path.split("."):
            found = getattr(found, part, None)
        if found is not None:
            return found
    raise UsageError("verify: the network's blocks were not found; another version of the library?")
