"""Sets of named tensors, as the readers of checkpoint files return them."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from pathorob_jax.core.checks import InputError

# Types that a weight may have. Integers without their scale, and float8, are no weights.
FLOATS = ("float64", "float32", "float16", "bfloat16")
# Types that parameters may be stored in.
DTYPES = ("float32", "bfloat16")
# Modules that training wraps around others; their names are no part of the network.
WRAPPER_PARTS = frozenset(
    {
        "module",
        "_orig_mod",
        "_fsdp_wrapped_module",
        "_fpw_module",
        "_forward_module",
        "_checkpoint_wrapped_module",
    }
)
_MAX_NAME = 1000


@dataclass(frozen=True)
class TensorSet:
    """Named tensors that belong together.

    Attributes:
        shapes: shape of each tensor, in the order of the file.
        kinds: type of each, as ``float32``, ``int8`` or ``sparse float32``.
        read: name -> the tensor as NumPy array, read anew; floats keep the type of the file.
        removed: parts of names that wrappers of modules had put in, and that were taken out.
    """

    shapes: Mapping[str, tuple[int, ...]]
    kinds: Mapping[str, str]
    read: Callable[[str], np.ndarray]
    removed: tuple[str, ...] = ()

    def check_floats(self, names: Iterable[str], *, what: str) -> None:
        """Raise InputError unless all these tensors are plain floats; the message has them all."""
        kinds = {name: self.kinds[name] for name in names}
        wrong = [f"{name} is {kind}" for name, kind in kinds.items() if kind not in FLOATS]
        if wrong:
            more = f" and {len(wrong) - 10} more" if len(wrong) > 10 else ""
            raise InputError(
                f"{what}: weights must be of {', '.join(FLOATS)}: {'; '.join(wrong[:10])}{more}. "
                "Dequantise the tensors (or make them dense) and save them as floats first."
            )


def make_set(
    shapes: Mapping[str, tuple[int, ...]],
    kinds: Mapping[str, str],
    read: Callable[[str], np.ndarray],
    *,
    what: str,
) -> TensorSet:
    """A set whose names are those of the network: parts of wrappers are taken out.

    Raises:
        InputError: a name cannot be printed, or two become one.
    """
    original: dict[str, str] = {}
    removed: set[str] = set()
    for name in shapes:
        if not name.isprintable() or len(name) > _MAX_NAME:
            raise InputError(f"{what}: expected names of tensors as text, found {name[:80]!a}.")
        parts = name.split(".")
        bare = ".".join(part for part in parts if part not in WRAPPER_PARTS)
        removed |= WRAPPER_PARTS & set(parts)
        if bare in original:
            raise InputError(
                f"{what}: {original[bare]} and {name} are one name without the parts of wrappers; "
                "save the tensors of one of them alone."
            )
        original[bare] = name
    flat = next((name for name in original if name.split(".")[-1].startswith("_flat_param")), None)
    if flat is not None:
        raise InputError(
            f"{what}: {flat} holds the parameters as FSDP flattens them. Save a full state dict "
            "(StateDictType.FULL_STATE_DICT) in the training environment."
        )
    return TensorSet(
        {bare: shapes[name] for bare, name in original.items()},
        {bare: kinds[name] for bare, name in original.items()},
        lambda bare: read(original[bare]),
        tuple(sorted(removed)),
    )
