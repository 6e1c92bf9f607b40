"""Networks that read bags, as a metric: over the schedule, on tables, survival, and their maps."""

import jax
import numpy as np
import pytest
import stores

from pathorob_jax.core import devices
from pathorob_jax.core.plain import as_plain
from pathorob_jax.data.manifest import as_manifest
from pathorob_jax.data.slide_table import read_slide_table
from pathorob_jax.evaluation.run import Request, run_request
from pathorob_jax.evaluation.settings import ApdSettings, Settings, SlideSettings
from pathorob_jax.results.attention_files import read_attention
from pathorob_jax.results.result_files import read_result

pytestmark = pytest.mark.slow
N, ROWS, EPOCHS = 48, 9, 12
BIO, CENTER = np.arange(N) % 2, np.arange(N) // 2 % 2
SPLITS = np.array(["train", "train", "validation", "test"])[np.arange(N) // 4 % 4]
SLIDES = [f"s{i}" for i in range(N)]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """One tile of nine shows the class of a slide, the others the centre."""
    rng = np.random.default_rng(0)
    slide = np.repeat(np.arange(N), ROWS)
    is_key = np.arange(N * ROWS) % ROWS == 4
    x = 0.3 * rng.normal(size=(N * ROWS, 6))
    x[:, 0] += np.where(is_key, 3.0 * (2 * BIO[slide] - 1), 0)
    x[:, 1] += np.where(is_key, 3.0, 0)
    x[:, 2] += 0.5 * (2 * CENTER[slide] - 1)
    rows = as_manifest(
        {
            "slide_id": [SLIDES[i] for i in slide],
            "patch_id": [str(i % ROWS) for i in range(len(slide))],
            "biological_class": np.array(["normal", "tumor"])[BIO[slide]].tolist(),
            "medical_center": np.array(["A", "B"])[CENTER[slide]].tolist(),
            "x": [str(i % 3) for i in range(len(slide))],
            "y": [str(i // 3 % 3) for i in range(len(slide))],
        }
    )
    folder = tmp_path_factory.mktemp("networks") / "embeddings/model/own"
    return stores.make_store(folder, x.astype(np.float32), rows, chunk_rows=len(rows))


def run(store, output, **settings):
    chosen = {"presets": ("gated",), "epochs": EPOCHS} | settings
    request = Request(
        model="model",
        dataset="own",
        metrics=("slide_prediction",),
        settings=Settings(
            draws=200,
            apd=ApdSettings(repetitions=2, slides_per_cell=4),
            slide_prediction=SlideSettings(**chosen),
        ),
        output=str(output),
        mesh=devices.make_mesh(jax.devices()[:1]),
    )
    return run_request(store, request).slide_prediction


@pytest.fixture(scope="module")
def found(store, tmp_path_factory):
    output = tmp_path_factory.mktemp("results")
    return run(store, output, seeds=2), output


@pytest.mark.campaign
def test_networks_of_several_starts_are_averaged(found):
    record, _ = found
    gated = record.presets["gated"]
    assert (record.preset, record.seeds) == ("gated", 2)
    assert gated.settings["epochs"] == EPOCHS
    assert gated.setting == "epoch"
    assert np.all(np.array(gated.chosen) == EPOCHS)
    assert gated.mean("auc_id")[0] > 0.9


@pytest.mark.campaign
def test_attention_finds_the_tiles_that_tell(found):
    _, output = found
    folder = output / "model/own/attention/gated/split_0_id"
    paths = sorted(folder.iterdir())
    assert paths
    most = [read_attention(str(p)).table.column("attention").to_numpy().argmax() for p in paths]
    assert np.mean(np.array(most) == 4) > 0.9
    score = [read_attention(str(p)).table.column("score_tumor").to_numpy()[4] for p in paths]
    is_tumor = ["(tumor)" in read_attention(str(p)).title for p in paths]
    assert np.mean((np.array(score) > 0) == is_tumor) > 0.9


@pytest.mark.campaign
def test_an_interrupted_run_goes_on_with_the_same_numbers(store, found):
    record, output = found
    task = output / "model/own/tasks/slide_prediction/gated/repetition_0001.json"
    task.unlink()
    again = run(store, output, seeds=2)
    assert as_plain(again.presets) == as_plain(record.presets)
    stored = read_result(str(output / "model/own/slide_prediction.json"))
    assert as_plain(stored.presets) == as_plain(record.presets)


def test_xmil_keeps_the_epoch_of_the_best_validation(store, tmp_path):
    record = run(store, tmp_path, presets=("xmil",), epochs=5)
    chosen = np.array(record.presets["xmil"].chosen)
    assert ((chosen >= 1) & (chosen <= 5)).all()
    assert record.presets["xmil"].settings["choose"] == "best_validation_auc"


@pytest.mark.campaign
def test_labels_of_a_table_are_learned(store, tmp_path):
    table = {"slide_id": SLIDES, "label": [f"c{i}" for i in BIO], "split": SPLITS.tolist()}
    record = run(store, tmp_path, table=read_slide_table(table), seeds=2)
    score = record.table.presets["gated"].all
    assert score.values["auc"] > 0.9
    assert len(list((tmp_path / "model/own/attention/gated/table_all").iterdir())) == 12


@pytest.mark.campaign
def test_survival_is_learned_with_and_without_a_centre(store, tmp_path):
    # Two events at one time do not compare: concordance is the area of early against late.
    time = np.where(BIO == 1, 2.0, 8.0)
    event = np.arange(N) != 6  # of the training slides
    table = {
        "slide_id": SLIDES,
        "time": time.tolist(),
        "event": event.astype(int).tolist(),
        "split": SPLITS.tolist(),
    }
    record = run(store, tmp_path, table=read_slide_table(table), added_centers=("B",), epochs=20)
    assert record.table.measure == "concordance"
    preset = record.table.presets["gated"]
    assert preset.all.values["concordance"] > 0.85
    low, high = preset.all.intervals["concordance"]
    assert low <= preset.all.values["concordance"] <= high
    assert 0 < preset.all.values["nll"] < 2
    assert (preset.all.n_training, preset.without_added.n_training) == (24, 12)
    for name in ("concordance", "nll"):
        gap = preset.all.values[name] - preset.without_added.values[name]
        assert preset.added.values[name] == gap
    path = sorted((tmp_path / "model/own/attention/gated/table_all").iterdir())[0]
    assert read_attention(str(path)).classes == [f"hazard_{i}" for i in range(4)]
