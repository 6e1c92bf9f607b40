"""Where the results of a model come from: encoder, precision, loading, cost, date and commit."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pathorob_jax.core.plain import find_part
from pathorob_jax.models import registry
from pathorob_jax.results.collection import Collection

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
    extraction_seconds: float | None
    devices: list[str]
    date: str
    commits: list[str]
    versions: list[str]


def find_origin(collection: Collection, model: str, dates: Mapping[str, str]) -> Origin:
    """The origin of all records of a model."""
    found = [
        record.provenance
        for kind in collection.kinds
        for record in collection.of_model(kind.record, model)
    ]
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
        seconds=_sum(p.get("cost") for p in found),
        extraction_seconds=_extraction(found),
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


def _sum(costs: Iterable[Any]) -> float | None:
    """Seconds of all records; None where none records them."""
    known = [s for cost in costs if (s := _seconds(cost)) is not None]
    return sum(known) if known else None


def _extraction(found: Iterable[Mapping[str, Any]]) -> float | None:
    """Seconds of the passes over tiles; records of one store name the same passes."""
    passes: dict[str, list[Any]] = {}
    for provenance in found:
        rows = str(find_part(provenance, "store").get("rows_sha256"))
        listed = find_part(provenance, "cost").get("extraction")
        if isinstance(listed, list):
            passes[rows] = listed
    shares = [
        seconds / max(1, int(one.get("encoders") or 1))
        for listed in passes.values()
        for one in listed
        if (seconds := _seconds(one)) is not None
    ]
    return sum(shares) if shares else None


def _seconds(cost: Any) -> float | None:
    seconds = cost.get("seconds") if isinstance(cost, Mapping) else None
    if not isinstance(seconds, int | float) or isinstance(seconds, bool):
        return None
    return float(seconds)
