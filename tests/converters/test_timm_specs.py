"""Specs written from timm's networks: converted, verified and refused like any other."""

import os

import pytest
import torch_oracles
import yaml
from safetensors.numpy import save_file

from converters import comparison, oracles, timm_specs
from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.models import registry, weights
from pathorob_jax.models.preprocess import Preprocess
from pathorob_jax.models.spec import read_specs

pytestmark = pytest.mark.torch


@pytest.fixture(autouse=True)
def _timm():
    torch_oracles.import_timm()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["test_vit", "vit_tiny_patch16_224.augreg_in21k"])
def test_a_spec_from_timm_is_verified_against_timm(name, tmp_path):
    path = str(tmp_path / "my.yaml")
    timm_specs.write_spec(name, path)
    [spec] = read_specs(path).values()
    assert spec.name == name.partition(".")[0]
    module = torch_oracles.fill(oracles.make_timm(name))
    file = torch_oracles.save_as_library(module, str(tmp_path))
    lines = comparison.verify(spec, file, n_images=2)
    assert all(line.is_fine for line in lines), comparison.table(lines)
    assert any(line.max_abs > 0 for line in lines)


@pytest.mark.slow
def test_preprocessing_is_that_of_timms_evaluation(tmp_path):
    import numpy as np
    import timm.data
    from PIL import Image

    path = str(tmp_path / "my.yaml")
    timm_specs.write_spec("vit_small_patch16_224.dino", path)
    [spec] = read_specs(path).values()
    module = oracles.make_timm("vit_small_patch16_224.dino")
    theirs = timm.data.create_transform(**timm.data.resolve_model_data_config(module))
    tile = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    ours = np.asarray(spec.preprocess(tile[None]))[0].transpose(2, 0, 1)
    np.testing.assert_allclose(ours, theirs(Image.fromarray(tile)).numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "name", ["vit_small_patch16_224", "vit_base_patch14_reg4_dinov2", "vit_giant_patch14_dinov2"]
)
def test_fields_are_those_of_the_network(name, tmp_path, monkeypatch):
    import timm

    small = {"img_size": 56, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 0}
    small |= {"patch_size": 14}
    module = timm.create_model(name, pretrained=False, **small).eval()
    monkeypatch.setattr(oracles, "make_timm", lambda _: module)
    monkeypatch.setattr(timm_specs, "_preprocess", lambda _: Preprocess(resize_px=None, crop_px=56))
    path = str(tmp_path / "my.yaml")
    spec = timm_specs.write_spec(name, path)
    n_params = sum(x.numel() for x in module.parameters())
    assert weights.count_params(registry.network_of(spec.network)[1]) == n_params
    assert (spec.network.mlp == "swiglu") == ("giant" in name)
    assert spec.network.n_registers == (4 if "reg4" in name else 0)
    with open(path) as stream:
        assert yaml.safe_load(stream)[name]["torch"] == {"library": "timm", "constructor": name}


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("test_vit4", "its norms are RmsNorm"),
        ("test_vit2", "it pools before its last norm"),
        ("resnet18", "timm builds a ResNet, which is no plain ViT"),
        ("vit_small_patch16_rope_224", "no plain ViT"),
    ],
)
def test_what_is_no_plain_vit_is_refused(name, match, tmp_path):
    with pytest.raises(InputError, match=match):
        timm_specs.write_spec(name, str(tmp_path / "my.yaml"))
    assert os.listdir(tmp_path) == []


def test_names_and_files_are_checked(tmp_path):
    with pytest.raises(UsageError, match="unknown name 'vit_smal_patch16_224'. Did you mean"):
        timm_specs.write_spec("vit_smal_patch16_224", str(tmp_path / "my.yaml"))
    with pytest.raises(UsageError, match="unknown name 'hf-hub:owner/name'"):
        timm_specs.write_spec("hf-hub:owner/name", str(tmp_path / "my.yaml"))
    with pytest.raises(UsageError, match="expected the name of a YAML file"):
        timm_specs.write_spec("test_vit", str(tmp_path / "weights"))
    (tmp_path / "my.yaml").write_text("mine")
    with pytest.raises(InputError, match="exists; give --overwrite"):
        timm_specs.write_spec("test_vit", str(tmp_path / "my.yaml"))
    assert (tmp_path / "my.yaml").read_text() == "mine"


@pytest.mark.slow
def test_verify_says_what_a_private_spec_lacks(tmp_path):
    import dataclasses

    from small_vit import SPEC, make_state

    save_file(make_state(), str(tmp_path / "x.safetensors"))
    without = dataclasses.replace(SPEC, torch=None)
    with pytest.raises(
        UsageError, match=r"small names no PyTorch .* torch: \{library: timm, constr"
    ):
        comparison.verify(without, str(tmp_path / "none.safetensors"))
    private = dataclasses.replace(
        SPEC, weights=dataclasses.replace(SPEC.weights, repo=None, files=(), url=None)
    )
    with pytest.raises(UsageError, match="names no repo of the hub; give --checkpoint=<file>.$"):
        comparison.verify(private, None)
    wrong = dataclasses.replace(SPEC.torch, kwargs={"patch": 16})
    with pytest.raises(UsageError, match="timm's .* cannot be built with these kwargs"):
        oracles.make_module(wrong)
