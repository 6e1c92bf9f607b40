"""Which tensor of a checkpoint fills which parameter of a network: rule tables, and their check.

Enters: a table of rules (data), the shapes of a checkpoint's tensors, the shapes of a network's
parameters. Leaves: a plan (every source tensor, where it goes, through which transform), or one
error that lists everything that does not fit, both ways.

How to write a scheme
---------------------
A ``Scheme`` is one naming of tensors. It names its rules, the keys that are left out on purpose,
and the wrappings in which files come::

    Scheme(
        name="timm",
        rules=(
            Rule("cls_token", "cls", "squeeze"),
            Rule("blocks.{i}.attn.qkv.weight", "blocks/qkv/kernel[i]", "transpose"),
            Rule("blocks.{i}.attn.q.bias", "blocks/qkv/bias[i]", part=(0, 3)),
            Rule("layer{k}.{b}.conv1.weight", "layer{k}/{b}/conv1/kernel", "conv"),
        ),
        constants=(Constant("blocks/qkv/bias[i]", 0.0, part=(1, 3)),),
        drop=("mask_token", "head.{rest}"),
        wrappers=("teacher", "state_dict"),
        prefixes=("", "module.", "backbone.", "module.backbone."),
    )

``source``: the key, without the file's prefix. ``{name}`` stands for a number (digits), ``{rest}``
at the end of a key to drop for all that follows. A number that the target does not use is ignored
(``blocks.{chunk}.{i}.norm1.weight``).

``target``: path of the parameter in ``nnx.to_pure_dict``, parts joined by ``/`` (members of an
``nnx.List`` are numbers). ``{name}`` takes the number found in the key; ``[i]`` at the end writes
row i of a leaf whose leading axis is the stack of layers. ``part=(p, n)`` writes the p-th of n
equal parts of the last axis, so that q, k and v (or gate and value) from separate tensors fill one
joint leaf; after the transform, hence along the outputs of a kernel [in, out].

``transform``: a name in ``transforms.TRANSFORMS``, a pure function of (tensor, slot) whose result
must have the shape of the slot that it fills. Add one there where none fits.

A rule whose key is not in the file and whose target is not in the network does nothing, so one
scheme serves networks with and without LayerScale, registers or biases. A tensor may match several
rules (a joint bias into three leaves): all apply. Anything else is an error: a key that is neither
matched nor dropped, a target that stays unfilled or is filled twice, a shape that differs.

``wrappers``: keys of a pickled dict under which the tensors may lie, one level each. ``prefixes``:
what may stand before every key; the one under which the scheme fits is taken.

``part`` and ``[i]`` apply to buffers as to parameters (BatchNorm's running statistics are leaves of
the state like any other). The tables are in ``schemes_vit`` and ``schemes_other``.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from converters.transforms import TRANSFORMS, Slot
from pathorob_jax.core.checks import InputError

Shape = tuple[int, ...]
_PLACE = re.compile(r"\{(\w+)\}")
_INDEX = re.compile(r"\[(\w+)\]$")


@dataclass(frozen=True)
class Rule:
    """One tensor of the source, or one for each layer, and the place that it fills.

    Attributes:
        source: key with ``{i}`` for numbers.
        target: path of the parameter, ``[i]`` for a row of a stacked leaf.
        transform: name of the function between the two.
        part: (p, n): the p-th of n equal parts of the last axis; None: all of it.
    """

    source: str
    target: str
    transform: str = "same"
    part: tuple[int, int] | None = None


@dataclass(frozen=True)
class Constant:
    """A place that no tensor of the source fills, and the value that belongs there.

    Attributes:
        target: as a rule's.
        value: a number, or a name in ``transforms.FILLS``.
        part: as a rule's.
    """

    target: str
    value: float | str
    part: tuple[int, int] | None = None


@dataclass(frozen=True)
class Scheme:
    """One naming of tensors. The module docstring tells how to write one.

    Attributes:
        name: what specs call it.
        rules: the table.
        constants: places without a source.
        drop: keys that are left out on purpose.
        wrappers: keys of a pickled dict under which the tensors may lie.
        prefixes: what may stand before every key.
    """

    name: str
    rules: tuple[Rule, ...]
    constants: tuple[Constant, ...] = ()
    drop: tuple[str, ...] = ()
    wrappers: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ("",)


class Cell(NamedTuple):
    """A place in the parameters: a leaf, a row of it, a part of its last axis."""

    path: str
    row: int | None
    part: tuple[int, int] | None

    def __str__(self) -> str:
        row = "" if self.row is None else f"[{self.row}]"
        part = "" if self.part is None else f" (part {self.part[0] + 1} of {self.part[1]})"
        return f"{self.path}{row}{part}"

    def view(self, leaf: np.ndarray) -> np.ndarray:
        """The part of a leaf that this cell names, without a copy."""
        found = leaf if self.row is None else leaf[self.row]
        if self.part is None:
            return found
        width = found.shape[-1] // self.part[1]
        return found[..., self.part[0] * width : (self.part[0] + 1) * width]


class Step(NamedTuple):
    """One source tensor into one cell."""

    key: str
    cell: Cell
    transform: str


class Plan(NamedTuple):
    """What a conversion will do.

    Attributes:
        scheme: name of the naming scheme.
        prefix: what stands before every key of the file.
        steps: by source key, in the file's order.
        constants: cells that are filled with a value.
        dropped: keys left out on purpose.
    """

    scheme: str
    prefix: str
    steps: list[Step]
    constants: list[tuple[Cell, float | str]]
    dropped: list[str]


def find_plan(
    schemes: Sequence[Scheme],
    source: Mapping[str, Shape],
    target: Mapping[str, Shape],
    *,
    config: Any,
    resample: str | None = None,
    what: str,
) -> Plan:
    """The plan under the scheme and prefix that fit.

    Args:
        schemes: those in which the encoder's files come.
        source: shape of each tensor of the file.
        target: shape of each parameter, by path.
        config: the network's configuration, for transforms that need it.
        resample: the authors' rule for position embeddings of another grid.
        what: the file, for messages.

    Raises:
        InputError: none fits; lists what is unused, unfilled or of another shape under the one
            that comes nearest.
    """
    best: tuple[int, Plan, list[str]] | None = None
    for scheme in schemes:
        for prefix in scheme.prefixes:
            plan, problems = match_scheme(
                scheme, source, target, prefix=prefix, config=config, resample=resample
            )
            if not problems:
                return plan
            if best is None or len(problems) < best[0]:
                best = (len(problems), plan, problems)
    if best is None:
        raise InputError(f"{what}: the encoder names no scheme of tensor names.")
    n_problems, plan, problems = best
    name = f"{plan.scheme!r}" + (f", prefix {plan.prefix!r}" if plan.prefix else "")
    lines = "\n  ".join(_group(problems))
    raise InputError(
        f"{what}: does not fit the network; {n_problems} problems under scheme {name}, the nearest "
        f"of {', '.join(scheme.name for scheme in schemes)}:\n  {lines}\n"
        "Nothing was written. Give the file that belongs to this encoder."
    )


def match_scheme(
    scheme: Scheme,
    source: Mapping[str, Shape],
    target: Mapping[str, Shape],
    *,
    prefix: str = "",
    config: Any = None,
    resample: str | None = None,
) -> tuple[Plan, list[str]]:
    """The plan of one scheme and prefix, and what is wrong with it (empty: nothing)."""
    steps: list[Step] = []
    dropped: list[str] = []
    problems: list[str] = []
    filled: dict[Cell, str] = {}
    rules = [(_pattern(rule.source), rule) for rule in scheme.rules]
    drop = [_pattern(key) for key in scheme.drop]
    for key, shape in source.items():
        bare = key.removeprefix(prefix) if key.startswith(prefix) else None
        found = [(rule, m) for pattern, rule in rules if bare and (m := pattern.fullmatch(bare))]
        if not found:
            names = {key.removeprefix(other) for other in scheme.prefixes}
            if any(pattern.fullmatch(name) for pattern in drop for name in names):
                dropped.append(key)
            else:
                problems.append(f"unused: {key} {_show(shape)}")
        for rule, match in found:
            cell = _cell(rule, match.groupdict())
            problem = _misfit(cell, shape, rule, target, config, resample)
            if problem is None and cell in filled:
                problem = f"is filled by {filled[cell]} already"
            if problem is not None:
                problems.append(f"unused: {key} {_show(shape)}: {cell} {problem}")
            filled[cell] = key
            steps.append(Step(key, cell, rule.transform))
    constants = [
        (cell, constant.value)
        for constant in scheme.constants
        for cell, _ in _expected(constant, target)
        if cell not in filled
    ]
    filled.update(dict.fromkeys((cell for cell, _ in constants), "a constant"))
    problems += _unfilled(scheme, target, filled, prefix)
    return Plan(scheme.name, prefix, steps, constants, dropped), problems


def _misfit(
    cell: Cell,
    shape: Shape,
    rule: Rule,
    target: Mapping[str, Shape],
    config: Any,
    resample: str | None,
) -> str | None:
    """Why a tensor of that shape cannot fill the cell; None where it can."""
    if cell.path not in target:
        return "is no parameter of the network"
    leaf = np.broadcast_to(np.float32(0), target[cell.path])
    if cell.row is not None and cell.row >= leaf.shape[0]:
        return f"does not exist: the network has {leaf.shape[0]} layers"
    if cell.part is not None and leaf.shape[-1] % cell.part[1]:
        return f"cannot be parted: shape {_show(leaf.shape)}"
    want = cell.view(leaf).shape
    tensor = np.broadcast_to(np.float32(0), shape)
    try:
        have = TRANSFORMS[rule.transform](tensor, Slot(want, config, resample)).shape
    except ValueError as error:
        return f"expects {_show(want)} through {rule.transform!r}: {error}"
    if have != want:
        return f"expects {_show(want)}, gets {_show(have)} through {rule.transform!r}"
    return None


def expected_keys(scheme: Scheme, target: Mapping[str, Shape]) -> dict[Cell, list[str]]:
    """Every cell of a network that a scheme's rules fill, with the keys that may do so."""
    wanted: dict[Cell, list[str]] = {}
    for rule in scheme.rules:
        for cell, key in _expected(rule, target):
            wanted.setdefault(cell, []).append(key)
    return wanted


def _unfilled(
    scheme: Scheme, target: Mapping[str, Shape], filled: Mapping[Cell, str], prefix: str
) -> list[str]:
    """A line for each cell of the network that nothing fills."""
    wanted = expected_keys(scheme, target)
    known = {cell.path for cell in wanted} | {cell.path for cell in filled}
    lines = [
        f"unfilled: {cell} for want of {' or '.join(prefix + key for key in keys)}"
        for cell, keys in wanted.items()
        if cell not in filled and not _filled_otherwise(cell, filled)
    ]
    lines += [
        f"unfilled: {path} {_show(shape)}: the scheme has no rule for it"
        for path, shape in target.items()
        if path not in known
    ]
    return lines


def _filled_otherwise(cell: Cell, filled: Mapping[Cell, str]) -> bool:
    """Whether another division of the row fills it: joint where this one is parted, or back."""
    same = [other for other in filled if other[:2] == cell[:2] and other.part != cell.part]
    if any(other.part is None for other in same):
        return True
    return cell.part is None and any(
        len({other.part for other in same if other.part and other.part[1] == n}) == n
        for n in {other.part[1] for other in same if other.part}
    )


def _expected(rule: Rule | Constant, target: Mapping[str, Shape]) -> list[tuple[Cell, str]]:
    """Every cell of the network that a rule stands for, with the key that would fill it."""
    path, index = _split_target(rule.target)
    pattern = _pattern(path)
    source = rule.source if isinstance(rule, Rule) else ""
    out = []
    for name, shape in target.items():
        match = pattern.fullmatch(name)
        if match is None:
            continue
        rows: list[int | None] = [None] if index is None else list(range(shape[0]))
        for row in rows:
            values = match.groupdict() | ({} if index is None else {index: str(row)})
            key = _insert(source, values)
            out.append((Cell(name, row, rule.part), key))
    return out


def _cell(rule: Rule, values: Mapping[str, str]) -> Cell:
    path, index = _split_target(rule.target)
    path = _insert(path, values)
    return Cell(path, None if index is None else int(values[index]), rule.part)


def _insert(text: str, values: Mapping[str, str]) -> str:
    """The text with its ``{name}`` replaced, by ``*`` where the value is not known."""
    return _PLACE.sub(lambda match: values.get(match[1], "*"), text)


def _split_target(target: str) -> tuple[str, str | None]:
    """Path, and the name of the row's number if there is one."""
    match = _INDEX.search(target)
    return (target, None) if match is None else (target[: match.start()], match[1])


def _pattern(text: str) -> re.Pattern[str]:
    """Regular expression of a key or path with ``{name}`` for digits, ``{rest}`` for all else."""
    out, end = "", 0
    for match in _PLACE.finditer(text):
        kind = r".+" if match[1] == "rest" else r"\d+"
        out += re.escape(text[end : match.start()]) + f"(?P<{match[1]}>{kind})"
        end = match.end()
    return re.compile(out + re.escape(text[end:]))


def _show(shape: Shape) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"


def _group(problems: list[str]) -> list[str]:
    """Lines that differ in their numbers only, told once with how many there are."""
    groups: dict[str, list[str]] = {}
    for line in problems:
        groups.setdefault(re.sub(r"(?<=[.\[])\d+(?=[.\]])", "*", line), []).append(line)
    return [
        lines[0] if len(lines) == 1 else f"{shape}   ({len(lines)} times)"
        for shape, lines in groups.items()
    ]
