"""Compare models on the same draws of slides.

The intervals of two models may overlap although one leads in every draw, because slides that are
hard for one model are hard for the other. Models are therefore ranked, and their differences
computed, draw by draw. Models with draws of other slides are left out, with the reason.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from pathorob_jax.kernels.bootstrap import intervals
from pathorob_jax.models.names import is_control
from pathorob_jax.results import power
from pathorob_jax.results.over_datasets import group_by_confounder, mean_draws

# Why a control has no rank.
CONTROL = "a control, not ranked among encoders"


class Entry(NamedTuple):
    """One statistic of one model.

    Attributes:
        model: name of the model.
        value: value from all rows; NaN if undefined.
        key: key of the groups and draws; only entries with equal keys share draws.
        draws: float64[draws]; None if none were kept.
        n_slides: slides that were drawn; 0 if unknown.
        parts: the entries of a mean over datasets, by dataset.
    """

    model: str
    value: float
    key: str
    draws: np.ndarray | None
    n_slides: int = 0
    parts: tuple["Entry", ...] = ()


@dataclass(frozen=True)
class Pair:
    """Difference of a statistic between two models; the interval is over shared draws.

    ``share_positive`` is the share of draws in which the first model is ahead. ``slides`` there
    are, over all datasets; at ``slides_needed`` the difference, were it the true one, is found with
    80 % probability, and at ``slides_at_least`` the farther end of its interval (``power.Plan``).
    """

    model_a: str
    model_b: str
    difference: float
    low: float
    high: float
    share_positive: float
    slides: int = 0
    slides_needed: int | None = None
    slides_at_least: int | None = None

    @property
    def is_apart(self) -> bool:
        """Whether the interval of the difference lies on one side of 0, and has a width."""
        return not self.has_no_width and (self.low > 0 or self.high < 0)

    @property
    def has_no_width(self) -> bool:
        """Whether no slide changes the difference, so that its error is unknown."""
        return abs(self.high - self.low) < power.NO_WIDTH

    def turned(self) -> "Pair":
        """The same pair, the second model less the first; draws that tie count for the second."""
        return replace(
            self,
            model_a=self.model_b,
            model_b=self.model_a,
            difference=-self.difference,
            low=-self.high,
            high=-self.low,
            share_positive=1 - self.share_positive,
        )


@dataclass(frozen=True)
class Contender:
    """A model among its comparable models; ``behind`` is its difference to the best.

    ``place_share`` is the share of draws in which it stands at the place that its value gives.
    """

    model: str
    value: float
    low: float
    high: float
    mean_rank: float
    rank_low: float
    rank_high: float
    first_share: float
    place_share: float
    behind: Pair | None


@dataclass(frozen=True)
class Comparison:
    """Comparison of models on one dataset by one statistic, the highest first.

    Controls are in ``pairs``, but rank only where fewer than two encoders are compared.
    ``dataset`` is empty for the mean over datasets, which are those of one ``confounder`` (empty:
    the medical centre); ``left_out`` names the models that cannot be compared with the others, each
    with the reason.
    """

    statistic: str
    dataset: str
    contenders: list[Contender]
    pairs: list[Pair]
    left_out: list[tuple[str, str]]
    confounder: str = ""

    @property
    def level_with_best(self) -> list[str]:
        """Models whose difference to the best cannot be distinguished from 0."""
        behind = [c.behind for c in self.contenders if c.behind]
        return [p.model_a for p in behind if not (p.is_apart and p.high < 0)]

    @property
    def shared_ranks(self) -> dict[str, int]:
        """Rank of each model: one more than the models that are told apart as better.

        Models whose difference's interval holds 0, or is undefined, are not told apart.
        """
        ranked = {c.model for c in self.contenders}
        ahead = Counter(
            pair.model_b
            for pair in self.pairs
            if pair.model_a in ranked and pair.is_apart and pair.low > 0
        )
        return {c.model: 1 + ahead[c.model] for c in self.contenders}


def compare_all(
    statistic: str,
    entries: Mapping[str, Sequence[Entry]],
    *,
    bounds: intervals.Bounds = intervals.UNBOUNDED,
) -> list[Comparison]:
    """Compare on every dataset, and by the mean over datasets if a confounder has several.

    Args:
        statistic: name of the statistic.
        entries: for each dataset, one entry per model that was evaluated on it.
        bounds: range of the statistic.

    Returns:
        The means over datasets first, one for each confounder, then the datasets in their order.
    """
    chosen = {dataset: _choose(found) for dataset, found in entries.items()}
    single = [
        _compare(statistic, dataset, kept, left_out, bounds)
        for dataset, (kept, left_out) in chosen.items()
    ]
    models = list(dict.fromkeys(e.model for found in entries.values() for e in found))
    means = []
    for confounder, datasets in group_by_confounder(entries).items():
        if len(datasets) > 1:
            present = [m for m in models if any(m == e.model for d in datasets for e in entries[d])]
            kept, left_out = _average({d: chosen[d][0] for d in datasets}, present)
            mean = _compare(statistic, "", kept, left_out, bounds)
            means.append(replace(mean, confounder=confounder))
    return [*means, *single]


def _choose(entries: Sequence[Entry]) -> tuple[list[Entry], list[tuple[str, str]]]:
    """Largest set of entries that share draws, and the reason for each of the others."""
    reasons: dict[str, str] = {}
    for entry in entries:
        if not math.isfinite(entry.value):
            reasons[entry.model] = "its value is undefined"
        elif entry.draws is None or not len(entry.draws):
            reasons[entry.model] = "its draws are missing; evaluate it again"
        elif not np.isfinite(intervals.interval(entry.value, entry.draws).low):
            reasons[entry.model] = "it is undefined in most draws"
    usable = [entry for entry in entries if entry.model not in reasons]
    counts = Counter(entry.key for entry in usable)
    # If sets are equally large, the set with the highest value is used.
    key = max(usable, key=lambda e: (counts[e.key], e.value)).key if usable else ""
    for entry in usable:
        if entry.key != key:
            reasons[entry.model] = "its draws are of other slides, patches, seed or number"
    return [e for e in usable if e.key == key], list(reasons.items())


def _average(
    chosen: Mapping[str, Sequence[Entry]], models: Sequence[str]
) -> tuple[list[Entry], list[tuple[str, str]]]:
    """Entries of the mean over datasets, for models that are compared on each dataset."""
    by_model: dict[str, dict[str, Entry]] = {model: {} for model in models}
    for dataset, found in chosen.items():
        for entry in found:
            by_model[entry.model][dataset] = entry
    kept, left_out = [], []
    for model, own in by_model.items():
        lacking = [dataset for dataset in chosen if dataset not in own]
        draws = mean_draws([entry.draws for entry in own.values()])
        if lacking:
            left_out.append((model, f"not compared on {', '.join(lacking)}"))
        elif draws is None:
            left_out.append((model, "the numbers of draws differ between datasets"))
        else:
            value = float(np.mean([entry.value for entry in own.values()]))
            kept.append(Entry(model, value, "", draws, parts=tuple(own.values())))
    return kept, left_out


def _compare(
    statistic: str,
    dataset: str,
    entries: Sequence[Entry],
    left_out: list[tuple[str, str]],
    bounds: intervals.Bounds,
) -> Comparison:
    """Rank entries that share draws; differences use the values, intervals use the draws."""
    entries = sorted(entries, key=lambda e: (-e.value, e.model))
    if not entries:
        return Comparison(statistic, dataset, [], [], left_out)
    draws = np.stack([e.draws for e in entries if e.draws is not None])
    pairs = [
        pair
        for i in range(len(entries) - 1)
        for pair in _pair(entries[i], entries[i + 1 :], draws[i], draws[i + 1 :], bounds)
    ]
    ranked = [i for i, entry in enumerate(entries) if not is_control(entry.model)]
    if len(ranked) < 2:
        ranked = list(range(len(entries)))
    left_out = [*left_out, *((e.model, CONTROL) for i, e in enumerate(entries) if i not in ranked)]
    entries, draws = [entries[i] for i in ranked], draws[ranked]
    behind = [
        _pair(entry, entries[:1], draws[i], draws[:1], bounds)[0] for i, entry in enumerate(entries)
    ]
    ranks = intervals.rank_stability(draws)
    ends = intervals.interval([entry.value for entry in entries], draws, bounds=bounds)
    contenders = [
        Contender(
            model=entry.model,
            value=entry.value,
            low=float(ends.low[i]),
            high=float(ends.high[i]),
            mean_rank=float(ranks.mean_rank[i]),
            rank_low=float(ranks.low[i]),
            rank_high=float(ranks.high[i]),
            first_share=float(ranks.top_share[i]),
            place_share=float(ranks.place_shares[i, i]),
            behind=behind[i] if i else None,
        )
        for i, entry in enumerate(entries)
    ]
    return Comparison(statistic, dataset, contenders, pairs, left_out)


def _pair(
    entry: Entry,
    others: Sequence[Entry],
    draws: np.ndarray,
    other_draws: np.ndarray,
    bounds: intervals.Bounds,
) -> list[Pair]:
    """One model against others: float64[draws] against float64[others, draws]."""
    apart = intervals.paired_difference(
        (entry.value, [other.value for other in others]),
        np.broadcast_to(draws, other_draws.shape),
        other_draws,
        bounds=bounds,
    )
    errors = _find_errors(entry, others)
    pairs = []
    for i, other in enumerate(others):
        difference, ends = float(apart.value[i]), (float(apart.low[i]), float(apart.high[i]))
        plan = power.plan(difference, ends, [errors_of[i] for errors_of in errors])
        pairs.append(
            Pair(
                model_a=entry.model,
                model_b=other.model,
                difference=difference,
                low=ends[0],
                high=ends[1],
                share_positive=float(apart.share_positive[i]),
                slides=plan.slides,
                slides_needed=plan.needed,
                slides_at_least=plan.at_least,
            )
        )
    return pairs


def _find_errors(entry: Entry, others: Sequence[Entry]) -> list[list[power.Part]]:
    """Errors of one model's differences to others: by dataset, then by the other model."""
    found = []
    for number, part in enumerate(entry.parts or (entry,)):
        theirs = [(other.parts or (other,))[number].draws for other in others]
        if part.draws is None or any(drawn is None for drawn in theirs):
            continue
        errors = power.find_error(part.draws - np.array(theirs, np.float64), part.n_slides)
        found.append([power.Part(float(error), part.n_slides) for error in errors])
    return found
