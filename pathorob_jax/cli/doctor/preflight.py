"""What a run needs before it costs anything: data, revisions, weights, licences, one tile.

For a run that was asked for (``run.json``), after its data and weights were brought, and before
many machines begin with them.
"""

from typing import Any

import jax
import numpy as np

from pathorob_jax.cli.doctor.findings import FAIL, OK, Finding
from pathorob_jax.core.attempts import attempt, explain
from pathorob_jax.core.checks import InputError
from pathorob_jax.data import decode
from pathorob_jax.data.protocols import PROTOCOLS
from pathorob_jax.data.sources import SOURCES
from pathorob_jax.data.tileset import Tileset
from pathorob_jax.models import registry, weights
from pathorob_jax.models.spec import ModelSpec
from pathorob_jax.runs.request import RunRequest, read_request
from pathorob_jax.runs.steps import Work


def check_run(output: str) -> list[Finding]:
    """Check what the encoders and datasets of a run need.

    Args:
        output: folder of the run.

    Raises:
        FileNotFoundError: nothing was run into this folder.
        InputError: its ``run.json`` is damaged.
    """
    request = read_request(output)
    work = Work(request, None)
    tiles: dict[str, np.ndarray] = {}
    findings: list[Finding] = []
    for dataset in request.datasets:
        found, tile = _check_dataset(work, request, dataset)
        findings.append(found)
        if tile is not None:
            tiles[dataset] = tile
    for model, spec in request.specs.items():
        is_gated = spec.weights is not None and bool(spec.weights.gated)
        terms = ", its terms must be accepted" if is_gated else ""
        findings.append(Finding("licence", OK, f"{model}: {spec.licence}{terms}"))
        weighed = _check_weights(work, request, spec)
        findings.append(weighed)
        if weighed.state != FAIL:
            asked = [cell.dataset for cell in request.cells if cell.model == model]
            findings.append(
                _check_encoder(request, model, spec, {d: tiles[d] for d in asked if d in tiles})
            )
    return findings


def _check_dataset(
    work: Work, request: RunRequest, dataset: str
) -> tuple[Finding, np.ndarray | None]:
    """Whether the tileset is there and of the pinned revision; its first tile."""
    mend = f"Bring it: experiments.run --steps=fetch --dataset={dataset}, with the same --output."
    look = work.look_at_tiles(dataset)
    if not look.is_there:
        text = f"{dataset}: {look.done} of {look.total} files are there"
        return Finding("data", FAIL, text, mend), None
    opened, error = attempt(lambda: _open_first(work.tileset(dataset)))
    if error is not None:
        return Finding("data", FAIL, f"{dataset}: {explain(error)}", mend), None
    n_tiles, tile = opened
    text = f"{dataset}: {n_tiles} tiles, the first {tile.shape[1]} x {tile.shape[0]} px"
    if dataset in PROTOCOLS:
        image = next(source for source in SOURCES[dataset] if source.is_on_hub)
        text += f"; {image.repo} at {image.revision[:12]}, {image.licence}"
    return Finding("data", OK, text), tile


def _open_first(tileset: Tileset) -> tuple[int, np.ndarray]:
    return len(tileset), decode.decode_tile(*tileset.reader.read(0))


def _check_weights(work: Work, request: RunRequest, spec: ModelSpec) -> Finding:
    """Whether the weights are there, of this network and of the checkpoint that was asked for."""
    if not registry.needs_weights(spec):
        return Finding("weights", OK, f"{spec.name}: needs none")
    look = work.look_at_weights(spec)
    if not look.is_there:
        _, error = attempt(lambda: registry.check_encoder(spec, weights_dir=request.weights))
        why = explain(error) if error is not None else "they are of another checkpoint"
        mend = "Make them: experiments.run --steps=convert, with the same --output."
        return Finding("weights", FAIL, f"{spec.name}: {why}", mend)
    source = weights.open_converted(request.weights, spec.name).info["source"]
    parts = [str(source[name]) for name in ("repo", "revision") if source.get(name)]
    text = f"{spec.name}: {' at '.join(parts) or 'a file'}, sha256 {str(source['sha256'])[:12]}"
    return Finding("weights", OK, text)


def _check_encoder(
    request: RunRequest, model: str, spec: ModelSpec, tiles: dict[str, np.ndarray]
) -> Finding:
    """Whether the encoder takes the tiles of its datasets and gives finite embeddings."""
    if not tiles:
        return Finding("encoder", FAIL, f"{model}: no tile to try", "Mend the data first.")
    dims, error = attempt(lambda: _embed(request, spec, tiles))
    if error is None:
        shapes = ", ".join(f"{dim} of {dataset}" for dataset, dim in dims.items())
        return Finding("encoder", OK, f"{model}: finite embeddings, dimensions {shapes}")
    return Finding("encoder", FAIL, f"{model}: {explain(error)}", f"Leave {model} out, or mend it.")


def _embed(request: RunRequest, spec: ModelSpec, tiles: dict[str, np.ndarray]) -> dict[str, int]:
    """Dimensions of the embedding of a tile of each dataset."""
    encoder = registry.load_encoder(
        spec,
        preset=request.preset,
        weights_dir=request.weights if registry.needs_weights(spec) else None,
    )
    apply: Any = jax.jit(encoder.apply)
    dims: dict[str, int] = {}
    for dataset, tile in tiles.items():
        found = np.asarray(apply(encoder.params, tile[None]))
        if found.ndim != 2 or len(found) != 1:
            raise InputError(f"{dataset}: expected one embedding, found shape {found.shape}.")
        if not np.isfinite(found).all() or not found.any():
            raise InputError(f"{dataset}: the embedding of the first tile is not finite, or zero.")
        dims[dataset] = int(found.shape[1])
    return dims
