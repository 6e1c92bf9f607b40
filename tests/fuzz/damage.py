"""Ways to damage a file: bytes, and values of JSON. All are drawn from a seeded generator."""

import json
import random
import traceback
from collections import Counter

from pathorob_jax.core.checks import InputError

# What went wrong, for the message of a test: tracebacks, and what was taken silently.
FAILURES: list[str] = []
CLEAN, EQUAL, TRACEBACK, SILENT = "clean error", "equal to the oracle", "traceback", "silent"
# Values of other types, out of range, or hostile, in the place of any JSON value.
ODD_VALUES = (
    *(None, True, False, 0, -1, 7, 0.5, -1e300, 2**70, 10**400, "", "x", "5", "\x00", "=1+1"),
    *([], [1], ["a"], [[]], {}, {"a": 1}, {"k": [1, 2]}, "../../x", "a" * 300, "北京"),
)


def damage_bytes(data: bytes, rng: random.Random) -> bytes:
    """The bytes with one fault: a flipped bit, a cut, a hole, noise, or none of them left."""
    kind = rng.choice(["flip", "flip", "flip", "cut", "empty", "hole", "noise", "double", "other"])
    at = rng.randrange(len(data))
    end = min(len(data), at + rng.randint(1, 64))
    if kind == "flip":
        return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
    return {
        "cut": data[:at],
        "empty": b"",
        "hole": data[:at] + data[end:],
        "noise": data[:at] + rng.randbytes(end - at) + data[end:],
        "double": data + data,
        "other": rng.choice(
            [b"PK\x03\x04", b"\x93NUMPY", b"PAR1", b"[]", b"{}", b"0", b"\xff" * 99]
        ),
    }[kind]


def places(value, inside=()):
    """Places of all values in nested JSON."""
    items = {dict: lambda v: v.items(), list: enumerate}.get(type(value), lambda v: ())(value)
    for key, item in items:
        yield (*inside, key)
        yield from places(item, (*inside, key))


def edit_json(value, rng: random.Random, *, beyond=()):
    """A copy of a JSON value with one value dropped or replaced; no place under ``beyond``."""
    copy = json.loads(json.dumps(value))
    found = [place for place in places(copy) if place[0] not in beyond]
    *inside, last = rng.choice(found)
    holder = copy
    for key in inside:
        holder = holder[key]
    if rng.random() < 0.25:
        del holder[last]
    else:
        holder[last] = rng.choice(ODD_VALUES)
    return copy


def classify(read, is_equal, *, names: str) -> str:
    """The class of an outcome.

    Args:
        read: reads what was damaged; returns None where the reader has said that it leaves it out.
        is_equal: whether what was read is what was written.
        names: text that an error must hold.
    """
    try:
        found = read()
    except (InputError, FileNotFoundError) as error:
        if names in str(error) and "\n" not in str(error) and len(str(error)) < 2000:
            return CLEAN
        FAILURES.append(f"{names}: no message for people: {error}")
        return TRACEBACK
    except Exception:  # noqa: BLE001  whatever else is raised has a traceback
        FAILURES.append(f"{names}: {traceback.format_exc()[-1500:]}")
        return TRACEBACK
    if found is None:
        return CLEAN
    if is_equal(found):
        return EQUAL
    FAILURES.append(f"{names}: taken silently: {found!r:.500}")
    return SILENT


def empty_count() -> Counter:
    return Counter({CLEAN: 0, EQUAL: 0, TRACEBACK: 0, SILENT: 0})
