"""Evaluate many stores: one failure does not end the run.

``evaluate_stores`` computes every metric of every store. What fails is kept as a ``Step`` with its
error, and the other metrics and stores go on. An output that cannot be written ends the run, since
nothing could be kept.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from absl import logging
from jax.sharding import Mesh

from pathorob_jax.core import faults, hosts
from pathorob_jax.core.attempts import attempt, explain
from pathorob_jax.core.checks import InputError
from pathorob_jax.core.faults import WriteError
from pathorob_jax.core.progress import labelled
from pathorob_jax.data.manifest import Manifest
from pathorob_jax.embeddings import store_search
from pathorob_jax.embeddings.store import open_store
from pathorob_jax.evaluation.embedding_maps import MapSettings
from pathorob_jax.evaluation.run import (
    DEFAULT_METRICS,
    Evaluation,
    Request,
    as_names,
    plan_evaluations,
)
from pathorob_jax.evaluation.settings import Settings
from pathorob_jax.results import registry
from pathorob_jax.results.analyse_models import write_models
from pathorob_jax.results.write_summaries import write_summaries

SUMMARY = "summary"
WAITING, DONE, FAILED = "not started", "done", "failed"


@dataclass(frozen=True, eq=False)
class Step:
    """A metric, or the maps, of one store and confounder.

    Attributes:
        model: name of the model.
        dataset: name of the dataset in the results.
        part: name of the metric, ``maps``, or ``summary`` over the datasets of a model.
        state: ``not started``, ``done`` or ``failed``.
        record: the record, if it is a metric that is done.
        error: why it failed.
    """

    model: str
    dataset: str
    part: str
    state: str = WAITING
    record: Any | None = None
    error: Exception | None = None

    def describe(self) -> str:
        """One line: the record in short, or what failed and why."""
        where = f"{self.model} on {self.dataset}"
        if self.record is not None:
            return str(self.record.describe())
        return f"{where}: {self.part}: {self.state}" + (f": {self.why}" if self.why else "")

    @property
    def why(self) -> str:
        """Why it failed; "" if it did not."""
        return "" if self.error is None else explain(self.error)


@dataclass(frozen=True, eq=False)
class Run:
    """What became of a run.

    Attributes:
        steps: all metrics and maps in order.
    """

    steps: list[Step] = field(default_factory=list)

    @property
    def failed(self) -> list[Step]:
        """Steps that failed."""
        return [step for step in self.steps if step.state == FAILED]

    @property
    def records(self) -> list[Any]:
        """Records of all metrics that are done."""
        return [step.record for step in self.steps if step.record is not None]

    def __str__(self) -> str:
        """A table: state, model and dataset, metric, and the number or why there is none."""
        rows = []
        for step in self.steps:
            number = "" if step.record is None else f"{step.record.value:.4f}"
            where = f"{step.model} on {step.dataset}"
            rows.append((step.state, where, step.part, number or step.why))
        widths = [max((len(row[i]) for row in rows), default=0) for i in range(3)]
        lines = (
            "  ".join([*(f"{v:<{w}}" for v, w in zip(row[:3], widths, strict=True)), row[3]])
            for row in rows
        )
        return "\n".join(line.rstrip() for line in lines)

    def raise_failure(self) -> None:
        """Raise if anything failed.

        Raises:
            InputError: some steps failed.
            Exception: the error itself where it is the only reason and nothing is done.
        """
        failed = self.failed
        if not failed:
            return
        if not self.records and len({step.why for step in failed}) == 1 and failed[0].error:
            raise failed[0].error
        left = sum(step.state == WAITING for step in self.steps)
        raise InputError(
            f"{len(failed)} of {len(self.steps)} failed"
            f"{f' and {left} were not started' if left else ''}; the first was "
            f"{failed[0].describe().rstrip('.')}. Mend that and give the same command again; "
            "finished neighbours, repetitions and combinations are reused."
        )


def evaluate_stores(
    embeddings: Sequence[str],
    *,
    output: str,
    datasets: Sequence[str] = (),
    metrics: Sequence[str] = DEFAULT_METRICS,
    settings: Settings | None = None,
    metadata_dir: str | None = None,
    manifest: str | Manifest | None = None,
    maps: MapSettings | None = None,
    mesh: Mesh | None = None,
    stop_on_failure: bool = False,
    over_models: bool = True,
    on_step: Callable[[int, int, Step], None] | None = None,
) -> Run:
    """Compute metrics of all stores below some folders, and write them as they are computed.

    Args:
        embeddings: folders ``<root>``, ``<root>/<model>`` or ``<root>/<model>/<dataset>``.
        output: folder of all results.
        datasets: names of datasets; empty: all.
        metrics: names of ``results.registry.KINDS``.
        settings: choices of the user.
        metadata_dir: folder of the protocol's metadata files.
        manifest: rows and labels of a custom dataset, or their file; None: those of the stores.
        maps: also make maps.
        mesh: devices; None: all local devices; see ``run.Request``.
        stop_on_failure: end with the first failure. The default goes on with what does not depend
            on it.
        over_models: also write what holds over all models there.
        on_step: called with (number from 1, count, step) when a step is done or has failed.

    Returns:
        All steps, with the error of each that failed.

    Raises:
        FileNotFoundError: there is no store.
        UsageError: a metric is unknown, or settings exclude each other.
        InputError: ``output`` cannot be written.

    >>> import numpy as np, pathorob_jax as pr
    >>> rows = {"slide_id": np.arange(48) // 4, "patch_id": np.arange(48)}
    >>> rows |= {"biological_class": ["tumor", "normal"] * 24}
    >>> rows |= {"medical_center": ["A"] * 24 + ["B"] * 24}
    >>> np.save("x.npy", np.random.default_rng(0).normal(size=(48, 8)))
    >>> store = pr.import_embeddings("x.npy", rows, root="embeddings", model="mine", dataset="ours")
    >>> run = pr.evaluate_stores(["embeddings"], output="results", settings=pr.Settings(k=5))
    >>> [(step.model, step.dataset, step.part, step.state) for step in run.steps]
    [('mine', 'ours', 'robustness_index', 'done')]
    """
    settings = settings or Settings()
    settings.check()
    names = as_names(metrics)
    for name in names:
        registry.get_kind(name)
    faults.check_writable(output)
    requests = [
        (
            place.path,
            Request(
                model=place.model,
                dataset=place.dataset,
                metrics=names,
                settings=settings,
                metadata_dir=metadata_dir,
                manifest=manifest,
                output=output,
                mesh=mesh,
                maps=maps,
            ),
        )
        for place in store_search.find_all(embeddings, datasets)
    ]
    run = Run([step for _, request in requests for step in _plan(request)])
    number = 0
    for path, request in requests:
        for step in _steps(path, request, number, len(run.steps)):
            if step.part == SUMMARY:
                run.steps.append(step)
            else:
                run.steps[number] = step
                number += 1
            if on_step is not None:
                on_step(min(number, len(run.steps)), len(run.steps), step)
            if step.error is not None and (stop_on_failure or isinstance(step.error, WriteError)):
                return run
    if run.records and over_models and hosts.leads(mesh):
        _write_models(output)
    return run


def _write_models(output: str) -> None:
    """Write what holds over all models there; what cannot be read costs only that."""
    _, error = attempt(lambda: write_models(output))
    if error is not None:
        logging.warning("the analyses over models were not written: %s", explain(error))


def _plan(request: Request) -> list[Step]:
    """Steps of a store, none of which has begun."""
    names = [request.dataset]
    if request.settings.confounders:
        names = [f"{request.dataset}@{column}" for column in request.settings.confounders]
    return [Step(request.model, name, part) for name in names for part in request.parts]


def _steps(path: str, request: Request, number: int, total: int) -> Iterator[Step]:
    """Compute the steps of a store one by one."""
    planned = iter(_plan(request))

    def check_and_open() -> Iterator[Evaluation]:
        with hosts.together_on(request.mesh, path):
            request.check()
            store = open_store(path)
        return plan_evaluations(store, request)

    evaluations, error = attempt(check_and_open)
    for step in planned if error else ():
        yield replace(step, state=FAILED, error=error)
    for evaluation in evaluations or ():
        for part in request.parts:
            number += 1
            with labelled(f"{number} of {total}: {request.model} on {evaluation.dataset}: {part}"):
                finished, error = attempt(functools.partial(evaluation.finish, part))
            step = replace(next(planned), dataset=evaluation.dataset)
            if error is not None:
                yield replace(step, state=FAILED, error=error)
            else:
                yield replace(step, state=DONE, record=finished.record)
    if not hosts.leads(request.mesh):
        return
    _, error = attempt(lambda: write_summaries(request.output or "", request.model))
    if error is not None:
        yield Step(request.model, "all datasets", SUMMARY, FAILED, None, error)
