"""AnnData and SpatialData: which array is read, which columns are kept, where tiles lie."""

import pathlib
import shutil
import struct

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pathorob_jax.core.checks import InputError
from pathorob_jax.embeddings.imports import annotated
from pathorob_jax.embeddings.imports.source import Ask

GOLDEN = pathlib.Path(__file__).resolve().parents[2] / "data" / "anndata"
N = 4


@pytest.fixture
def x(rng):
    return rng.normal(size=(N, 3)).astype(np.float32)


def write_h5ad(path, obs=None, **arrays):
    with h5py.File(path, "w") as file:
        for name, value in arrays.items():
            file[name] = value
        frame = file.create_group("obs")
        frame.attrs["_index"] = "cell"
        for name, value in ({"cell": [f"c{i}" for i in range(N)]} | (obs or {})).items():
            frame[name] = value
    return str(path)


@pytest.mark.parametrize("matrix", [{"X/data": np.ones(9)}, {"X": np.zeros((N, 0), np.float32)}])
def test_embeddings_are_in_obsm_where_x_holds_none(tmp_path, x, matrix):
    path = write_h5ad(tmp_path / "a.h5ad", **matrix, **{"obsm/X_uni": x, "obsm/X_umap": x[:, :2]})
    [piece] = annotated.read_anndata(Ask(path)).pieces
    assert piece.where == f"{path}: obsm/X_uni"
    np.testing.assert_array_equal(piece.take(np.arange(N)), x)


@pytest.mark.parametrize("obsm", [{}, {"obsm/X_umap": np.ones((N, 2))}])
def test_a_sparse_matrix_is_refused_where_there_is_nothing_else(tmp_path, obsm):
    path = write_h5ad(tmp_path / "a.h5ad", **{"X/data": np.ones(9)}, **obsm)
    with pytest.raises(InputError, match=r"a\.h5ad: X is sparse\. Write .* with --encoder"):
        annotated.read_anndata(Ask(path))


def test_columns_of_text_are_kept_and_others_left_out(tmp_path, x):
    obs = {
        "site": np.array([b"A", b"A", b"B", b"B"]),
        "stage/values": np.arange(N),
        "stage/mask": np.array([False, True, False, False]),
        "place": np.zeros((N, 2)),
        "other/parts": np.zeros(N),
        "__categories/old": np.arange(N),
    }
    [piece] = annotated.read_anndata(Ask(write_h5ad(tmp_path / "a.h5ad", obs, X=x))).pieces
    assert set(piece.columns) == {"obs_names", "site", "stage"}
    assert piece.columns["site"].to_pylist() == ["A", "A", "B", "B"]
    assert piece.columns["stage"].to_pylist() == ["0", None, "2", "3"]
    assert piece.patches.to_pylist() == ["c0", "c1", "c2", "c3"]


@pytest.fixture
def spatial(tmp_path):
    """A SpatialData store with a table of 24 tiles, and their outlines elsewhere than ``obsm``."""
    root = tmp_path / "slide.zarr"
    shutil.copytree(GOLDEN / "small.v3.zarr", root / "tables" / "uni_tiles")
    (root / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group"}')
    (root / "shapes" / "tiles").mkdir(parents=True)
    corners = [v for i in range(24) for v in (i + 7.0, 3.0)]
    outlines = [struct.pack("<BIII2d", 1, 3, 1, 1, *corners[2 * i : 2 * i + 2]) for i in range(24)]
    table = pa.table({"tile_id": [10 * i for i in range(24)], "geometry": outlines})
    pq.write_table(table, root / "shapes" / "tiles" / "shapes.parquet")
    return root


def places_of(spatial):
    [piece] = annotated.read_spatialdata(Ask(str(spatial))).pieces
    return piece.coords


def test_places_of_tiles_are_those_of_the_table_or_else_of_their_outlines(spatial):
    table = spatial / "tables" / "uni_tiles"
    assert places_of(spatial)[:2, 0].tolist() == [0, 256]
    shutil.rmtree(table / "obsm" / "spatial")
    assert places_of(spatial)[:2].tolist() == [[7, 3], [8, 3]]
    shutil.rmtree(table / "obs" / "tile_id")
    assert places_of(spatial) is None, "nothing says which outline is whose"


@pytest.mark.parametrize(
    ("outline", "part"),
    [
        (
            struct.pack("<BII", 1, 6, 0) + bytes(4),
            "expected a polygon .* found type 6 with 0 parts",
        ),
        (b"\1", r"cannot be read \(unpack requires"),
        (b"", r"cannot be read \(index out of range"),
    ],
)
def test_outlines_that_are_no_polygons_are_refused(spatial, outline, part):
    shutil.rmtree(spatial / "tables" / "uni_tiles" / "obsm" / "spatial")
    path = spatial / "shapes" / "tiles" / "shapes.parquet"
    table = pq.read_table(path)
    outlines = [*table.column("geometry").to_pylist()[:-1], outline]
    pq.write_table(table.set_column(1, "geometry", pa.array(outlines)), path)
    with pytest.raises(InputError, match=rf"shapes\.parquet: {part}"):
        places_of(spatial)


def test_a_tile_without_an_outline_leaves_all_without_places(spatial):
    shutil.rmtree(spatial / "tables" / "uni_tiles" / "obsm" / "spatial")
    path = spatial / "shapes" / "tiles" / "shapes.parquet"
    table = pq.read_table(path)
    outlines = [*table.column("geometry").to_pylist()[:-1], None]
    pq.write_table(table.set_column(1, "geometry", pa.array(outlines)), path)
    assert places_of(spatial) is None
    pq.write_table(table.drop_columns("geometry"), path)
    with pytest.raises(InputError, match=r"shapes\.parquet: cannot be read \(.*geometry"):
        places_of(spatial)
