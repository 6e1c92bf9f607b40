"""sha256 digests of bytes, arrays and plain values, by which artefacts are compared."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from pathorob_jax.core.hosts import n_cores

BLOCK_BYTES = 2**24


def digest(*parts: bytes) -> str:
    """Hex sha256 of the parts. Each part is preceded by its length, so that boundaries count."""
    return digest_each(parts)


def digest_each(parts: Iterable[bytes]) -> str:
    """``digest`` of parts that need not be in memory at once."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(len(part).to_bytes(8, "little"))
        sha.update(part)
    return sha.hexdigest()


def digest_joined(blocks: Iterable[tuple[np.ndarray, np.ndarray]]) -> str:
    """``digest_each`` of many short parts that lie one behind the other.

    Args:
        blocks: int64[n] lengths of the parts, and uint8 bytes, as many as the lengths add up to.
    """
    sha = hashlib.sha256()
    for lengths, joined in blocks:
        ends = np.cumsum(lengths + 8)
        heads = (ends - lengths - 8)[:, None] + np.arange(8)
        framed = np.empty(len(joined) + heads.size, np.uint8)
        is_head = np.zeros(len(framed), bool)
        is_head[heads] = True
        framed[heads] = lengths.astype("<u8").view(np.uint8).reshape(-1, 8)
        framed[~is_head] = joined
        sha.update(framed.data)
    return sha.hexdigest()


def digest_array(array: np.ndarray) -> str:
    """Hex sha256 of an array's shape, dtype and values in C order."""
    return digest_blocks(array.shape, array.dtype, [array])


def digest_blocks(
    shape: tuple[int, ...], dtype: np.dtype[Any], blocks: Iterable[np.ndarray]
) -> str:
    """``digest_array`` of an array whose consecutive parts need not be in memory at once."""
    sha = hashlib.sha256(f"{shape} {dtype.str}".encode())
    for block in blocks:
        sha.update(np.ascontiguousarray(block).data)
    return sha.hexdigest()


def digest_in_threads(array: np.ndarray) -> str:
    """Hex sha256 of an array, hashed by blocks at once; not that of ``digest_array``."""
    whole = np.ascontiguousarray(array)
    data = whole.reshape(-1).view(np.uint8)
    blocks = [data[start : start + BLOCK_BYTES] for start in range(0, data.size, BLOCK_BYTES)]
    with ThreadPoolExecutor(n_cores()) as threads:  # hashing leaves Python's lock
        found = threads.map(digest_array, blocks)
        return digest(f"{whole.shape} {whole.dtype.str}".encode(), *map(str.encode, found))


def digest_arrays(arrays: Mapping[str, Any]) -> str:
    """Hex sha256 of named arrays, whatever their order."""
    pairs = [(name, digest_array(np.asarray(arrays[name]))) for name in sorted(arrays)]
    return digest(*(part.encode() for pair in pairs for part in pair))


def digest_json(value: Any) -> str:
    """Hex sha256 of plain values, whatever the order of their keys, which must be text.

    The canonical form is JSON in ASCII with sorted keys and numbers as Python writes them.
    """
    return digest(json.dumps(value, sort_keys=True).encode())
