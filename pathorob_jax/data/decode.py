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
16-bit grey                           values above 255 become 255, as PIL clips them; not scaled
palette, alpha, transparency          the colours; transparency is dropped
several images in one file (MPO)      the first
cut short, corrupt header, no image   ``TileError``: cannot be decoded as an image (PIL's reason)
zero bytes                            ``TileError``: cannot be decoded as an image (no bytes)
JPEG with garbage inside its scan     what libjpeg makes of it: only a checksum could tell
more than 2 x PIL's MAX_IMAGE_PIXELS  ``TileError``: PIL's DecompressionBombError
====================================  ==========================================================

A truncated Parquet file is not a bad tile: it raises an ``InputError`` that names the file.
"""

import io
import struct

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from pathorob_jax.core.checks import InputError

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


def decode_tile(data: bytes, name: str) -> np.ndarray:
    """Decode an image to uint8[H, W, 3], equal to ``PIL.Image.convert("RGB")`` for any mode.

    Raises:
        TileError: the bytes are not a complete image; the message names the tile.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.format in JPEG_FORMATS and image.mode in JPEG_MODES:
                try:
                    return simplejpeg.decode_jpeg(data)
                except ValueError:
                    pass  # PIL decides below.
            return np.asarray(image.convert("RGB"))
    except UnidentifiedImageError as error:
        # PIL's message contains a memory address, which differs from run to run.
        raise _undecodable(name, "no known format" if data else "no bytes") from error
    except DECODING_ERRORS as error:
        raise _undecodable(name, str(error)) from error


def _undecodable(name: str, why: str) -> TileError:
    return TileError(
        name,
        f"cannot be decoded as an image ({why})",
        "Replace the file, or leave its row out of the tileset.",
    )
