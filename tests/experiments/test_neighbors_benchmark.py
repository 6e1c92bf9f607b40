"""The benchmark of neighbour metrics measures what it says: its numbers are those of croma."""

import os

import numpy as np
import pytest

from experiments.benchmarks import camelyon_rows, neighbors


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:dataset. RI/MaRI support:RuntimeWarning")  # croma's
def test_ours_and_croma_measure_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    camelyon_rows.make_arrays(68 * 6, 512, str(tmp_path))
    x, labels = (np.load(tmp_path / f"{name}.npy") for name in ("embeddings", "labels"))
    ours = neighbors.measure_all(x, labels, 11)
    theirs = neighbors.measure_croma(x, labels, 11, ["RI", "MaRI", "CRoMa"])
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)
    [index] = neighbors.measure_index(x, labels, 11)
    assert index == pytest.approx(ours[0], abs=1e-12)
    # Embeddings in memory have no folder: no neighbours are kept for them.
    assert sorted(os.listdir()) == ["embeddings.npy", "labels.npy"]
