"""Specs of encoders: network, preprocessing, pooling, weights, and the sources of these facts.

``read_specs`` reads ``ModelSpec`` records from YAML, either shipped with the package or your own.
Unknown fields, missing fields and values of another type are refused by name, so that a typing
error does not silently become a default.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import yaml

from pathorob_jax.core import checks, files, folder_names
from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.core.plain import from_plain
from pathorob_jax.core.typing import Array
from pathorob_jax.models.families import FAMILIES, NetworkConfig
from pathorob_jax.models.preprocess import Preprocess
from pathorob_jax.models.vit import Pooling

Record = TypeVar("Record")
ComputeDtype = Literal["float32", "bfloat16"]
Confidence = Literal["read", "reproduced", "inferred"]


@dataclass(frozen=True)
class Weights:
    """The location and format of a checkpoint.

    Attributes:
        schemes: naming schemes of its files; the one that fits is used.
        repo: id on the Hugging Face hub.
        files: names in the repo (or at ``url``), the preferred one first.
        url: another location, in words.
        revision: commit of the repo that the facts were read from.
        gated: whether the repo requires accepting terms.
        resample: the authors' rule for position embeddings of another grid, a name in
            ``converters.transforms.RESAMPLERS``; None: the grid is that of the network.
        stored_px: image side that the position embedding of the file fits; None: the network's.
        n_tensors: number of tensors in the file, if known.
        unused_params: parameters of the file that an embedding does not need (mask token).
    """

    schemes: tuple[str, ...]
    repo: str | None = None
    files: tuple[str, ...] = ()
    url: str | None = None
    revision: str | None = None
    gated: bool | None = None
    resample: str | None = None
    stored_px: int | None = None
    n_tensors: int | None = None
    unused_params: int = 0


@dataclass(frozen=True)
class PathorobUse:
    """How PathoROB used the encoder.

    Attributes:
        pooling: pooling of the published results.
        confidence: ``read`` in its code; ``reproduced`` by others from this pooling; ``inferred``
            from its scheme and the length of its embeddings.
        dim: length of its embeddings.
        preprocess: preprocessing by PathoROB; None: that of the authors, as far as is known.
    """

    pooling: Pooling
    confidence: Confidence
    dim: int
    preprocess: Preprocess | None = None


@dataclass(frozen=True)
class TorchNetwork:
    """The PyTorch network that the encoder is verified against.

    Attributes:
        library: ``timm`` or ``transformers``; ``none`` if neither has it.
        constructor: model name in timm or class in transformers.
        kwargs: arguments of the constructor, or of the configuration of the class.
    """

    library: Literal["timm", "transformers", "none"]
    constructor: str = ""
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelSpec:
    """One encoder, including its preprocessing and pooling.

    Attributes:
        name: name in flags and folders.
        summary: one line for tables.
        network: the architecture; None for a function, and for encoders that cannot be run.
        function: uint8[B, H, W, 3] -> float32[B, D], for encoders without parameters.
        preprocess: tiles -> network inputs; None if the network takes tiles directly.
        poolings: available poolings; empty if there are no tokens to pool.
        default_pooling: pooling of the authors.
        unit_norm: whether the authors divide the embedding by its length.
        compute_dtype: default type of the operands of products.
        seed: seed of random weights, for encoders without trained weights.
        licence: SPDX identifier or name of the licence of the weights.
        revision: increased whenever the same name gives other embeddings; stores record it.
        unavailable: why the encoder cannot be run, and what to do instead.
        weights: location of the checkpoint.
        pathorob: how PathoROB used it; None: it did not, or this is unknown.
        torch: the network to verify against.
        n_params: published number of parameters: of the file, at its resolution.
        gflops: 2 * multiply-adds of one image, in units of 1e9.
        confidence: confidence in the facts as a whole.
        assumed: facts that no source states, and the assumptions made.
        sources: sources of the facts.
    """

    name: str
    summary: str
    network: NetworkConfig | None = None
    function: Callable[[Array], Array] | None = None
    preprocess: Preprocess | None = None
    poolings: tuple[Pooling, ...] = ()
    default_pooling: Pooling | None = None
    unit_norm: bool = False
    compute_dtype: ComputeDtype = "float32"
    seed: int | None = None
    licence: str = "Apache-2.0"
    revision: int = 1
    unavailable: str | None = None
    weights: Weights | None = None
    pathorob: PathorobUse | None = None
    torch: TorchNetwork | None = None
    n_params: int | None = None
    gflops: float | None = None
    confidence: str = "read"
    assumed: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()


def read_specs(path: str) -> dict[str, ModelSpec]:
    """Read the specs of a YAML file, a mapping of names to entries.

    Raises:
        UsageError: not YAML, or an entry is invalid; the message names file, entry and field.
        FileNotFoundError: no such file.
    """
    try:
        entries = yaml.load(files.read_bytes(path), Loader=yaml.CSafeLoader)
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: expected YAML, found {error}.") from error
    if not isinstance(entries, dict) or not all(isinstance(e, dict) for e in entries.values()):
        raise UsageError(
            f"{path}: expected a mapping of encoder names to their fields, as in docs/encoders.md."
        )
    return {str(name): make_spec(str(name), entry, where=path) for name, entry in entries.items()}


def make_spec(name: str, entry: Mapping[str, Any], *, where: str) -> ModelSpec:
    """Make a spec from plain values.

    Raises:
        UsageError: a field is unknown, missing or of another type.
    """
    folder_names.check_folder_name(name, what=f"{where}: name of an encoder")
    at = f"{where}: {name}"
    fields = dict(entry)
    network = fields.pop("network", None)
    if network is not None:
        network = _make_network(network, at)
    elif "unavailable" not in fields:
        raise UsageError(f"{at}: expected a field 'network'.")
    if "function" in fields:
        raise UsageError(f"{at}.function: a file cannot hold functions; use the Python interface.")
    spec = _make(ModelSpec, fields | {"name": name, "network": network}, at)
    _check(spec, at)
    return spec


def _make_network(entry: Any, at: str) -> NetworkConfig:
    if not isinstance(entry, dict) or "family" not in entry:
        raise UsageError(f"{at}.network: expected a mapping with a field 'family', as 'vit'.")
    fields = dict(entry)
    family = str(fields.pop("family"))
    checks.check_known(family, FAMILIES, what=f"{at}.network.family")
    return _make(FAMILIES[family], fields, f"{at}.network")


def _check(spec: ModelSpec, at: str) -> None:
    if spec.network is None:
        return
    if not spec.poolings:
        raise UsageError(f"{at}.poolings: expected at least one of cls, mean, clsmean, head.")
    if spec.default_pooling not in spec.poolings:
        raise UsageError(
            f"{at}.default_pooling: expected one of {', '.join(spec.poolings)}, "
            f"found {spec.default_pooling!r}."
        )
    if spec.preprocess is not None:
        want, have = spec.network.image_px, spec.preprocess.crop_px
        if want != have:
            raise UsageError(
                f"{at}: network.image_px is {want}, preprocess.crop_px {have}; expected them equal."
            )
    if spec.weights is None and spec.seed is None:
        raise UsageError(f"{at}: expected a field 'weights' with the naming schemes of its file.")


def _make(kind: type[Record], fields: Mapping[str, Any], at: str) -> Record:
    try:
        record: Record = from_plain(kind, fields, where=at)
    except InputError as error:
        raise UsageError(str(error)) from error
    return record
