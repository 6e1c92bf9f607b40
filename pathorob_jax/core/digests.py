"""sha256 digests of bytes and arrays, by which artefacts are compared."""

import hashlib

import numpy as np


def digest(*parts: bytes) -> str:
    """Hex sha256 of the parts. Each part is preceded by its length, so that boundaries count."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(len(part).to_bytes(8, "little"))
        sha.update(part)
    return sha.hexdigest()


def digest_array(array: np.ndarray) -> str:
    """Hex sha256 of an array's shape, dtype and values in C order."""
    sha = hashlib.sha256(f"{array.shape} {array.dtype.str}".encode())
    sha.update(np.ascontiguousarray(array).data)
    return sha.hexdigest()
