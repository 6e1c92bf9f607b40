"""The converter: what is written, what is refused, and that nothing is left where it failed."""

import dataclasses
import hashlib
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch_oracles
from huggingface_hub import errors
from safetensors.numpy import save_file
from small_vit import CONFIG, SPEC, expected, make_state

from converters import engine, hub, rules
from converters.rules import Constant, Rule, Scheme
from pathorob_jax.core import aligned, devices, digests
from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.models import registry, weights

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def state():
    return make_state()


@pytest.fixture
def file(tmp_path, state):
    path = str(tmp_path / "model.safetensors")
    save_file(state, path)
    return path


def _restore(root, name="small", **options):
    abstract = registry.network_of(CONFIG)[1]
    return weights.restore(weights.open_converted(str(root), name), abstract, **options)


def _equal(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def _left(root):
    """What a failed conversion left under the output folder."""
    return os.listdir(root) if os.path.isdir(root) else []


def _refused(path, tmp_path, match, spec=SPEC, error=InputError):
    out = tmp_path / "out"
    with pytest.raises(error, match=match) as caught:
        engine.convert(spec, str(path), output=str(out))
    assert _left(out) == []
    return str(caught.value)


def test_every_tensor_comes_to_its_place(file, state, tmp_path):
    path = engine.convert(SPEC, file, output=str(tmp_path / "out"))
    assert path == str(tmp_path / "out" / "small")
    assert sorted(os.listdir(path)) == ["checkpoint", "model.json"]
    _equal(_restore(tmp_path / "out"), expected(state))


def test_model_json_says_what_was_converted_and_how(file, tmp_path):
    path = engine.convert(SPEC, file, output=str(tmp_path / "out"))
    with open(f"{path}/model.json") as stream:
        info = json.load(stream)
    with open(file, "rb") as stream:
        sha256 = hashlib.sha256(stream.read()).hexdigest()
    assert info["source"]["files"] == [
        {"name": "model.safetensors", "bytes": os.path.getsize(file), "sha256": sha256}
    ]
    assert info["source"]["sha256"] == digests.digest(bytes.fromhex(sha256))
    assert info["model"] == "small"
    assert info["dtype"] == "float32"
    assert info["network"]["mlp_hidden"] == 40
    assert info["conversion"] == {
        "scheme": "timm",
        "weights_key": "",
        "prefix": "",
        "removed_parts": [],
        "passed_over": [],
        "n_tensors": 7 + 2 * 14,
        "n_params": sum(x.size for x in make_state().values()),
        "dropped": [],
        "constants": [],
    }


def test_bfloat16_is_the_rounded_value(file, state, tmp_path):
    engine.convert(SPEC, file, output=str(tmp_path / "out"), dtype="bfloat16")
    rounded = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), expected(state))
    _equal(_restore(tmp_path / "out", dtype="bfloat16"), rounded)
    widened = jax.tree.map(lambda x: x.astype(np.float32), rounded)
    _equal(_restore(tmp_path / "out"), widened)


@pytest.mark.parametrize("kind", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_types_of_the_source(kind, state, tmp_path):
    state = {key: x.astype(kind) for key, x in state.items()}
    path = str(tmp_path / "model.safetensors")
    save_file(state, path)
    engine.convert(SPEC, path, output=str(tmp_path / "out"))
    _equal(
        _restore(tmp_path / "out"),
        expected({key: x.astype(np.float32) for key, x in state.items()}),
    )


def _write_shards(folder, state):
    os.makedirs(folder, exist_ok=True)
    names = {}
    for i, keys in enumerate((list(state)[::2], list(state)[1::2])):
        name = f"model-{i}.safetensors"
        save_file({key: state[key] for key in keys}, str(folder / name))
        names |= dict.fromkeys(keys, name)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return index, names


def test_shards_are_one_checkpoint(state, tmp_path):
    index, _ = _write_shards(tmp_path / "repo", state)
    engine.convert(SPEC, str(index), output=str(tmp_path / "a"))
    _equal(_restore(tmp_path / "a"), expected(state))
    # A folder is searched for the files that the spec or the hub's habits name.
    engine.convert(SPEC, str(tmp_path / "repo"), output=str(tmp_path / "b"))
    _equal(_restore(tmp_path / "b"), expected(state))


def test_an_index_that_does_not_fit_its_files_is_refused(state, tmp_path):
    index, names = _write_shards(tmp_path / "repo", state)
    index.write_text(json.dumps({"weight_map": names | {"more": "model-0.safetensors"}}))
    _refused(index, tmp_path, "index and files differ in more")
    index.write_text(json.dumps({"weight_map": names | {"more": "../model-0.safetensors"}}))
    _refused(index, tmp_path, "expected names of files beside it")
    index.write_text(json.dumps({"weight_map": names | {"more": "model-7.safetensors"}}))
    _refused(index, tmp_path, "files that are not there: .*model-7", error=FileNotFoundError)
    index.write_text("{}")
    _refused(index, tmp_path, "expected an index with a 'weight_map'")


def test_everything_that_does_not_fit_is_told_at_once(state, tmp_path):
    del state["blocks.1.attn.proj.bias"], state["norm.weight"]
    state["blocks.0.attn.extra"] = np.ones(3, np.float32)
    state["blocks.2.norm1.weight"] = np.ones(24, np.float32)
    state["cls_token"] = np.ones((1, 1, 25), np.float32)
    path = str(tmp_path / "model.safetensors")
    save_file(state, path)
    text = _refused(path, tmp_path, "does not fit the network; 5 problems under scheme 'timm'")
    for line in (
        "unfilled: blocks/proj/bias[1] for want of blocks.1.attn.proj.bias",
        "unfilled: norm/scale for want of norm.weight",
        "unused: blocks.0.attn.extra [3]",
        "blocks/norm1/scale[2] does not exist: the network has 2 layers",
        "unused: cls_token [1, 1, 25]: cls expects [24], gets [25] through 'squeeze'",
        "Nothing was written",
    ):
        assert line in text


def test_lines_that_differ_in_a_number_are_told_once(tmp_path):
    small = dataclasses.replace(CONFIG, depth=12)
    path = str(tmp_path / "model.safetensors")
    state = make_state(small)
    state = {key: x for key, x in state.items() if "ls1" not in key}
    save_file(state, path)
    spec = dataclasses.replace(SPEC, network=small)
    text = _refused(path, tmp_path, "12 problems", spec)
    assert "for want of blocks.*.ls1.gamma   (12 times)" in text
    assert len(text.splitlines()) == 3


def test_a_file_of_another_model_is_refused(tmp_path):
    state = {"vision_model.embeddings.class_embedding": np.ones(24, np.float32)}
    path = str(tmp_path / "model.safetensors")
    save_file(state, path)
    text = _refused(path, tmp_path, "Give the file that belongs to this encoder")
    assert "unused: vision_model.embeddings.class_embedding [24]" in text
    assert "unfilled: pos_embed for want of pos_embed" in text


def test_a_wider_model_of_the_same_names_is_refused(tmp_path):
    path = str(tmp_path / "model.safetensors")
    save_file(make_state(dataclasses.replace(CONFIG, dim=48)), path)
    _refused(path, tmp_path, r"blocks/qkv/kernel\[\*\] expects \[24, 72\], gets \[48, 144\]")


def test_a_grid_without_a_rule_is_refused_and_with_one_resampled(tmp_path):
    path = str(tmp_path / "model.safetensors")
    save_file(make_state(dataclasses.replace(CONFIG, image_px=80)), path)
    spec = dataclasses.replace(SPEC, weights=dataclasses.replace(SPEC.weights, resample=None))
    _refused(path, tmp_path, "its grid is 5 x 5, and the encoder names no rule", spec)
    engine.convert(SPEC, path, output=str(tmp_path / "out"))
    assert _restore(tmp_path / "out")["pos_embed"].shape == (5, 24)


@pytest.mark.parametrize("length", [0, 5, 300, 0.5, -4])
def test_a_truncated_file_is_refused(length, file, tmp_path):
    with open(file, "rb") as stream:
        data = stream.read()
    cut = int(length * len(data)) if isinstance(length, float) else length
    (tmp_path / "cut.safetensors").write_bytes(data[:cut] if cut else b"")
    match = r"cut.safetensors: (no safetensors file, or truncated|.* found \d+; truncated\?)"
    _refused(tmp_path / "cut.safetensors", tmp_path, match)


@pytest.mark.parametrize(
    "header",
    [
        b"[1, 2]",
        b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [4, 20]}}',
        b'{"a": {"dtype": "F5", "shape": [4], "data_offsets": [0, 16]}}',
        b'{"a": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}}',
        b'{"a": {"dtype": "F32", "shape": [4]}}',
        b"\xff\xfe",
    ],
)
def test_a_header_that_lies_is_refused(header, tmp_path):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    _refused(path, tmp_path, r"bad.safetensors: (no safetensors file|'a' does not begin where)")


def test_values_that_are_not_finite_are_refused(state, tmp_path):
    state["blocks.1.mlp.fc2.weight"][3, 4] = np.inf
    path = str(tmp_path / "model.safetensors")
    save_file(state, path)
    _refused(path, tmp_path, "blocks.1.mlp.fc2.weight holds NaN or infinite")


def test_unknown_endings_and_missing_files_are_refused(tmp_path):
    (tmp_path / "x.h5").write_bytes(b"")
    _refused(tmp_path / "x.h5", tmp_path, r"expected \.safetensors")
    _refused(tmp_path / "y.safetensors", tmp_path, "no such file", error=FileNotFoundError)
    (tmp_path / "empty").mkdir()
    _refused(tmp_path / "empty", tmp_path, "expected one of pytorch_model.bin, model.safetensors")


def test_weights_that_are_there_are_kept_unless_told_otherwise(file, state, tmp_path):
    out = str(tmp_path / "out")
    engine.convert(SPEC, file, output=out)
    # A conversion that fails leaves the old weights alone.
    bad = str(tmp_path / "bad.safetensors")
    save_file({key: x for key, x in state.items() if key != "cls_token"}, bad)
    with pytest.raises(InputError, match="cls_token"):
        engine.convert(SPEC, bad, output=out, overwrite=True)
    _equal(_restore(out), expected(state))
    other = make_state(seed=1)
    save_file(other, bad)
    with pytest.raises(InputError, match="small: exists, and is of another checkpoint .* --overw"):
        engine.convert(SPEC, bad, output=out)
    engine.convert(SPEC, bad, output=out, overwrite=True)
    _equal(_restore(out), expected(other))
    assert os.listdir(out) == ["small"]


_KILLED = """
import os, pickle, signal, sys
os.environ["JAX_PLATFORMS"] = "cpu"
from converters import engine
from pathorob_jax.models import weights
spec = pickle.loads(bytes.fromhex(sys.argv[1]))
weights.files.write_json = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
engine.convert(spec, sys.argv[2], output=sys.argv[3])
"""


@pytest.mark.campaign
@pytest.mark.slow
def test_what_a_killed_conversion_leaves_does_not_load(file, state, tmp_path):
    import pickle

    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-c", _KILLED, pickle.dumps(SPEC).hex(), file, str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == -9, done.stderr
    assert os.listdir(out) == [".small.partial"]
    with pytest.raises(InputError, match="expected the folder of converted weights"):
        weights.open_converted(str(out), "small")
    engine.convert(SPEC, file, output=str(out))
    assert os.listdir(out) == ["small"]
    _equal(_restore(out), expected(state))


def test_a_failure_while_writing_leaves_nothing(file, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(weights.files, "write_json", fail)
    _refused(file, tmp_path, r"small: cannot be written \(No space left.*give another --output")


# Pickles


@pytest.fixture
def torch():
    torch_oracles.import_torchvision()
    import torch

    return torch


def _tensors(torch, state):
    return {key: torch.from_numpy(x) for key, x in state.items()}


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize("wrapper", ["", "state_dict", "model", "teacher", "teacher+model"])
@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.backbone."])
def test_wrappers_and_prefixes_are_found(wrapper, prefix, state, tmp_path, torch):
    value = {f"{prefix}{key}": x for key, x in _tensors(torch, state).items()}
    for key in reversed(wrapper.split("+") if wrapper else []):
        value = {key: value, "epoch": 3, "optimizer": {"lr": 0.1}}
    torch.save(value, tmp_path / "file.pth")
    source = engine.find_checkpoint(SPEC, str(tmp_path / "file.pth"))
    plan = engine.plan_conversion(SPEC, source, registry.network_of(CONFIG)[1])
    assert (plan.scheme, plan.prefix) == ("timm", prefix.replace("module.", ""))
    assert plan.weights_key == wrapper.replace("+", ".")
    assert len(plan.steps) == len(state)


@pytest.mark.torch
@pytest.mark.parametrize("form", ["bin", "old", "bfloat16", "ckpt", "view"])
def test_pickled_tensors_come_to_their_place(form, state, tmp_path, torch):
    value = _tensors(torch, state)
    path = str(tmp_path / f"file.{'bin' if form == 'bin' else 'ckpt' if form == 'ckpt' else 'pth'}")
    if form == "bfloat16":
        value = {key: x.bfloat16() for key, x in value.items()}
        state = {key: x.float().numpy() for key, x in value.items()}
    if form == "view":
        value = {key: x.mT.contiguous().mT if x.ndim == 2 else x for key, x in value.items()}
    torch.save(value, path, _use_new_zipfile_serialization=form != "old")
    engine.convert(SPEC, path, output=str(tmp_path / "out"))
    _equal(_restore(tmp_path / "out"), expected(state))


class _Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.torch
@pytest.mark.parametrize("new", [True, False])
def test_a_malicious_pickle_runs_nothing(new, state, tmp_path, torch):
    ran = tmp_path / "ran"
    value = _tensors(torch, state) | {"cls_token": _Malicious(str(ran))}
    torch.save(value, tmp_path / "file.pth", _use_new_zipfile_serialization=new)
    text = _refused(tmp_path / "file.pth", tmp_path, "file.pth: refused: it holds more than tens")
    assert "mkdir" in text
    assert not ran.exists()


@pytest.mark.torch
def test_a_namespace_of_arguments_is_no_danger(state, tmp_path, torch):
    import argparse

    value = {"teacher": _tensors(torch, state), "args": argparse.Namespace(lr=0.1, arch="vit")}
    torch.save(value, tmp_path / "file.pth")
    [tensors] = engine.find_checkpoint(SPEC, str(tmp_path / "file.pth")).sets.values()
    assert len(tensors.shapes) == len(state)


@pytest.mark.torch
@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
@pytest.mark.parametrize("new", [True, False])
def test_a_truncated_pickle_is_refused(share, new, state, tmp_path, torch):
    path = tmp_path / "file.pth"
    torch.save(_tensors(torch, state), path, _use_new_zipfile_serialization=new)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    _refused(path, tmp_path, r"file.pth: (no checkpoint of PyTorch, or truncated|refused)")


@pytest.mark.torch
def test_what_is_no_dict_of_tensors_is_refused(state, tmp_path, torch):
    path = tmp_path / "file.pth"
    torch.save([1, 2], path)
    _refused(path, tmp_path, "expected a dict of tensors, found list")
    torch.save({"epoch": 1, "args": {"lr": 0.1}}, path)
    _refused(path, tmp_path, "expected a dict of tensors, found none under its keys epoch, args")


def test_without_torch_pickles_say_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "file.pth").write_bytes(b"")
    _refused(
        tmp_path / "file.pth", tmp_path, r"needs PyTorch: pip install 'pathorob-jax\[convert\]'"
    )


# The hub


class _Hub:
    """Stands in for the hub: which files are cached, and what a download ends in."""

    def __init__(self, monkeypatch, *, cached=(), remote=(), error=None):
        self.calls, self._cached, self._remote, self._error = [], cached, remote, error
        monkeypatch.setattr(hub.huggingface_hub, "hf_hub_download", self)

    def __call__(self, repo, name, *, revision, local_files_only):
        self.calls.append((repo, name, revision, local_files_only))
        if local_files_only:
            if name in self._cached:
                return self._cached[name]
            raise errors.LocalEntryNotFoundError("not cached")
        if self._error is not None:
            raise self._error
        if name in self._remote:
            return self._remote[name]
        raise _http(errors.EntryNotFoundError)


def _http(kind):
    error = kind.__new__(kind)  # its constructor wants a response of the hub's own client
    error.args = ("404",)
    return error


def _repo_spec(**changes):
    where = dataclasses.replace(SPEC.weights, repo="owner/name", revision="abc", **changes)
    return dataclasses.replace(SPEC, weights=where)


def test_a_cached_file_needs_no_network(file, state, tmp_path, monkeypatch):
    seen = _Hub(monkeypatch, cached={"model.safetensors": file})
    engine.convert(_repo_spec(), None, output=str(tmp_path / "out"))
    assert all(local for *_, local in seen.calls)
    assert {revision for *_, revision, _ in seen.calls} == {"abc"}
    _equal(_restore(tmp_path / "out"), expected(state))


def test_the_first_file_that_the_repo_has_is_taken(file, tmp_path, monkeypatch):
    seen = _Hub(monkeypatch, remote={"model.safetensors": file})
    spec = _repo_spec(files=("other.bin",))
    engine.convert(spec, "hf://someone/else@main", output=str(tmp_path / "out"))
    fetched = [(repo, name, rev) for repo, name, rev, local in seen.calls if not local]
    assert fetched == [
        ("someone/else", "other.bin", "main"),
        ("someone/else", "model.safetensors", "main"),
    ]


@pytest.mark.parametrize(
    ("kind", "match"),
    [
        (errors.GatedRepoError, "Accept its terms at https://huggingface.co/owner/name, then log"),
        (errors.RepositoryNotFoundError, "no such repo on huggingface.co, or a private one"),
        (errors.RevisionNotFoundError, "has no revision 'abc'; give hf://owner/name@main"),
        (errors.EntryNotFoundError, "has none of .*give the file with --checkpoint"),
        (errors.HfHubHTTPError, "cannot be reached, and none of .* is in the local cache"),
    ],
)
def test_what_the_hub_says_becomes_what_to_do(kind, match, tmp_path, monkeypatch):
    _Hub(monkeypatch, error=_http(kind))
    with pytest.raises(InputError, match=match):
        engine.convert(_repo_spec(), None, output=str(tmp_path / "out"))
    assert _left(tmp_path / "out") == []


def test_offline_says_so(tmp_path, monkeypatch):
    _Hub(monkeypatch, error=errors.LocalEntryNotFoundError("offline"))
    with pytest.raises(InputError, match="owner/name: cannot be reached"):
        engine.convert(_repo_spec(), None, output=str(tmp_path / "out"))


def test_an_encoder_on_no_hub_names_its_file(tmp_path):
    with pytest.raises(
        UsageError, match=r"names no repo of the hub; give --checkpoint=<file> \(vit2"
    ):
        engine.convert(registry.get_spec("hipt_vit256"), None, output=str(tmp_path))


# Rules


def test_a_place_that_is_filled_twice_is_an_error():
    scheme = Scheme("x", (Rule("a", "t"), Rule("b", "t")))
    _, problems = rules.match_scheme(scheme, {"a": (3,), "b": (3,)}, {"t": (3,)})
    assert problems == ["unused: b [3]: t is filled by a already"]


def test_parts_fill_one_leaf_and_a_constant_what_is_left():
    scheme = Scheme(
        "x",
        tuple(Rule(f"l.{{i}}.{n}", "t[i]", part=(p, 3)) for n, p in (("q", 0), ("v", 2))),
        constants=(Constant("t[i]", 0.5, (1, 3)),),
    )
    source = {f"l.{i}.{name}": (2,) for i in range(2) for name in "qv"}
    plan, problems = rules.match_scheme(scheme, source, {"t": (2, 6)})
    assert problems == []
    leaf = np.full((2, 6), np.nan)
    for step in plan.steps:
        step.cell.view(leaf)[...] = 1 + "qv".index(step.key[-1])
    for cell, value in plan.constants:
        cell.view(leaf)[...] = value
    np.testing.assert_array_equal(leaf, [[1, 1, 0.5, 0.5, 2, 2]] * 2)
    del source["l.1.v"]
    _, problems = rules.match_scheme(scheme, source, {"t": (2, 6)})
    assert problems == ["unfilled: t[1] (part 3 of 3) for want of l.1.v"]
    _, problems = rules.match_scheme(scheme, source | {"l.1.v": (3,)}, {"t": (2, 6)})
    assert "expects [2], gets [3]" in problems[0]


def test_a_dropped_key_is_named_whole():
    scheme = Scheme("x", (Rule("a", "t"),), drop=("head.{i}.weight", "text.{rest}"))
    source = {"a": (1,), "head.3.weight": (2,), "text.deep.er": (2,)}
    plan, problems = rules.match_scheme(scheme, source, {"t": (1,)})
    assert (problems, plan.dropped) == ([], ["head.3.weight", "text.deep.er"])
    source |= {"head.x.weight": (2,), "head.3.weights": (2,), "atext.b": (2,)}
    _, problems = rules.match_scheme(scheme, source, {"t": (1,)})
    assert len(problems) == 3


def test_a_parameter_without_a_rule_is_an_error():
    _, problems = rules.match_scheme(
        Scheme("x", (Rule("a", "t"),)), {"a": (1,)}, {"t": (1,), "u": ()}
    )
    assert problems == ["unfilled: u []: the scheme has no rule for it"]


def test_every_scheme_that_a_spec_names_exists():
    for spec in registry.MODELS.values():
        for name in spec.weights.schemes if spec.weights else ():
            assert name in engine.SCHEMES
    assert len(engine.SCHEMES) == len({scheme.name for scheme in engine.SCHEMES.values()})


# Restore


@pytest.fixture
def converted(file, tmp_path):
    engine.convert(SPEC, file, output=str(tmp_path / "out"))
    return weights.open_converted(str(tmp_path / "out"), "small")


def test_restore_goes_straight_to_the_sharding(converted, state, mesh):
    whole = devices.replicated_sharding(mesh)
    abstract = registry.network_of(CONFIG)[1]
    params = weights.restore(converted, abstract, sharding=lambda shape: whole)
    assert {leaf.sharding for leaf in jax.tree.leaves(params)} == {whole}
    _equal(params, expected(state))


def test_restore_tells_every_difference(converted):
    abstract = registry.network_of(dataclasses.replace(CONFIG, n_registers=0, mlp_hidden=41))[1]
    with pytest.raises(InputError, match="unknown: registers") as caught:
        weights.restore(converted, abstract)
    assert "blocks/fc1/kernel: expected (2, 24, 41), found (2, 24, 40)" in str(caught.value)


def test_damaged_weights_are_refused(converted):
    import shutil

    abstract = registry.network_of(CONFIG)[1]
    shutil.rmtree(f"{converted.path}/checkpoint")
    with pytest.raises(InputError, match="cannot be read .*; convert again"):
        weights.restore(converted, abstract)
    with open(f"{converted.path}/model.json", "w") as stream:
        stream.write('{"schema_version": 99}')
    with pytest.raises(InputError, match="expected schema_version 1, found 99"):
        weights.open_converted(os.path.dirname(converted.path), "small")


@pytest.mark.campaign
@pytest.mark.slow
def test_memory_stays_near_the_size_of_the_target(tmp_path):
    # 0.5 GB of weights; the whole process, imports included, is measured for a real one in
    # docs/encoders.md.
    config = dataclasses.replace(CONFIG, dim=1024, depth=12, heads=16, mlp_hidden=3072)
    path = str(tmp_path / "model.safetensors")
    state = make_state(config)
    size = sum(x.nbytes for x in state.values())
    save_file(state, path)
    del state
    code = (
        "import pickle, resource, sys\n"
        "from converters import engine\n"
        "spec = pickle.loads(bytes.fromhex(sys.argv[1]))\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "engine.find_checkpoint(spec, sys.argv[2])\n"
        "before = peak()\n"
        "engine.convert(spec, sys.argv[2], output=sys.argv[3])\n"
        "print(peak() - before)\n"
    )
    spec = dataclasses.replace(SPEC, network=config)
    import pickle

    done = subprocess.run(
        [sys.executable, "-c", code, pickle.dumps(spec).hex(), path, str(tmp_path / "out")],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert size > 4e8
    assert int(done.stdout.split()[-1]) < 1.3 * size


def test_parameters_are_taken_over_without_a_copy(file):
    source = engine.find_checkpoint(SPEC, file)
    abstract = registry.network_of(CONFIG)[1]
    plan = engine.plan_conversion(SPEC, source, abstract)
    target = weights.flatten(abstract)
    leaves = engine.fill(plan, source, target, SPEC, dtype="bfloat16")
    assert {leaf.dtype for leaf in leaves.values()} == {jnp.dtype("bfloat16")}
    array = aligned.empty_aligned((3, 5))
    array[...] = 1
    device = jax.local_devices(backend="cpu")[0]
    taken = jax.device_put(array, device)
    assert taken.unsafe_buffer_pointer() == array.ctypes.data
