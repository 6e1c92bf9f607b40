"""``.pt`` files that PyTorch did not write so are refused by name; folders of slide2vec and eva."""

import json
import zipfile

import numpy as np
import pytest
import torch_pickles
from torch_pickles import mapping, tensor, texts

from pathorob_jax.core.checks import InputError
from pathorob_jax.embeddings.imports import torch_files
from pathorob_jax.embeddings.imports.source import Ask


@pytest.fixture
def x(rng):
    return rng.normal(size=(4, 3)).astype(np.float32)


def rows_of(piece):
    return piece.take(np.arange(piece.n_rows))


def save_npz(path, x):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, features=x)


def test_a_dict_of_rows_and_of_text_beside_them(tmp_path, x):
    names = texts("p", "q", "r", "s")
    pickled = mapping(features=tensor((4, 3)), patch_id=names, tool=b"Vuni\n", few=texts("a"))
    path = torch_pickles.save(tmp_path / "t.pt", pickled, _0=x)
    piece = torch_files.open_rows(str(path))
    np.testing.assert_array_equal(rows_of(piece), x)
    assert piece.patches == ["p", "q", "r", "s"]
    assert piece.columns == {"patch_id": ["p", "q", "r", "s"]}


@pytest.mark.parametrize(
    ("pickled", "part"),
    [
        (tensor((4, 3), kind=b"collections\nOrderedDict"), "a storage of an unknown type"),
        (tensor((4, 3), n_values=13), "a storage is shorter than the pickle says"),
        (tensor((4, 3), strides=(3,)), "a tensor without storage"),
        (tensor((4, 3), offset=1), "a tensor lies outside its storage"),
        (tensor((4, 3), strides=(-3, 1)), "a tensor lies outside its storage"),
    ],
)
def test_a_tensor_that_is_not_in_its_storage(tmp_path, x, pickled, part):
    path = torch_pickles.save(tmp_path / "t.pt", pickled, _0=x)
    message = rf"t\.pt: no tensors of PyTorch 1\.6 or later, or truncated \({part}\)\. Copy it"
    with pytest.raises(InputError, match=message):
        torch_files.open_rows(str(path))


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"order": b"big"}, "its bytes are in the order of another machine"),
        ({"compress": zipfile.ZIP_DEFLATED}, "it was compressed afterwards; save it anew"),
    ],
)
def test_an_archive_of_another_kind(tmp_path, x, options, part):
    path = torch_pickles.save(tmp_path / "t.pt", tensor((4, 3)), _0=x, **options)
    with pytest.raises(InputError, match=rf"t\.pt: .*\({part}\)"):
        torch_files.open_rows(str(path))


def test_damaged_values_and_a_pickle_of_any_size(tmp_path, x, monkeypatch):
    path = torch_pickles.save_rows(tmp_path / "t.pt", x)
    whole = bytearray(path.read_bytes())
    whole[whole.index(x.tobytes())] ^= 1
    path.write_bytes(whole)
    with pytest.raises(InputError, match=r"t\.pt: .*archive/data/0 is not as it was written"):
        torch_files.open_rows(str(path))
    torch_pickles.save_rows(path, x)
    monkeypatch.setattr(torch_files.pickle_checks, "MAX_PICKLE_BYTES", 10)
    with pytest.raises(InputError, match=r"t\.pt: .*its pickle is larger than any"):
        torch_files.open_rows(str(path))


def test_a_file_that_is_missing_or_holds_no_rows(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"t\.pt: no such file"):
        torch_files.open_rows(str(tmp_path / "t.pt"))
    path = torch_pickles.save(tmp_path / "t.pt", b"Vhello\n")
    with pytest.raises(InputError, match=r"t\.pt: expected a tensor of rows, .* found str\."):
        torch_files.open_rows(str(path))
    torch_pickles.save(path, b"c__builtin__\nbytearray\n")
    with pytest.raises(InputError, match=r"t\.pt: refused: its pickle makes a bytearray"):
        torch_files.open_rows(str(path))


def test_slide2vec_from_its_folder_of_tiles_alone(tmp_path, x):
    save_npz(tmp_path / "tile_embeddings" / "b.npz", x)
    torch_pickles.save_rows(tmp_path / "tile_embeddings" / "a.pt", 2 * x)
    (tmp_path / "tiles").mkdir()
    np.savez(tmp_path / "tiles" / "b.coordinates.npz", x=np.arange(4), y=np.arange(4) + 10)
    first, second = torch_files.read_slide2vec(Ask(str(tmp_path / "tile_embeddings"))).pieces
    assert (first.slide, second.slide) == ("a", "b")
    np.testing.assert_array_equal(rows_of(first), 2 * x)
    assert first.coords is None
    np.testing.assert_array_equal(second.coords, [[0, 10], [1, 11], [2, 12], [3, 13]])


def test_slide2vec_with_one_embedding_an_image(tmp_path, x):
    folder = tmp_path / "image_embeddings"
    save_npz(folder / "tumor" / "a.npz", x[:1])
    save_npz(folder / "normal" / "b.npz", x[1:2])
    about = {"sample_id": "image a", "num_tiles": 9, "feature_dim": 9}  # not of this array
    (folder / "tumor" / "a.meta.json").write_text(json.dumps(about))
    source = torch_files.read_slide2vec(Ask(str(tmp_path)))
    np.testing.assert_array_equal(source.take(np.arange(2)), x[[1, 0]])
    assert source.patches().to_pylist() == ["b", "image a"]
    assert source.column("class").to_pylist() == ["normal", "tumor"]
    assert source.slides() is None


@pytest.mark.parametrize("name", ["/t.pt", "../t.pt", "a/../../t.pt", "s3://bucket/t.pt"])
def test_eva_names_no_file_elsewhere(tmp_path, name):
    path = tmp_path / "manifest.csv"
    path.write_text(f"embeddings,target\n{name},a\n")
    with pytest.raises(InputError, match=rf"row 0: '{name}' lies outside .*\. Copy it there"):
        torch_files.read_eva(Ask(str(tmp_path)))
    path.write_text("file,target\nt.pt,a\n")
    with pytest.raises(InputError, match=r"expected a column 'embeddings', found \['file', 'ta"):
        torch_files.read_eva(Ask(str(tmp_path)))
