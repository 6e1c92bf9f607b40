"""Where the results of a model come from: encoder, precision, loading, cost, date and commit."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pathorob_jax.core.plain import find_part
from pathorob_jax.models import registry
from pathorob_jax.results.collection import Collection
from pathorob_jax.results.costs import costs_of_models

SHOWN_DIGITS = 12


@dataclass(frozen=True)
class Origin:
    """How the numbers of a model were made; lists hold each answer once.

    Attributes:
        encoder: name in the registry, or that of the model.
        pooling: of tokens; empty: not known, or there are none.
        loading: how the encoder came to its weights: converted (with their digest), seeded, none,
            or embeddings made elsewhere.
        encoder_precision: type of products, and of weights where that is recorded.
        search_precision: of the search of neighbours.
        gflops: of one tile; None: not known.
        seconds: of all metrics; None: not recorded.
        is_whole: False where parts of the metrics were there already, so that seconds are too few.
        extraction_seconds: of embedding the tiles; None: not recorded.
        devices: on which metrics were computed.
        date: day on which the results were written; "": not known.
        commits: of the clone; empty for an installed package.
        versions: of pathorob-jax.
    """

    encoder: str
    pooling: list[str]
    loading: list[str]
    encoder_precision: list[str]
    search_precision: list[str]
    gflops: float | None
    seconds: float | None
    is_whole: bool
    extraction_seconds: float | None
    devices: list[str]
    date: str
    commits: list[str]
    versions: list[str]


def find_origin(collection: Collection, model: str, dates: Mapping[str, str]) -> Origin:
    """The origin of all records of a model."""
    records = [r for kind in collection.kinds for r in collection.of_model(kind.record, model)]
    found = [record.provenance for record in records]
    cost = next(iter(costs_of_models(records)), None)
    encoders = [_encoder(provenance) for provenance in found]
    name = next((str(e["model"]) for e in encoders if "model" in e), model)
    spec = registry.MODELS.get(name)
    return Origin(
        encoder=name,
        pooling=_each(e.get("pooling") for e in encoders),
        loading=_each(map(_loading, encoders)),
        encoder_precision=_each(map(_precision, encoders)),
        search_precision=_each(find_part(p, "settings").get("precision") for p in found),
        gflops=spec.gflops if spec else None,
        seconds=cost.evaluation_s if cost else None,
        is_whole=cost.is_whole if cost else True,
        extraction_seconds=cost.extraction_s if cost else None,
        devices=_each(map(_device, found)),
        date=dates.get(model, ""),
        commits=_each(find_part(p, "versions").get("git") for p in found),
        versions=_each(find_part(p, "versions").get("pathorob_jax") for p in found),
    )


def _each(values: Iterable[Any]) -> list[str]:
    return list(dict.fromkeys(str(value) for value in values if value))


def _encoder(provenance: Mapping[str, Any]) -> Mapping[str, Any]:
    return find_part(provenance, "store", "identity", "encoder")


def _loading(encoder: Mapping[str, Any]) -> str:
    weights = encoder.get("weights")
    if isinstance(weights, Mapping):
        return f"converted weights, sha256 {str(weights.get('sha256', ''))[:SHOWN_DIGITS]}"
    words = {"none": "no weights"}
    return words.get(str(weights), f"weights: {weights}") if weights else ""


def _precision(encoder: Mapping[str, Any]) -> str:
    computed, kept = encoder.get("compute_dtype"), encoder.get("param_dtype")
    if not computed:
        return ""
    return f"{computed}, weights in {kept}" if kept and kept != computed else str(computed)


def _device(provenance: Mapping[str, Any]) -> str:
    device = find_part(provenance, "device")
    kind, count = device.get("kind"), device.get("count", 1)
    if not kind:
        return ""
    return f"{count} × {kind}" if count != 1 else str(kind)
