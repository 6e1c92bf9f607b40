"""Pickles are judged by their instructions; none is carried out."""

import io
import pickle

import pytest

from pathorob_jax.core.checks import InputError
from pathorob_jax.core.pickle_checks import MAX_NESTING, check_pickle

PROTO, ONE, STOP = b"\x80\x02", b"K\x01", b"."


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"r\xff\xff\xff\x7f", "x.pth: refused: its pickle keeps a value as number 2147483647"),
        (b"q\x03", "x.pth: refused: its pickle keeps a value as number 3"),
        (b"\x85" * (MAX_NESTING + 1), f"x.pth: refused: its pickle nests {MAX_NESTING + 1} tuples"),
        (b"cbuiltins\nbytearray\n", "x.pth: refused: its pickle makes a bytearray, of any size"),
    ],
)
def test_what_would_fill_memory_or_the_stack_is_refused(data, message):
    with pytest.raises(InputError, match=message):
        check_pickle(io.BytesIO(PROTO + ONE + data + STOP), "x.pth")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_pass(protocol):
    shared = ["a", ("b", 1.5)]
    value = {"x": shared, "y": shared, "z": {1: (shared, None)}}
    check_pickle(io.BytesIO(pickle.dumps(value, protocol)), "x.pth")
    check_pickle(io.BytesIO(PROTO + ONE + b"\x85" * MAX_NESTING + STOP), "x.pth")
