"""Digests of arrays by blocks."""

import hashlib

import numpy as np
import pytest

from pathorob_jax.core import digests


@pytest.mark.parametrize("n_bytes", [0, 1, 7, 8, 40])
def test_blocks_hashed_at_once(monkeypatch, rng, n_bytes):
    monkeypatch.setattr(digests, "BLOCK_BYTES", 8)
    array = rng.integers(0, 255, n_bytes).astype(np.uint8)
    parts = [f"{array.shape} |u1".encode()]
    for start in range(0, n_bytes, 8):
        block = array[start : start + 8]
        parts.append(hashlib.sha256(f"({len(block)},) |u1".encode() + block.tobytes()).hexdigest())
    framed = b"".join(
        len(part).to_bytes(8, "little") + part
        for part in (p if isinstance(p, bytes) else p.encode() for p in parts)
    )
    assert digests.digest_in_threads(array) == hashlib.sha256(framed).hexdigest()


def test_shape_dtype_order_and_values_count(rng):
    array = rng.random((6, 4)).astype(np.float32)
    changed = array.copy()
    changed[5, 3] += 1
    others = [array.reshape(4, 6), array.astype(np.float64), array.view(np.int32), array.T, changed]
    found = {digests.digest_in_threads(a) for a in [array, *others]}
    assert len(found) == 6
    # Values in C order count, not how they lie in memory.
    assert digests.digest_in_threads(np.asfortranarray(array)) == digests.digest_in_threads(array)
