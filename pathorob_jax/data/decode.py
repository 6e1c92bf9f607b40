"""Decode image files to uint8[H, W, 3], with the same pixels as PIL to the last bit.

A file that cannot be decoded raises a ``TileError`` with the reason. PIL reads every header, so the
accepted files are those of PIL. JPEGs of one or three components are decoded by libjpeg-turbo
through simplejpeg, which is faster. If simplejpeg refuses a file or warns about it, PIL decodes it
or gives the reason why it cannot.

Results by kind of file:

====================================  ==========================================================
JPEG, PNG, WebP, TIFF, ... of 1 x 1   its pixels; any size is an image
CMYK, YCCK                            RGB as PIL converts it: without the colour profile
with an EXIF orientation              the pixels as they are stored, not turned
16-bit grey, 32-bit integers, floats  ``TileError`` that names PIL's mode, unless an ``ImageRange``
                                      says which values are black and white
16 bits in colour or beside alpha     the upper 8 bits, as PIL reads them
palette, alpha, transparency          the colours; transparency is dropped. Colours under fully
                                      transparent pixels show, also where all pixels are
several images in one file (MPO)      the first
cut short, corrupt header, no image   ``TileError``: cannot be decoded as an image (PIL's reason)
zero bytes                            ``TileError``: cannot be decoded as an image (no bytes)
JPEG with garbage inside its scan     what libjpeg makes of it: only a checksum could tell
more than 2 x PIL's MAX_IMAGE_PIXELS  ``TileError``: PIL's DecompressionBombError
====================================  ==========================================================

PIL converts grey values of more than 8 bits by clipping: nearly all of a 16-bit image becomes
white, nearly all of a float image in [0, 1] black. Hence they are bad images unless their range is
given.

A truncated Parquet file is not a bad tile: it raises an ``InputError`` that names the file.
"""

import io
import math
import struct
from typing import Literal

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from pathorob_jax.core.checks import InputError, UsageError

ImageRange = Literal["full"] | tuple[float, float]
"""Values that become black and white in grey images of more than 8 bits; those between are scaled
linearly, those beyond are clipped. ``full``: 0 and 65,535 of 16-bit images, 0 and 1 of floats."""

JPEG_FORMATS = ("JPEG", "MPO")
JPEG_MODES = ("L", "RGB")
# PIL has no common class for damaged files: its plugins raise different errors.
DECODING_ERRORS = (
    ArithmeticError,
    EOFError,
    Image.DecompressionBombError,
    LookupError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
)


class TileError(InputError):
    """A tile that cannot be used.

    Attributes:
        name: the file of the tile, or the file and row.
        reason: what is wrong with it.
    """

    def __init__(self, name: str, reason: str, mend: str):
        super().__init__(f"{name}: {reason}. {mend}")
        self.name, self.reason, self._mend = name, reason, mend

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:
        # For pickling between processes: by default pickle calls __init__ with the message alone.
        return TileError, (self.name, self.reason, self._mend)


def parse_image_range(text: str | None) -> ImageRange | None:
    """The range that a flag gives: ``full`` or ``<low>,<high>``; None: none.

    Raises:
        UsageError: it is neither.
    """
    if text is None:
        return None
    if text == "full":
        return "full"
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        low, high = math.nan, math.nan
    return check_image_range((low, high), found=text)


def check_image_range(value: ImageRange | None, *, found: object = None) -> ImageRange | None:
    """The range itself.

    Args:
        value: a range as a caller gives it.
        found: what the caller gave, for the message; None: ``value``.

    Raises:
        UsageError: it is neither ``full`` nor two finite numbers, the lower one first.
    """
    if value is None or value == "full":
        return value
    if (
        isinstance(value, tuple)
        and len(value) == 2
        and all(isinstance(v, int | float) and math.isfinite(v) for v in value)
        and value[0] < value[1]
        and math.isfinite(value[1] - value[0])
    ):
        return float(value[0]), float(value[1])
    raise UsageError(
        "image_range: expected full, or the values that become black and white as <low>,<high> "
        f"(such as 0,4095 for 12 bits), found {value if found is None else found!r}."
    )


def decode_tile(data: bytes, name: str, *, image_range: ImageRange | None = None) -> np.ndarray:
    """Decode an image to uint8[H, W, 3], equal to ``PIL.Image.convert("RGB")`` for any 8-bit mode.

    Args:
        data: an image file.
        name: the tile, for messages.
        image_range: how to scale grey values of more than 8 bits; None: they are refused.

    Raises:
        TileError: the bytes are not a complete image, or their values have no range; the message
            names the tile.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.format in JPEG_FORMATS and image.mode in JPEG_MODES:
                try:
                    return simplejpeg.decode_jpeg(data)
                except ValueError:
                    pass  # PIL decides below.
            if _is_wide(image.mode):
                return _scale(image, name, image_range)
            return np.asarray(image.convert("RGB"))
    except TileError:
        raise
    except UnidentifiedImageError as error:
        # PIL's message contains a memory address, which differs from run to run.
        raise _undecodable(name, "no known format" if data else "no bytes") from error
    except DECODING_ERRORS as error:
        raise _undecodable(name, str(error)) from error


def image_size(data: bytes) -> tuple[int, int] | None:
    """Height and width by the header of an image; None if it has none."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.height, image.width
    except DECODING_ERRORS:
        return None


def _is_wide(mode: str) -> bool:
    """True for PIL's grey modes of more than 8 bits: I, I;16, I;16B, ... and F."""
    return mode == "F" or mode.split(";")[0] == "I"


def _scale(image: Image.Image, name: str, image_range: ImageRange | None) -> np.ndarray:
    """uint8[H, W, 3] of a grey image of more than 8 bits, rounded half to even."""
    mode = image.mode
    full = {"I": None, "F": (0.0, 1.0)}.get(mode, (0.0, 65535.0))
    ends = full if image_range == "full" else image_range
    if ends is None:
        kind = {"I": "32-bit integers", "F": "floats"}.get(mode, "16-bit grey values")
        how = "" if full is None else "--image_range=full or "
        raise TileError(
            name,
            f"its pixels are {kind} (PIL's mode {mode}), and nothing says what is black and white",
            f"Give {how}--image_range=<low>,<high>, or store the image with 8 bits.",
        )
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise TileError(
            name,
            f"its pixels (PIL's mode {mode}) are NaN or infinite in places",
            "Replace the file, or leave its row out of the tileset.",
        )
    low, high = ends
    grey = np.rint(255 * ((np.clip(values, low, high) - low) / (high - low))).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def _undecodable(name: str, why: str) -> TileError:
    return TileError(
        name,
        f"cannot be decoded as an image ({why})",
        "Replace the file, or leave its row out of the tileset.",
    )
