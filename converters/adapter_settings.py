"""Settings of a LoRA in PEFT's configuration: rank, scale and modules, by name or pattern."""

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pathorob_jax.core.checks import InputError

_MAX_CONFIG_BYTES = 2**20
# Starts that leave the base as it was; PiSSA, OLoRA and others train against another base.
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class Settings:
    """What PEFT's configuration says of an update.

    Attributes:
        rank: r, for modules that no pattern names.
        alpha: numerator of the scale.
        ranks: ranks of other modules, by PEFT's pattern.
        alphas: numerators of the scale of other modules, by PEFT's pattern.
        by_root: whether the scale is alpha / sqrt(rank) (rsLoRA) instead of alpha / rank.
        targets: names or pattern of the modules; None: not known.
        excluded: names or pattern of modules that are none.
        layers: numbers of the layers; None: all.
        base: name of the base network, as it was loaded.
    """

    rank: int
    alpha: float
    ranks: Mapping[str, int] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)
    by_root: bool = False
    targets: str | tuple[str, ...] | None = None
    excluded: str | tuple[str, ...] | None = None
    layers: tuple[int, ...] | None = None
    base: str | None = None

    def rank_of(self, module: str) -> int:
        """Rank of the update of a module."""
        return _by_pattern(self.ranks, module, self.rank)

    def scale_of(self, module: str) -> float:
        """Factor of the product of a module."""
        rank = self.rank_of(module)
        return _by_pattern(self.alphas, module, self.alpha) / (
            math.sqrt(rank) if self.by_root else rank
        )

    def is_target(self, module: str) -> bool:
        """Whether the module should have an update."""
        if self.targets is None or not means(self.targets, module):
            return False
        if self.excluded is not None and means(self.excluded, module):
            return False
        numbers = {int(part) for part in module.split(".") if part.isdigit()}
        return self.layers is None or not numbers.isdisjoint(self.layers)

    def check_patterns(self) -> None:
        """Raise re.error unless all patterns are regular expressions."""
        for pattern in (*self.ranks, *self.alphas):
            re.compile(pattern)
        for names in (self.targets, self.excluded):
            if isinstance(names, str):
                re.compile(names)


def read_settings(path: str) -> Settings:
    """The settings in PEFT's configuration.

    Raises:
        InputError: the file cannot be read, or asks for more than a plain LoRA.
    """
    try:
        if os.path.getsize(path) > _MAX_CONFIG_BYTES:
            raise ValueError("too large")
        with open(path, encoding="utf-8") as stream:
            found = json.load(stream)
        if not isinstance(found, dict):
            raise TypeError("no mapping")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({str(error)[:200]}).") from error
    if found.get("peft_type") != "LORA":
        kind = str(found.get("peft_type"))[:40]
        raise InputError(f"{path}: expected peft_type LORA, found {kind}; merge it with PEFT.")
    for name in ("use_dora", "fan_in_fan_out", "use_qalora", "layer_replication"):
        if found.get(name):
            raise InputError(f"{path}: {name} is not supported; merge the adapter with PEFT.")
    start = found.get("init_lora_weights")
    if start not in _PLAIN_STARTS:
        raise InputError(
            f"{path}: init_lora_weights {str(start)[:40]!r} trains against a changed base; save it "
            "as a plain LoRA (save_pretrained with path_initial_model_for_weight_conversion)."
        )
    try:
        settings = Settings(
            rank=_number(found["r"], int),
            alpha=_number(found["lora_alpha"], float),
            ranks={str(k): _number(v, int) for k, v in (found.get("rank_pattern") or {}).items()},
            alphas={
                str(k): _number(v, float) for k, v in (found.get("alpha_pattern") or {}).items()
            },
            by_root=bool(found.get("use_rslora")),
            targets=_modules(found.get("target_modules")),
            excluded=_modules(found.get("exclude_modules")),
            layers=_layers(found.get("layers_to_transform")),
            base=found.get("base_model_name_or_path"),
        )
        settings.check_patterns()
    except (KeyError, TypeError, ValueError, AttributeError, re.error) as error:
        raise InputError(
            f"{path}: expected PEFT's fields r, lora_alpha, rank_pattern, alpha_pattern and "
            f"target_modules ({type(error).__name__}: {str(error)[:200]})."
        ) from error
    return settings


def _number(value: Any, kind: type[Any]) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"expected a number, found {str(value)[:40]!r}")
    if kind is int and (value != int(value) or value < 1):
        raise ValueError(f"expected a rank of at least 1, found {value}")
    return kind(value)


def _modules(value: Any) -> str | tuple[str, ...] | None:
    return value if value is None or isinstance(value, str) else tuple(map(str, value))


def _layers(value: Any) -> tuple[int, ...] | None:
    if value is None:
        return None
    return (int(value),) if isinstance(value, int) else tuple(int(each) for each in value)


def _by_pattern(values: Mapping[str, Any], module: str, default: Any) -> Any:
    """The first value whose pattern names the module, as PEFT looks it up."""
    for pattern, value in values.items():
        if re.fullmatch(rf"(.*\.)?({pattern})", module):
            return value
    return default


def means(names: str | tuple[str, ...], module: str) -> bool:
    """Whether names (whole, or the last parts), or a pattern, mean the module."""
    if isinstance(names, str):
        return names == "all-linear" or re.fullmatch(names, module) is not None
    return any(f".{module}".endswith(f".{name}") for name in names)
