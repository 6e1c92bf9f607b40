"""Maps of what classifiers of slides see: written where places are known, read, and drawn."""

import base64
import io
import logging as std_logging
import re

import jax
import numpy as np
import pytest
import stores
from PIL import Image
from report_records import Page

from pathorob_jax.core import devices, files
from pathorob_jax.core.checks import InputError
from pathorob_jax.data.manifest import as_manifest
from pathorob_jax.data.slide_table import read_slide_table
from pathorob_jax.evaluation.attention_maps import find_places, plan_maps
from pathorob_jax.evaluation.run import Request, run_request
from pathorob_jax.evaluation.settings import ApdSettings, Settings, SlideSettings
from pathorob_jax.metrics.slide_prediction import score_classes
from pathorob_jax.report import attention_figures
from pathorob_jax.report.attention_figures import draw_attention, find_spacing
from pathorob_jax.report.write import write_report
from pathorob_jax.results.attention_files import read_attention, write_attention

SLIDES, SIDE = 48, 3


def make_case(*, places=True):
    """Slides of 3 x 3 patches; in the middle one of a tumour lies what shows it."""
    rng = np.random.default_rng(0)
    slide, y, x = (a.ravel() for a in np.indices((SLIDES, SIDE, SIDE)))
    bio, center = slide % 2, slide // 2 % 2
    features = 0.1 * rng.normal(size=(len(slide), 5))
    features[:, 0] += 9 * bio * ((x == 1) & (y == 1))
    table = {
        "slide_id": [f"s{i}" for i in slide],
        "patch_id": [f"{i}-{j}" for i, j in zip(x, y, strict=True)],
        "biological_class": np.array(["normal", "tumor"])[bio].tolist(),
        "medical_center": np.array(["A", "B"])[center].tolist(),
    }
    if places:
        table |= {"x": (256.0 * x).tolist(), "y": (256 * y).tolist()}
    return features.astype(np.float32), as_manifest(table)


def run(tmp_path, *, presets=("mean",), table=None, **case):
    x, rows = make_case(**case)
    store = stores.make_store(tmp_path / "embeddings/model/own", x, rows, chunk_rows=len(rows))
    request = Request(
        model="model",
        dataset="own",
        metrics=("slide_prediction",),
        settings=Settings(
            draws=0,
            apd=ApdSettings(repetitions=2, stopping="converged", slides_per_cell=4),
            slide_prediction=SlideSettings(presets=presets, table=table),
        ),
        output=str(tmp_path / "results"),
        mesh=devices.make_mesh(jax.devices()[:1]),
    )
    return run_request(store, request).slide_prediction, tmp_path / "results/model/own/attention"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("maps")
    return (root, *run(root))


@pytest.mark.campaign
@pytest.mark.slow
def test_test_slides_of_the_first_and_last_split_have_maps(written):
    _, record, folder = written
    last = len(record.cramers_v) - 1
    assert {p.name for p in (folder / "mean").iterdir()} == {"split_0_id", f"split_{last}_id"}
    paths = sorted((folder / "mean" / "split_0_id").iterdir())
    assert len(paths) == record.n_id_test_bags
    for path in paths:
        found = read_attention(str(path))
        assert found.classes == ["normal", "tumor"]
        assert found.title.endswith(", mean, split_0_id")
        table = found.table
        np.testing.assert_allclose(table.column("attention").to_numpy(), 1 / 9)
        at = {
            (x, y): i
            for i, (x, y) in enumerate(zip(*(table[c].to_pylist() for c in "xy"), strict=True))
        }
        assert set(at) == {(256 * i, 256 * j) for i in range(3) for j in range(3)}
        score = table.column("score_tumor").to_numpy()
        np.testing.assert_allclose(score, -table.column("score_normal").to_numpy())
        # The linear head of patches sees the tumour in the middle of its slides.
        if "(tumor)" in found.title:
            assert score.argmax() == at[256, 256]
            assert score[at[256, 256]] > 0 > np.delete(score, at[256, 256]).max()


def test_the_mean_of_patch_logits_is_the_logit_of_the_slide(written):
    root, _, folder = written
    path = sorted((folder / "mean" / "split_0_id").iterdir())[0]
    bag = int(path.stem.removeprefix("slide_"))
    task = files.read_json(
        str(root / "results/model/own/tasks/slide_prediction/mean/repetition_0000.json")
    )
    logits = np.array(task["heads"]["id"][0])[0]  # [bag, 1]
    paths = (folder / "mean" / "split_0_id").iterdir()
    means = [read_attention(str(p)).table.column("score_tumor").to_numpy().mean() for p in paths]
    np.testing.assert_allclose(sorted(means), sorted(score_classes(logits)[:, 1]), atol=1e-4)
    assert bag >= 0


@pytest.mark.slow
@pytest.mark.parametrize("where", ["inside", "beside", "where they fit"])
def test_the_report_draws_them_inside_or_beside(written, where, monkeypatch):
    root, folder = written[0], written[0] / where
    if where == "where they fit":
        monkeypatch.setattr(attention_figures, "MAX_INSIDE", 40_000)
    maps = "beside" if where == "beside" else "inside"
    text = files.read_bytes(write_report(str(root / "results"), str(folder), maps=maps)).decode()
    Page(text)
    section = text.split('<section id="slide_maps">')[1].split("</section>")[0]
    assert 'data-model="model" data-dataset="own"' in section
    beside = sorted((folder / "figures/slides").rglob("*.png"))
    links = re.findall(r'<a href="(figures/slides/model/own/mean/split_[^"]+)"', section)
    assert sorted(links) == [str(path.relative_to(folder)) for path in beside]
    inside = re.findall(r'<img alt="[^"]+" src="(data:image/png;base64,[^"]+)"', section)
    assert len(inside) + len(beside) == 2 * 4
    assert all(len(link) <= 60_000 for link in inside)
    wanted = {"inside": [8], "beside": [0], "where they fit": range(1, 8)}
    assert len(inside) in wanted[where]
    for link in inside:
        picture = Image.open(io.BytesIO(base64.b64decode(link.partition(",")[2])))
        assert picture.width > 600


@pytest.mark.slow
def test_a_table_of_slides_has_maps_of_its_test_slides(tmp_path):
    split = np.array(["train", "train", "validation", "test"])[np.arange(SLIDES) // 4 % 4]
    table = read_slide_table(
        {
            "slide_id": [f"s{i}" for i in range(SLIDES)],
            "label": ["n", "t"] * (SLIDES // 2),
            "split": split.tolist(),
        }
    )
    _, folder = run(tmp_path, table=table)
    found = sorted((folder / "mean" / "table_all").iterdir())
    assert len(found) == (split == "test").sum()
    titles = {read_attention(str(p)).title.split(" ")[0] for p in found}
    assert titles == {f"s{i}" for i in np.flatnonzero(split == "test")}


def test_without_places_there_are_no_maps(tmp_path):
    _, folder = run(tmp_path, places=False)
    assert not folder.exists()


def test_without_an_output_there_are_no_maps(tmp_path):
    evaluation = stores.plan(None, output=str(tmp_path), model="m", dataset="d")
    found = plan_maps(evaluation, ["normal", "tumor"])
    assert (found.folder, found.classes) == (f"{tmp_path}/m/d/attention", ("normal", "tumor"))
    assert plan_maps(stores.plan(None), ["normal", "tumor"]) is None


def test_places_of_the_store_serve_rows_that_have_none(tmp_path):
    x, rows = make_case()
    evaluation = stores.plan(stores.make_store(tmp_path / "store", x, rows))
    plain = as_manifest(rows.table.drop_columns(["x", "y"]))
    chosen = np.array([5, 0, 17])
    found = find_places(evaluation, plain.take(chosen))
    expected = [[512.0, 256.0], [0.0, 0.0], [512.0, 512.0]]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("wrong", ["left", "nan"])
def test_places_that_are_no_numbers_are_said(wrong, caplog):
    _, rows = make_case()
    table = rows.table.to_pydict()
    table["x"][3] = wrong
    rows = as_manifest(table, source="rows.csv")
    with caplog.at_level(std_logging.WARNING):
        assert find_places(stores.plan(None), rows) is None
    assert caplog.messages == [
        "rows.csv: columns x and y hold more than numbers; no maps of slides are written."
    ]


@pytest.mark.slow
def test_a_damaged_map_is_named(tmp_path):
    path = str(tmp_path / "slide.parquet")
    write_attention(
        path,
        "s1 (tumor), mean",
        names={"slide_id": ["s1"] * 2, "patch_id": ["0", "1"]},
        places=np.array([[0, 0], [0, 224.0]]),
        attention=np.array([0.25, 0.75]),
        scores=np.array([[0.5, -0.5, 1], [1, 2, 3]]),
        classes=("a", "b", "c"),
    )
    found = read_attention(path)
    assert found.classes == ["a", "b", "c"]
    assert find_spacing(np.array([[0, 0], [0, 224.0]])) == 224
    assert len(draw_attention(found).axes) == 2 * 4  # with colour bars
    data = (tmp_path / "slide.parquet").read_bytes()
    (tmp_path / "slide.parquet").write_bytes(data[:-20])
    with pytest.raises(InputError, match="cannot be read as a map of attention"):
        read_attention(path)
