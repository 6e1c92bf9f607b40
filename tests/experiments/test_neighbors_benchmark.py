"""The benchmark of neighbour metrics measures what it says: its numbers are those of croma."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
# In a process of its own: the flags of a benchmark have the names of those of the scripts.
MEASURE = """
import json, numpy as np
from experiments.benchmarks import camelyon_rows, neighbors
camelyon_rows.make_arrays(68 * 6, 512, ".")
x, labels = np.load("embeddings.npy"), np.load("labels.npy")
names = ("RI", "MaRI", "CRoMa")
ours, theirs = neighbors.measure_all(x, labels, 11), neighbors.measure_croma(x, labels, 11, names)
print(json.dumps([ours, theirs, neighbors.measure_index(x, labels, 11)]))
"""


@pytest.mark.slow
@pytest.mark.multiprocess
def test_ours_and_croma_measure_the_same(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", MEASURE],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ours, theirs, [index] = json.loads(done.stdout.splitlines()[-1])
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)
    assert index == pytest.approx(ours[0], abs=1e-12)
    # Embeddings in memory have no folder: no neighbours are kept for them.
    assert sorted(os.listdir(tmp_path)) == ["embeddings.npy", "labels.npy"]
