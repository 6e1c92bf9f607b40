"""The status of a run: of each step whether it is done, how far it is, or why it failed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pathorob_jax.core import files
from pathorob_jax.core.attempts import attempt, explain
from pathorob_jax.runs import failures
from pathorob_jax.runs.request import Cell, RunRequest, read_request
from pathorob_jax.runs.steps import (
    CONVERT,
    EVALUATE,
    EXTRACT,
    FETCH,
    REPORT,
    Key,
    Look,
    Step,
    list_steps,
)

DONE, PART, FAILED, WAITS, LEFT = "done", "part", "failed", "waits", "left"
NONE = "-"


@dataclass(frozen=True)
class StepState:
    """How far a step is.

    Attributes:
        key: the step.
        state: ``done``, ``part``, ``failed``, ``waits`` (a step that it needs has failed) or
            ``left``.
        done: finished parts.
        total: all parts; 0: not known yet.
        unit: what a part is.
        why: why it failed, or the step that it waits for.
        at_work: who is at it, in words.
    """

    key: Key
    state: str
    done: int = 0
    total: int = 0
    unit: str = ""
    why: str = ""
    at_work: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Status:
    """The status of a run.

    Attributes:
        output: its folder.
        cells: encoders and datasets.
        steps: by their keys, in the order of the work.
    """

    output: str
    cells: Sequence[Cell]
    steps: Mapping[Key, StepState]

    @property
    def failed(self) -> list[StepState]:
        """Steps that failed."""
        return [step for step in self.steps.values() if step.state == FAILED]

    def as_plain(self) -> list[dict[str, Any]]:
        """One mapping per step, for JSON."""
        return [
            {
                "step": step.key.kind,
                "model": step.key.model or None,
                "dataset": step.key.dataset or None,
                "state": step.state,
                "done": step.done,
                "total": step.total or None,
                "unit": step.unit,
                "why": step.why or None,
                "at_work": list(step.at_work),
            }
            for step in self.steps.values()
        ]

    def __str__(self) -> str:
        number_of = {step.key: i for i, step in enumerate(self.failed, 1)}
        parts = [self._count(), self._table(number_of)]
        if self.failed:
            parts.append(
                "\n".join(
                    [
                        "failed:",
                        *(f"{i:3} {key}: {self.steps[key].why}" for key, i in number_of.items()),
                    ]
                )
            )
        at_work = [f"{step.key}: {who}" for step in self.steps.values() for who in step.at_work]
        if at_work:
            parts.append("\n".join(["at work:", *at_work]))
        return "\n\n".join(parts)

    def _count(self) -> str:
        """How many cells are done, failed and left, and how it stands with the report."""
        states = [self._state_of(cell) for cell in self.cells]
        counts = [f"{states.count(DONE)} of {len(states)} done"]
        n_failed = states.count(FAILED)
        counts += [f"{n_failed} failed"] if n_failed else []
        n_left = len(states) - states.count(DONE) - n_failed
        counts += [f"{n_left} left"] if n_left else []
        report = self.steps[Key(REPORT)]
        index = files.join(self.output, "report", "index.html")
        if report.state == DONE:
            about = f"report of all results: {index}"
        elif report.state == FAILED:
            about = "the report failed"
        else:
            about = "the report is not of these results" if files.exists(index) else "no report yet"
        return f"{self.output}: {', '.join(counts)} (encoder on dataset); {about}"

    def _state_of(self, cell: Cell) -> str:
        """``done``, ``failed`` (here, or in what it needs) or ``left``."""
        extract, evaluate = self._pair(cell)
        states = {extract.state, evaluate.state}
        if evaluate.state == DONE and extract.state == DONE:
            return DONE
        return FAILED if states & {FAILED, WAITS} else LEFT

    def _pair(self, cell: Cell) -> tuple[StepState, StepState]:
        return self.steps[Key(EXTRACT, *cell)], self.steps[Key(EVALUATE, *cell)]

    def _table(self, number_of: Mapping[Key, int]) -> str:
        """Encoders by datasets: how far each cell is; numbers are those of the failures below."""
        datasets = list(dict.fromkeys(cell.dataset for cell in self.cells))
        models = list(dict.fromkeys(cell.model for cell in self.cells))
        converts = any(key.kind == CONVERT for key in self.steps)
        middle = [""] if converts else []
        fetched = [_word(self.steps[Key(FETCH, dataset=d)], number_of) for d in datasets]
        rows = [["", *middle, *datasets], ["fetch", *middle, *fetched]]
        rows.append(["", *(["convert"] if converts else []), *[""] * len(datasets)])
        cells = set(self.cells)
        for model in models:
            convert = self.steps.get(Key(CONVERT, model))
            row = [model]
            if converts:
                row.append(NONE if convert is None else _word(convert, number_of))
            row += [
                self._describe(Cell(model, d), number_of) if Cell(model, d) in cells else NONE
                for d in datasets
            ]
            rows.append(row)
        rows = [row for row in rows if any(row)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        return "\n".join(
            "  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        )

    def _describe(self, cell: Cell, number_of: Mapping[Key, int]) -> str:
        """How far a cell is, in a few words."""
        extract, evaluate = self._pair(cell)
        if extract.state != DONE:
            word = _word(extract, number_of)
            return word if extract.state in (LEFT, WAITS) else f"extract {word}"
        if evaluate.state == LEFT:
            return "extracted"
        word = _word(evaluate, number_of)
        return word if evaluate.state == DONE else f"evaluate {word}"


def _word(step: StepState, number_of: Mapping[Key, int]) -> str:
    if step.state == PART:
        return f"{step.done} of {step.total}"
    if step.state == FAILED:
        return f"failed ({number_of[step.key]})"
    if step.state == WAITS:
        number = next((i for key, i in number_of.items() if str(key) == step.why), 0)
        return f"waits ({number})" if number else "waits"
    return step.state


def read_status(output: str) -> Status:
    """The status of what was run into a folder.

    Raises:
        FileNotFoundError: nothing was run into this folder.
        InputError: its ``run.json`` is damaged.
    """
    request = read_request(output)
    return find_status(request, list_steps(request))


def find_status(
    request: RunRequest, steps: Sequence[Step], failed: Mapping[Key, str] | None = None
) -> Status:
    """The status of the steps of a request.

    Args:
        request: what was asked for.
        steps: its steps.
        failed: why steps failed in this process, beside what earlier ones have kept.
    """
    states: dict[Key, StepState] = {}
    for step in steps:
        key = step.key
        why = (failed or {}).get(key, "") or failures.read(request.output, key)
        look, error = attempt(step.look)
        if error is not None:
            look, why = Look(False), why or explain(error)
        blocked = [states[need] for need in step.needs if states[need].state in (FAILED, WAITS)]
        if look.is_there:
            state, why = DONE, ""
        elif blocked:
            state, why = WAITS, blocked[0].why if blocked[0].state == WAITS else str(blocked[0].key)
        elif why:
            state = FAILED
        else:
            state = PART if look.done or look.at_work else LEFT
        states[key] = StepState(key, state, look.done, look.total, look.unit, why, look.at_work)
    return Status(request.output, request.cells, states)
