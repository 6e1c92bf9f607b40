"""Plans: they write nothing, name what is there and what is not, and add up what was measured."""

import pathlib
import re

import jax
import pytest
import run_folders
from report_records import make_apd, make_margins, make_record
from run_folders import TINY, snapshot, write_checkpoint, write_spec, write_tiles

from pathorob_jax.core import cost, devices
from pathorob_jax.data.tileset import open_tileset
from pathorob_jax.embeddings import store_files
from pathorob_jax.embeddings.extraction import extract
from pathorob_jax.models.registry import load_encoder
from pathorob_jax.results.costs import add_cost
from pathorob_jax.results.record import Outcome
from pathorob_jax.results.result_files import write_outcome
from pathorob_jax.runs import earlier, measure, plan
from pathorob_jax.runs.measure import Evaluating, Speed, Tile
from pathorob_jax.runs.plan import make_plan
from pathorob_jax.runs.request import make_request
from pathorob_jax.runs.status import DONE, Status, StepState

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


def test_time_is_that_of_earlier_results_of_this_machine(measured, tmp_path):
    request = make_request(
        output=str(tmp_path / "out"),
        models=["color_stats", "vit_random"],
        metrics=["robustness_index", "margins", "apd"],
        synthetic=TINY,
    )
    here = cost.machine(devices.make_mesh(jax.local_devices()))

    def keep(make, model, seconds, **changes):
        took = {"seconds": seconds, "is_whole": True, "peak_bytes": 1} | here | changes
        write_outcome(request.results, add_cost(Outcome(make(model, "synthetic")), took, []))

    keep(make_record, "other", 30.0)
    keep(make_record, "third", 50.0)
    keep(make_apd, "other", 100.0)
    keep(make_apd, "third", 900.0, is_whole=False)
    keep(make_margins, "other", 1.0, cores=here["cores"] + 1)
    # A store of other tiles: 100 in 10 s beside the start, and passes that tell nothing of one.
    write_tiles(tmp_path, "mine")
    made = extract(
        open_tileset(str(tmp_path / "mine")),
        [load_encoder("color_stats")],
        root=request.embeddings,
        dataset="mine",
    )
    path = made.stores[0].path
    (pathlib.Path(path) / "cost.json").unlink()
    passes = [{"tiles": 100, "encoders": 1}, {"tiles": 5, "encoders": 2}, {"tiles": 0}]
    passes.append({"tiles": 50, "encoders": 1, "device": "H200"})
    for one in passes:
        store_files.add_cost(path, {"seconds": 14.0, "start_s": 4.0, **here} | one)
    plan = make_plan(request, NothingAtHand())
    n = run_folders.N
    assert plan.seconds["extract"] == pytest.approx(4 + 0.1 * n + 3 + 0.25 * n)
    # Both models: the median of the index, the drop; margins are measured (5 s, 2 s, 4 times).
    assert plan.seconds["evaluate"] == pytest.approx(2 * (40 + 100) + 5 + 2 * 2 * 4)
    assert plan.unmeasured == []
    assert (
        "as earlier results of this machine took: extract color_stats; "
        "evaluate robustness_index, apd on synthetic"
    ) in str(plan)


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


def test_where_nothing_is_left_nothing_is_measured(measured, tmp_path, monkeypatch):
    def all_done(request, steps):
        return Status(request.output, request.cells, {s.key: StepState(s.key, DONE) for s in steps})

    monkeypatch.setattr(plan, "find_status", all_done)
    monkeypatch.setattr(measure, "measure_encoder", lambda *_, **__: pytest.fail("measured"))
    made = make_plan(make_request(output=str(tmp_path / "out"), synthetic=TINY), NothingAtHand())
    assert made.total_s == 0
    assert [disk.needed for disk in made.disks] == [0]
    assert str(made).endswith("time: nothing is left to do")


def test_metrics_of_many_fits_are_named_and_not_measured(measured, tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "measure_evaluation", lambda *_, **__: pytest.fail("measured"))
    request = make_request(
        output=str(tmp_path / "out"), models=["color_stats"], metrics=["apd"], synthetic=TINY
    )
    made = make_plan(request, NothingAtHand())
    assert made.seconds["evaluate"] == 0
    assert made.unmeasured == ["apd"]


@pytest.mark.parametrize(
    ("checkpoint", "note"),
    [("{folder}/none.pth", "NOT THERE: give its file"), ("hf://owner/mine", "")],
)
def test_a_checkpoint_that_is_named_is_where_weights_come_from(
    measured, tmp_path, checkpoint, note
):
    checkpoint = checkpoint.format(folder=tmp_path)
    request = make_request(
        output=str(tmp_path / "out"),
        spec_files=[write_spec(tmp_path, "mine")],
        checkpoints=[checkpoint],
        synthetic=TINY,
    )
    assert request.checkpoints == {"mine": checkpoint}
    [one] = make_plan(request, NothingAtHand()).downloads
    assert (one.what, one.source, one.note) == ("mine", checkpoint, note)
    assert one.n_bytes > 10_000


def test_a_store_that_cannot_be_read_tells_no_speed(tmp_path):
    (tmp_path / "m" / "d").mkdir(parents=True)
    (tmp_path / "m" / "d" / "store.json").write_text("{")
    assert earlier.Ledger(str(tmp_path), str(tmp_path / "none")).encoder_speed("m") is None


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
