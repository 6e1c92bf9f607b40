"""Ranges of the numbers in a spec, so that a wrong one is refused by name and not met later."""

import dataclasses
import math
from collections.abc import Collection
from typing import Any

from pathorob_jax.core.checks import UsageError

# Larger than in any network; beyond it, shapes of the parameters alone would take hours.
MAX_SIZE, MAX_LAYERS = 2**20, 2**10
MAX_COUNT = 2**53


def check_numbers(
    record: Any,
    *,
    what: str,
    zero: Collection[str] = (),
    layers: Collection[str] = (),
    counts: Collection[str] = (),
    signed: Collection[str] = (),
) -> None:
    """Raise UsageError unless all numbers of a dataclass are in range; tuples of them are filled.

    Integers are 1 to ``MAX_SIZE``, floats finite and above 0. None and all other types pass.

    Args:
        record: the dataclass.
        what: it, for the message.
        zero: names of numbers that may be 0.
        layers: names of numbers of layers, which are smaller.
        counts: names of integers that may be large.
        signed: names of floats that may have any sign.
    """
    for field in dataclasses.fields(record):
        name, value = field.name, getattr(record, field.name)
        values = value if isinstance(value, tuple) else (value,)
        if isinstance(value, tuple) and not values and name in layers:
            raise UsageError(f"{what}.{name}: expected at least one number, found none.")
        for each in values:
            if type(each) is int:
                least = 0 if name in zero else 1
                most = MAX_LAYERS if name in layers else MAX_COUNT if name in counts else MAX_SIZE
                if not least <= each <= most:
                    raise UsageError(f"{what}.{name}: expected {least} to {most}, found {each}.")
            elif type(each) is float:
                is_above = name in signed or each > 0 or (each == 0 and name in zero)
                if not (math.isfinite(each) and is_above):
                    need = "a finite number" + ("" if name in signed else " above 0")
                    raise UsageError(f"{what}.{name}: expected {need}, found {each}.")
