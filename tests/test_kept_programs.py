"""What the tests keep between runs is whole, or compiled anew."""

import os

import pytest
from jax._src import compilation_cache, lru_cache

PROGRAM = compilation_cache.compress_executable(b"program" * 100)


def test_an_entry_is_read_as_written_and_nothing_else_is_left(tmp_path):
    cache = lru_cache.LRUCache(str(tmp_path), max_size=-1)
    cache.put("square", PROGRAM)
    cache.put("square", b"later")
    assert cache.get("square") == PROGRAM
    assert os.listdir(tmp_path) == ["square-cache"]


@pytest.mark.slow
def test_half_an_entry_counts_as_absent_and_is_written_anew(tmp_path):
    cache = lru_cache.LRUCache(str(tmp_path), max_size=-1)
    for broken in (b"", PROGRAM[: len(PROGRAM) // 2]):
        (tmp_path / "square-cache").write_bytes(broken)
        assert cache.get("square") is None
        cache.put("square", PROGRAM)
        assert cache.get("square") == PROGRAM
