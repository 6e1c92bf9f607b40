"""Tilesets in, tilesets out: lossless, whole or absent; the script; what is refused."""

import json
import shutil

import extraction
import numpy as np
import pytest
import scripts
from machine import DEVICES
from PIL import Image

import pathorob_jax as pr
from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.data.manifest import CENTER, CLASS, SLIDE
from pathorob_jax.robustify import stain_tileset
from pathorob_jax.robustify.robustifier_files import load_robustifier
from pathorob_jax.robustify.stain_tileset import robustify_tileset


@pytest.fixture(scope="module")
def stain(tiles_dir):
    return pr.fit_stain(pr.open_tileset(tiles_dir), method="macenko")


def make_folder(folder, tiles):
    """A tileset of image files with a column of its own; tiles may differ in size."""
    folder.mkdir()
    lines = ["slide_id,patch_id,biological_class,medical_center,scanner,path"]
    for i, tile in enumerate(tiles):
        Image.fromarray(tile).save(folder / f"{i}.png")
        lines.append(f"s{i // 2},{i},{'ab'[i % 2]},{'AB'[i // 4]},x{i % 3},{i}.png")
    (folder / "manifest.csv").write_text("\n".join(lines))
    return pr.open_tileset(str(folder))


@pytest.mark.slow
def test_the_written_tileset(tileset, stain, tmp_path):
    path = tmp_path / "normalized"
    written = pr.normalize_tileset(tileset, stain, str(path))
    new = pr.open_tileset(str(path))
    expected = stain.transform(extraction.decode_all(tileset), slide=tileset.manifest.column(SLIDE))
    np.testing.assert_array_equal(extraction.decode_all(new), expected.images)
    assert new.manifest.fingerprint() == tileset.manifest.fingerprint()
    assert written == (str(path), 32, int((~expected.changed).sum()))
    info = json.loads((path / "normalized.json").read_text())
    assert info["parent"]["tileset_sha256"] == tileset.fingerprint
    assert info["robustifier_sha256"] == stain.describe()["sha256"]
    counts = info["outcomes"]
    assert set(counts) == set(tileset.manifest.column(CENTER))
    assert sum(c["blank"] + c["plain"] for c in counts.values()) == info["n_unchanged"]
    assert sum(sum(c.values()) for c in counts.values()) == 32
    assert pr.load_stain(str(path / "robustifier")).describe() == stain.describe()
    assert sorted(p.name for p in tmp_path.iterdir() if "lock" not in p.name) == ["normalized"]


@pytest.mark.slow
@pytest.mark.parametrize("n_devices", [1, DEVICES])
def test_extraction_with_a_stain_is_that_of_the_written_tileset(
    n_devices, tileset, stain, tmp_path
):
    mesh = extraction.mesh_of(n_devices)
    pr.normalize_tileset(tileset, stain, str(tmp_path / "normalized"), mesh=mesh)
    encoder = extraction.projection()
    written = pr.open_tileset(str(tmp_path / "normalized"))
    one = extraction.run(written, tmp_path / "a", encoder, batch_size=5)
    two = extraction.run(tileset, tmp_path / "b", encoder, batch_size=5, mesh=mesh, stain=stain)
    assert extraction.shard_bytes(one.path) == extraction.shard_bytes(two.path)


@pytest.mark.slow
def test_columns_and_sizes_stay(tileset, stain, tmp_path):
    tiles = list(extraction.decode_all(tileset)[:8])
    tiles[3] = np.tile(tiles[3], (2, 1, 1))
    opened = make_folder(tmp_path / "tiles", tiles)
    pr.normalize_tileset(opened, stain, str(tmp_path / "new"), mesh=extraction.mesh_of(2))
    new = pr.open_tileset(str(tmp_path / "new"))
    assert new.manifest.fingerprint() == opened.manifest.fingerprint()
    assert new.manifest.column("scanner").tolist() == [f"x{i % 3}" for i in range(8)]
    shapes = [decode(new, i).shape for i in range(8)]
    assert shapes == [tile.shape for tile in tiles]
    np.testing.assert_array_equal(decode(new, 3), stain.transform(tiles[3][None]).images[0])


def decode(tileset, row):
    return extraction.decode.decode_tile(*tileset.reader.read(row))


@pytest.mark.campaign
@pytest.mark.slow
def test_a_killed_run_leaves_nothing_and_goes_on(tileset, stain, tmp_path, monkeypatch):
    monkeypatch.setattr(stain_tileset, "ROWS_PER_FILE", 10)
    whole, path = tmp_path / "whole", tmp_path / "killed"
    pr.normalize_tileset(tileset, stain, str(whole))
    read, calls = stain_tileset.read_rows, []

    def killed(*args, **kwargs):
        calls.append(len(args[1]))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return read(*args, **kwargs)

    monkeypatch.setattr(stain_tileset, "read_rows", killed)
    with pytest.raises(KeyboardInterrupt):
        pr.normalize_tileset(tileset, stain, str(path))
    assert not path.exists()
    # What became of a file's rows is sealed: one that was damaged is made again.
    [first, second] = sorted((tmp_path / ".killed.partial" / "new").glob("*.outcomes.json"))
    first.write_text(first.read_text().replace("2", "0", 1))
    pr.normalize_tileset(tileset, stain, str(path))
    assert calls == [10, 10, 10, 10, 10, 2], "one of the first two files is kept"
    assert extraction.files_of(path) == extraction.files_of(whole)
    again = pr.normalize_tileset(tileset, stain, str(path))
    assert again.n_tiles == 32
    assert len(calls) == 6, "it is there already"


@pytest.mark.slow
def test_what_is_replaced(tileset, stain, tmp_path):
    path = str(tmp_path / "new")
    pr.normalize_tileset(tileset, stain, path)
    other = pr.fit_stain(tileset, method="macenko", target="0")
    with pytest.raises(InputError, match=r"another tileset \(robustifier_sha256, target differ\)"):
        pr.normalize_tileset(tileset, other, path)
    pr.normalize_tileset(tileset, other, path, overwrite=True)
    assert pr.load_stain(f"{path}/robustifier").target == "0"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(InputError, match="nothing was removed"):
        pr.normalize_tileset(tileset, stain, str(tmp_path / "mine"), overwrite=True)
    with pytest.raises(UsageError, match="is the tileset to be normalised"):
        pr.normalize_tileset(tileset, stain, tileset.path)
    with pytest.raises(InputError, match="expected a local folder"):
        pr.normalize_tileset(tileset, stain, "gs://bucket/x")


@pytest.mark.slow
def test_fit_keep_and_apply(tileset, tmp_path):
    folder = str(tmp_path / "robustifier")
    bio = tileset.manifest.column(CLASS)[0]
    options = {"method": "reinhard", "fit_rows": f"{CLASS}={bio}", "scope": "center"}
    fitted, written = robustify_tileset(tileset, output=None, robustifier=folder, **options)
    assert written is None
    assert fitted.table.classes == [bio]
    assert set(fitted.groups) == set(tileset.manifest.column(CENTER))
    loaded, written = robustify_tileset(
        tileset, output=str(tmp_path / "new"), method=None, robustifier=folder
    )
    assert loaded.describe() == fitted.describe()
    assert written.n_tiles == 32
    with pytest.raises(InputError, match="holds another robustifier"):
        robustify_tileset(tileset, output=None, robustifier=folder, method="macenko")
    with pytest.raises(FileNotFoundError, match="no robustifier"):
        load_robustifier(str(tmp_path / "nothing"))
    with pytest.raises(UsageError, match="target: a saved robustifier is fitted already"):
        robustify_tileset(
            tileset, output=str(tmp_path), method=None, robustifier=folder, target="0"
        )
    with pytest.raises(UsageError, match="method: combat changes embeddings"):
        robustify_tileset(tileset, output=str(tmp_path / "x"), method="combat")
    with pytest.raises(UsageError, match="give --method to fit"):
        robustify_tileset(tileset, output=str(tmp_path / "x"), method=None)
    with pytest.raises(UsageError, match="output: give the folder"):
        robustify_tileset(tileset, output=None, method="macenko")


@pytest.mark.campaign
def test_the_scripts(tiles_dir, tmp_path):
    new, root = tmp_path / "new", tmp_path / "embeddings"
    images = ["robustify", f"--tileset={tiles_dir}", "--method=macenko"]
    done = scripts.call(*images, f"--output={new}", "--target=mean", "--scope=center")
    assert done.code == 0, done.text
    assert "32 tiles, of which" in done.text
    embed = ["extract", "--model=color_stats", "--dataset=d", f"--output={root}"]
    done = scripts.call(*embed, f"--tileset={tiles_dir}", f"--stain={new}/robustifier")
    assert done.code == 0, done.text
    first = root / "color_stats+macenko"
    shutil.move(first, tmp_path / "kept")
    done = scripts.call(*embed, f"--tileset={new}")
    assert done.code == 0, done.text
    kept, plain = tmp_path / "kept" / "d", root / "color_stats" / "d"
    assert extraction.shard_bytes(kept) == extraction.shard_bytes(plain)
    for wrong, message in (
        (["--rank=3", f"--output={new}"], "rank: --tileset does not use it; leave it out"),
        (["--reference=A", f"--output={new}"], "not use it; give --target=<centre>, whose stain"),
        ([f"--embeddings={root}", f"--output={new}"], "give either --embeddings or --tileset"),
    ):
        done = scripts.call(*images, *wrong)
        assert done.code == 2
        assert message in done.text
    done = scripts.call("robustify", f"--embeddings={root}", f"--output={root}", "--scope=tile")
    assert "scope: --embeddings does not use it" in done.text
    done = scripts.call(
        "robustify", f"--embeddings={root}", f"--output={root}", "--method=reinhard"
    )
    assert "error: method: reinhard changes images; give --tileset." in done.text
