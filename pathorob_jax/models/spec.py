"""What is known of an encoder: its network, preprocessing, pooling, weights, and who says so.

Enters: YAML, shipped with the package or a user's own. Leaves: ``ModelSpec`` records. Unknown
fields, missing ones and values of another kind are refused with the field's name, so that a typing
error in an own file does not silently become a default.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import yaml

from pathorob_jax.core import checks, files
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
    """Where a checkpoint is, and how to read it.

    Attributes:
        schemes: naming schemes in which its files come; the one that fits is taken.
        repo: id on the Hugging Face hub.
        files: names in the repo (or at the other place), the preferred one first.
        url: another place, in words.
        revision: commit of the repo that the facts were read from.
        gated: whether the repo asks to accept terms.
        resample: the authors' rule for position embeddings of another grid, a name in
            ``converters.transforms.RESAMPLERS``; None: the grid is the network's.
        stored_px: side of the image that the file's position embedding fits; None: the network's.
        n_tensors: in the file, where that is known.
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
        pooling: of its published numbers.
        confidence: ``read`` in its code; ``reproduced`` by others from this pooling; ``inferred``
            from its scheme and the length of its embeddings.
        dim: length of its embeddings.
        preprocess: its own; None: the authors', as far as is known.
    """

    pooling: Pooling
    confidence: Confidence
    dim: int
    preprocess: Preprocess | None = None


@dataclass(frozen=True)
class TorchNetwork:
    """The PyTorch network that the encoder is verified against.

    Attributes:
        library: ``timm`` or ``transformers``; ``none`` where neither has it.
        constructor: timm's model name or the class of transformers.
        kwargs: of the constructor, or of the class's configuration.
    """

    library: Literal["timm", "transformers", "none"]
    constructor: str = ""
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelSpec:
    """One encoder. Preprocessing and pooling travel with the name.

    Attributes:
        name: what flags and folders call it.
        summary: one line for tables.
        network: the architecture; None for a function and where the encoder cannot be run.
        function: uint8[B, H, W, 3] -> float32[B, D], for encoders without parameters.
        preprocess: tiles -> network inputs; None where the network takes the tiles themselves.
        poolings: those that it offers; empty where there are no tokens to pool.
        default_pooling: the authors'.
        unit_norm: whether the authors divide the embedding by its length.
        compute_dtype: default type of the products' operands.
        seed: of random weights, for encoders that have no others.
        licence: SPDX identifier of the weights, or their licence's name.
        revision: raised whenever the same name gives other embeddings; stores record it.
        unavailable: why it cannot be run, and what to do instead.
        weights: where the checkpoint is.
        pathorob: how PathoROB used it; None: it did not, or nobody knows.
        torch: the network to verify against.
        n_params: number of parameters as published: of the file, at its own resolution.
        gflops: 2 * multiply-adds of one image, in units of 1e9.
        confidence: of the facts as a whole.
        assumed: facts that no source states, and what was taken.
        sources: where the facts were read.
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
    """Specs of a YAML file: a mapping of names to entries.

    Raises:
        UsageError: no YAML, or an entry that does not fit; names file, entry and field.
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
    """One spec from plain values.

    Raises:
        UsageError: a field is unknown, missing or of another kind.
    """
    checks.check_folder_name(name, what=f"{where}: name of an encoder")
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
