"""A robustifier of images: fitted, kept, and applied to arrays and in extraction."""

import json
import pathlib
import shutil

import extraction
import jax
import numpy as np
import pytest
from machine import DEVICES
from PIL import Image

import pathorob_jax as pr
from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.data import synthetic_tiles
from pathorob_jax.data.manifest import CENTER, CLASS, SLIDE
from pathorob_jax.embeddings import store_files, store_writer
from pathorob_jax.embeddings.store_search import find_datasets
from pathorob_jax.embeddings.tile_transform import Outcome
from pathorob_jax.robustify import macenko, reinhard, run, stain_fit, tile_examples


@pytest.fixture(scope="module")
def fitted(tiles_dir):
    tileset = pr.open_tileset(tiles_dir)
    return {
        (method, scope): pr.fit_stain(tileset, method=method, scope=scope)
        for method in ("macenko", "reinhard")
        for scope in ("tile", "center")
    }


@pytest.mark.slow
def test_the_target_is_the_mean_of_usable_tiles(tileset, fitted):
    tiles = extraction.decode_all(tileset)
    colors = reinhard.measure_colors(tiles)
    assert np.asarray(colors.usable).all()
    mean, std = fitted["reinhard", "tile"].numbers
    np.testing.assert_allclose(mean, np.asarray(colors.mean).mean(0), rtol=1e-5)
    np.testing.assert_allclose(std, np.asarray(colors.std).mean(0), rtol=1e-5)
    stains = macenko.find_stains(tiles)
    usable = np.asarray(stains.usable)
    vectors, density = fitted["macenko", "tile"].numbers
    wanted = np.asarray(stains.vectors)[usable].mean(0)
    np.testing.assert_allclose(vectors, wanted / np.linalg.norm(wanted, axis=0), rtol=1e-5)
    np.testing.assert_allclose(density, np.asarray(stains.density)[usable].mean(0), rtol=1e-5)
    assert fitted["macenko", "tile"].n_usable == usable.sum()


@pytest.mark.slow
def test_targets(tileset, tmp_path, fitted):
    center = tileset.manifest.column(CENTER)
    name = center[-1]
    of_center = pr.fit_stain(tileset, method="reinhard", target=name)
    colors = reinhard.measure_colors(extraction.decode_all(tileset)[center == name])
    np.testing.assert_allclose(of_center.numbers[0], np.asarray(colors.mean).mean(0), rtol=1e-5)
    assert of_center.table.centers == [name]

    of_row = pr.fit_stain(tileset, method="reinhard", target="5")
    path = tmp_path / "five.png"
    Image.fromarray(extraction.decode_all(tileset)[5]).save(path)
    of_file = pr.fit_stain(tileset, method="reinhard", target=str(path))
    np.testing.assert_array_equal(of_row.numbers[0], of_file.numbers[0])
    assert (of_row.target, of_file.target) == ("5", "five.png")
    of_rows = pr.fit_stain(tileset, method="reinhard", rows=np.array([5]))
    np.testing.assert_array_equal(of_rows.numbers[1], of_row.numbers[1])

    # Rows are a set: in any order, and once each.
    some = pr.fit_stain(tileset, method="reinhard", rows=np.array([3, 8, 21]))
    mixed = pr.fit_stain(tileset, method="reinhard", rows=np.array([21, 3, 8, 3]))
    assert mixed.describe() == some.describe()
    colors = reinhard.measure_colors(extraction.decode_all(tileset)[[3, 8, 21]])
    np.testing.assert_allclose(some.numbers[0], np.asarray(colors.mean).mean(0), rtol=1e-5)
    for bad in (-1, 32):
        with pytest.raises(UsageError, match="rows: expected numbers below 32"):
            pr.fit_stain(tileset, method="reinhard", rows=np.array([0, bad]))

    with pytest.raises(UsageError, match="target: expected mean, a centre .*, a row below 32 or"):
        pr.fit_stain(tileset, method="reinhard", target="nowhere.png")
    Image.fromarray(np.full((64, 64, 3), 250, np.uint8)).save(tmp_path / "blank.png")
    with pytest.raises(InputError, match="none of 1 tiles can be a target for macenko"):
        pr.fit_stain(tileset, method="macenko", target=str(tmp_path / "blank.png"))


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["tile", pytest.param("center", marks=pytest.mark.campaign)])
@pytest.mark.parametrize("method", ["macenko", "reinhard"])
def test_devices_and_batches_do_not_change_a_byte(method, scope, tileset, fitted):
    tiles, stain = extraction.decode_all(tileset), fitted[method, scope]
    names = {"center": tileset.manifest.column(CENTER)} if scope == "center" else {}
    one = stain.transform(tiles, **names)
    nothing = stain.transform(tiles[:0], **{key: [] for key in names})
    assert (nothing.images.shape, nothing.changed.shape) == ((0, *tiles.shape[1:]), (0,))
    assert (one.images != tiles).any((1, 2, 3)).tolist() == one.changed.tolist()
    for n in (2, DEVICES):
        many = stain.transform(tiles, **names, mesh=extraction.mesh_of(n))
        assert many.images.tobytes() == one.images.tobytes()
    some = {key: value[3:8] for key, value in names.items()}
    np.testing.assert_array_equal(stain.transform(tiles[3:8], **some).images, one.images[3:8])
    again = pr.fit_stain(tileset, method=method, scope=scope, mesh=extraction.mesh_of(DEVICES))
    assert again.describe() == stain.describe()


def test_the_scope_is_what_is_mapped_to_the_target(tileset, fitted):
    """Reinhard by centre: every centre's mean becomes the target's; its tiles still differ."""
    tiles, center = extraction.decode_all(tileset), tileset.manifest.column(CENTER)
    stain = fitted["reinhard", "center"]
    before = np.asarray(reinhard.measure_colors(tiles).mean)
    after = np.asarray(reinhard.measure_colors(stain.transform(tiles, center=center).images).mean)
    own = pr.fit_stain(tileset, method="reinhard").transform(tiles).images
    by_tile = np.asarray(reinhard.measure_colors(own).mean)
    names = np.unique(center)

    def spread(x):
        return np.stack([x[center == name].mean(0) for name in names]).std(0).max()

    assert spread(after) < 0.25 * spread(before)
    assert by_tile[:, 0].std() < 0.5 * after[:, 0].std()  # light and dark tiles stay so


def test_blank_tiles_stay_and_are_told(fitted):
    blank = np.full((3, 64, 64, 3), 240, np.uint8)
    for stain in (fitted["macenko", "tile"], fitted["reinhard", "tile"]):
        done = stain.transform(blank)
        np.testing.assert_array_equal(done.images, blank)
        assert not done.changed.any()


def test_kept_on_disk(tmp_path, fitted, tileset):
    tiles = extraction.decode_all(tileset)[:3]
    for (method, scope), stain in fitted.items():
        path = str(tmp_path / f"{method}-{scope}")
        pr.save_stain(stain, path)
        loaded = pr.load_stain(path)
        assert loaded.describe() == stain.describe()
        names = {"center": tileset.manifest.column(CENTER)[:3]} if scope == "center" else {}
        first, second = (s.transform(tiles, **names).images for s in (loaded, stain))
        np.testing.assert_array_equal(first, second)
    info = json.loads((tmp_path / "macenko-tile" / "robustifier.json").read_text())
    assert info["kind"] == "images"
    assert sum(map(sum, info["fit"]["rows"])) == 32
    state = tmp_path / "macenko-tile" / "state.safetensors"
    damaged = bytearray(state.read_bytes())
    damaged[-1] ^= 1
    state.write_bytes(damaged)
    with pytest.raises(InputError, match="is not the state of robustifier.json"):
        pr.load_stain(str(tmp_path / "macenko-tile"))


def test_one_kind_is_not_taken_for_the_other(tmp_path, fitted, rng):
    slide = np.arange(40) // 5
    rows = {"slide_id": slide, "patch_id": np.arange(40)}
    rows |= {"biological_class": np.array(["a", "b"])[slide % 2]}
    rows |= {"medical_center": np.array(["A", "B"])[slide // 4]}
    embeddings = pr.fit_robustifier(rng.normal(size=(40, 4)), rows, method="center_means")
    pr.save_robustifier(embeddings, str(tmp_path / "a"))
    pr.save_stain(fitted["macenko", "tile"], str(tmp_path / "b"))
    with pytest.raises(InputError, match="of images, found center_means, which is one of embed"):
        pr.load_stain(str(tmp_path / "a"))
    with pytest.raises(InputError, match="found macenko, which is one of images; give it to .*sta"):
        pr.load_robustifier(str(tmp_path / "b"))
    with pytest.raises(FileNotFoundError, match="no robustifier"):
        pr.load_stain(str(tmp_path / "c"))


def test_what_transform_refuses(fitted):
    stain = fitted["macenko", "center"]
    tiles = np.zeros((2, 64, 64, 3), np.uint8)
    with pytest.raises(InputError, match="center: this robustifier has scope=center"):
        stain.transform(tiles)
    with pytest.raises(InputError, match=r"center: medical_center \['Mars'\] not in the fit"):
        stain.transform(tiles, center=["Mars", stain.groups[0]])
    with pytest.raises(InputError, match=r"images: expected uint8\[N, H, W, 3\], found float32"):
        stain.transform(tiles.astype(np.float32))


@pytest.mark.slow
@pytest.mark.parametrize("n_devices", [1, pytest.param(2, marks=pytest.mark.campaign), DEVICES])
def test_extraction_sees_the_normalised_tiles(n_devices, tileset, tmp_path, fitted):
    """As the encoder applied to what ``transform`` returns, bit for bit, and so on every mesh."""
    stain, encoder = fitted["macenko", "center"], extraction.projection()
    mesh = extraction.mesh_of(n_devices)
    store = extraction.run(tileset, tmp_path, encoder, batch_size=3, mesh=mesh, stain=stain)
    assert store.path == str(tmp_path / "projection+macenko" / "d")
    done = stain.transform(extraction.decode_all(tileset), center=tileset.manifest.column(CENTER))
    batches = np.pad(done.images, ((0, 1), (0, 0), (0, 0), (0, 0))).reshape(-1, 3, 64, 64, 3)
    step = jax.jit(encoder.apply)
    expected = np.concatenate([np.asarray(step(encoder.params, batch)) for batch in batches])
    np.testing.assert_array_equal(store.read(), expected[:32])
    about = dict(store.info["settings"]["stain"])
    counts = about.pop("outcomes")
    assert sum(sum(of_center.values()) for of_center in counts.values()) == 32
    assert about == {
        "method": "macenko",
        "target": "mean",
        "scope": "center",
        "n_unchanged": int((~done.changed).sum()),
    }
    source = store.info["identity"]["source"]
    assert source["robustifier_sha256"] == stain.describe()["sha256"]


@pytest.mark.campaign
@pytest.mark.slow
def test_a_killed_extraction_goes_on_with_the_same_stain(tileset, tmp_path, fitted, monkeypatch):
    stain = fitted["reinhard", "tile"]
    whole = extraction.run(tileset, tmp_path / "whole", stain=stain)
    wait = store_writer.StoreWriter.wait

    def killed(self, writing):
        wait(self, writing)
        raise KeyboardInterrupt

    monkeypatch.setattr(store_writer.StoreWriter, "wait", killed)
    with pytest.raises(KeyboardInterrupt):
        extraction.run(tileset, tmp_path / "killed", stain=stain)
    monkeypatch.setattr(store_writer.StoreWriter, "wait", wait)
    with pytest.raises(InputError, match="configuration .stain: target 'mean', now '0'"):
        extraction.run(
            tileset,
            tmp_path / "killed",
            stain=pr.fit_stain(tileset, method="reinhard", target="0"),
        )
    again = extraction.run(tileset, tmp_path / "killed", stain=stain)
    assert extraction.shard_bytes(again.path) == extraction.shard_bytes(whole.path)
    assert again.info["settings"] == whole.info["settings"]


def test_blank_and_bad_tiles_in_a_store(tmp_path, fitted):
    """Blank tiles are counted, those that cannot be decoded are not."""
    folder = tmp_path / "tiles"
    folder.mkdir()
    lines = ["slide_id,patch_id,biological_class,medical_center,path"]
    for i in range(6):
        tile = np.full((64, 64, 3), 200 + i, np.uint8)
        Image.fromarray(tile).save(folder / f"{i}.png")
        lines.append(f"s{i},{i},a,m,{i}.png")
    (folder / "3.png").write_bytes(b"no image")
    (folder / "manifest.csv").write_text("\n".join(lines))
    store = extraction.run(
        pr.open_tileset(str(folder)),
        tmp_path,
        batch_size=2,
        stain=fitted["reinhard", "tile"],
        on_bad_image="skip",
    )
    assert store.info["settings"]["stain"]["n_unchanged"] == 5
    counts = {"blank": 5, "plain": 0, "normalized": 0, "by_slide": 0}
    assert store.info["settings"]["stain"]["outcomes"] == {"m": counts}
    with pytest.raises(InputError, match=r"medical_center \['m'\] not in the fit of this robust"):
        extraction.run(
            pr.open_tileset(str(folder)), tmp_path / "x", stain=fitted["macenko", "center"]
        )


@pytest.mark.slow
def test_with_a_method_for_embeddings(tileset, tmp_path, fitted):
    store = extraction.run(tileset, tmp_path, stain=fitted["reinhard", "tile"])
    folder = str(pathlib.Path(store.path).parent)
    [both] = run.robustify(find_datasets(folder, []), root=str(tmp_path), method="center_means")
    assert both.path == str(tmp_path / "projection+reinhard+center_means" / "d")
    assert both.info["identity"]["source"]["parent_sha256"] == run.digest_store(store)


def test_slides_without_a_usable_tile_stay(tmp_path, tileset):
    tiles = extraction.decode_all(tileset)
    folder = tmp_path / "tiles"
    folder.mkdir()
    lines = ["slide_id,patch_id,biological_class,medical_center,path"]
    for i in range(4):
        tile = tiles[i] if i < 2 else np.full((64, 64, 3), 238, np.uint8)
        Image.fromarray(tile).save(folder / f"{i}.png")
        lines.append(f"s{i // 2},{i},a,m,{i}.png")
    (folder / "manifest.csv").write_text("\n".join(lines))
    opened = pr.open_tileset(str(folder))
    stain = pr.fit_stain(opened, method="reinhard", scope="slide")
    assert stain.group_usable.tolist() == [True, False]
    again = np.concatenate([tiles[:2], tiles[:2]])
    done = stain.transform(again, slide=opened.manifest.column(SLIDE))
    assert done.changed.tolist() == [True, True, False, False]


@pytest.mark.campaign
@pytest.mark.parametrize("method", ["macenko", "reinhard"])
def test_known_truth(method, tmp_path):
    """Centres differ in stain and scanner: the index rises, and biology does not fall."""
    config = synthetic_tiles.SyntheticConfig(n_slides=2, n_tiles=6, tile_px=64)
    synthetic_tiles.write_tileset(str(tmp_path / "tiles"), config)
    tileset = pr.open_tileset(str(tmp_path / "tiles"))
    encoder = pr.load_encoder("color_stats")
    found = []
    for stain in (None, pr.fit_stain(tileset, method=method)):
        [store] = pr.extract(
            tileset, [encoder], root=str(tmp_path / "e"), dataset="d", batch_size=8, stain=stain
        ).stores
        biology, center, slide = (store.manifest.column(c) for c in (CLASS, CENTER, SLIDE))
        index = pr.robustness_index(
            store.read(), biology=biology, center=center, slide=slide, k=11, draws=0
        )
        found.append(index)
    before, after = found
    assert after.value > before.value + 0.2
    assert after.balanced_accuracy >= before.balanced_accuracy

    def compare():
        request = {"model": f"color_stats+{method}", "dataset": "d", "metrics": ["robustification"]}
        request["output"] = str(tmp_path / "results")
        return pr.evaluate_store(store, settings=pr.Settings(k=11), **request).robustification

    record = compare()
    assert (record.parent, record.method, record.fit_on) == ("color_stats", method, "named rows")
    change = record.paired["robustness_index"]
    np.testing.assert_allclose((change.before, change.after), (before.value, after.value))
    assert change.ci95[0] > 0
    assert any("cannot be fitted anew" in text for text in record.warnings)
    assert np.isfinite(record.residual_center["linear"].auc)
    assert np.isnan(record.cramers_v_fit)
    assert "as it is, a probe reads the centre" in record.verdict
    check_tiles_in_the_report(tmp_path, store, tileset, stain)
    # The same encoder's store of other tiles.
    info = store_files.read_info(str(tmp_path / "e" / "color_stats" / "d"))
    source = info["identity"]["source"]
    info["identity"] = info["identity"] | {"source": source | {"tileset_sha256": "0" * 64}}
    store_files.write_info(str(tmp_path / "e" / "color_stats" / "d"), info)
    with pytest.raises(InputError, match="is not the parent of .*embed the tiles as they are"):
        compare()
    shutil.rmtree(tmp_path / "e" / "color_stats")
    with pytest.raises(InputError, match="the parent of .* is missing.*embed the tiles as they"):
        compare()


def check_tiles_in_the_report(tmp_path, store, tileset, stain):
    """The store's tiles before and after lie beside the record, and in the report."""
    beside = tmp_path / "results" / f"color_stats+{stain.method}" / "d"
    found = tile_examples.read_examples(str(beside))
    assert [e.center for e in found] == list(tileset.manifest.factorize(CENTER).names)
    for one in found:
        assert one.image.shape == (2 * 96, 6 * 96, 3)
        assert (one.image[:96] != one.image[96:]).any()
        assert 0 < min(one.tissue_before) <= max(one.tissue_after) <= 1
        assert sum(one.counts.values()) == 48
        rows = np.flatnonzero(tileset.manifest.column(CENTER) == one.center)
        tile = extraction.decode.decode_tile(*tileset.reader.read(int(rows[0])))
        done = stain.transform(tile[None], slide=tileset.manifest.column(SLIDE)[rows[:1]])
        for shown, whole in ((one.image[:96], tile), (one.image[96:], done.images[0])):
            small = Image.fromarray(whole).resize((96, 96), Image.Resampling.BOX)
            np.testing.assert_array_equal(shown[:, :96], np.asarray(small))
    index = pr.write_report(str(tmp_path / "results"), str(tmp_path / "report"))
    section = pathlib.Path(index).read_text("utf-8").split('<section id="robustification">')[1]
    assert "tiles before and after</summary>" in section
    assert section.count("<image ") == 4
    name = f"tiles_d_color_stats+{stain.method}.png"
    assert (tmp_path / "report" / "figures" / name).exists()
    # One that was damaged is named, and nothing is shown in its place.
    (beside / "examples" / "1.png").write_bytes(b"x")
    pr.write_report(str(tmp_path / "results"), str(tmp_path / "report"))
    section = pathlib.Path(index).read_text("utf-8").split('<section id="robustification">')[1]
    assert "<image " not in section
    assert "not as it was written" in section
    # Without pictures in the store the record says so, and older ones are not taken for its own.
    shutil.rmtree(pathlib.Path(store.path) / "examples")
    request = {"dataset": "d", "metrics": ["robustification"]}
    again = pr.evaluate_store(
        store, settings=pr.Settings(k=11), output=str(tmp_path / "results"), **request
    ).robustification
    assert any(text.startswith("no tiles before and after: the store") for text in again.warnings)
    assert tile_examples.read_examples(str(beside)) == []


def test_a_bad_method_or_scope(tileset):
    with pytest.raises(UsageError, match="method"):
        pr.fit_stain(tileset, method="vahadane")
    with pytest.raises(UsageError, match="scope"):
        stain_fit.fit_stain(tileset, method="macenko", scope="patient")


@pytest.mark.slow
def test_tiles_with_too_little_tissue_are_counted_by_centre(tmp_path, tileset):
    """Macenko with scope tile: the slide's stains in their place, also from disk and in stores."""
    tiles = list(extraction.decode_all(tileset)[:4])
    scarce = np.full_like(tiles[0], 243)
    scarce[:20, :20] = tiles[0][20:40, 20:40]  # 400 pixels: too few
    folder = tmp_path / "tiles"
    folder.mkdir()
    lines = ["slide_id,patch_id,biological_class,medical_center,path"]
    for i, tile in enumerate([*tiles, scarce, np.full_like(scarce, 250)]):
        Image.fromarray(tile).save(folder / f"{i}.png")
        lines.append(f"s{i % 2},{i},a,{'mn'[i % 2]},{i}.png")
    (folder / "manifest.csv").write_text("\n".join(lines))
    opened = pr.open_tileset(str(folder))
    stain = pr.fit_stain(opened, method="macenko", target="0")
    assert stain.groups == ("s0", "s1")
    whole = stain.transform(extraction.decode_all(opened), slide=["s0", "s1"] * 3)
    assert whole.outcomes.tolist()[4:] == [Outcome.BY_SLIDE, Outcome.BLANK]
    for names in (None, ["another"] * 6):
        alone = stain.transform(extraction.decode_all(opened), slide=names)
        assert alone.outcomes.tolist()[4:] == [Outcome.BLANK] * 2
        np.testing.assert_array_equal(alone.images[:4], whole.images[:4])
    pr.save_stain(stain, str(tmp_path / "stain"))
    store = extraction.run(opened, tmp_path, stain=pr.load_stain(str(tmp_path / "stain")))
    counts = store.info["settings"]["stain"]["outcomes"]
    assert (counts["m"]["by_slide"], counts["n"]["blank"]) == (1, 1)
    pr.normalize_tileset(opened, stain, str(tmp_path / "new"))
    written = extraction.decode_all(pr.open_tileset(str(tmp_path / "new")))
    np.testing.assert_array_equal(written, whole.images)
    info = json.loads((tmp_path / "new" / "normalized.json").read_text())
    assert info["outcomes"] == counts
