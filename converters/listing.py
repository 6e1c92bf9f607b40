"""The table of encoders, as text."""

from pathorob_jax.models.registry import MODELS
from pathorob_jax.models.spec import ModelSpec

_HEAD = (
    "model", "params M", "GFLOPs", "input", "dim", "pooling", "PathoROB", "gated", "licence",
    "weights",
)  # fmt: skip
_LICENCE_LENGTH = 24


def list_models() -> str:
    """One line per encoder, followed by those that cannot be run, with the reason."""
    runs = [_row(spec) for spec in MODELS.values() if spec.unavailable is None]
    widths = [max(len(row[i]) for row in [_HEAD, *runs]) for i in range(len(_HEAD))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [_HEAD, *runs]
    ]
    lines += ["", "cannot be run here:"]
    lines += [f"  {spec.name}: {spec.unavailable}" for spec in MODELS.values() if spec.unavailable]
    lines += [
        "",
        "pooling: the authors'; PathoROB: its pooling, ? where inferred. GFLOPs: 2 * multiply-adds",
        "of one image. Facts and their sources: pathorob_jax/models/specs/*.yaml.",
    ]
    return "\n".join(lines) + "\n"


def _row(spec: ModelSpec) -> tuple[str, ...]:
    weights, use = spec.weights, spec.pathorob
    gated = {True: "yes", False: "no", None: "?"}[weights.gated] if weights else ""
    where = (weights.repo or weights.url or ", ".join(weights.files)) if weights else "none needed"
    side = getattr(spec.network, "image_px", None)
    licence = spec.licence
    if len(licence) > _LICENCE_LENGTH:
        licence = licence[: _LICENCE_LENGTH - 1] + "…"
    return (
        spec.name,
        "" if spec.n_params is None else f"{spec.n_params / 1e6:.1f}",
        "" if spec.gflops is None else f"{spec.gflops:.1f}",
        "" if side is None else str(side),
        str(getattr(spec.network, "dim", "")),
        spec.default_pooling or "",
        "" if use is None else use.pooling + ("" if use.confidence != "inferred" else "?"),
        gated,
        licence,
        where,
    )
