"""The figures of the metrics, as panels of one model each.

The functions take records in the order in which models are shown, and return ``Panels``.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from pathorob_jax.report import figure_layout, palette
from pathorob_jax.report.panels import (
    Area,
    Axis,
    Line,
    Mark,
    Panel,
    Panels,
    Text,
    log_axis,
    unit_axis,
)
from pathorob_jax.report.sentences import name_dataset
from pathorob_jax.report.table_cells import defined_ends, format_number
from pathorob_jax.results.clustering_score import ClusteringResult
from pathorob_jax.results.robustness_index import RobustnessIndexResult

# Of a panel with one line for each model, in pixels.
SAME_CHANCE = 0.0005  # chances that no figure and no number of three digits tells apart
_ROW, _ROW_WIDTH, _ROW_LEFT = 17.0, 345.0, 145.0
UNDEFINED = Text(0.5, 0.5, "undefined")


def draw_index(
    models: Sequence[str], panels: Sequence[tuple[str, Sequence[RobustnessIndexResult]]]
) -> Panels:
    """Draw the index of each model with its interval, one panel per dataset, one line per model.

    Args:
        models: models from top to bottom.
        panels: each dataset and its records.
    """

    def mark(record: RobustnessIndexResult) -> tuple[str, bool]:
        key = "centre" if record.robustness_index < record.null_random_features else "biology"
        return key, not record.support >= palette.LOW_SUPPORT

    x = Axis("robustness index", 0.0, 1.0, [(0, "0"), (0.25, ".25"), (0.5, ".5"), (1, "1")])
    keys = [("biology", "above chance"), ("centre", "below chance")]
    drawn = []
    for dataset, records in panels:
        chances = [r.null_random_features for r in records]
        known = [chance for chance in chances if math.isfinite(chance)]
        is_one = bool(known) and max(known) - min(known) < SAME_CHANCE
        panel = _draw_rows(
            dataset, models, records, "robustness_index", mark, known[:1] if is_one else []
        )
        if known and not is_one:
            own = [
                Line([chance] * 2, [row - 0.4, row + 0.4], "soft-dashed")
                for record, chance in zip(records, chances, strict=True)
                for row in [float(models.index(record.model))]
            ]
            panel = panel._replace(lines=[*own, *panel.lines])
        drawn.append(panel)
    return _rows_of("Robustness index by dataset", x, models, drawn, keys)


def draw_clusters(
    models: Sequence[str], panels: Sequence[tuple[str, Sequence[ClusteringResult]]]
) -> Panels:
    """Draw the clustering score of each model with its interval; arguments as in ``draw_index``."""

    def mark(record: ClusteringResult) -> tuple[str, bool]:
        return ("centre" if record.clustering_score < 0 else "biology"), False

    ticks = [(-1, "−1"), (-0.5, "−.5"), (0, "0"), (0.5, ".5"), (1, "1")]
    x = Axis("clustering score", -1.0, 1.0, ticks)
    keys = [("biology", "clusters follow classes"), ("centre", "clusters follow centres")]
    drawn = [_draw_rows(d, models, found, "clustering_score", mark, [0.0]) for d, found in panels]
    return _rows_of("Clustering score by dataset", x, models, drawn, keys)


def _rows_of(
    title: str,
    x: Axis,
    models: Sequence[str],
    panels: Sequence[Panel],
    keys: Sequence[tuple[str, str]],
) -> Panels:
    names = [(float(i), figure_layout.name_model(m)) for i, m in enumerate(models)]
    y = Axis("models", len(models) - 0.4, -0.6, names)
    return Panels(
        title,
        x,
        y,
        panels,
        keys,
        width=_ROW_WIDTH,
        height=_ROW * len(models) + 32,
        left=_ROW_LEFT,
    )


def _draw_rows(
    dataset: str,
    models: Sequence[str],
    records: Sequence[Any],
    field: str,
    mark: Callable[[Any], tuple[str, bool]],
    rules: Sequence[float],
) -> Panel:
    """One line per model: its interval, its number as a point, and the number in words."""
    lines, marks = [], []
    for record in records:
        row, value = float(models.index(record.model)), getattr(record, field)
        if not math.isfinite(value):
            continue
        key, is_hollow = mark(record)
        words = f"{record.model}: {format_number(value)}"
        if ends := defined_ends(record.ci95):
            lines.append(Line(ends, [row, row], "ink"))
            words += f" ({format_number(ends[0])} to {format_number(ends[1])})"
        marks.append(Mark(value, row, key, is_hollow, title=words))
    texts = () if marks else (UNDEFINED,)
    return Panel(name_dataset(dataset), "", lines, (), marks, texts, rules)


def draw_curves(dataset: str, models: Sequence[str], records: Sequence[Any]) -> Panels:
    """Draw the index and kNN balanced accuracy for biology against k, one panel per model.

    Args:
        dataset: dataset named in the title.
        models: all models of the report.
        records: records of this dataset, in the order of ``models``.
    """
    del models
    context, panels = [], []
    for record in records:
        index = figure_layout.thin_points(record.curve.k, keep=record.k, max_points=40)
        k = np.asarray(record.curve.k, np.float64)[index]
        lines = []
        for field, key in (("balanced_accuracy", "soft-dashed"), ("robustness_index", "ink")):
            values = np.asarray(getattr(record.curve, field), np.float64)[index]
            lines.append(Line(k.tolist(), values.tolist(), key))
        context.append(lines[-1])
        value = record.robustness_index
        defined = math.isfinite(value) or any(np.isfinite(line.y).any() for line in lines)
        panels.append(
            Panel(
                record.model,
                format_number(value),
                lines,
                (),
                [
                    Mark(record.k, getattr(record, field), "ink", True, title=f"k = {record.k}")
                    for field in ("robustness_index", "balanced_accuracy")
                    if math.isfinite(getattr(record, field))
                ],
                () if defined else (Text(0.1, 0.5, "undefined for every k"),),
                y_rules=[*filter(math.isfinite, [record.null_random_features])],
                model=record.model,
            )
        )
    return Panels(
        name_dataset(dataset),
        _k_axis(records),
        unit_axis("index, accuracy"),
        panels,
        [("ink", "robustness index"), ("soft-dashed", "kNN balanced accuracy, biology")],
        context if len(records) > 1 else (),
    )


def draw_composition(dataset: str, records: Sequence[RobustnessIndexResult]) -> Panels:
    """Draw the types of neighbours by k, one panel per model, with the operating k marked."""
    panels = []
    for record in records:
        k, fractions = figure_layout.stack_composition(record.curve, keep=record.k)
        edges = np.concatenate([np.zeros((1, k.size)), np.cumsum(fractions, axis=0)])
        areas = [
            Area(k.tolist(), edges[i].tolist(), edges[i + 1].tolist(), kind.key)
            for i, kind in enumerate(palette.NEIGHBOR_TYPES)
            if k.size
        ]
        note = format_number(record.robustness_index)
        texts = () if k.size else (UNDEFINED,)
        panel = Panel(record.model, note, (), areas, texts=texts, x_rules=[record.k])
        panels.append(panel._replace(model=record.model))
    y = unit_axis("share of neighbours")
    keys = [(kind.key, kind.words) for kind in palette.NEIGHBOR_TYPES]
    return Panels(name_dataset(dataset), _k_axis(records), y, panels, keys)


def _k_axis(records: Sequence[Any]) -> Axis:
    every = [k for record in records for k in (*record.curve.k, record.k)]
    return log_axis("k, neighbours outside the own slide (log)", every)


def draw_drop(dataset: str, models: Sequence[str], records: Sequence[Any]) -> Panels:
    """Draw accuracy against the association of class and centre, in and out of domain.

    Args:
        dataset: dataset named in the title.
        models: all models of the report.
        records: records of this dataset, in the order of ``models``: ``ApdResult``, or anything
            with its fields ``model``, ``cramers_v``, ``id_accuracy_means``, ``ood_accuracy_means``,
            ``chance`` and ``n_ood_test_rows``.
    """
    return draw_by_association(
        name_dataset(dataset),
        models,
        [
            AssociationCurve(r.model, r.cramers_v, r.id_accuracy_means, r.ood_accuracy_means)
            for r in records
        ],
        chances=[record.chance for record in records],
        has_ood=any(record.n_ood_test_rows for record in records),
        measure="balanced accuracy",
    )


class AssociationCurve(NamedTuple):
    """A measure of one model at every split of a schedule; NaN where it is undefined.

    Attributes:
        model: name of the model.
        cramers_v: association of class and centre in the splits.
        inside: of test rows in domain.
        outside: of test rows out of domain.
    """

    model: str
    cramers_v: Sequence[float]
    inside: Sequence[float]
    outside: Sequence[float]


def draw_by_association(
    title: str,
    models: Sequence[str],
    curves: Sequence[AssociationCurve],
    *,
    chances: Sequence[float],
    has_ood: bool,
    measure: str,
) -> Panels:
    """Draw a measure against the association of class and centre, one panel per model.

    Args:
        title: of the figure.
        models: all models of the report.
        curves: one for each model shown, in the order of ``models``.
        chances: value by chance of each curve, or one for all, drawn as a line.
        has_ood: whether there is anything out of domain to show.
        measure: name of the measure, in [0, 1].
    """
    del models
    known = [v for c in curves for values in (c.inside, c.outside) for v in values if v == v]
    low = math.floor(10 * min([*known, *chances], default=0.0)) / 10
    ticks = [(v, f"{v:.1f}".replace("0.", ".")) for v in (low, (low + 1) / 2)]
    panels = []
    for curve, chance in zip(curves, itertools.cycle(chances), strict=False):
        lines = [Line(curve.cramers_v, curve.inside, "ink")]
        if has_ood:
            lines.insert(0, Line(curve.cramers_v, curve.outside, "centre-dashed"))
        defined = any(math.isfinite(v) for line in lines for v in line.y)
        ends = [v for v in curve.inside if math.isfinite(v)]
        note = f"{format_number(ends[0])} → {format_number(ends[-1])}" if ends else ""
        panel = Panel(curve.model, note, lines, texts=() if defined else (UNDEFINED,))
        panels.append(panel._replace(y_rules=[chance], model=curve.model))
    keys = [("ink", "in domain: test rows of the training centres")]
    keys += [("centre-dashed", "out of domain: of other centres")] if has_ood else []
    x = unit_axis("association of class and centre in training, Cramér’s V")
    y = Axis(measure, low, 1.0, [*ticks, (1.0, "1")])
    context = [curve_line for panel in panels for curve_line in panel.lines[-1:]]
    return Panels(title, x, y, panels, keys, context if len(panels) > 1 else ())
