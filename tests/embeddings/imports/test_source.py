"""Rows of many files: long columns, files that are only read forward, and folders that are none."""

import numpy as np
import pytest

from pathorob_jax.embeddings.imports import source as sources
from pathorob_jax.embeddings.imports.source import Piece, Source


def test_long_columns_of_many_files_are_whole(monkeypatch):
    def piece(slide, n):
        ids = [f"p{i}" for i in range(n)]
        return Piece(f"{slide}.h5", n, 2, lambda rows: rows, slide, patches=ids)

    found = Source("job", [piece("a", 2), piece("b", 1), piece("c", 2)], "")
    slides, patches = found.slides(), found.patches()
    assert slides.to_pylist() == ["a", "a", "b", "c", "c"]
    monkeypatch.setattr(sources, "CHUNK_BYTES", 0)
    assert found.slides().num_chunks == 3
    assert found.slides().to_pylist() == slides.to_pylist()
    assert found.patches().to_pylist() == patches.to_pylist()


def test_blocks_are_read_forward_and_anew_for_earlier_rows():
    x, starts = np.arange(12.0).reshape(6, 2), []

    def blocks():
        starts.append(1)
        yield from np.split(x, [2, 4])

    take = sources.stream_blocks(blocks)
    for rows in ([0, 1], [3, 5]):
        np.testing.assert_array_equal(take(np.array(rows)), x[rows])
    assert len(starts) == 1
    np.testing.assert_array_equal(take(np.array([1, 2, 4])), x[[1, 2, 4]])
    assert len(starts) == 2
    with pytest.raises(ValueError, match="it ends early"):
        take(np.array([5, 6]))


def test_a_folder_that_is_none_is_named(tmp_path):
    (tmp_path / "x.npz").touch()
    for name in ("x.npz", "nothing"):
        with pytest.raises(FileNotFoundError, match=f"{name}: no such folder"):
            sources.walk(str(tmp_path / name), ".npz")
