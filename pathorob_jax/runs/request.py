"""What a run is asked for, and where everything of it lies.

``<output>/`` has ``tiles/`` (the synthetic tileset), ``data/`` (fetched), ``weights/``,
``embeddings/``, ``results/``, ``report/``, ``run.json`` (what was asked for, for its status) and
``failures/``.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from pathorob_jax.core import checks, faults, files, folder_names, sealed_files
from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.data.manifest import CENTER, CLASS
from pathorob_jax.data.protocols import PROTOCOLS
from pathorob_jax.data.synthetic_tiles import SyntheticConfig
from pathorob_jax.data.tile_batches import OnBadImage
from pathorob_jax.evaluation.settings import Settings
from pathorob_jax.models import registry
from pathorob_jax.models.spec import ModelSpec
from pathorob_jax.results.registry import get_kind

SYNTHETIC = "synthetic"
RUN_FILE, FAILURES = "run.json", "failures"
SCHEMA_VERSION = 1
MODELS = ("color_stats", "nuclear_texture", "vit_random")
METRICS = ("robustness_index", "margins", "probes")
# The synthetic dataset has no published k; this is that of PathoROB's smallest.
SYNTHETIC_K = 61


class Cell(NamedTuple):
    """One encoder on one dataset. The model is the name of the encoder's stores."""

    model: str
    dataset: str


@dataclass(frozen=True, eq=False)
class RunRequest:
    """What a run is asked for.

    Attributes:
        output: local folder of everything that the run writes.
        specs: encoders by the name of their stores.
        cells: which encoder on which dataset, in order.
        spec_files: files of the specs that are not in the registry, by the same names.
        metrics: names of ``results.registry.KINDS``.
        k: neighbours, as ``Settings.k``; None: 61 for the synthetic dataset, else ``default``.
        data_dir: folder of fetched data and of your own tilesets, ``<data_dir>/<dataset>``; None:
            ``<output>/data``.
        weights_dir: folder of converted weights; None: ``<output>/weights``.
        checkpoints: file, folder or ``hf://`` name of a checkpoint, by the encoder's own name.
        preset: as of ``registry.load_encoders``.
        batch_size: tiles per device and step; None: measured.
        workers: processes that decode images.
        on_bad_image: ``error`` or ``skip``.
        overwrite: replace artefacts of another configuration.
        synthetic: the synthetic tileset.
        maps: where the report has maps that are there, as of ``write_report``.
        tiles_shown: folder of the tileset whose tiles those maps show; None: none.
    """

    output: str
    specs: Mapping[str, ModelSpec]
    cells: tuple[Cell, ...]
    spec_files: Mapping[str, str] = field(default_factory=dict)
    metrics: tuple[str, ...] = METRICS
    k: int | str | None = None
    data_dir: str | None = None
    weights_dir: str | None = None
    checkpoints: Mapping[str, str] = field(default_factory=dict)
    preset: str = "authors"
    batch_size: int | None = None
    workers: int = 0
    on_bad_image: OnBadImage = "error"
    overwrite: bool = False
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    maps: str = "inside"
    tiles_shown: str | None = None

    @cached_property
    def datasets(self) -> tuple[str, ...]:
        """Datasets of the cells, in order."""
        return tuple(dict.fromkeys(cell.dataset for cell in self.cells))

    @property
    def data(self) -> str:
        """Folder of fetched data."""
        return self.data_dir or files.join(self.output, "data")

    @property
    def weights(self) -> str:
        """Folder of converted weights."""
        return self.weights_dir or files.join(self.output, "weights")

    @property
    def embeddings(self) -> str:
        """Root of the stores."""
        return files.join(self.output, "embeddings")

    @property
    def results(self) -> str:
        """Root of the results."""
        return files.join(self.output, "results")

    @property
    def report(self) -> str:
        """Folder of the report."""
        return files.join(self.output, "report")

    def tiles(self, dataset: str) -> str:
        """Folder of a dataset's tileset."""
        if dataset == SYNTHETIC:
            return files.join(self.output, "tiles")
        return files.join(self.data, dataset)

    def metadata_dir(self, dataset: str) -> str | None:
        """Folder of the metadata of PathoROB's datasets; None for others."""
        return files.join(self.data, "metadata") if dataset in PROTOCOLS else None

    def settings(self, dataset: str) -> Settings:
        """Settings of a dataset's evaluation: those of ``experiments.evaluate`` without flags."""
        k = self.k if self.k is not None else SYNTHETIC_K if dataset == SYNTHETIC else "default"
        return Settings(k=k, columns={CLASS: CLASS, CENTER: CENTER})

    def remember(self) -> None:
        """Write ``run.json``, with the cells of earlier runs of the same settings.

        Raises:
            WriteError: the output cannot be written.
        """
        faults.check_writable(self.output)
        mine = self._as_plain()
        kept = _read(self.output) if files.exists(_path(self.output)) else None
        if kept is not None and kept["settings"] == mine["settings"]:
            mine["spec_files"] = kept["spec_files"] | mine["spec_files"]
            mine["models"] = kept["models"] | mine["models"]
            old = [cell for cell in kept["cells"] if cell not in mine["cells"]]
            mine["cells"] = old + mine["cells"] if old else mine["cells"]
        if kept is None or {**kept, "schema_version": SCHEMA_VERSION} != mine:
            sealed_files.write_json(_path(self.output), mine)

    def _as_plain(self) -> dict[str, Any]:
        settings = {
            "metrics": list(self.metrics),
            "k": self.k,
            "preset": self.preset,
            "data_dir": _absolute(self.data_dir),
            "weights_dir": _absolute(self.weights_dir),
            "n_slides": self.synthetic.n_slides,
            "n_tiles": self.synthetic.n_tiles,
            "tile_px": self.synthetic.tile_px,
        }
        return {
            "schema_version": SCHEMA_VERSION,
            "settings": settings,
            "models": {name: spec.name for name, spec in self.specs.items()},
            "spec_files": {name: str(_absolute(p)) for name, p in self.spec_files.items()},
            "cells": [list(cell) for cell in self.cells],
            "report": {"maps": self.maps, "tiles_shown": _absolute(self.tiles_shown)},
        }


def make_request(
    *,
    output: str,
    models: Sequence[str] = (),
    spec_files: Sequence[str] = (),
    datasets: Sequence[str] = (),
    metrics: Sequence[str] = METRICS,
    checkpoints: Sequence[str] = (),
    preset: str = "authors",
    **choices: Any,
) -> RunRequest:
    """A checked request of all encoders on all datasets.

    Args:
        output: local folder.
        models: names in the registry; with no ``spec_files`` either, the three demo encoders.
        spec_files: YAML files of other encoders.
        datasets: PathoROB's names, ``synthetic``, or names of folders of ``data_dir``; empty:
            ``synthetic``.
        metrics: names of ``results.registry.KINDS``.
        checkpoints: ``<model>=<file or folder>``; without ``<model>=`` that of the only encoder
            with weights.
        preset: as of ``registry.load_encoders``.
        choices: the other attributes of ``RunRequest``.

    Raises:
        UsageError: a name is unknown, repeated, or cannot be a folder; an encoder cannot be run.
        FileNotFoundError: there is no such file of specs.
    """
    if not output.strip() or files.is_remote(output):
        raise UsageError(f"output: expected a local folder, found {output!r}.")
    models = models or (() if spec_files else MODELS)
    named = [(registry.get_spec(name), "") for name in models]
    for path in spec_files:
        named += [(spec, path) for spec in registry.read_specs(path).values()]
    specs: dict[str, ModelSpec] = {}
    for spec, path in named:
        name = registry.name_of(spec, preset=preset)
        if name in specs:
            raise UsageError(f"model: {name} is given more than once{f' ({path})' * bool(path)}.")
        specs[name] = spec
    datasets = tuple(datasets) or (SYNTHETIC,)
    for dataset in datasets:
        folder_names.check_dataset_name(dataset)
    if len(set(datasets)) < len(datasets):
        raise UsageError(f"dataset: expected each once, found {', '.join(datasets)}.")
    for metric in metrics:
        get_kind(metric)
    request = RunRequest(
        output=output,
        specs=specs,
        cells=tuple(Cell(name, dataset) for name in specs for dataset in datasets),
        spec_files={name: path for (_, path), name in zip(named, specs, strict=True) if path},
        metrics=tuple(metrics),
        checkpoints=_read_checkpoints(checkpoints, list(specs.values())),
        preset=preset,
        **choices,
    )
    request.settings(datasets[0]).check()
    return request


def _read_checkpoints(texts: Sequence[str], specs: Sequence[ModelSpec]) -> dict[str, str]:
    with_weights = [spec.name for spec in specs if registry.needs_weights(spec)]
    found: dict[str, str] = {}
    for text in texts:
        model, separator, path = text.partition("=")
        if not separator:
            if len(with_weights) != 1 or len(texts) > 1:
                raise UsageError(
                    f"checkpoint: expected <model>=<file or folder>, found {text!r}; "
                    f"{len(with_weights)} of the encoders have weights."
                )
            model, path = with_weights[0], text
        checks.check_known(model, with_weights, what="checkpoint: model")
        found[model] = path
    return found


def read_request(output: str) -> RunRequest:
    """The request that runs into a folder have left there.

    Raises:
        FileNotFoundError: nothing was run into this folder.
        InputError: its ``run.json`` is damaged, or a spec that it names is no longer there.
    """
    path = _path(output)
    if not files.exists(path):
        raise FileNotFoundError(
            f"{output}: nothing was run into this folder (no {RUN_FILE}); give the --output of "
            "experiments.run."
        )
    kept = _read(output)
    known = {file: registry.read_specs(file) for file in dict.fromkeys(kept["spec_files"].values())}
    specs: dict[str, ModelSpec] = {}
    for name, model in kept["models"].items():
        file = kept["spec_files"].get(name)
        pool = known[file] if file else registry.MODELS
        checks.check_known(model, pool, what=f"{path}: model")
        specs[name] = pool[model]
    settings = dict(kept["settings"])
    tiles = {name: settings.pop(name) for name in ("n_slides", "n_tiles", "tile_px")}
    settings["metrics"] = tuple(settings["metrics"])
    return RunRequest(
        output=output,
        specs=specs,
        cells=tuple(Cell(*cell) for cell in kept["cells"]),
        spec_files=kept["spec_files"],
        synthetic=SyntheticConfig(**tiles),
        **settings,
        **kept.get("report", {}),
    )


def _read(output: str) -> dict[str, Any]:
    try:
        return sealed_files.read_json(_path(output), schema_version=SCHEMA_VERSION)
    except InputError as error:
        raise InputError(
            f"{error} Remove it: it only tells the status what was asked for, and the next run "
            "writes it again."
        ) from error


def _path(output: str) -> str:
    return files.join(output, RUN_FILE)


def _absolute(path: str | None) -> str | None:
    return None if path is None else os.path.abspath(os.path.expanduser(path))
