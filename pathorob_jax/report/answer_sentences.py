"""Sentences of the first screen: what differs, what does not, and what it would take to know."""

import math
from collections.abc import Sequence

from pathorob_jax.models.names import is_control
from pathorob_jax.report.table_cells import format_interval, format_share, format_signed
from pathorob_jax.results.answers import RunCurve, find_pair
from pathorob_jax.results.compare_models import Comparison, Pair
from pathorob_jax.results.families import Agreement, PoolingStudy

# With more models, only the difference to the best is said.
MAX_PAIRED = 4
# Models that a sentence names.
MAX_NAMED = 5
# More than this many times the slides are out of reach.
OUT_OF_REACH = 100


def write_differences(comparison: Comparison) -> list[str]:
    """Which models differ beyond the interval of their difference, and which do not."""
    contenders = comparison.contenders
    if len(contenders) < 2:
        return []
    ranked = {contender.model for contender in contenders}
    pairs = [p for p in comparison.pairs if {p.model_a, p.model_b} <= ranked]
    if len(contenders) <= MAX_PAIRED:
        return _write_pairs(pairs)
    best = contenders[0].model
    behind = [find_pair(comparison, best, c.model) for c in contenders[1:]]
    known = [pair for pair in behind if pair is not None]
    level = [pair for pair in known if not pair.is_apart and not pair.has_no_width]
    unknown = sum(pair.has_no_width for pair in known)
    known = [pair for pair in known if not pair.has_no_width]
    n_apart = sum(pair.is_apart for pair in pairs)
    sentences = []
    if not known:
        sentences.append(f"{best} is the highest.")
    elif not level:
        which = f"{'' if unknown else 'the '}{len(known)} others"
        sentences.append(f"{best} is the highest, and told apart from each of {which}.")
    else:
        named = [f"{pair.model_b}{_brief(pair)}" for pair in level[:MAX_NAMED]]
        others = len(level) - len(named)
        more = f" and {others} more" if others else ""
        slides = f" on {level[0].slides:,} slides" if level[0].slides else ""
        rest = len(known) - len(level)
        end = f"; it is told apart from the {rest} other{'' if rest == 1 else 's'}" if rest else ""
        sentences.append(
            f"{best} is the highest, but can’t be told apart{slides} from "
            f"{', '.join(named)}{more} (in brackets: slides that would be needed){end}."
        )
    if unknown:
        sentences.append(
            f"Its lead over {unknown} others does not change with any single slide: the error is "
            "unknown."
        )
    lead = contenders[0].first_share
    if math.isfinite(lead) and not unknown:
        sentences.append(f"It is first in {format_share(lead)} of draws of slides.")
    sentences.append(f"Of {len(pairs)} pairs of models, {n_apart} are told apart.")
    return sentences


def _write_pairs(pairs: Sequence[Pair]) -> list[str]:
    """A sentence for each pair that is not told apart, then one for the others."""
    sentences = [write_pair(pair) for pair in pairs if not pair.is_apart]
    apart = [
        f"{_name(pair.model_a)} and {_name(pair.model_b)} ({format_signed(pair.difference)}, "
        f"{format_interval((pair.low, pair.high))})"
        for pair in pairs
        if pair.is_apart
    ]
    if apart:
        sentences.append(f"Told apart: {'; '.join(apart)}.")
    return sentences


def _name(model: str) -> str:
    """A model in a sentence; a control is called one."""
    return f"{model} (control)" if is_control(model) else model


def write_pair(pair: Pair) -> str:
    """Say that two models can't be told apart, and how many slides it would take."""
    slides = f" on {pair.slides:,} slides" if pair.slides else ""
    if pair.has_no_width:
        return (
            f"{_name(pair.model_a)} and {_name(pair.model_b)} differ by "
            f"{format_signed(pair.difference)}{slides}, but no single slide changes "
            "that: its error is unknown."
        )
    ends = format_interval((pair.low, pair.high))
    found = f" ({format_signed(pair.difference)}, {ends})" if ends else ""
    need = write_need(pair)
    return (
        f"{_name(pair.model_a)} and {_name(pair.model_b)} can’t be told apart{slides}{found}"
        f"{f'; {need}' if need else ''}."
    )


def write_need(pair: Pair) -> str:
    """How many slides would be needed; empty if no number is known to do."""
    needed, least = pair.slides_needed, pair.slides_at_least
    if needed is None or not pair.slides or pair.has_no_width:
        return ""
    if needed > OUT_OF_REACH * pair.slides:
        return f"more than {OUT_OF_REACH * pair.slides:,} would be needed"
    bound = f", {round_up(least):,} at the least" if least and least > pair.slides else ""
    return f"about {round_up(needed):,} would be needed{bound}"


def _brief(pair: Pair) -> str:
    needed = pair.slides_needed
    if needed is None or not pair.slides:
        return ""
    if needed > OUT_OF_REACH * pair.slides:
        return f" (over {OUT_OF_REACH * pair.slides:,})"
    return f" ({round_up(needed):,})"


def round_up(count: int) -> int:
    """A count to two digits, never fewer."""
    step = 10 ** max(len(str(count)) - 2, 0)
    return -(-count // step) * step


def write_poolings(study: PoolingStudy) -> list[str]:
    """Whether the order of encoders depends on the pooling."""
    return [_write_agreement(agreement) for agreement in study.agreements]


def _write_agreement(found: Agreement) -> str:
    one, two = found.poolings
    between = f"{one} and {two}"
    if not found.swapped:
        return f"The order of {found.n} encoders is the same by {between}."
    swaps = (
        f"{len(found.swapped)} of {found.n_pairs} pairs of encoders change places between "
        f"{between} (Kendall’s τ {format_signed(found.kendall)})"
    )
    if found.swapped_apart:
        names = ", ".join(f"{a} and {b}" for a, b in found.swapped_apart[:MAX_NAMED])
        return f"The order of encoders depends on the pooling: {swaps}, beyond doubt {names}."
    return f"{swaps}, none of them beyond the intervals: chance could do that."


def write_run(curve: RunCurve) -> str:
    """How the last checkpoint of a run stands to those before it, and to other models."""
    run, best, previous = curve.run, curve.best, curve.previous
    name = run.name or "the run"
    if best is None and previous is None:
        return (
            f"{name}: {len(run.steps)} checkpoints, {run.word} {run.steps[0]} to {run.steps[-1]}."
        )
    step = dict(zip(run.models, run.steps, strict=True))
    parts = []
    if previous is not None and (best is None or previous.model_b != best.model_b):
        parts.append(_write_against(previous, f"{run.word} {step[previous.model_b]}"))
    if best is not None:
        parts.append(_write_against(best, f"{run.word} {step[best.model_b]}, the best before it"))
    sentence = f"{name}, robustness index: {run.word} {run.steps[-1]} {' and '.join(parts)}."
    return " ".join([sentence, *_write_others(curve.others)])


def _write_against(pair: Pair, other: str) -> str:
    found = f"({format_signed(pair.difference)}, {format_interval((pair.low, pair.high))})"
    if pair.is_apart:
        return f"is {'better' if pair.difference > 0 else 'worse'} than {other} {found}"
    need = write_need(pair)
    inside = f"{found[:-1]}; {need})" if need else found
    return f"can’t be told apart from {other} {inside}"


def _write_others(others: Sequence[Pair]) -> list[str]:
    """How the last checkpoint stands to models of other names."""
    groups = (
        ("above", [p for p in others if p.is_apart and p.difference > 0]),
        ("below", [p for p in others if p.is_apart and p.difference < 0]),
        ("not told apart from", [p for p in others if not p.is_apart]),
    )
    said = []
    for word, pairs in groups:
        nearest = sorted(pairs, key=lambda pair: abs(pair.difference))[:MAX_NAMED]
        if nearest:
            names = [f"{_name(p.model_b)} ({format_signed(p.difference)})" for p in nearest]
            more = len(pairs) - len(nearest)
            said.append(f"{word} {', '.join(names)}{f' and {more} more' if more else ''}")
    return [f"Beside other models it is {'; '.join(said)}."] if said else []
