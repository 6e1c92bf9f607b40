"""The verify command: within tolerance for the right file, exit code 1 for a wrong network."""

import dataclasses

import numpy as np
import pytest
import scripts
import torch_oracles
import yaml

from converters import comparison, oracles
from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.core.plain import as_plain
from pathorob_jax.models import registry, vit

pytestmark = pytest.mark.torch


def _small(name, folder):
    """A small encoder and a file of it, in the library's own names."""
    torch_oracles.import_timm()
    torch_oracles.import_transformers()
    spec = torch_oracles.shrink(registry.get_spec(name), grid=3)
    module = torch_oracles.fill(oracles.make_module(spec.torch))
    return spec, torch_oracles.save_as_library(module, str(folder))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["uni2_h", "phikon_v2"])
def test_the_right_file_is_within_tolerance(name, tmp_path):
    spec, path = _small(name, tmp_path)
    lines = comparison.verify(spec, path, n_images=2)
    names = [line.name for line in lines]
    assert names == ["stem", "block_00", "block_01", "pooled cls", "pooled mean", "pooled clsmean"]
    assert all(line.is_fine for line in lines)
    assert {line.tolerance for line in lines} == {1e-4, 1e-5}
    # Two implementations never agree to the last bit: equal tables would compare one with itself.
    assert any(line.max_abs > 0 for line in lines)
    assert comparison.verify(spec, path, n_images=2) == lines


@pytest.mark.slow
def test_a_wrong_network_is_above_tolerance(tmp_path):
    spec, path = _small("uni", tmp_path)
    wrong = dataclasses.replace(spec, network=dataclasses.replace(spec.network, eps=1e-4))
    lines = comparison.verify(wrong, path, n_images=2)
    assert not all(line.is_fine for line in lines)
    bad = [line.name for line in lines if not line.is_fine]
    assert "stem" not in bad
    assert "pooled cls" in bad
    text = comparison.table(lines)
    assert text.count("ABOVE") == len(bad)


def test_nan_is_not_fine():
    assert not comparison.Comparison("x", float("nan"), float("nan"), 1e-5).is_fine


def test_what_has_no_library_says_so(tmp_path):
    with pytest.raises(InputError, match="color_stats"):
        comparison.verify(registry.get_spec("color_stats"), None)
    with pytest.raises(UsageError, match="neither timm nor transformers has this network"):
        oracles.make_module(registry.get_spec("genbio_pathfm").torch)


def _write_spec(spec, path):
    """The small encoder as a private one's YAML."""
    entry = {
        "summary": spec.summary,
        "network": {"family": "vit", **as_plain(spec.network)},
        "preprocess": as_plain(spec.preprocess),
        "poolings": list(vit.POOLINGS),
        "default_pooling": "cls",
        "weights": {"schemes": list(spec.weights.schemes)},
        "torch": as_plain(spec.torch),
    }
    path.write_text(yaml.safe_dump({"small": entry}))


@pytest.mark.slow
def test_exit_codes_of_the_command(tmp_path):
    spec, path = _small("uni", tmp_path)
    _write_spec(spec, tmp_path / "right.yaml")
    rest = [f"--checkpoint={path}", "--images=1"]
    done = scripts.call("converters.verify", f"--spec={tmp_path}/right.yaml", *rest)
    assert done.code == 0, done.text
    assert done.out.splitlines()[0].split() == ["stage", "max", "abs", "relative", "tolerance"]
    assert len(done.out.splitlines()) == 1 + 3 + 3
    wrong = dataclasses.replace(spec, network=dataclasses.replace(spec.network, eps=1e-4))
    _write_spec(wrong, tmp_path / "wrong.yaml")
    done = scripts.call("converters.verify", f"--spec={tmp_path}/wrong.yaml", *rest)
    assert done.code == 1
    assert "ABOVE" in done.out
    assert "error: verify: small: above tolerance in" in done.text
    assert scripts.call("converters.verify", f"--checkpoint={path}").code == 2


@pytest.mark.slow
def test_images_are_the_same_for_both(tmp_path, monkeypatch):
    spec, path = _small("uni", tmp_path)
    seen = []
    real = oracles.run_module
    monkeypatch.setattr(oracles, "run_module", lambda m, x: seen.append(x) or real(m, x))
    comparison.verify(spec, path, n_images=3, seed=5)
    [images] = seen
    side = spec.network.image_px
    tiles = np.random.default_rng(5).integers(0, 256, (3, side, side, 3), np.uint8)
    np.testing.assert_array_equal(images, np.asarray(spec.preprocess(tiles)))
