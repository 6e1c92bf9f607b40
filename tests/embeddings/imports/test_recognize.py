"""HDF5 files that several tools write alike are told apart by their marks."""

import h5py
import numpy as np
import pytest

from pathorob_jax.core.checks import UsageError
from pathorob_jax.embeddings.imports import formats

X, XY = np.ones((4, 3), np.float32), np.zeros((4, 2))
ROWS = {"features": X, "coords": XY}


def write(path, arrays, marks):
    path.parent.mkdir(exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, value in arrays.items():
            file[name] = value
        for name in marks:
            file["coords"].attrs[name] = 1
    return str(path)


@pytest.mark.parametrize(
    ("folder", "arrays", "marks", "form"),
    [
        ("job", ROWS, (), "trident"),
        ("job", ROWS, ("patch_level", "patch_size_level0"), "trident"),
        ("job", ROWS, ("patch_level",), "clam"),
        ("job", ROWS, ("custom_downsample",), "clam"),
        ("h5_files", ROWS, (), "clam"),
        ("job", {"features": X}, (), "trident"),
        ("job", {"features/uni": X}, (), "atlaspatch"),
        ("job", {"patch_embeddings": X}, (), "stamp"),
        ("job", {"0": X[0], "1": X[1]}, (), "thunder"),
    ],
)
def test_a_file_and_a_folder_of_such_files(tmp_path, folder, arrays, marks, form):
    path = write(tmp_path / folder / "s.h5", arrays, marks)
    assert formats.recognize(path) == form
    assert formats.recognize(str(tmp_path / folder)) == form


@pytest.mark.parametrize("arrays", [{"patches": X}, {}])
def test_a_file_of_no_tool_is_not_recognised(tmp_path, arrays):
    path = write(tmp_path / "job" / "s.h5", arrays, ())
    with pytest.raises(UsageError, match=r"s\.h5: its format is not recognised\. Name it with"):
        formats.recognize(path)


def test_a_folder_of_other_files_is_not_recognised(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UsageError, match=r"its format is not recognised\. .*one of: anndata, arr"):
        formats.recognize(str(tmp_path))
