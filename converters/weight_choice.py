"""Which set of tensors of a checkpoint is converted, under which scheme and prefix.

Files of training runs hold several sets of weights: under several keys (``model`` and
``model_ema``), or under several prefixes of one (``student.backbone.``, ``teacher.backbone.``). Of
those that fit the network the averaged one is taken, as timm does. ``weights_key`` takes another;
where nothing tells them apart the file is refused.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pathorob_jax.core.checks import InputError, UsageError

from .rules import Plan, Scheme, Shape, expected_keys, group_problems, match_scheme
from .tensor_sets import FLOATS, WRAPPER_PARTS, TensorSet

# Names of modules that hold encoders, and so may stand before all names.
_KNOWN_PARTS = frozenset(
    {
        *("backbone", "model", "encoder", "student", "teacher", "gram_teacher", "target_encoder"),
        *("ema", "vit", "dinov2", "dinov2_with_registers", "resnet"),
    }
)
_MAX_SETS, _MAX_PREFIXES, _MAX_LINES = 16, 6, 40


class _Fit(NamedTuple):
    """A set of tensors under one scheme and prefix, and what does not fit."""

    tensors: TensorSet
    plan: Plan
    problems: list[str]

    @property
    def name(self) -> str:
        """Path of keys and prefix, joined by dots."""
        return _join(self.plan.weights_key, self.plan.prefix)

    @property
    def is_averaged(self) -> bool:
        """Whether a key or a part of the prefix says so."""
        return any(map(_is_averaged, self.name.split(".")))

    @property
    def rank(self) -> tuple[int, int, int]:
        """The nearest first: most names known, most tensors, fewest problems."""
        return -len(self.plan.steps), -len(self.tensors.shapes), len(self.problems)


def find_plan(
    schemes: Sequence[Scheme],
    sets: Mapping[str, TensorSet],
    target: Mapping[str, Shape],
    *,
    config: Any,
    resample: str | None = None,
    what: str,
    weights_key: str | None = None,
    prefix: str | None = None,
) -> Plan:
    """Find the set of tensors to convert, and its plan.

    Args:
        schemes: naming schemes of the files of the encoder.
        sets: tensors of the file by their path of keys.
        target: shape of each parameter, by path.
        config: configuration of the network, for transforms that need it.
        resample: the authors' rule for position embeddings of another grid.
        what: the file, for messages.
        weights_key: keys (or parts of a prefix), joined by dots, of the set to take; None: the
            averaged one if several fit.
        prefix: prefix of all names; None: none, or one of known parts.

    Raises:
        UsageError: there is no set of that key.
        InputError: nothing fits, several sets fit equally well, or the prefix is unknown; the
            message lists what is unused, unfilled or of another shape with the nearest scheme.
    """
    if not schemes:
        raise InputError(f"{what}: the encoder names no scheme of tensor names.")
    if prefix is not None:
        prefix = "".join(f"{p}." for p in prefix.split(".") if p and p not in WRAPPER_PARTS)
    tried: list[_Fit] = []
    for keys, tensors in _main_sets(sets).items():
        for scheme in schemes:
            found = _find_prefixes(scheme, tensors.shapes, target) if prefix is None else [prefix]
            for each in found:
                plan, problems = match_scheme(
                    scheme, tensors.shapes, target, prefix=each, config=config, resample=resample
                )
                tried.append(_Fit(tensors, plan._replace(weights_key=keys), problems))
    if weights_key is not None:
        names = [fit.name for fit in tried]
        tried = [fit for fit in tried if f".{weights_key}." in f".{fit.name}."]
        if not tried:
            raise UsageError(
                f"weights_key: {what} has no weights under {weights_key!r}; it has "
                f"{_list(names) or 'no keys'}."
            )
    fits = list({fit.name: fit for fit in reversed(tried) if not fit.problems}.values())[::-1]
    known = [fit for fit in fits if prefix is not None or _is_known(fit.plan.prefix)]
    if known:
        best = _choose(known, what)
        if weights_key is None and not best.is_averaged:
            _check_averaged(best, tried, what)
        others = tuple(fit.name for fit in known if fit is not best)
        return best.plan._replace(passed_over=others)
    if fits:
        found_prefix = fits[0].plan.prefix
        raise InputError(
            f"{what}: fits, but every name begins with {found_prefix!r}. If these are the weights "
            f"that you mean, give --prefix={found_prefix}"
        )
    raise InputError(_nearest(tried, schemes, what))


def _choose(fits: list[_Fit], what: str) -> _Fit:
    """The averaged one; InputError if several are equally good and differ."""
    best, *others = [fit for fit in fits if fit.is_averaged] or fits
    different = [fit for fit in others if not _are_equal(best, fit)]
    if different:
        raise InputError(
            f"{what}: several sets of weights fit, and they differ: "
            f"{_list(fit.name for fit in [best, *different])}. Choose one with --weights_key="
        )
    return best


def _check_averaged(best: _Fit, tried: list[_Fit], what: str) -> None:
    """Refuse raw weights beside averaged ones that were meant, but do not fit."""
    meant = [
        fit for fit in tried if fit.is_averaged and 2 * len(fit.plan.steps) >= len(best.plan.steps)
    ]
    if meant:
        fit = min(meant, key=lambda fit: len(fit.problems))
        raise InputError(
            f"{what}: the averaged weights under {fit.name} do not fit ({len(fit.problems)} "
            f"problems; {fit.problems[0]}). Others fit: --weights_key={best.name} takes them."
        )


def _are_equal(one: _Fit, other: _Fit) -> bool:
    """Whether two sets hold the same values."""
    cells = {step[1:]: step.key for step in other.plan.steps}
    if {step[1:] for step in one.plan.steps} != cells.keys():
        return False
    pairs = [(step.key, cells[step[1:]]) for step in one.plan.steps]
    if not all(one.tensors.kinds[a] == other.tensors.kinds[b] for a, b in pairs):
        return False
    if not all(one.tensors.kinds[a] in FLOATS for a, _ in pairs):
        return False
    return all(
        np.array_equal(one.tensors.read(a), other.tensors.read(b), equal_nan=True) for a, b in pairs
    )


def _main_sets(sets: Mapping[str, TensorSet]) -> dict[str, TensorSet]:
    """The largest sets, in the order of the file: optimizers have hundreds of small ones."""
    sizes = {keys: len(tensors.shapes) for keys, tensors in sets.items()}
    largest = sorted(sizes, key=lambda keys: -sizes[keys])[:_MAX_SETS]
    least = max(sizes.values(), default=0) / 10
    return {key: x for key, x in sets.items() if key in largest and sizes[key] >= least}


def _find_prefixes(scheme: Scheme, names: Iterable[str], target: Mapping[str, Shape]) -> list[str]:
    """Prefixes before which names of the scheme stand, the most frequent first; [""] if none."""
    wanted = {key for keys in expected_keys(scheme, target).values() for key in keys}
    counts: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")
        for n in range(len(parts)):
            if ".".join(parts[n:]) in wanted:
                counts["".join(f"{part}." for part in parts[:n])] += 1
    most = max(counts.values(), default=0)
    found = [prefix for prefix, n in counts.most_common(_MAX_PREFIXES) if 2 * n >= most]
    return found or [""]


def _is_known(prefix: str) -> bool:
    parts = prefix.split(".")[:-1]
    return all(part in _KNOWN_PARTS or _is_averaged(part) for part in parts)


def _is_averaged(part: str) -> bool:
    """Whether a key or a part of a name says that the weights are averages over training."""
    return part in ("ema", "teacher", "target_encoder") or part.endswith("_ema")


def _nearest(tried: list[_Fit], schemes: Sequence[Scheme], what: str) -> str:
    """What does not fit with the nearest set, scheme and prefix."""
    best = min(tried, key=lambda fit: fit.rank)
    plan, lines = best.plan, group_problems(best.problems)
    more = [f"... and {len(lines) - _MAX_LINES} more lines"] if len(lines) > _MAX_LINES else []
    text = "\n  ".join(lines[:_MAX_LINES] + more)
    name = f"{plan.scheme!r}" + (f", prefix {plan.prefix!r}" if plan.prefix else "")
    name += f", key {plan.weights_key!r}" if plan.weights_key else ""
    return (
        f"{what}: does not fit the network; {len(best.problems)} problems under scheme {name}, the "
        f"nearest of {', '.join(scheme.name for scheme in schemes)}:\n  {text}\n"
        "Nothing was written. Give the file that belongs to this encoder."
    )


def _join(keys: str, prefix: str) -> str:
    return ".".join(part for part in (keys, prefix.rstrip(".")) if part)


def _list(names: Iterable[str]) -> str:
    found = list(dict.fromkeys(name or "(no key)" for name in names))
    more = f" and {len(found) - 10} more" if len(found) > 10 else ""
    return ", ".join(found[:10]) + more
