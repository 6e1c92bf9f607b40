"""Which weights of a file are taken: timm's own reader and networks are the oracle."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import torch_oracles
from small_vit import CONFIG, SPEC, expected, make_state, with_schemes

from converters import checkpoints, engine, weight_choice
from converters.tensor_sets import make_set
from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.models import registry, weights

RAW, AVERAGED = make_state(seed=0), make_state(seed=1)


@pytest.fixture
def torch():
    torch_oracles.import_torchvision()
    import torch

    return torch


def _tensors(torch, state):
    return {key: torch.from_numpy(x.copy()) for key, x in state.items()}


def _save(torch, path, value):
    torch.save(value, path)
    return str(path)


def _taken(path, spec=SPEC, **how):
    """The plan for a file, and the parameters it gives."""
    source = engine.find_checkpoint(spec, path)
    abstract = registry.network_of(CONFIG)[1]
    plan = engine.plan_conversion(spec, source, abstract, **how)
    leaves = engine.fill(plan, source, weights.flatten(abstract), spec, dtype="float32")
    return plan, engine.unflatten(leaves, abstract)


def _is(found, state):
    wanted = weights.flatten(expected(state))
    return all(np.array_equal(x, wanted[key]) for key, x in weights.flatten(found).items())


@pytest.mark.torch
@pytest.mark.parametrize("keys", [("state_dict", "state_dict_ema"), ("model", "model_ema")])
def test_averaged_weights_are_taken_as_timm_takes_them(keys, tmp_path, torch):
    torch_oracles.import_timm()
    from timm.models import load_state_dict

    raw, averaged = keys
    value = {"epoch": 3, raw: _tensors(torch, RAW), averaged: _tensors(torch, AVERAGED)}
    path = _save(torch, tmp_path / "file.pth", value)
    plan, found = _taken(path)
    theirs = load_state_dict(path)
    assert _is(found, {key: x.numpy() for key, x in theirs.items()})
    assert not _is(found, RAW)
    assert (plan.weights_key, plan.passed_over) == (averaged, (raw,))
    # The other one is taken on demand.
    plan, found = _taken(path, weights_key=raw)
    assert _is(found, RAW)
    assert (plan.weights_key, plan.passed_over) == (raw, ())
    theirs = load_state_dict(path, use_ema=False)
    assert _is(found, {key: x.numpy() for key, x in theirs.items()})


@pytest.mark.torch
def test_the_choice_is_said_and_recorded(tmp_path, torch, monkeypatch):
    said = []
    monkeypatch.setattr(engine.logging, "info", lambda text, *values: said.append(text % values))
    value = {"model": _tensors(torch, RAW), "teacher": _tensors(torch, AVERAGED)}
    path = engine.convert(
        SPEC, _save(torch, tmp_path / "file.pth", value), output=str(tmp_path / "out")
    )
    with open(f"{path}/model.json") as stream:
        conversion = json.load(stream)["conversion"]
    assert conversion["weights_key"] == "teacher"
    assert conversion["passed_over"] == ["model"]
    assert "key 'teacher'; not taken: model (--weights_key= takes another)" in said[0]


@pytest.mark.torch
def test_a_tie_is_refused_with_the_keys_named(tmp_path, torch):
    value = {"model": _tensors(torch, RAW), "net": {"best": _tensors(torch, AVERAGED)}}
    path = _save(torch, tmp_path / "file.pth", value)
    with pytest.raises(
        InputError, match=r"file.pth: several .* differ: model, net.best. Choose on"
    ):
        _taken(path)
    assert _is(_taken(path, weights_key="net.best")[1], AVERAGED)
    with pytest.raises(UsageError, match=r"no weights under 'ema'; it has model, net.best"):
        _taken(path, weights_key="ema")
    # Two names of the same weights are no tie.
    value["net"]["best"] = value["model"]
    assert _is(_taken(_save(torch, tmp_path / "file.pth", value))[1], RAW)
    two = {"ema": _tensors(torch, RAW), "teacher": _tensors(torch, AVERAGED)}
    with pytest.raises(InputError, match=r"differ: ema, teacher"):
        _taken(_save(torch, tmp_path / "file.pth", two))


def _training_file(torch, chunk):
    """What a DINOv2 training run leaves: student beside teacher, heads and losses."""
    both = {}
    for who, state in (("student", RAW), ("teacher", AVERAGED)):
        for key, x in _tensors(torch, state).items():
            key = key.replace("reg_token", "register_tokens").replace("blocks.", chunk)
            both[f"{who}.backbone.{key}"] = x
        both[f"{who}.backbone.mask_token"] = torch.zeros(1, CONFIG.dim)
        for head in ("dino_head", "ibot_head"):
            both[f"{who}.{head}.mlp.0.weight"] = torch.zeros(4, CONFIG.dim)
            both[f"{who}.{head}.last_layer.weight_v"] = torch.zeros(4, 4)
    return both | {
        "dino_loss.center": torch.zeros(1, 4),
        "ibot_patch_loss.center": torch.zeros(1, 1, 4),
    }


@pytest.mark.torch
@pytest.mark.parametrize("chunk", ["blocks.", "blocks.0."])
def test_the_teacher_of_a_training_file_is_taken(chunk, tmp_path, torch):
    both = _training_file(torch, chunk)
    spec = with_schemes("dinov2")
    path = _save(torch, tmp_path / "model_final.rank_0.pth", {"model": both, "iteration": 9})
    plan, found = _taken(path, spec)
    assert _is(found, AVERAGED)
    assert (plan.weights_key, plan.prefix) == ("model", "teacher.backbone.")
    assert plan.passed_over == ("model.student.backbone",)
    assert _is(_taken(path, spec, weights_key="model.student")[1], RAW)
    # The teacher alone, and a file without the losses.
    teacher = {k.removeprefix("teacher."): x for k, x in both.items() if k.startswith("teacher.")}
    bare = {key: x for key, x in both.items() if "loss" not in key}
    for value, key in (({"teacher": teacher}, "teacher"), ({"model": bare}, "model")):
        plan, found = _taken(_save(torch, tmp_path / "other.pth", value), spec)
        assert _is(found, AVERAGED)
        assert plan.weights_key == key
    # What is no part of a training run is not passed over.
    for name in ("teacher.backbone.extra", "extra.loss", "teacher.extra_head.mlp.0.weight"):
        more = _save(torch, tmp_path / "more.pth", {"model": both | {name: torch.zeros(2)}})
        with pytest.raises(InputError, match=rf"unused: {name} \[2\]"):
            _taken(more, spec)


@pytest.mark.torch
def test_raw_weights_are_not_taken_for_averaged_ones_that_do_not_fit(tmp_path, torch):
    broken = _tensors(torch, AVERAGED)
    del broken["norm.bias"]
    value = {"model": _tensors(torch, RAW), "model_ema": broken}
    path = _save(torch, tmp_path / "file.pth", value)
    with pytest.raises(
        InputError, match=r"averaged weights under model_ema do not fit \(1 problems"
    ):
        _taken(path)
    assert _is(_taken(path, weights_key="model")[1], RAW)


@pytest.mark.torch
@pytest.mark.parametrize(
    ("prefix", "part"),
    [
        ("_orig_mod.", ""),
        ("module._orig_mod.", ""),
        ("_orig_mod.module.backbone.", ""),
        ("_fsdp_wrapped_module.", "_fsdp_wrapped_module."),
        ("", "_checkpoint_wrapped_module."),
        ("model.", "_orig_mod."),
        ("encoder.", ""),
    ],
)
def test_parts_of_wrappers_are_taken_out(prefix, part, tmp_path, torch):
    value = {
        prefix + key.replace("blocks.0.", f"blocks.0.{part}"): x
        for key, x in _tensors(torch, RAW).items()
    }
    path = _save(torch, tmp_path / "file.pth", value)
    plan, found = _taken(path)
    assert _is(found, RAW)
    parts = {x for x in f"{prefix}{part}".split(".") if x in ("module", *_WRAPPERS)}
    source = engine.find_checkpoint(SPEC, path)
    assert set(source.sets[""].removed) == parts
    assert plan.prefix == "".join(f"{x}." for x in prefix.split(".") if x and x not in parts)


_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # torch.compile's own
def test_embeddings_are_those_of_the_averaged_network_that_was_compiled(tmp_path, torch):
    torch_oracles.import_timm()
    from timm.models import load_state_dict
    from timm.models.vision_transformer import VisionTransformer

    config = dataclasses.replace(CONFIG, n_registers=0, mlp_hidden=48, layer_scale=False)
    spec = dataclasses.replace(SPEC, network=config)
    raw, averaged = (
        torch_oracles.fill(
            VisionTransformer(img_size=32, patch_size=16, embed_dim=24, depth=2, num_heads=2,
                              mlp_ratio=2, num_classes=0), seed=seed).eval()
        for seed in (0, 1)
    )  # fmt: skip
    both = {"model": raw.state_dict(), "model_ema": torch.compile(averaged).state_dict()}
    assert "_orig_mod.cls_token" in both["model_ema"]
    path = _save(torch, tmp_path / "file.pth", both)
    engine.convert(spec, path, output=str(tmp_path / "out"))
    encoder = registry.load_encoder(spec, weights_dir=str(tmp_path / "out"))
    tiles = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    found = jax.jit(encoder.apply)(encoder.params, tiles)
    inputs = torch.from_numpy(np.array(spec.preprocess(tiles)).transpose(0, 3, 1, 2).copy())
    raw.load_state_dict(load_state_dict(path))  # timm takes the averaged ones as well
    with torch.inference_mode():
        np.testing.assert_allclose(found, averaged(inputs).numpy(), rtol=0, atol=2e-5)
        np.testing.assert_array_equal(raw(inputs), averaged(inputs))


def test_two_names_that_become_one_are_refused():
    shapes = {"module.a": (1,), "a": (1,)}
    with pytest.raises(InputError, match="x.pth: module.a and a are one name without the parts"):
        make_set(shapes, dict.fromkeys(shapes, "float32"), lambda key: np.zeros(1), what="x.pth")
    shapes = {"backbone._flat_param": (9,)}
    with pytest.raises(InputError, match=r"as FSDP flattens them. Save a full state dict"):
        make_set(shapes, {"backbone._flat_param": "float32"}, lambda key: np.zeros(9), what="x")


@pytest.mark.torch
def test_an_unknown_prefix_is_named_and_taken_out_on_demand(tmp_path, torch):
    value = {f"student_net.{key}": x for key, x in _tensors(torch, RAW).items()}
    path = _save(torch, tmp_path / "file.pth", value)
    with pytest.raises(InputError, match=r"begins with 'student_net.'.*--prefix=student_net\.$"):
        _taken(path)
    for given in ("student_net.", "student_net", "module.student_net."):
        plan, found = _taken(path, prefix=given)
        assert _is(found, RAW)
        assert plan.prefix == "student_net."
    with pytest.raises(InputError, match="does not fit the network"):
        _taken(path, prefix="teacher.")


@pytest.mark.torch
def test_the_largest_set_is_the_one_that_is_explained(tmp_path, torch):
    small = {f"blocks.{i}.norm1.weight": {"exp_avg": torch.zeros(24)} for i in range(2)}
    model = _tensors(torch, RAW)
    del model["norm.bias"]
    path = _save(torch, tmp_path / "file.pth", {"optimizer": {"state": small}, "model": model})
    with pytest.raises(InputError, match=r"1 problems under scheme 'timm', key 'model'"):
        _taken(path)


def test_distributed_checkpoints_say_how_to_become_one_file(tmp_path):
    folder = tmp_path / "ckpt"
    folder.mkdir()
    (folder / "__0_0.distcp").write_bytes(b"x")
    (folder / ".metadata").write_bytes(b"x")
    for path in (folder, folder / "__0_0.distcp"):
        with pytest.raises(InputError, match="format_utils import dcp_to_torch_save"):
            engine.find_checkpoint(SPEC, str(path))


@pytest.mark.torch
def test_sharded_pickles_are_one_checkpoint(tmp_path, torch):
    value, index = _tensors(torch, RAW), {}
    for i, keys in enumerate((list(value)[::2], list(value)[1::2])):
        name = f"pytorch_model-{i}.bin"
        torch.save({key: value[key] for key in keys}, tmp_path / name)
        index |= dict.fromkeys(keys, name)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    assert _is(_taken(str(tmp_path))[1], RAW)
    source = engine.find_checkpoint(SPEC, str(tmp_path))
    assert [x["name"] for x in source.digests()] == [
        "pytorch_model.bin.index.json", "pytorch_model-0.bin", "pytorch_model-1.bin",
    ]  # fmt: skip


@pytest.mark.slow
def test_an_equal_set_needs_floats(tmp_path):
    # Sets that cannot be compared differ.
    arrays = {"a": np.zeros(2, np.int8)}
    tensors = make_set({"a": (2,)}, {"a": "int8"}, arrays.__getitem__, what="x")
    from converters.rules import Rule, Scheme

    with pytest.raises(InputError, match="differ: one, two"):
        weight_choice.find_plan(
            [Scheme("x", (Rule("a", "t"),))],
            {"one": tensors, "two": tensors},
            {"t": (2,)},
            config=None,
            what="file",
        )
    assert checkpoints.PICKLES
