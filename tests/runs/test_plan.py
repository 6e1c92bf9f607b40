"""Plans: they write nothing, name what is there and what is not, and add up what was measured."""

import re

import pytest
import run_folders
from run_folders import TINY, snapshot, write_checkpoint, write_spec, write_tiles

from pathorob_jax.runs import measure, plan
from pathorob_jax.runs.measure import Evaluating, Speed, Tile
from pathorob_jax.runs.plan import make_plan
from pathorob_jax.runs.request import make_request

GB = 10**9


class NothingAtHand:
    """A converter whose checkpoints are all on the hub."""

    def convert(self, spec, checkpoint, *, output, overwrite=False):
        raise AssertionError("a plan converts nothing")

    def is_at_hand(self, spec, checkpoint):
        return checkpoint is not None and checkpoint.endswith(".safetensors")


@pytest.fixture
def measured(monkeypatch):
    """Made-up speeds: what is added up is the plan's."""
    monkeypatch.setattr(measure, "measure_tile", lambda config: Tile(0.5, 0.0, 2000.0))
    monkeypatch.setattr(measure, "measure_encoder", lambda *_, **__: Speed(3.0, 0.25, 10))
    evaluating = Evaluating(7.0, 2.0, 16)
    monkeypatch.setattr(measure, "measure_evaluation", lambda *_, **__: evaluating)
    monkeypatch.setattr(plan.jax, "local_device_count", lambda: 3)


def test_time_is_the_sum_of_what_is_left(measured, tmp_path):
    request = make_request(
        output=str(tmp_path / "out"), models=["color_stats", "vit_random"], synthetic=TINY
    )
    made = make_plan(request, NothingAtHand())
    n = run_folders.N
    assert made.seconds["fetch"] == pytest.approx(0.5 * n)
    assert made.seconds["extract"] == pytest.approx(2 * (3 + 0.25 * n))
    # The first evaluation is 5 s longer; neighbours of twice the rows take four times as long.
    assert made.seconds["evaluate"] == pytest.approx(5 + 2 * 2 * 4)
    assert made.total_s == pytest.approx(sum(made.seconds.values()))
    [disk] = made.disks
    assert disk.needed == 2000 * n + 2 * 4 * 10 * n + 2 * 10**6 + 5 * 10**6
    text = str(made)
    assert "to download: nothing" in text
    assert re.search(r"time on 3 x cpu: about \d+ s \(start 4 s, fetch 16 s, extract 22 s", text)
    assert not (tmp_path / "out").exists()


def test_downloads_name_size_licence_and_terms_and_nothing_is_written(
    measured, tmp_path, monkeypatch
):
    monkeypatch.setattr(plan.huggingface_hub, "get_token", lambda: "hf_abcdefghijklmnop")
    (tmp_path / "data").mkdir()
    write_tiles(tmp_path / "data", "mine")
    spec = write_spec(tmp_path, "here", "nowhere")
    here = write_checkpoint(tmp_path / "here.safetensors", spec, "here")
    request = make_request(
        output=str(tmp_path / "out"),
        models=["uni2_h"],
        spec_files=[spec],
        datasets=["mine", "camelyon", "tcga"],
        data_dir=str(tmp_path / "data"),
        checkpoints=[here],
        metrics=["robustness_index", "apd"],
    )
    before = snapshot(tmp_path)
    made = make_plan(request, NothingAtHand())
    assert snapshot(tmp_path) == before
    found = {(one.what, one.source): one for one in made.downloads}
    images = found["camelyon", "https://huggingface.co/datasets/bifold-pathomics/PathoROB-camelyon"]
    assert (images.n_bytes, images.licence) == (466_600_116, "CC0-1.0")
    tables = found["tcga", "https://github.com/bifold-pathomics/PathoROB"]
    assert tables.licence == "BSD-3-Clause"
    gated = found["uni2_h", "https://huggingface.co/MahmoodLab/UNI2-h"]
    assert 2.5 * GB < gated.n_bytes < 3 * GB
    assert gated.licence == "CC-BY-NC-ND-4.0"
    assert "accept its terms at https://huggingface.co/MahmoodLab/UNI2-h; a token" in gated.note
    lost = found["nowhere", "a file of yours"]
    assert "--checkpoint=nowhere=<file>" in lost.note
    assert not any(what == "here" for what, _ in found)
    text = str(made)
    assert "uni2_h: 2.7 GB from https://huggingface.co/MahmoodLab/UNI2-h, licence CC" in text
    assert "hf_" not in text
    assert "not measured, and not in it: apd" in text
    assert "downloads are not in it" in text


def test_too_little_room_is_said(measured, tmp_path, monkeypatch):
    usage = plan.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(plan.shutil, "disk_usage", lambda _: usage)
    request = make_request(output=str(tmp_path / "out"), synthetic=TINY)
    assert "1.0 kB free  TOO LITTLE: make room first" in str(make_plan(request, NothingAtHand()))


@pytest.mark.slow
def test_measurements_are_of_real_work():
    tile = measure.measure_tile(TINY)
    assert tile.draw_s > tile.decode_s > 0
    assert 500 < tile.n_bytes < 32 * 32 * 3
    [spec] = make_request(output="x", models=["color_stats"]).specs.values()
    speed = measure.measure_encoder(spec, preset="authors", batch_size=4, tile_px=32)
    assert speed.dim == 12
    assert speed.tile_s > 0
    took = measure.measure_evaluation(("robustness_index",), 5, n_rows=96, dim=8)
    assert took.n_rows == 96
    assert took.first_s > 0
    assert took.of_rows(192) == pytest.approx(4 * took.next_s)
    assert took.of_rows(10) == took.next_s


@pytest.mark.slow
def test_an_encoder_is_measured_without_its_weights(tmp_path):
    spec_file = write_spec(tmp_path, "mine")
    [spec] = make_request(output="x", spec_files=[spec_file]).specs.values()
    speed = measure.measure_encoder(spec, preset="authors", batch_size=2, tile_px=32)
    assert speed.dim == 24
