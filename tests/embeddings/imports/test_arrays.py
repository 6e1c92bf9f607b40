"""Arrays in files: each form that is read, and what is refused with its name."""

import json
import re
import zipfile

import numpy as np
import pytest

from pathorob_jax.core.checks import InputError
from pathorob_jax.embeddings.imports import arrays
from pathorob_jax.embeddings.imports.source import Ask


def rows_of(piece):
    return piece.take(np.arange(piece.n_rows))


@pytest.fixture
def x(rng):
    return rng.normal(size=(6, 5)).astype(np.float32)


def write_safetensors(path, members, *, lengthen=0):
    header, data = {}, b""
    for name, (kind, value) in members.items():
        raw = value.tobytes()
        header[name] = {
            "dtype": kind,
            "shape": list(value.shape),
            "data_offsets": [len(data), len(data) + len(raw) + lengthen],
        }
        data += raw
    text = json.dumps(header | {"__metadata__": {"format": "np"}}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


@pytest.mark.parametrize("order", ["C", "F"])
def test_an_array_is_read_in_either_order(tmp_path, x, order):
    path = tmp_path / "x.npy"
    np.save(path, np.asarray(x, order=order))
    place = arrays.open_npy(str(path))
    np.testing.assert_array_equal(place.read(1, 4), x[1:4])
    assert place.read(2, 2).shape == (0, 5)


def test_what_is_no_array_of_rows(tmp_path, x):
    file = tmp_path / "x.npy"
    path = str(file)
    with pytest.raises(FileNotFoundError, match="no such array"):
        arrays.open_npy(path)
    np.save(path, np.array([{}], object), allow_pickle=True)
    with pytest.raises(InputError, match="Python objects"):
        arrays.open_npy(path)
    np.save(path, np.zeros((2, 3, 4), np.float32, order="F"))
    with pytest.raises(ValueError, match="write it in C order"):
        arrays.open_npy(path).read(0, 1)
    np.save(path, x)
    data = file.read_bytes()
    file.write_bytes(data[:-4])
    with pytest.raises(InputError, match=r"x\.npy: cannot be read .*shorter.*Copy it again"):
        arrays.open_npy(path)
    np.save(path, x)
    place = arrays.open_npy(path)
    file.write_bytes(data[:-4])  # after it was opened
    with pytest.raises(ValueError, match="shorter than its header"):
        place.read(0, 6)


def test_plismbench_names_the_folder_that_is_wrong(tmp_path, x):
    folder = tmp_path / "export" / "uni" / "slide"
    folder.mkdir(parents=True)
    np.save(folder / "features.npy", x)
    with pytest.raises(InputError, match=r"<stain>_<scanner>_to_<reference>, found 'slide'"):
        arrays.read_plismbench(Ask(str(tmp_path / "export")))
    named = folder.rename(folder.with_name("GIV_AT2_to_GMH_S60"))
    np.save(named / "features.npy", x[:, :3])
    with pytest.raises(InputError, match=r"three numbers of the tile .* shape \(6, 3\)"):
        arrays.read_plismbench(Ask(str(tmp_path / "export")))
    np.save(named / "features.npy", np.round(np.abs(10 * x)))
    [piece] = arrays.read_plismbench(Ask(str(tmp_path / "export"), encoder="uni")).pieces
    np.testing.assert_array_equal(rows_of(piece), np.round(np.abs(10 * x))[:, 3:])
    assert piece.columns == {"stain": "GIV", "scanner": "AT2"}


def test_croma_wants_its_table_of_as_many_rows(tmp_path, x):
    np.save(tmp_path / "embeddings.npy", x)
    with pytest.raises(InputError, match=r"expected manifest\.csv beside the array, found none"):
        arrays.read_croma(Ask(str(tmp_path)))
    table = tmp_path / "rows.csv"
    table.write_text("sample_id,label\n" + "".join(f"s{i},a\n" for i in range(5)))
    with pytest.raises(InputError, match="expected the 6 rows of .* found 5"):
        arrays.read_croma(Ask(str(tmp_path)))
    table.write_text(table.read_text() + "s5,b\n")
    for path in (tmp_path, tmp_path / "embeddings.npy"):
        [piece] = arrays.read_croma(Ask(str(path))).pieces
        np.testing.assert_array_equal(rows_of(piece), x)
        assert piece.patches == [f"s{i}" for i in range(6)]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_archive_of_rows_or_of_one_vector_a_patch(tmp_path, x, save):
    path = str(tmp_path / "x.npz")
    names, xy = np.array([f"p{i}".encode() for i in range(6)]), np.arange(12.0).reshape(6, 2)
    save(path, features=x, patch_id=names, coords=xy)
    piece = arrays.open_npz(path)
    np.testing.assert_array_equal(rows_of(piece), x)
    np.testing.assert_array_equal(piece.coords, xy)
    assert piece.patches == [f"p{i}" for i in range(6)]
    save(path, **{f"p{i}": row[None] for i, row in enumerate(x)})
    piece = arrays.open_npz(path)
    np.testing.assert_array_equal(rows_of(piece), x)
    save(path, a=x[0], b=x[1, :3])
    with pytest.raises(InputError, match="b has 3 values, a 5.*one encoder"):
        arrays.open_npz(path)
    save(path, a=np.arange(3))
    with pytest.raises(InputError, match=r"one vector of floats for each patch, .* found a \(3,\)"):
        arrays.open_npz(path)
    save(path, a=np.float32(1))
    with pytest.raises(InputError, match=r"found a \(\)"):
        arrays.open_npz(path)


def test_an_archive_that_numpy_did_not_write(tmp_path, x):
    np.save(tmp_path / "x.npy", x)
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        archive.write(tmp_path / "x.npy", "x.npy")
    with pytest.raises(InputError, match=r"x\.npy is compressed in a way"):
        arrays.open_npz(str(path))
    np.savez(path, x=x)
    data = bytearray(path.read_bytes())
    at = data.index(x.tobytes())
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=re.escape("x.npz")):
        arrays.open_npz(str(path))


def test_safetensors_of_a_slide_and_of_a_folder(tmp_path, x):
    for name in ("s1", "s2"):
        members = {"feats": ("F32", x), "ids": ("I64", np.arange(6))}
        write_safetensors(tmp_path / f"{name}.safetensors", members)
    source = arrays.read_safetensors(Ask(str(tmp_path)))
    assert [piece.slide for piece in source.pieces] == ["s1", "s2"]
    np.testing.assert_array_equal(rows_of(source.pieces[1]), x)
    one = tmp_path / "one.safetensors"
    write_safetensors(one, {"p": ("F32", x[0]), "q": ("F32", x[1])})
    [piece] = arrays.read_safetensors(Ask(str(one))).pieces
    assert piece.patches == ["p", "q"]
    np.testing.assert_array_equal(rows_of(piece), x[:2])
    write_safetensors(one, {"p": ("F32", x[0])}, lengthen=4)
    with pytest.raises(InputError, match="p lies outside the file, which is truncated"):
        arrays.open_safetensors(str(one))
    one.write_bytes(bytes(16))
    with pytest.raises(InputError, match="no header of safetensors"):
        arrays.open_safetensors(str(one))


def test_a_compressed_array_is_unpacked_once(tmp_path, x):
    path = tmp_path / "x.npz"
    np.savez_compressed(path, features=x)
    piece = arrays.open_npz(str(path))
    np.testing.assert_array_equal(piece.take(np.array([0, 2])), x[[0, 2]])
    path.unlink()
    np.testing.assert_array_equal(piece.take(np.array([3, 5])), x[[3, 5]])
