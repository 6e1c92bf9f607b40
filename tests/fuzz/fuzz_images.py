"""A campaign of damaged and odd images: each is refused with one message, or decoded as PIL does.

``fuzz_images`` encodes small pictures in many formats and modes, changes their bytes, and decodes
them. What is decoded must be what PIL gives, or for grey values of more than 8 bits what NumPy
makes of PIL's values; what is refused must be refused by PIL, or have no range.
"""

import io
import random
import traceback
import warnings
from collections import Counter
from unittest import mock

import numpy as np
from PIL import Image

from pathorob_jax.data import decode

CLEAN, EQUAL, TRACEBACK, SILENT = "clean error", "equal to the oracle", "traceback", "silent"
# What went wrong, for the message of a test.
FAILURES: list[str] = []
FORMS = {
    "JPEG": ("L", "RGB", "CMYK"),
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I", "F"),
    "WEBP": ("RGB", "RGBA"),
    "BMP": ("1", "L", "P", "RGB"),
    "GIF": ("L", "P", "RGB"),
    "PPM": ("1", "L", "RGB", "I"),
    "TGA": ("L", "RGB", "RGBA"),
    "JPEG2000": ("L", "RGB", "RGBA"),
    "ICO": ("RGBA",),
    "PCX": ("L", "RGB"),
    "SGI": ("L", "RGB"),
}
RANGES = (None, "full", (0.0, 4095.0), (-10.0, 300.0))


def _picture(mode: str, rng: np.random.Generator) -> Image.Image:
    height, width = rng.integers(1, 40, 2)
    rgb = rng.integers(0, 256, (height, width, 3), np.uint8)
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 65536, (height, width)).astype(np.uint16))
    if mode == "I":
        return Image.fromarray(rng.integers(0, 65536, (height, width)).astype(np.int32))
    if mode == "F":
        values = rng.normal(0.5, 1, (height, width)).astype(np.float32)
        values.flat[0] = rng.choice([0.5, np.nan, np.inf])
        return Image.fromarray(values)
    if mode in ("RGBA", "LA"):
        alpha = rng.integers(0, 256, (height, width), np.uint8) * int(rng.integers(0, 2))
        return Image.fromarray(np.dstack([rgb, alpha])).convert(mode)
    if mode == "LAB":
        return Image.merge("LAB", Image.fromarray(rgb).split())
    return Image.fromarray(rgb).convert(mode)


def _encode(rng: np.random.Generator) -> bytes:
    form = str(rng.choice(list(FORMS)))
    mode = str(rng.choice(FORMS[form]))
    options = {}
    if form == "JPEG":
        options = {"quality": int(rng.integers(1, 101)), "progressive": bool(rng.integers(0, 2))}
    if form == "TIFF" and mode not in ("I", "F", "I;16", "LAB"):
        options = {"compression": str(rng.choice(["raw", "tiff_lzw", "tiff_adobe_deflate"]))}
    sink = io.BytesIO()
    _picture(mode, rng).save(sink, form, **options)
    return sink.getvalue()


def _damage(data: bytes, draw: random.Random) -> bytes:
    kind = draw.choice(
        ["none", "flip", "flip", "flip", "head", "cut", "hole", "noise", "tail", "mix"]
    )
    at = draw.randrange(len(data))
    if kind == "head":
        at = draw.randrange(min(len(data), 64))
    end = min(len(data), at + draw.randint(1, 40))
    if kind in ("flip", "head"):
        return data[:at] + bytes([data[at] ^ (1 << draw.randrange(8))]) + data[at + 1 :]
    return {
        "none": data,
        "cut": data[:at],
        "hole": data[:at] + data[end:],
        "noise": data[:at] + draw.randbytes(end - at) + data[end:],
        "tail": data + draw.randbytes(draw.randint(1, 99)),
        "mix": data[:at] + data[: len(data) - at],
    }[kind]


def _by_pil(data: bytes, image_range: decode.ImageRange | None) -> np.ndarray | None:
    """The pixels as PIL and numpy give them; None: there are none."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.mode[0] not in "IF":
                return np.asarray(image.convert("RGB"))
            mode, values = image.mode, np.asarray(image).astype(np.longdouble)
    except Exception:  # noqa: BLE001 - whatever PIL raises, it has no pixels
        return None
    ends = image_range
    if ends == "full":
        ends = {"F": (0, 1), "I": None}.get(mode, (0, 65535))
    if ends is None or not np.isfinite(values).all():
        return None
    low, high = map(np.longdouble, ends)
    share = (np.minimum(np.maximum(values, low), high) - low) / (high - low)
    return np.dstack([np.rint(255 * share).astype(np.uint8)] * 3)


def _outcome(data: bytes, image_range: decode.ImageRange | None) -> str:
    try:
        found = decode.decode_tile(data, "a/tile.png", image_range=image_range)
    except decode.TileError as error:
        if _by_pil(data, image_range) is None and str(error).startswith("a/tile.png: "):
            return CLEAN
        FAILURES.append(f"refused, though PIL reads it: {error}")
        return SILENT
    except Exception:  # noqa: BLE001 - that is what is looked for
        FAILURES.append(traceback.format_exc())
        return TRACEBACK
    expected = _by_pil(data, image_range)
    if expected is not None and found.dtype == np.uint8 and np.array_equal(found, expected):
        return EQUAL
    FAILURES.append(f"other pixels than PIL's: {data[:40]!r}")
    return SILENT


def fuzz_images(n: int, seed: int) -> Counter[str]:
    """Outcomes of ``n`` images."""
    rng, draw, outcomes = np.random.default_rng(seed), random.Random(seed), Counter()
    # Small enough that a damaged header cannot ask for much memory.
    with warnings.catch_warnings(), mock.patch.object(Image, "MAX_IMAGE_PIXELS", 2**18):
        warnings.simplefilter("ignore")
        for _ in range(n):
            data = _damage(_encode(rng), draw)
            outcomes[_outcome(data, draw.choice(RANGES))] += 1
    return outcomes
