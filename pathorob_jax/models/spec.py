"""Specs of encoders: network, preprocessing, pooling, weights, and the sources of these facts.

``read_specs`` reads ``ModelSpec`` records from YAML, either shipped with the package or your own.
Unknown fields, missing fields and values of another type are refused by name, so that a typing
error does not silently become a default.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from pathorob_jax.core import checks, folder_names
from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.core.plain import from_plain
from pathorob_jax.core.typing import Array
from pathorob_jax.models.families import FAMILIES, POOLINGS_OF, NetworkConfig
from pathorob_jax.models.preprocess import Preprocess
from pathorob_jax.models.ranges import check_numbers
from pathorob_jax.models.spec_files import read_mapping
from pathorob_jax.models.vit import Pooling

Record = TypeVar("Record")
_MAX_MESSAGE = 1000
# Names in a library that --spec may have called: no module, no address.
_CONSTRUCTOR = re.compile(r"\w+(\.\w+)*")
_NOT_OF_THE_NETWORK = {
    *("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"),
    "features_only",
}
ComputeDtype = Literal["float32", "bfloat16"]
Confidence = Literal["read", "reproduced", "inferred"]


@dataclass(frozen=True)
class Lora:
    """The low-rank update of weights that a file of PEFT's wrapped network holds beside them.

    Attributes:
        rank: of every update.
        alpha: the update is multiplied by alpha / rank.
    """

    rank: int
    alpha: float


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
        lora: the update in the file, to be merged on conversion; None: there is none.
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
    lora: Lora | None = None


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
    entries = read_mapping(path)
    if not isinstance(entries, dict) or not all(isinstance(e, dict) for e in entries.values()):
        raise UsageError(
            f"{path}: expected a mapping of encoder names to their fields, as in docs/encoders.md."
        )
    return {name: make_spec(name, entry, where=path) for name, entry in entries.items()}


def make_spec(name: str, entry: Mapping[str, Any], *, where: str) -> ModelSpec:
    """Make a spec from plain values.

    Raises:
        UsageError: a field is unknown, missing or of another type.
    """
    folder_names.check_folder_name(name, what=f"{where}: name of an encoder")
    at = f"{where}: {name}"
    fields = dict(entry)
    offered: tuple[Pooling, ...] = ()
    network = fields.pop("network", None)
    if network is not None:
        network, offered = _make_network(network, at)
    elif "unavailable" not in fields:
        raise UsageError(f"{at}: expected a field 'network'.")
    if "function" in fields:
        raise UsageError(f"{at}.function: a file cannot hold functions; use the Python interface.")
    spec = _make(ModelSpec, fields | {"name": name, "network": network}, at)
    _check(spec, offered, at)
    _check_ranges(spec, at)
    return spec


def _make_network(entry: Any, at: str) -> tuple[NetworkConfig, tuple[Pooling, ...]]:
    """The network of an entry, and the poolings that its family offers."""
    if not isinstance(entry, dict) or "family" not in entry:
        raise UsageError(f"{at}.network: expected a mapping with a field 'family', as 'vit'.")
    fields = dict(entry)
    family = str(fields.pop("family"))
    checks.check_known(family, FAMILIES, what=f"{at}.network.family")
    return _make(FAMILIES[family], fields, f"{at}.network"), POOLINGS_OF[family]


def _check_ranges(spec: ModelSpec, at: str) -> None:
    if spec.seed is not None and not 0 <= spec.seed < 2**32:
        raise UsageError(f"{at}.seed: expected 0 to 2**32 - 1, found {spec.seed}.")
    check_numbers(spec, what=at, zero=("seed", "gflops"), counts=("n_params", "revision", "seed"))
    for name, each in (
        ("preprocess", spec.preprocess),
        ("pathorob.preprocess", spec.pathorob.preprocess if spec.pathorob else None),
    ):
        if each is not None:
            check_numbers(each, what=f"{at}.{name}", signed=("mean",))
            if each.resize_px is not None and each.resize_px < each.crop_px:
                raise UsageError(
                    f"{at}.{name}: expected resize_px of at least crop_px ({each.crop_px}), found "
                    f"{each.resize_px}."
                )
    if spec.weights is not None:
        counts = ("unused_params", "n_tensors")
        check_numbers(spec.weights, what=f"{at}.weights", zero=("unused_params",), counts=counts)
        if spec.weights.lora is not None:
            check_numbers(spec.weights.lora, what=f"{at}.weights.lora")
    if spec.pathorob is not None:
        check_numbers(spec.pathorob, what=f"{at}.pathorob")
    if spec.torch is not None:
        _check_torch(spec.torch, f"{at}.torch")


def _check_torch(network: TorchNetwork, at: str) -> None:
    """The library builds the network by its name, and is given nothing to fetch."""
    if network.constructor and not _CONSTRUCTOR.fullmatch(network.constructor):
        raise UsageError(
            f"{at}.constructor: expected a name in {network.library}, found "
            f"{network.constructor[:80]!r}."
        )
    wrong = sorted(_NOT_OF_THE_NETWORK & set(network.kwargs))
    if wrong:
        raise UsageError(f"{at}.kwargs: expected arguments of the network, found {wrong}.")


def _check(spec: ModelSpec, offered: tuple[Pooling, ...], at: str) -> None:
    if spec.network is None:
        return
    other = [pooling for pooling in spec.poolings if pooling not in offered]
    if other:
        raise UsageError(
            f"{at}.poolings: this family offers {', '.join(offered)}, found {', '.join(other)}."
        )
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
        text = str(error)[:_MAX_MESSAGE]
        raise UsageError(text if text.startswith(at) else f"{at}: {text}") from error
    return record
