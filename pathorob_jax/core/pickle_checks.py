"""What is refused of a pickle by its instructions, none of which is carried out."""

import pickletools
from typing import Any

from pathorob_jax.core.checks import InputError

MAX_NESTING = 100
LARGE = ("bytearray",)
MAX_PICKLE_BYTES = 2**27


def check_pickle(stream: Any, what: str) -> None:
    """Check a pickle of tensors before it is read.

    Args:
        stream: the pickle, from where the stream stands.
        what: the file, for messages.

    Raises:
        InputError: it nests tuples so deep that hashing one would overflow the stack, makes a
            buffer of any size, or numbers what it keeps so high that the table would fill memory.
    """
    stack: list[int] = []
    marks: list[int] = []
    memo: dict[Any, int] = {}
    for n_before, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        name, before = opcode.name, opcode.stack_before
        if name == "MARK":
            marks.append(len(stack))
        elif name == "GLOBAL" and (made := str(argument).split()[-1]) in LARGE:
            raise InputError(
                f"{what}: refused: its pickle makes a {made}, of any size; save its tensors alone "
                "elsewhere."
            )
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            if argument is not None and argument > n_before:
                raise InputError(f"{what}: refused: its pickle keeps a value as number {argument}.")
            memo[len(memo) if argument is None else argument] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        else:
            start, n_plain = len(stack), len(before)
            if pickletools.markobject in before:
                start, n_plain = marks.pop(), before.index(pickletools.markobject)
            start = max(start - n_plain, 0)
            depth = max(stack[start:], default=0) + 1 if name.startswith("TUPLE") else 0
            if depth > MAX_NESTING:
                raise InputError(f"{what}: refused: its pickle nests {depth} tuples.")
            stack[start:] = [depth] * len(opcode.stack_after)
