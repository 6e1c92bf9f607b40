"""Robustifiers of images and normalised tilesets: what is refused before any tile is read."""

import numpy as np
import pytest

import pathorob_jax as pr
from pathorob_jax.core.checks import InputError
from pathorob_jax.data.manifest import CENTER
from pathorob_jax.data.tile_batches import Batch, OddTile
from pathorob_jax.robustify import robustifier_files, stain_fit, stain_tileset
from pathorob_jax.robustify.stain import StainRobustifier


def make_stain(target="mean"):
    return StainRobustifier(
        method="reinhard",
        scope="tile",
        target=target,
        numbers=(np.zeros(3, np.float32), np.ones(3, np.float32)),
        groups=(),
        group_numbers=None,
        group_usable=None,
        n_measured=1,
        n_usable=1,
        table=None,
        rows_sha256="",
        tileset_sha256="",
        source="tiles",
    )


def test_a_method_of_another_version_is_named(tmp_path):
    state = {"target.0": np.zeros(3, np.float32)}
    info = make_stain().describe() | {
        "method": "vahadane",
        "state_sha256": robustifier_files.digest_state(state),
    }
    robustifier_files.write_folder(str(tmp_path), info, state)
    with pytest.raises(InputError, match=r"expected a method of \['reinhard', .*found 'vahadane'"):
        pr.load_stain(str(tmp_path))


def test_a_target_out_of_the_rows_of_the_fit_is_refused(tileset):
    centers = tileset.manifest.column(CENTER)
    rows = np.flatnonzero(centers != centers[0])
    with pytest.raises(InputError, match=f"none of the rows of the fit is of centre '{centers[0]}"):
        pr.fit_stain(tileset, method="reinhard", target=centers[0], rows=rows)


def test_tiles_are_split_by_size_where_none_has_the_size_of_the_batch():
    small, large = np.zeros((2, 3, 3), np.uint8), np.ones((4, 3, 3), np.uint8)
    batch = Batch(
        images=np.zeros((4, 5, 5, 3), np.uint8),
        rows=np.array([7, 8, 9, -1]),
        mask=np.zeros(4, bool),
        bad=(),
        odd=(OddTile(0, "a", large), OddTile(1, "b", small), OddTile(2, "c", large)),
        digests=np.zeros(4, np.uint64),
        read_s=0.0,
    )
    found = [(images.shape, rows.tolist()) for images, rows in stain_fit.split_by_size(batch)]
    assert found == [((1, 2, 3, 3), [8]), ((2, 4, 3, 3), [7, 9])]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (None, "expected a folder or nothing, found a file"),
        ({"thesis.txt": "x"}, r"found 1 entries \(thesis.txt, ...\) without normalized.json"),
        ({"normalized.json": "{"}, "normalized.json: expected JSON.* or --overwrite to replace it"),
        ({"normalized.json": "{}"}, "normalized.json: expected schema 1.* or --overwrite to rep"),
    ],
)
def test_what_lies_in_the_place_of_the_output_stays(tileset, tmp_path, entries, message):
    place = tmp_path / "new"
    if entries is None:
        place.write_text("mine")
    else:
        place.mkdir()
        for name, text in entries.items():
            (place / name).write_text(text)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=message):
        pr.normalize_tileset(tileset, make_stain(), str(place))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_column_of_the_name_of_the_images_is_refused(tmp_path):
    (tmp_path / "tiles").mkdir()
    text = "slide_id,patch_id,biological_class,medical_center,image,path\ns,p,a,A,x,0.png\n"
    (tmp_path / "tiles" / "manifest.csv").write_text(text)
    opened = pr.open_tileset(str(tmp_path / "tiles"))
    with pytest.raises(InputError, match="the column 'image' would become the images; rename it"):
        pr.normalize_tileset(opened, make_stain(), str(tmp_path / "new"))


def test_another_robustifier_is_kept_only_where_it_may(tmp_path):
    folder = str(tmp_path / "stain")
    stain_tileset._keep(make_stain(), folder, overwrite=False)
    before = (tmp_path / "stain" / "robustifier.json").stat().st_mtime_ns
    stain_tileset._keep(make_stain(), folder, overwrite=False)
    assert (tmp_path / "stain" / "robustifier.json").stat().st_mtime_ns == before
    other = make_stain(target="0")
    with pytest.raises(InputError, match="stain: holds another robustifier, fitted on other tiles"):
        stain_tileset._keep(other, folder, overwrite=False)
    stain_tileset._keep(other, folder, overwrite=True)
    assert pr.load_stain(folder).target == "0"
