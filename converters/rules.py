"""Rule tables that say which tensor of a checkpoint fills which parameter, and their check.

``match_scheme`` takes a rule table, the shapes of the tensors of a checkpoint and the shapes of the
parameters of a network. It returns a plan (the place and transform of every source tensor), and
everything that does not fit, in both directions.

How to write a scheme
---------------------
A ``Scheme`` is a naming scheme of tensors. It has rules and the keys that are left out on purpose::

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
    )

``source``: the key, without the prefix of the file. ``{name}`` stands for a number (digits); at the
end of a key to drop, ``{rest}`` stands for everything that follows. A number that the target does
not use is ignored (``blocks.{chunk}.{i}.norm1.weight``).

``target``: path of the parameter in ``nnx.to_pure_dict``, parts joined by ``/`` (members of an
``nnx.List`` are numbers). ``{name}`` takes the number found in the key; ``[i]`` at the end writes
row i of a leaf whose leading axis is the stack of layers. ``part=(p, n)`` writes the p-th of n
equal parts of the last axis, so that q, k and v (or gate and value) from separate tensors fill one
joint leaf; after the transform, hence along the outputs of a kernel [in, out].

``transform``: a name in ``transforms.TRANSFORMS``, a pure function of (tensor, slot) whose result
must have the shape of the slot that it fills. If none fits, add one there.

A rule whose key is not in the file and whose target is not in the network does nothing, so one
scheme serves networks with and without LayerScale, registers or biases. A tensor may match several
rules (a joint bias into three leaves): all apply. Anything else is an error: a key that is neither
matched nor dropped, a target that is unfilled or filled twice, a shape that differs.

A scheme says nothing of what files put around these names: ``tensor_sets`` takes out the parts of
wrapped modules, and ``weight_choice`` finds the prefix, and the set of tensors where there are
several. A key to drop may stand before any part of the prefix (``teacher.head.weight`` beside
``teacher.backbone.cls_token``).

``part`` and ``[i]`` apply to buffers as to parameters (BatchNorm's running statistics are leaves of
the state like any other). The tables are in ``schemes_vit`` and ``schemes_other``.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .transforms import TRANSFORMS, Slot

Shape = tuple[int, ...]
_PLACE = re.compile(r"\{(\w+)\}")
_INDEX = re.compile(r"\[(\w+)\]$")
# First parts of names in the files of training runs that hold several sets of weights side by side.
TRAINING_SETS = ("student", "teacher", "model_ema", "ema", "gram_teacher")
_LOSS = re.compile(r"(dino|ibot|koleo|gram)\w*_loss\.")
# Position embeddings are resampled from larger grids, and of 256 queries of CoCa one is taken.
MAX_SHRINKING = 300


@dataclass(frozen=True)
class Rule:
    """A tensor of the source, or one per layer, and the place that it fills.

    Attributes:
        source: key with ``{i}`` for numbers.
        target: path of the parameter, ``[i]`` for a row of a stacked leaf.
        transform: name of the function applied in between.
        part: (p, n): the p-th of n equal parts of the last axis; None: all of it.
    """

    source: str
    target: str
    transform: str = "same"
    part: tuple[int, int] | None = None


@dataclass(frozen=True)
class Constant:
    """A place that no tensor of the source fills, and its value.

    Attributes:
        target: as in ``Rule``.
        value: a number, or a name in ``transforms.FILLS``.
        part: as in ``Rule``.
    """

    target: str
    value: float | str
    part: tuple[int, int] | None = None


@dataclass(frozen=True)
class Scheme:
    """A naming scheme of tensors. The module docstring explains how to write one.

    Attributes:
        name: name in specs.
        rules: the rule table.
        constants: places without a source.
        drop: keys that are left out on purpose.
    """

    name: str
    rules: tuple[Rule, ...]
    constants: tuple[Constant, ...] = ()
    drop: tuple[str, ...] = ()


class Cell(NamedTuple):
    """A place in the parameters: a leaf, a row of a leaf, or a part of its last axis."""

    path: str
    row: int | None
    part: tuple[int, int] | None

    def __str__(self) -> str:
        row = "" if self.row is None else f"[{self.row}]"
        part = "" if self.part is None else f" (part {self.part[0] + 1} of {self.part[1]})"
        return f"{self.path}{row}{part}"

    def view(self, leaf: np.ndarray) -> np.ndarray:
        """The part of a leaf that belongs to this cell, without a copy."""
        found = leaf if self.row is None else leaf[self.row]
        if self.part is None:
            return found
        width = found.shape[-1] // self.part[1]
        return found[..., self.part[0] * width : (self.part[0] + 1) * width]


class Step(NamedTuple):
    """Write one source tensor into one cell."""

    key: str
    cell: Cell
    transform: str


class Plan(NamedTuple):
    """The plan of a conversion.

    Attributes:
        scheme: name of the naming scheme.
        prefix: prefix of the keys that are taken.
        steps: steps by source key, in the order of the file.
        constants: cells that are filled with a value.
        dropped: keys left out on purpose.
        weights_key: path of keys to the set of tensors in its file; "" if there are none.
        passed_over: other sets of the file that fit.
    """

    scheme: str
    prefix: str
    steps: list[Step]
    constants: list[tuple[Cell, float | str]]
    dropped: list[str]
    weights_key: str = ""
    passed_over: tuple[str, ...] = ()


def match_scheme(
    scheme: Scheme,
    source: Mapping[str, Shape],
    target: Mapping[str, Shape],
    *,
    prefix: str = "",
    config: Any = None,
    resample: str | None = None,
) -> tuple[Plan, list[str]]:
    """The plan of one scheme and prefix, and a list of its problems."""
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
            if _is_left_out(key, prefix, drop):
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


def _is_left_out(key: str, prefix: str, drop: Sequence[re.Pattern[str]]) -> bool:
    """Whether a key is one to drop, of a loss, or of another set of weights than the prefix's."""
    parts = prefix.split(".")
    starts = [".".join([*parts[:n], ""]) for n in range(1, len(parts))]
    names = [key, *(key.removeprefix(start) for start in starts if key.startswith(start))]
    if any(pattern.fullmatch(name) for pattern in drop for name in names):
        return True
    first = key.split(".")[0]
    is_other = first in TRAINING_SETS and prefix != "" and first != parts[0]
    return is_other or _LOSS.match(key) is not None


def is_dropped(scheme: Scheme, key: str) -> bool:
    """Whether a scheme leaves a key out on purpose."""
    return any(_pattern(each).fullmatch(key) for each in scheme.drop)


def _misfit(
    cell: Cell,
    shape: Shape,
    rule: Rule,
    target: Mapping[str, Shape],
    config: Any,
    resample: str | None,
) -> str | None:
    """Why a tensor of that shape cannot fill the cell; None if it can."""
    if cell.path not in target:
        return "is no parameter of the network"
    leaf = np.broadcast_to(np.float32(0), target[cell.path])
    if cell.row is not None and cell.row >= leaf.shape[0]:
        return f"does not exist: the network has {leaf.shape[0]} layers"
    if cell.part is not None and leaf.shape[-1] % cell.part[1]:
        return f"cannot be parted: shape {_show(leaf.shape)}"
    want = cell.view(leaf).shape
    size, wanted = math.prod(shape), math.prod(want)
    if size > MAX_SHRINKING * wanted or size == 0 != wanted:  # a shape may lie
        return f"expects {_show(want)}, gets {_show(shape)}"
    try:
        tensor = np.broadcast_to(np.float32(0), shape)
        have = TRANSFORMS[rule.transform](tensor, Slot(want, config, resample)).shape
    except (ValueError, IndexError) as error:
        return f"expects {_show(want)} through {rule.transform!r}: {error}"
    if have != want:
        return f"expects {_show(want)}, gets {_show(have)} through {rule.transform!r}"
    return None


def expected_keys(scheme: Scheme, target: Mapping[str, Shape]) -> dict[Cell, list[str]]:
    """Every cell of a network that the rules of a scheme fill, with the possible keys."""
    wanted: dict[Cell, list[str]] = {}
    for rule in scheme.rules:
        for cell, key in _expected(rule, target):
            wanted.setdefault(cell, []).append(key)
    return wanted


def _unfilled(
    scheme: Scheme, target: Mapping[str, Shape], filled: Mapping[Cell, str], prefix: str
) -> list[str]:
    """One line per cell of the network that nothing fills."""
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
    """Whether other cells fill the row: a joint cell instead of its parts, or the reverse."""
    same = [other for other in filled if other[:2] == cell[:2] and other.part != cell.part]
    if any(other.part is None for other in same):
        return True
    return cell.part is None and any(
        len({other.part for other in same if other.part and other.part[1] == n}) == n
        for n in {other.part[1] for other in same if other.part}
    )


def _expected(rule: Rule | Constant, target: Mapping[str, Shape]) -> list[tuple[Cell, str]]:
    """Every cell of the network that a rule describes, with the key that would fill it."""
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
    """The text with each ``{name}`` replaced by its value, or by ``*`` if it is unknown."""
    return _PLACE.sub(lambda match: values.get(match[1], "*"), text)


def _split_target(target: str) -> tuple[str, str | None]:
    """The path, and the name of the row number if there is one."""
    match = _INDEX.search(target)
    return (target, None) if match is None else (target[: match.start()], match[1])


def _pattern(text: str) -> re.Pattern[str]:
    """Regular expression of a key or path: ``{name}`` is digits, ``{rest}`` is anything."""
    out, end = "", 0
    for match in _PLACE.finditer(text):
        kind = r".+" if match[1] == "rest" else r"\d+"
        out += re.escape(text[end : match.start()]) + f"(?P<{match[1]}>{kind})"
        end = match.end()
    return re.compile(out + re.escape(text[end:]))


def _show(shape: Shape) -> str:
    return "[" + ", ".join(map(str, shape[:8])) + (", ..." if len(shape) > 8 else "") + "]"


def group_problems(problems: list[str]) -> list[str]:
    """Merge lines that differ only in their numbers into one line with a count."""
    groups: dict[str, list[str]] = {}
    for line in problems:
        groups.setdefault(re.sub(r"(?<=[.\[])\d+(?=[.\]])", "*", line), []).append(line)
    return [
        lines[0] if len(lines) == 1 else f"{shape}   ({len(lines)} times)"
        for shape, lines in groups.items()
    ]
