"""The steps of a run: each looks at its own artefact to see whether it is there, and can make it.

``list_steps`` returns them in the order of the work: fetch, convert, then extract and evaluate for
each encoder and dataset, report. To look writes nothing. Neither are there stamps beside the
artefacts: a tileset, weights, a store, results and a report tell themselves whether they are whole
and of this request.
"""

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from absl import logging
from jax.sharding import Mesh

from pathorob_jax.core import devices, files, hosts
from pathorob_jax.core.checks import InputError
from pathorob_jax.data import fetch, synthetic_tiles
from pathorob_jax.data.protocols import PROTOCOLS
from pathorob_jax.data.sources import SOURCES
from pathorob_jax.data.tileset import Tileset, open_tileset
from pathorob_jax.embeddings import extraction
from pathorob_jax.embeddings.store_state import read_state
from pathorob_jax.evaluation import run_many
from pathorob_jax.evaluation.kept import find_kept
from pathorob_jax.evaluation.run import Request
from pathorob_jax.models import registry, weights
from pathorob_jax.models.registry import Encoder
from pathorob_jax.models.spec import ModelSpec
from pathorob_jax.report import write
from pathorob_jax.results.analyse_models import write_models
from pathorob_jax.results.over_models import FILE as MODELS_FILE
from pathorob_jax.results.write_summaries import write_summaries
from pathorob_jax.runs.request import SYNTHETIC, Cell, RunRequest

KINDS = FETCH, CONVERT, EXTRACT, EVALUATE, REPORT = (
    *("fetch", "convert", "extract"),
    *("evaluate", "report"),
)


class Converter(Protocol):
    """Makes weights of a checkpoint; the library has no converters itself."""

    def convert(
        self, spec: ModelSpec, checkpoint: str | None, *, output: str, overwrite: bool = False
    ) -> str:
        """Convert the checkpoint of an encoder into ``<output>/<name>/``."""
        ...

    def is_at_hand(self, spec: ModelSpec, checkpoint: str | None) -> bool:
        """Whether the checkpoint is on this machine."""
        ...


class Look(NamedTuple):
    """What there is of the artefact of a step.

    Attributes:
        is_there: it is whole, and of this request.
        done: finished parts.
        total: all parts; 0: not known yet.
        unit: what a part is.
        at_work: who makes it at the moment, in words.
    """

    is_there: bool
    done: int = 0
    total: int = 0
    unit: str = ""
    at_work: tuple[str, ...] = ()


class Key(NamedTuple):
    """What identifies a step; the model or the dataset is "" where a step has none."""

    kind: str
    model: str = ""
    dataset: str = ""

    def __str__(self) -> str:
        where = " on ".join(filter(None, (self.model, self.dataset)))
        return f"{self.kind} {where}".strip()


@dataclass(frozen=True, eq=False)
class Step:
    """One step of a run.

    Attributes:
        key: what it is.
        look: looks at its artefact; writes nothing.
        do: makes the artefact.
        needs: steps whose artefacts it reads.
    """

    key: Key
    look: Callable[[], Look]
    do: Callable[[], Any]
    needs: tuple[Key, ...] = ()


def list_steps(
    request: RunRequest, converter: Converter | None = None, *, mesh: Mesh | None = None
) -> list[Step]:
    """The steps of a run in order.

    Args:
        request: what is asked for.
        converter: makes weights; None: no step is done, only looked at.
        mesh: see ``execute.run``.
    """
    work = Work(request, converter, mesh)
    steps = [
        Step(
            Key(FETCH, dataset=dataset),
            functools.partial(work.look_at_tiles, dataset),
            functools.partial(work.fetch, dataset),
        )
        for dataset in request.datasets
    ]
    for model, spec in request.specs.items():
        if registry.needs_weights(spec):
            look = functools.partial(work.look_at_weights, spec)
            steps.append(Step(Key(CONVERT, model), look, functools.partial(work.convert, spec)))
    for cell in request.cells:
        needs = [Key(FETCH, dataset=cell.dataset)]
        if registry.needs_weights(request.specs[cell.model]):
            needs.append(Key(CONVERT, cell.model))
        extract, evaluate = Key(EXTRACT, *cell), Key(EVALUATE, *cell)
        steps += [
            Step(
                extract,
                functools.partial(work.look_at_store, cell),
                functools.partial(work.extract, cell),
                tuple(needs),
            ),
            Step(
                evaluate,
                functools.partial(work.look_at_results, cell),
                functools.partial(work.evaluate, cell),
                (extract,),
            ),
        ]
    return [*steps, Step(Key(REPORT), work.look_at_report, work.report)]


class Work:
    """The looks and the deeds of a run, and what several of them read."""

    def __init__(self, request: RunRequest, converter: Converter | None, mesh: Mesh | None = None):
        self._request, self._converter, self._mesh = request, converter, mesh
        self._tilesets: dict[str, Tileset] = {}
        self._loaded: tuple[str, Encoder] | None = None

    def look_at_tiles(self, dataset: str) -> Look:
        """Is the tileset there, with the tables that its protocol needs?"""
        request = self._request
        if dataset == SYNTHETIC:
            is_there = synthetic_tiles.is_written(request.tiles(dataset), request.synthetic)
            return Look(is_there, int(is_there), 1, "tileset")
        if dataset in PROTOCOLS:
            missing, total = len(fetch.survey([dataset], request.data)), len(SOURCES[dataset])
            return Look(not missing, total - missing, total, "file")
        is_there = os.path.isdir(request.tiles(dataset))
        return Look(is_there, int(is_there), 1, "tileset")

    def fetch(self, dataset: str) -> None:
        """Bring or draw the tileset."""
        request, path = self._request, self._request.tiles(dataset)
        if dataset == SYNTHETIC:
            synthetic_tiles.write_tileset(path, request.synthetic, overwrite=True)
        elif dataset in PROTOCOLS:
            fetch.fetch([dataset], request.data)
        else:
            raise InputError(
                f"{path}: expected the tileset of {dataset}. Only {', '.join(PROTOCOLS)} can be "
                "fetched; put your own tileset there, or give the folder that holds it as "
                "--data_dir."
            )

    def look_at_weights(self, spec: ModelSpec) -> Look:
        """Are there converted weights of this network and checkpoint?"""
        try:
            found = weights.open_converted(self._request.weights, spec.name)
            registry.check_encoder(spec, weights_dir=self._request.weights)
        except (InputError, OSError):
            return Look(False, 0, 1, "encoder")
        checkpoint = self._request.checkpoints.get(spec.name, "")
        is_there = True
        if os.path.isfile(checkpoint):
            wanted = (os.path.basename(checkpoint), os.path.getsize(checkpoint))
            listed = found.info["source"].get("files", ())
            is_there = wanted in [(file["name"], file["bytes"]) for file in listed]
        return Look(is_there, int(is_there), 1, "encoder")

    def convert(self, spec: ModelSpec) -> None:
        """Convert the checkpoint."""
        if self._converter is None:
            raise InputError(
                f"{spec.name}: its weights are missing; make them with python -m "
                f"converters.convert --output={self._request.weights}."
            )
        request = self._request
        checkpoint = request.checkpoints.get(spec.name)
        hosts.apart(
            self._mesh,
            self._converter.convert,
            spec,
            checkpoint,
            output=request.weights,
            overwrite=request.overwrite,
        )

    def look_at_store(self, cell: Cell) -> Look:
        """Is the store complete, and of this encoder and these tiles?"""
        if not self.look_at_tiles(cell.dataset).is_there:
            return Look(False, unit="tile")
        tileset, request = self.tileset(cell.dataset), self._request
        try:
            encoder = registry.identify(
                request.specs[cell.model], preset=request.preset, weights_dir=request.weights
            ).identity
        except (InputError, OSError):
            return Look(False, 0, len(tileset), "tile")
        state = read_state(self.store_path(cell), encoder, tileset)
        if state is None or not state.fits:
            return Look(False, 0, len(tileset), "tile")
        return Look(state.is_complete, state.rows_done, len(tileset), "tile", state.at_work)

    def extract(self, cell: Cell) -> None:
        """Embed the tiles."""
        request = self._request
        with hosts.kept_memory():
            extraction.extract(
                self.tileset(cell.dataset),
                [self._load(cell.model)],
                root=request.embeddings,
                dataset=cell.dataset,
                batch_size=request.batch_size,
                workers=request.workers,
                on_bad_image=request.on_bad_image,
                overwrite=request.overwrite,
            )

    def look_at_results(self, cell: Cell) -> Look:
        """Which metrics are there, of this store and these settings?"""
        wanted = self._request.metrics
        n = len(find_kept(self.store_path(cell), self._evaluation(cell)))
        return Look(n == len(wanted), n, len(wanted), "metric")

    def evaluate(self, cell: Cell) -> None:
        """Compute the metrics that are missing."""
        asked = self._evaluation(cell)
        kept = find_kept(self.store_path(cell), asked)
        missing = ",".join(name for name in asked.metrics if name not in kept)
        ran = run_many.evaluate_stores(
            [self.store_path(cell)],
            output=self._request.results,
            datasets=[cell.dataset],
            metrics=hosts.tell_all(self._mesh, missing).split(","),
            settings=asked.settings,
            metadata_dir=asked.metadata_dir,
            mesh=self._mesh,
            over_models=False,
            on_step=_tell,
        )
        ran.raise_failure()

    def look_at_report(self) -> Look:
        """Is the report of these results?"""
        results = self._request.results
        models = files.list_folders(results)
        try:
            is_there = write.is_current(results, self._request.report, **self._shown)
        except (InputError, OSError):
            return Look(False, 0, 1, "report")
        is_there = is_there and (len(models) < 2 or files.exists(files.join(results, MODELS_FILE)))
        return Look(is_there, int(is_there), 1, "report")

    def report(self) -> None:
        """Write what holds over datasets and over models, and the report of all results."""
        results = self._request.results
        for model in files.list_folders(results):
            write_summaries(results, model)
        write_models(results)
        write.write_report(results, self._request.report, **self._shown)

    @property
    def _shown(self) -> dict[str, Any]:
        """What of maps the report shows, and where."""
        return {"maps": self._request.maps, "tiles": self._request.tiles_shown}

    def tileset(self, dataset: str) -> Tileset:
        """The open tileset of a dataset."""
        if dataset not in self._tilesets:
            self._tilesets[dataset] = open_tileset(self._request.tiles(dataset))
        return self._tilesets[dataset]

    def store_path(self, cell: Cell) -> str:
        """Folder of the store of a cell."""
        return files.join(self._request.embeddings, *cell)

    def _evaluation(self, cell: Cell) -> Request:
        request = self._request
        return Request(
            model=cell.model,
            dataset=cell.dataset,
            metrics=request.metrics,
            settings=request.settings(cell.dataset),
            metadata_dir=request.metadata_dir(cell.dataset),
            output=request.results,
        )

    def _load(self, model: str) -> Encoder:
        """The encoder; the one before it is given up first, so that memory holds one."""
        if self._loaded is None or self._loaded[0] != model:
            self._loaded = None
            spec, mesh = self._request.specs[model], devices.local_mesh()
            encoder = registry.load_encoder(
                spec,
                preset=self._request.preset,
                weights_dir=self._request.weights if registry.needs_weights(spec) else None,
                sharding=registry.choose_sharding(spec, mesh),
            )
            self._loaded = model, encoder
        return self._loaded[1]


def _tell(number: int, total: int, step: run_many.Step) -> None:
    level = logging.ERROR if step.state == run_many.FAILED else logging.INFO
    logging.log(level, "%s", step.describe())
