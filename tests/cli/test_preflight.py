"""Preflight: what a run needs is named before it begins, and what is missing with its mend."""

import types

import jax.numpy as jnp
import pytest
import scripts
from run_folders import write_checkpoint, write_spec, write_tiles

from pathorob_jax.cli.doctor import checkup, preflight
from pathorob_jax.cli.doctor.findings import FAIL, OK
from pathorob_jax.data import fetch
from pathorob_jax.models import registry
from pathorob_jax.runs.request import make_request


@pytest.fixture
def asked(tmp_path):
    """The folder of a run of two encoders, one with weights, on a dataset that is there."""
    (tmp_path / "data").mkdir()
    write_tiles(tmp_path / "data", "mine")
    spec = write_spec(tmp_path, "weighty")
    request = make_request(
        output=str(tmp_path / "out"),
        models=["color_stats"],
        spec_files=[spec],
        datasets=["mine"],
        data_dir=str(tmp_path / "data"),
    )
    request.remember()
    return request, spec


def states(findings):
    return [(f.name, f.state) for f in findings]


@pytest.mark.slow
def test_what_is_missing_is_named_with_its_mend(asked):
    request, _ = asked
    found = preflight.check_run(request.output)
    assert states(found) == [
        *(("data", OK), ("licence", OK), ("weights", OK), ("encoder", OK)),
        *(("licence", OK), ("weights", FAIL)),
    ]
    assert "mine: 32 tiles, the first 32 x 32 px" in found[0].text
    assert "finite embeddings, dimensions 12 of mine" in found[3].text
    assert "run --steps=convert" in found[-1].mend


@pytest.mark.slow
def test_converted_weights_are_checked_and_tried(asked, tmp_path):
    request, spec = asked
    from converters import engine

    checkpoint = write_checkpoint(tmp_path / "w.safetensors", spec, "weighty").partition("=")[2]
    engine.convert(request.specs["weighty"], checkpoint, output=request.weights)
    found = preflight.check_run(request.output)
    assert states(found)[-2:] == [("weights", OK), ("encoder", OK)]
    assert "sha256" in found[-2].text
    assert "dimensions 24 of mine" in found[-1].text


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (jnp.nan, "not finite, or zero"),
        (0.0, "not finite, or zero"),
        (None, "expected one embedding"),
    ],
)
def test_embeddings_that_are_none_stop_the_run(asked, monkeypatch, value, match):
    request, _ = asked
    shape = (1, 5) if value is not None else (5,)
    broken = types.SimpleNamespace(apply=lambda p, x: jnp.full(shape, value or 0.0), params=None)
    monkeypatch.setattr(registry, "load_encoder", lambda *_, **__: broken)
    finding = next(f for f in preflight.check_run(request.output) if f.name == "encoder")
    assert finding.state == FAIL
    assert match in finding.text


def test_data_that_are_not_there_fail_and_the_encoder_is_not_tried(tmp_path):
    request = make_request(
        output=str(tmp_path), models=["color_stats"], datasets=["mine", "camelyon"]
    )
    request.remember()
    found = preflight.check_run(str(tmp_path))
    assert [f.state for f in found if f.name == "data"] == [FAIL, FAIL]
    assert "camelyon: 0 of 3 files" in found[1].text
    assert "run --steps=fetch --dataset=camelyon" in found[1].mend
    assert (found[-1].name, found[-1].state) == ("encoder", FAIL)


def test_a_folder_that_is_no_tileset_fails_with_its_reason(tmp_path):
    (tmp_path / "data" / "mine").mkdir(parents=True)
    request = make_request(
        output=str(tmp_path / "out"),
        models=["color_stats"],
        datasets=["mine"],
        data_dir=str(tmp_path / "data"),
    )
    request.remember()
    data, *_, encoder = preflight.check_run(request.output)
    assert data.state == FAIL
    assert data.text.startswith(f"mine: {tmp_path}/data/mine: expected a tileset")
    assert encoder.text == "color_stats: no tile to try"


def test_data_of_the_benchmark_are_named_with_revision_and_licence(tmp_path, monkeypatch):
    write_tiles(tmp_path, "camelyon")
    monkeypatch.setattr(fetch, "survey", lambda datasets, data_dir: [])
    monkeypatch.setattr(preflight, "_embed", lambda request, spec, tiles: dict.fromkeys(tiles, 12))
    request = make_request(
        output=str(tmp_path / "out"),
        models=["color_stats"],
        datasets=["camelyon"],
        data_dir=str(tmp_path),
    )
    request.remember()
    data, *_, encoder = preflight.check_run(request.output)
    assert data.text == (
        "camelyon: 32 tiles, the first 32 x 32 px; "
        "bifold-pathomics/PathoROB-camelyon at b2e762542abb, CC0-1.0"
    )
    assert (encoder.state, "12 of camelyon" in encoder.text) == (OK, True)


@pytest.mark.slow
def test_doctor_of_a_run_asks_no_server(asked, tmp_path, monkeypatch):
    def ask(*_):
        raise AssertionError("a server is asked")

    monkeypatch.setattr(checkup.hub, "check_hub", ask)
    monkeypatch.setattr(checkup.devices, "check_devices", list)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "xla"))
    request, _ = asked
    done = scripts.call("doctor", f"--output={tmp_path}", f"--run={request.output}")
    assert done.code == 1
    assert "finite embeddings" in done.out
    assert "weights: see the lines that begin with fail" in done.text


def test_doctor_refuses_a_folder_that_no_run_was_asked_for(tmp_path):
    done = scripts.call("doctor", f"--run={tmp_path}")
    assert done.code == 2
    assert "nothing was run into this folder" in done.text
