"""LoRA adapters of PEFT, merged into the tensors of a checkpoint while it is converted.

``open_adapter`` reads an adapter (``adapter_config.json`` and ``adapter_model.safetensors``),
``unwrap`` sets apart the update that a file of PEFT's whole network holds beside its weights, and
``merge`` returns the checkpoint with W + (alpha / rank) B A in place of W. B and A are read in the
type of their file; their product, its scaling and the sum are float32, and the type of the
conversion is rounded to last. Tensors that find no place are an error by name.
"""

import dataclasses
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.models import registry
from pathorob_jax.models.spec import Lora, ModelSpec

from . import checkpoints, hub
from .adapter_settings import Settings, means, read_settings
from .rules import Plan, Scheme, group_problems, is_dropped
from .tensor_sets import TensorSet

CONFIG, TENSORS = "adapter_config.json", ("adapter_model.safetensors", "adapter_model.bin")
_OUTER, _BASE = "base_model.model.", ".base_layer."
# lora_A.weight in an adapter's file, lora_A.default.weight in that of a whole network.
_UPDATE = re.compile(r"(?P<module>.+)\.lora_(?P<half>[AB])(\.(?P<adapter>\w+))?\.weight")
# Modules of transformers 5 in memory, and what the files of the hub call them; a part: of the rows.
_RENAMED: tuple[tuple[str, str, tuple[int, int] | None], ...] = (
    ("attention.q_proj", "attention.attention.query", None),
    ("attention.k_proj", "attention.attention.key", None),
    ("attention.v_proj", "attention.attention.value", None),
    ("attention.o_proj", "attention.output.dense", None),
    ("mlp.fc1", "intermediate.dense", None),
    ("mlp.fc2", "output.dense", None),
    ("mlp.gate_proj", "mlp.weights_in", (0, 2)),
    ("mlp.up_proj", "mlp.weights_in", (1, 2)),
    ("mlp.down_proj", "mlp.weights_out", None),
)


@dataclass(frozen=True)
class Adapter:
    """An update of low rank.

    Attributes:
        path: its file, for messages.
        label: its name without folders, or the repo that it is from.
        paths: its files; none if the checkpoint itself holds it.
        settings: rank and scale.
        tensors: its tensors.
    """

    path: str
    label: str
    paths: tuple[str, ...]
    settings: Settings
    tensors: TensorSet


class _Update(NamedTuple):
    """An update of one tensor of the base, or of a part of its rows."""

    module: str
    down: str
    up: str
    part: tuple[int, int] | None


def open_adapter(where: str) -> Adapter:
    """Open an adapter that PEFT saved.

    Args:
        where: its folder, one of its files, or ``hf://owner/name`` on the hub.

    Raises:
        InputError: a file is missing, cannot be read, or the adapter is not a plain LoRA.
        FileNotFoundError: no such path.
    """
    if where.startswith(hub.SCHEME):
        at = hub.parse(where)
        config = hub.find_file(at.repo, (CONFIG,), revision=at.revision)
        path = hub.find_file(at.repo, TENSORS, revision=at.revision)
        label = str(at)
    else:
        given = os.path.expanduser(where)
        if not os.path.exists(given):
            raise FileNotFoundError(f"{where}: no such file or folder.")
        folder = given if os.path.isdir(given) else os.path.dirname(given)
        config, path = os.path.join(folder, CONFIG), given
        if os.path.isdir(given) or os.path.basename(given) == CONFIG:
            names = [name for name in TENSORS if os.path.isfile(os.path.join(folder, name))]
            path = os.path.join(folder, names[0]) if names else ""
        if not os.path.isfile(config) or not path:
            raise InputError(
                f"{where}: an adapter of PEFT is {CONFIG} beside {TENSORS[0]}; missing: "
                f"{TENSORS[0] if os.path.isfile(config) else CONFIG}."
            )
        label = os.path.basename(os.path.abspath(folder))
    settings = read_settings(config)
    opened = checkpoints.open_checkpoint(path)
    if list(opened.sets) != [""]:
        raise InputError(f"{path}: expected tensors alone, found keys {', '.join(opened.sets)}.")
    return Adapter(path, label, (config, *opened.paths), settings, opened.sets[""])


def unwrap(source: checkpoints.Checkpoint) -> checkpoints.Checkpoint:
    """The checkpoint with the names of the base network, where PEFT has wrapped it."""
    sets, updates = dict(source.sets), {}
    for keys, tensors in source.sets.items():
        if not any(_UPDATE.fullmatch(name) for name in tensors.shapes):
            continue
        inner = {name: name.removeprefix(_OUTER) for name in tensors.shapes}
        updates[keys] = _renamed(tensors, {k: x for k, x in inner.items() if ".lora_" in x})
        base = {k: x.replace(_BASE, ".") for k, x in inner.items() if ".lora_" not in x}
        sets[keys] = _renamed(tensors, base)
    return dataclasses.replace(source, sets=sets, updates=updates)


def _renamed(tensors: TensorSet, names: Mapping[str, str]) -> TensorSet:
    """Some of the tensors under other names."""
    stored = {new: old for old, new in names.items()}
    return TensorSet(
        {new: tensors.shapes[old] for new, old in stored.items()},
        {new: tensors.kinds[old] for new, old in stored.items()},
        lambda name: tensors.read(stored[name]),
        tensors.removed,
    )


def find_adapter(
    spec: ModelSpec, source: checkpoints.Checkpoint, keys: str, where: str | None
) -> Adapter | None:
    """The adapter that is to be merged: given, or in the file itself; None if there is none.

    Args:
        spec: the encoder.
        source: result of ``unwrap``.
        keys: key of the set of tensors that is converted.
        where: folder, file or repo of an adapter; None: none is given.

    Raises:
        InputError: the file holds an update of unknown scale, or lacks one; the adapter cannot be
            read, or was trained on another encoder.
    """
    inside = source.updates.get(keys)
    known: Lora | None = spec.weights.lora if spec.weights else None
    if inside is not None and known is None:
        raise InputError(
            f"{source.path}: holds a LoRA beside its weights, and {spec.name} does not say its "
            "rank and alpha; add weights: {lora: {rank: ..., alpha: ...}} to the entry (--spec)."
        )
    if inside is None and known is not None:
        raise InputError(
            f"{source.path}: expected the LoRA of {spec.name} beside its weights (lora_A and "
            "lora_B), found none: the file of another encoder, or merged already."
        )
    if inside is not None and known is not None:
        if where is not None:
            raise UsageError(f"adapter: {source.path} holds a LoRA already; give no other.")
        settings = Settings(known.rank, known.alpha)
        return Adapter(source.path, source.label, (), settings, inside)
    if where is None:
        return None
    adapter = open_adapter(where)
    _check_base(spec, adapter)
    return adapter


def _check_base(spec: ModelSpec, adapter: Adapter) -> None:
    """Refuse an adapter that says it was trained on another encoder of the registry."""
    base = (adapter.settings.base or "").removeprefix("hf-hub:").removeprefix("hf_hub:")
    own = spec.weights.repo if spec.weights else None
    other = [s.name for s in registry.MODELS.values() if s.weights and s.weights.repo == base]
    if base and base != own and other:
        raise InputError(
            f"{adapter.path}: was trained on {other[0]} ({base}), not on {spec.name}; give "
            f"--model={other[0]}."
        )


def merge(
    source: checkpoints.Checkpoint, plan: Plan, scheme: Scheme, adapter: Adapter
) -> checkpoints.Checkpoint:
    """The checkpoint with an adapter added to its weights, which are read as float32 then.

    Args:
        source: the checkpoint.
        plan: which tensors are converted.
        scheme: its naming scheme.
        adapter: the adapter.

    Raises:
        InputError: tensors of the adapter find no place, are missing, or have another rank or
            shape; the message lists all of them by name.
    """
    base = source.sets[plan.weights_key]
    updates, dropped, problems = _match(base, plan, scheme, adapter)
    if problems:
        lines = "\n  ".join(group_problems(problems)[:40])
        raise InputError(
            f"{adapter.path}: does not fit {source.path}; {len(problems)} problems:\n  {lines}\n"
            "Nothing was written. Give the adapter that was trained on this encoder, complete."
        )
    used = [name for found in updates.values() for each in found for name in each[1:3]]
    adapter.tensors.check_floats(used, what=adapter.path)

    def read(key: str) -> np.ndarray:
        value = base.read(key)
        if key not in updates:
            return value
        value = value.astype(np.float32)
        for each in updates[key]:
            rows = _rows(value, each.part)
            rows += _product(adapter, each).reshape(rows.shape)
        return value

    kinds = {**base.kinds, **dict.fromkeys(updates, "float32")}
    scales = {adapter.settings.scale_of(x.module) for found in updates.values() for x in found}
    record = {
        "label": adapter.label,
        "rank": adapter.settings.rank,
        "scales": sorted(scales),
        "n_merged": len(updates),
        "dropped": dropped,
    }
    return dataclasses.replace(
        source,
        paths=(*source.paths, *adapter.paths),
        sets={**source.sets, plan.weights_key: dataclasses.replace(base, kinds=kinds, read=read)},
        adapter=record,
        _digests=[],
    )


def _rows(value: np.ndarray, part: tuple[int, int] | None) -> np.ndarray:
    """The rows of a part, without a copy."""
    if part is None:
        return value
    n_rows = len(value) // part[1]
    return value[part[0] * n_rows : (part[0] + 1) * n_rows]


def _product(adapter: Adapter, update: _Update) -> np.ndarray:
    """(alpha / rank) B A in float32; of a convolution over the channels of A."""
    down = adapter.tensors.read(update.down).astype(np.float32)
    up = adapter.tensors.read(update.up).astype(np.float32)
    flat = up.reshape(len(up), -1) @ down.reshape(len(down), -1)
    return flat * np.float32(adapter.settings.scale_of(update.module))


def _match(
    base: TensorSet, plan: Plan, scheme: Scheme, adapter: Adapter
) -> tuple[dict[str, list[_Update]], list[str], list[str]]:
    """The updates of each tensor of the base, what is left out on purpose, and the problems."""
    halves: dict[str, dict[str, str]] = {}
    dropped: list[str] = []
    problems: list[str] = []
    for name in adapter.tensors.shapes:
        match = _UPDATE.fullmatch(name.removeprefix(_OUTER))
        if match is None and is_dropped(scheme, name.removeprefix(_OUTER)):
            dropped.append(name)
        elif match is None:
            problems.append(f"unknown: {name}")
        else:
            found = halves.setdefault(match["module"], {})
            if match["half"] in found:
                problems.append(f"unknown: {name}: a second adapter in one file")
            found[match["half"]] = name
    outer = _find_outer(halves, base.shapes, plan.prefix)
    updates: dict[str, list[_Update]] = {}
    places: dict[str, str] = {}
    for module, found in halves.items():
        inner = module.removeprefix(outer)
        place = _find_place(inner, base.shapes, plan.prefix)
        if place is None and is_dropped(scheme, f"{inner}.weight"):
            dropped.append(module)
            continue
        if place is None:
            problems.append(f"unknown: {module} is no module of the base network")
            continue
        key, part = place
        places[module] = key
        if len(found) < 2:
            problems.append(f"missing: lora_{'B' if 'A' in found else 'A'} of {module}")
            continue
        update = _Update(module, found["A"], found["B"], part)
        problem = _misfit(base.shapes[key], adapter, update)
        problems += [] if problem is None else [problem]
        updates.setdefault(key, []).append(update)
    if halves:
        problems += _missing(places, plan, adapter.settings)
    else:
        problems.append("missing: tensors named lora_A and lora_B")
    return updates, dropped, problems


def _find_outer(modules: Mapping[str, Any], shapes: Mapping[str, Any], prefix: str) -> str:
    """The first parts of the names that the base network in the file does not have."""
    counts: dict[str, int] = {}
    for module in modules:
        parts = module.split(".")
        for n in range(len(parts)):
            if _find_place(".".join(parts[n:]), shapes, prefix) is not None:
                outer = "".join(f"{part}." for part in parts[:n])
                counts[outer] = counts.get(outer, 0) + 1
                break
    return max(counts, key=lambda outer: counts[outer], default="")


def _find_place(
    module: str, shapes: Mapping[str, Any], prefix: str
) -> tuple[str, tuple[int, int] | None] | None:
    """The tensor of the base that a module's update belongs to, and which part of its rows."""
    as_file = re.sub(r"^(encoder\.)?layers?\.(?=\d)", "encoder.layer.", module)
    options: list[tuple[str, tuple[int, int] | None]] = [(module, None), (as_file, None)]
    options += [
        (as_file.removesuffix(memory) + file, part)
        for memory, file, part in _RENAMED
        if as_file.endswith(f".{memory}")
    ]
    for name, part in options:
        if f"{prefix}{name}.weight" in shapes:
            return f"{prefix}{name}.weight", part
    return None


def _misfit(shape: Sequence[int], adapter: Adapter, update: _Update) -> str | None:
    """Why an update cannot be added to a tensor; None if it can."""
    down, up = (tuple(adapter.tensors.shapes[name]) for name in (update.down, update.up))
    rank = adapter.settings.rank_of(update.module)
    if not down or len(up) < 2 or down[0] != up[1] or math.prod(up[2:]) != 1:
        return f"rank: {update.module}: lora_A is {list(down)}, lora_B {list(up)}: no product"
    if down[0] != rank:
        return f"rank: {update.module}: expected {rank} by its settings, found {down[0]}"
    n_rows = shape[0] // (update.part[1] if update.part else 1)
    want = (n_rows, *shape[1:])
    if (up[0], *down[1:]) != want:
        found = [up[0], *down[1:]]
        return f"base: {update.module}: the update is {found}, the weight of the base {list(want)}"
    return None


def _missing(places: Mapping[str, str], plan: Plan, settings: Settings) -> list[str]:
    """Modules of the base that lack an update that their likes in other layers have."""
    have, seen = set(places.values()), set()
    likes: dict[str, list[str]] = {}
    for key in dict.fromkeys(step.key for step in plan.steps):
        likes.setdefault(_without_numbers(key), []).append(key)
    lines = []
    for module, key in places.items():
        kind = _without_numbers(key), _without_numbers(module)
        others = [] if kind in seen else likes.get(kind[0], [])
        seen.add(kind)
        for other in others:
            likely = _with_numbers(module, other)
            if other not in have and settings.is_target(likely):
                lines.append(f"missing: lora_A and lora_B of {likely}")
    for name in settings.targets if isinstance(settings.targets, tuple) else ():
        is_used = any(f".{key}".endswith(f".{name}.weight") for key in likes)
        if is_used and not any(means((name,), module) for module in places):
            lines.append(f"missing: lora_A and lora_B of all modules named {name}")
    return lines


def _without_numbers(name: str) -> str:
    """A name with the numbers of its layers left open."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def _with_numbers(module: str, key: str) -> str:
    """A module's name with the numbers of a key in place of its own."""
    numbers = iter([part for part in key.split(".") if part.isdigit()])
    return ".".join(next(numbers, part) if part.isdigit() else part for part in module.split("."))
