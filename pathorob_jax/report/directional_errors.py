"""Errors that follow the centre: sentences, tables and a figure for any metric that has them."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pathorob_jax.report import palette
from pathorob_jax.report.panels import MODEL_KEYS, Line, Panel, Panels, unit_axis
from pathorob_jax.report.sentences import name_dataset
from pathorob_jax.report.table_cells import (
    UNDEFINED,
    Cell,
    Row,
    Table,
    defined_ends,
    format_share,
    sort_key,
)
from pathorob_jax.results.directional_errors import DirectionalError, DirectionalErrors

# Cells that the page names, tabulates and draws; the CSV table has all.
MAX_SENTENCES, MAX_ROWS, MAX_PANELS = 4, 12, 12


class ModelErrors(NamedTuple):
    """The errors of one model along the splits.

    Attributes:
        model: its name.
        cramers_v: association of class and centre at every split.
        errors: by centre and class; empty: none are known.
    """

    model: str
    cramers_v: Sequence[float]
    errors: DirectionalErrors


class Target(NamedTuple):
    """Rows of a class and centre, and what the centre stood for."""

    center: str
    label: str
    called: str


class _At(NamedTuple):
    """An error where class and centre are associated the most.

    Attributes:
        v: association at the last split with a share.
        share: there.
        first: share at the first split.
        pull: there.
        ci95: interval of the pull.
    """

    v: float
    share: float
    first: float
    pull: float
    ci95: list[float] | None


def list_targets(found: Sequence[ModelErrors]) -> list[Target]:
    """Cells of all models, the largest mean pull first."""
    pulls: dict[Target, list[float]] = {}
    for one in found:
        for target, error in _walk(one.errors):
            pulls.setdefault(target, []).append(_at_last(one, error).pull)
    means = {t: float(np.mean(v)) if np.isfinite(v).all() else -math.inf for t, v in pulls.items()}
    return sorted(means, key=lambda target: (-means[target], target))


def write_sentences(found: Sequence[ModelErrors], *, rows: str = "patches") -> list[str]:
    """What happens to each cell where class and centre are associated the most.

    Args:
        found: errors of every model.
        rows: what is called: patches, slides, queries.
    """
    texts = []
    for target in list_targets(found)[:MAX_SENTENCES]:
        ends = [
            (at.share, one.model, at)
            for one, at in _find(found, target)
            if math.isfinite(at.share) and math.isfinite(at.first)
        ]
        if not ends:
            continue
        low, high = min(ends, key=lambda e: e[:2]), max(ends, key=lambda e: e[:2])
        associations = sorted({f"{at.v:.2f}".rstrip("0").rstrip(".") for _, _, at in ends})
        firsts = [at.first for _, _, at in ends]
        now = f"{format_share(high[0])}"
        if len(ends) > 1:
            now = f"{format_share(low[0])} ({low[1]}) to {format_share(high[0])} ({high[1]})"
        was = format_share(min(firsts))
        if format_share(max(firsts)) != was:
            was = f"{was} to {format_share(max(firsts))}"
        texts.append(
            f"At V = {' or '.join(associations)}, {now} of the {target.label} {rows} of "
            f"{target.center} are called {target.called}, which {target.center} stood for in "
            f"training; without association {was}."
        )
    return texts


def build_errors(found: Sequence[ModelErrors]) -> Table:
    """Cells by models: the share at the greatest V, where it comes from, and the pull."""
    rows = []
    for target in list_targets(found)[:MAX_ROWS]:
        cells = [
            _error_cell(one, one.errors.get(target.center, {}).get(target.label)) for one in found
        ]
        rows.append(Row(f"{target.label} → {target.called}", target.center, cells))
    return Table("Errors towards the centre's class", [one.model for one in found], rows)


def build_mean_pulls(found: Sequence[tuple[str, Mapping[str, ModelErrors]]]) -> Table:
    """Models by classifiers: the mean pull over cells at the greatest V.

    Args:
        found: name of each classifier, and its errors by model.
    """
    models = list(dict.fromkeys(model for _, by_model in found for model in by_model))
    rows = []
    for model in models:
        cells = []
        for _, by_model in found:
            one = by_model.get(model)
            pulls = [] if one is None else [_at_last(one, e).pull for _, e in _walk(one.errors)]
            mean = float(np.mean(pulls)) if pulls else math.nan
            title = "" if math.isfinite(mean) else "this classifier has no such errors on record"
            cells.append(
                Cell(format_points(mean), title=title, background=_shade(mean), sort=sort_key(mean))
            )
        rows.append(Row(model, "", cells))
    return Table("Mean pull", [name for name, _ in found], rows)


def draw_errors(dataset: str, models: Sequence[str], found: Sequence[ModelErrors]) -> Panels:
    """Draw the shares by association, one panel per centre and class, one line per model.

    More models than there are colours are pale lines, with their median in black.

    Args:
        dataset: dataset named in the title.
        models: all models of the report; the position of a model determines its colour.
        found: errors of every model that has some.
    """
    is_crowd = max((models.index(one.model) for one in found), default=0) >= len(MODEL_KEYS)
    keys = [(MODEL_KEYS[models.index(one.model)], one.model) for one in found if not is_crowd]
    panels = []
    for target in list_targets(found)[:MAX_PANELS]:
        lines = []
        for one in found:
            error = one.errors.get(target.center, {}).get(target.label)
            if error is not None:
                key = "context" if is_crowd else MODEL_KEYS[models.index(one.model)]
                lines.append(Line(one.cramers_v, error.share, key, not is_crowd))
        if is_crowd:
            lines.append(_median_line(lines))
        panels.append(Panel(target.center, f"{target.label} → {target.called}", lines))
    x, y = unit_axis("Cramér’s V in training"), unit_axis("share called so")
    crowd = [("ink", "median of the models"), ("context", "one model")]
    return Panels(name_dataset(dataset), x, y, panels, crowd if is_crowd else keys)


def _median_line(lines: Sequence[Line]) -> Line:
    """The median of lines over the same splits, where any is defined."""
    v = lines[0].x
    same = np.array([line.y for line in lines if list(line.x) == list(v)], np.float64)
    known = [split[np.isfinite(split)] for split in same.T]
    middle = [float(np.median(split)) if split.size else math.nan for split in known]
    return Line(v, middle, "ink", True)


def list_rows(one: ModelErrors) -> Iterator[dict[str, Any]]:
    """One row for CSV per centre, class and split."""
    for target, error in _walk(one.errors):
        low, high = defined_ends(error.pull_ci95) or (math.nan, math.nan)
        last = _last_split(error)
        for split, v in enumerate(one.cramers_v):
            is_last = split == last
            yield {
                "center": target.center,
                "class": target.label,
                "stood_for": target.called,
                "split": split,
                "cramers_v": v,
                "share": error.share[split],
                "pull": error.pull[split],
                "pull_low": low if is_last else math.nan,
                "pull_high": high if is_last else math.nan,
            }


def format_points(value: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    if not math.isfinite(value):
        return UNDEFINED
    text = f"{100 * value:+.0f}".replace("-", "−")
    return "0" if text in ("+0", "−0") else text


def _walk(errors: DirectionalErrors) -> Iterator[tuple[Target, DirectionalError]]:
    for center, by_class in errors.items():
        for label, error in by_class.items():
            yield Target(center, label, " or ".join(error.stood_for)), error


def _find(found: Sequence[ModelErrors], target: Target) -> Iterator[tuple[ModelErrors, _At]]:
    for one in found:
        error = one.errors.get(target.center, {}).get(target.label)
        if error is not None and " or ".join(error.stood_for) == target.called:
            yield one, _at_last(one, error)


def _last_split(error: DirectionalError) -> int:
    return max((i for i, share in enumerate(error.share) if math.isfinite(share)), default=0)


def _at_last(one: ModelErrors, error: DirectionalError) -> _At:
    last = _last_split(error)
    return _At(
        one.cramers_v[last], error.share[last], error.share[0], error.pull[last], error.pull_ci95
    )


def _error_cell(one: ModelErrors, error: DirectionalError | None) -> Cell:
    if error is None:
        why = "no such rows, or a record of a version without these errors; evaluate again"
        return Cell(UNDEFINED, title=why)
    at = _at_last(one, error)
    note = f"from {format_share(at.first)}\npull {format_points(at.pull)} points"
    if ends := defined_ends(at.ci95):
        note += f"\n{' to '.join(map(format_points, ends))}"
    return Cell(
        format_share(at.share), note=note, background=_shade(at.share), sort=sort_key(at.share)
    )


def _shade(share: float) -> str:
    """From white to orange, the colour of the centre."""
    return palette.tint(share) if math.isfinite(share) else ""
