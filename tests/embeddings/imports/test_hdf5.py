"""HDF5 as TRIDENT, CLAM, STAMP, AtlasPatch and THUNDER write it: what is refused, by name."""

import sys

import h5py
import numpy as np
import pytest
import torch_pickles

from pathorob_jax.core.checks import InputError
from pathorob_jax.embeddings.imports import hdf5
from pathorob_jax.embeddings.imports.source import Ask


@pytest.fixture
def x(rng):
    return rng.normal(size=(4, 3)).astype(np.float32)


def write(path, **arrays):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, value in arrays.items():
            file[name] = value
    return path


def rows_of(piece):
    return piece.take(np.arange(piece.n_rows))


def test_a_damaged_file_and_one_without_features(tmp_path, x):
    path = tmp_path / "s.h5"
    path.write_bytes(b"no HDF5")
    with pytest.raises(InputError, match=r"s\.h5"):
        hdf5.read_stamp(Ask(str(path)))
    write(path, other=x)
    with pytest.raises(InputError, match="expected one of features, feats, .* found other"):
        hdf5.read_stamp(Ask(str(path)))
    write(path, feats=x, coords=np.zeros((4, 3)))
    with pytest.raises(InputError, match=r"coords: expected numbers of shape \(rows, 2\)"):
        hdf5.read_stamp(Ask(str(path)))


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: x[None]])
def test_rows_and_rows_of_one_slide(tmp_path, x, wrap):
    path = write(tmp_path / "s.h5", features=wrap(x), coords=np.arange(8).reshape(4, 2))
    [piece] = hdf5.read_clam(Ask(str(path))).pieces
    np.testing.assert_array_equal(rows_of(piece), x)
    np.testing.assert_array_equal(piece.coords, np.arange(8).reshape(4, 2))


def test_one_embedding_of_a_slide_has_no_coordinates(tmp_path, x):
    path = write(tmp_path / "slide_features_titan" / "s.h5", features=x[0], coords=np.zeros((4, 2)))
    [piece] = hdf5.read_trident(Ask(str(path.parent))).pieces
    np.testing.assert_array_equal(rows_of(piece), x[:1])
    assert piece.coords is None


def test_a_slide_is_read_once(tmp_path, x):
    for folder in ("a", "b"):
        write(tmp_path / folder / "s.h5", feats=x)
    for read in (hdf5.read_stamp, hdf5.read_atlaspatch):
        with pytest.raises(InputError, match="is of slide 's', too"):
            read(Ask(str(tmp_path)))


def test_several_encoders_of_one_file_are_chosen_from(tmp_path, x):
    path = write(tmp_path / "s.h5", **{"features/uni": x, "features/conch": 2 * x})
    with pytest.raises(InputError, match="uni"):
        hdf5.read_atlaspatch(Ask(str(path)))
    [piece] = hdf5.read_atlaspatch(Ask(str(path), encoder="conch")).pieces
    np.testing.assert_array_equal(rows_of(piece), 2 * x)


def test_an_encoder_in_several_folders_is_refused(tmp_path, x):
    for size in ("20x_256px", "40x_512px"):
        write(tmp_path / size / "features_uni" / "s.h5", features=x)
    with pytest.raises(InputError, match="features of uni in 2 folders"):
        hdf5.read_trident(Ask(str(tmp_path)))


def test_splits_lack_no_label_and_come_from_one_encoder(tmp_path, x):
    folder = tmp_path / "tiles" / "uni"
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"expected <split>/embeddings\.h5, found none"):
        hdf5.read_thunder(Ask(str(tmp_path / "empty")))
    path = write(folder / "train" / "embeddings.h5", **{str(i): row for i, row in enumerate(x)})
    write(folder / "train" / "labels.h5", **{"0": 1})
    with pytest.raises(InputError, match="lacks tile 1 of .* Extract again"):
        hdf5.read_thunder(Ask(str(folder)))
    write(folder / "train" / "labels.h5", **{str(i): i % 2 for i in range(4)})
    [piece] = hdf5.read_thunder(Ask(str(folder))).pieces
    np.testing.assert_array_equal(rows_of(piece), x)
    assert piece.columns["label"] == ["0", "1", "0", "1"]
    write(path, **{"0": x[0], "1": x[1, :2], "2": x[2], "3": x[3]})
    [piece] = hdf5.read_thunder(Ask(str(folder))).pieces
    with pytest.raises(InputError, match="tile 1 has 2 dimensions, the first 3"):
        rows_of(piece)


def test_without_h5py_the_way_to_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(
        InputError, match=r"s\.h5: reading HDF5 needs h5py: pip install '.*\[hdf5\]"
    ):
        hdf5.read_stamp(Ask(str(tmp_path / "s.h5")))


def test_trident_reads_one_file_or_a_folder_of_another_name(tmp_path, x):
    path = write(tmp_path / "mine" / "s.h5", features=x)
    for source in (path, path.parent):
        [piece] = hdf5.read_trident(Ask(str(source))).pieces
        np.testing.assert_array_equal(rows_of(piece), x)
    write(tmp_path / "job" / "patches" / "s_patches.h5", coords=np.zeros((4, 2)))
    write(tmp_path / "job" / "features_uni" / "s.h5", features=2 * x)
    [piece] = hdf5.read_trident(Ask(str(tmp_path / "job"))).pieces
    np.testing.assert_array_equal(rows_of(piece), 2 * x)


def test_clam_reads_tensors_where_it_kept_nothing_else(tmp_path, x):
    torch_pickles.save_rows(tmp_path / "pt_files" / "s.pt", x)
    write(tmp_path / "patches" / "s.h5", coords=np.zeros((4, 2)))
    [piece] = hdf5.read_clam(Ask(str(tmp_path))).pieces
    np.testing.assert_array_equal(rows_of(piece), x)
    assert (piece.slide, piece.coords) == ("s", None)


def test_splits_without_labels_tell_their_patches_apart(tmp_path, x):
    for split in ("test", "train"):
        write(tmp_path / split / "embeddings.h5", **{"0": x[0], "1": x[1]})
    source = hdf5.read_thunder(Ask(str(tmp_path)))
    assert source.patches().to_pylist() == ["test/0", "test/1", "train/0", "train/1"]
    assert source.column_names() == ["split"]
