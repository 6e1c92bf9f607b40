"""Figures of the feature space: class and centre by principal component."""

from collections.abc import Sequence

import numpy as np

from pathorob_jax.report import figure_layout
from pathorob_jax.report.figures import UNDEFINED
from pathorob_jax.report.panels import Line, Panel, Panels, log_axis, unit_axis
from pathorob_jax.report.sentences import name_dataset
from pathorob_jax.results.feature_space import FeatureSpaceResult

KEYS = (
    ("biology", "η² of the class"),
    ("centre", "η² of the centre"),
    ("soft-dashed", "share of all variance up to the component"),
)


def draw_components(dataset: str, records: Sequence[FeatureSpaceResult]) -> Panels:
    """Draw eta^2 of class and centre by component, and the cumulative variance, for each model.

    Args:
        dataset: dataset named in the title.
        records: records of this dataset, in the order in which models are shown.
    """
    last = max((len(r.variance_share or []) for r in records), default=1)
    x = log_axis("principal component (log)", [1, max(last, 2)])
    panels = [_draw_panel(record) for record in records]
    return Panels(name_dataset(dataset), x, unit_axis("share"), panels, KEYS)


def _draw_panel(record: FeatureSpaceResult) -> Panel:
    component = np.arange(1, len(record.variance_share or []) + 1)
    shown = figure_layout.thin_points(component.tolist(), keep=1, max_points=70)
    lines = [
        Line(component[shown].tolist(), np.asarray(values, np.float64)[shown].tolist(), key)
        for values, key in (
            (record.cumulative_variance, "soft-dashed"),
            (record.eta2_class, "biology"),
            (record.eta2_center, "centre"),
        )
        if values is not None
    ]
    texts = (UNDEFINED,) if record.eta2_class is None else ()
    return Panel(record.model, "", lines, texts=texts, model=record.model)
