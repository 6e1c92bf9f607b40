"""Files that lie about their tensors, hold other types, or more than tensors."""

import argparse
import json
import pathlib

import numpy as np
import pytest
import torch_oracles
from safetensors.numpy import save_file
from small_vit import CONFIG, SPEC, expected, make_state

from converters import engine, hub, pickles
from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.models import registry, weights

KEY = "blocks.0.attn.qkv.weight"


@pytest.fixture
def torch():
    torch_oracles.import_torchvision()
    import torch

    return torch


def _fill(path):
    abstract = registry.network_of(CONFIG)[1]
    source = engine.find_checkpoint(SPEC, str(path))
    plan = engine.plan_conversion(SPEC, source, abstract)
    return engine.fill(plan, source, weights.flatten(abstract), SPEC, dtype="float32")


def _refused(path, match):
    with pytest.raises(InputError, match=match) as caught:
        _fill(path)
    return str(caught.value)


def _raw(path, change):
    """A safetensors file whose header ``change`` may alter, as a dict or as text."""
    header, data = {}, b""
    for key, x in make_state().items():
        offsets = [len(data), len(data) + x.nbytes]
        header[key] = {"dtype": "F32", "shape": list(x.shape), "data_offsets": offsets}
        data += x.tobytes()
    changed = change(header)
    text = changed if isinstance(changed, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("shape", [72, 24.0], r"'blocks.0.attn.qkv.weight' has a shape that is no list of sizes"),
        ("shape", [72, "24"], "has a shape that is no list of sizes"),
        ("shape", [72, True], "has a shape that is no list of sizes"),
        ("shape", None, "has a shape that is no list of sizes"),
        ("shape", [72, 25], "needs 7200 bytes by its shape, 6912 by its offsets"),
        ("dtype", "I32", f"{KEY} is int32. Dequantise the tensors .* floats first"),
        ("dtype", "F64", "needs 13824 bytes by its shape"),
        ("dtype", "F99", "is of the type 'F99', which is not known"),
        ("dtype", ["F32"], "which is not known"),
        ("data_offsets", [0, 6912], "does not begin where the tensor before it ends"),
        ("data_offsets", [0.0, 6912], "has offsets that are no two positions"),
        ("data_offsets", [0], "has offsets that are no two positions"),
        ("data_offsets", [0, 2**70], "has offsets that are no two positions"),
    ],
)
def test_a_header_that_lies_of_a_tensor_is_refused(field, value, match, tmp_path):
    def change(header):
        header[KEY][field] = value

    text = _refused(_raw(tmp_path / "x.safetensors", change), match)
    assert "x.safetensors" in text


def test_an_end_that_lies_is_refused(tmp_path):
    def change(header):
        header[KEY]["data_offsets"][1] += 4

    _refused(_raw(tmp_path / "x.safetensors", change), "needs 6912 bytes by its shape, 6916 by")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (lambda good: good[:-1] + b', "cls_token": {}}', "'cls_token' stands there twice"),
        (lambda good: b'{"a":' * 10**5 + b"1" + b"}" * 10**5, "nested too deeply"),
        (lambda good: b"[" * 10**6, "nested too deeply"),
        (lambda good: b'{"a": ' + b"9" * 5000 + b"}", "its header cannot be read"),
        (lambda good: good.replace(b"cls_token", b"c\\ud800"), "expected names of tensors as text"),
        (lambda good: good.replace(b"cls_token", b"c\\u0000"), "expected names of tensors as text"),
    ],
)
def test_an_odd_header_is_refused(text, match, tmp_path):
    path = _raw(tmp_path / "x.safetensors", lambda header: text(json.dumps(header).encode()))
    _refused(path, match)


@pytest.mark.torch
@pytest.mark.parametrize("form", ["pth", "safetensors"])
@pytest.mark.parametrize(
    "kind",
    [
        *("int8", "uint8", "int16", "uint16", "int64", "bool", "complex64"),
        *("float8_e4m3fn", "float8_e5m2"),
    ],
)
def test_what_is_no_float_is_no_weight(kind, form, tmp_path, torch):
    from safetensors.torch import save_file as save

    state = {key: torch.from_numpy(x) for key, x in make_state().items()}
    state[KEY] = (state[KEY] * 9).to(getattr(torch, kind))
    path = tmp_path / f"x.{form}"
    (save if form == "safetensors" else torch.save)(state, path)
    named = {
        "float8_e4m3fn": "(float8_e4m3fn|F8_E4M3)",
        "float8_e5m2": "(float8_e5m2|F8_E5M2)",
        "complex64": "(complex64|C64)",
    }
    _refused(path, rf"{KEY} is {named.get(kind, kind)}. Dequantise")


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")  # torch's own, of quantised types
@pytest.mark.parametrize("kind", ["sparse", "meta", "quantised", "nested"])
def test_tensors_without_plain_values_are_no_weights(kind, tmp_path, torch):
    state = {key: torch.from_numpy(x) for key, x in make_state().items()}
    change = {
        "sparse": lambda x: x.to_sparse(),
        "meta": lambda x: x.to("meta"),
        "quantised": lambda x: torch.quantize_per_tensor(x, 0.01, 0, torch.qint8),
        "nested": lambda x: torch.nested.nested_tensor([x, x]),
    }[kind]
    state[KEY] = change(state[KEY])
    torch.save(state, tmp_path / "x.pth")
    _refused(
        tmp_path / "x.pth", "(nested|does not fit)" if kind == "nested" else f"{KEY} is {kind}"
    )


@pytest.mark.torch
def test_what_a_scheme_leaves_out_may_be_of_any_type(tmp_path, torch):
    state = {key: torch.from_numpy(x) for key, x in make_state().items()}
    torch.save(state | {"head.weight": torch.ones(2).to(torch.int8)}, tmp_path / "x.pth")
    source = engine.find_checkpoint(SPEC, str(tmp_path / "x.pth"))
    plan = engine.plan_conversion(SPEC, source, registry.network_of(CONFIG)[1])
    assert plan.dropped == ["head.weight"]


def test_values_are_checked_as_they_are_stored(tmp_path):
    state = {key: x.astype(np.float64) for key, x in make_state().items()}
    state["norm.weight"][3] = 1e39
    save_file(state, str(tmp_path / "x.safetensors"))
    _refused(tmp_path / "x.safetensors", "norm.weight holds values beyond float32")
    state["norm.weight"][3] = -np.inf
    save_file(state, str(tmp_path / "x.safetensors"))
    _refused(tmp_path / "x.safetensors", "norm.weight holds NaN or infinite values")
    # The largest float32 is none of these.
    state["norm.weight"][3] = np.finfo(np.float32).max
    save_file(state, str(tmp_path / "x.safetensors"))
    assert _fill(tmp_path / "x.safetensors")["norm/scale"][3] == np.finfo(np.float32).max


@pytest.mark.torch
def test_what_training_leaves_beside_tensors_is_taken_for_nothing(tmp_path, torch):
    value = {
        "model": {key: torch.from_numpy(x) for key, x in make_state().items()},
        "best_acc": np.float64(0.9),
        "epoch": np.int64(3),
        "losses": np.arange(3.0),
        "args": argparse.Namespace(lr=np.float32(0.1), out=pathlib.PosixPath("/data"), x=[1, (2,)]),
    }
    torch.save(value, tmp_path / "x.pth")
    [(keys, tensors)] = engine.find_checkpoint(SPEC, str(tmp_path / "x.pth")).sets.items()
    assert keys == "model"
    for key, x in make_state().items():
        np.testing.assert_array_equal(tensors.read(key), x)


@pytest.mark.torch
def test_a_namespace_does_not_hide_a_call(tmp_path, torch):
    class Call:
        def __reduce__(self):
            return pathlib.Path.mkdir, (pathlib.Path(tmp_path / "ran"),)

    value = {"model": {"a": torch.ones(1)}, "args": argparse.Namespace(x=Call())}
    for new in (True, False):
        torch.save(value, tmp_path / "x.pth", _use_new_zipfile_serialization=new)
        _refused(tmp_path / "x.pth", "x.pth: (refused|no checkpoint of PyTorch)")
    assert not (tmp_path / "ran").exists()


@pytest.mark.torch
@pytest.mark.parametrize(
    ("tail", "match"),
    [
        (b"}" + b")" + b"\x85" * 10**6 + b"K\x01s.", "its pickle nests 101 tuples"),
        (b"}(" + b")" * 3 + b"t" + b"\x85" * 100 + b"K\x01s.", "its pickle nests 101 tuples"),
        (b"cbuiltins\nbytearray\n\x8a\x06\xff\xff\xff\xff\xff\x0f\x85R.", "makes a bytearray"),
    ],
)
def test_a_pickle_that_would_end_the_process_is_refused(tail, match, tmp_path, torch):
    import zipfile

    torch.save({"a": torch.ones(1)}, tmp_path / "good.pth")
    with (
        zipfile.ZipFile(tmp_path / "good.pth") as old,
        zipfile.ZipFile(tmp_path / "x.pth", "w") as new,
    ):
        for info in old.infolist():
            is_pickle = info.filename.endswith(".pkl")
            new.writestr(info.filename, b"\x80\x02" + tail if is_pickle else old.read(info))
    with pytest.raises(InputError, match=match):
        pickles.read_sets(str(tmp_path / "x.pth"))
    (tmp_path / "old.pth").write_bytes(b"\x80\x02" + tail)
    with pytest.raises(InputError, match=match):
        pickles.read_sets(str(tmp_path / "old.pth"))


# Paths and repos


@pytest.fixture
def no_hub(monkeypatch):
    """The hub must not be asked."""

    def refuse(*_, **__):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(hub.huggingface_hub, "hf_hub_download", refuse)


@pytest.mark.parametrize(
    "name",
    [
        "weights/teacher.pth", "../teacher.pth", "./teacher.pth", "weights/model..v2.safetensors",
        "my--lab/model", "owner/" + "n" * 120, "teacher.pth", "/abs/none.pth", "~/none.pth",
        "owner/name", "owner/name@main",
    ],
)  # fmt: skip
def test_a_path_is_never_sent_to_the_hub(name, no_hub):
    with pytest.raises(FileNotFoundError, match="no such file") as caught:
        engine.find_checkpoint(SPEC, name)
    is_like_a_repo = name.split("/")[0] in ("my--lab", "owner")
    assert ("is given as hf://" in str(caught.value)) == is_like_a_repo


@pytest.mark.parametrize(
    "name", ["https://user:secret@host/x.pth", "s3://KEY:SECRET@bucket/x.pth", "hf:/a/b", "", " "]
)
def test_other_places_are_refused_without_their_credentials(name, no_hub):
    with pytest.raises((UsageError, FileNotFoundError)) as caught:
        engine.find_checkpoint(SPEC, name)
    assert "secret" not in str(caught.value).lower()


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("hf://owner/name", hub.Place("owner/name")),
        ("hf://owner/name@v1.0", hub.Place("owner/name", "v1.0")),
        ("hf://owner/name/dir/x.bin", hub.Place("owner/name", None, "dir/x.bin")),
        ("hf://owner/name@main/x.bin", hub.Place("owner/name", "main", "x.bin")),
    ],
)
def test_a_place_on_the_hub_is_read_and_written(name, place):
    assert hub.parse(name) == place
    assert str(place) == name


@pytest.mark.parametrize("name", ["hf://", "hf://owner", "hf://../x", "hf://a/../b", "hf:///a/b"])
def test_a_place_of_another_form_is_refused(name, no_hub):
    with pytest.raises(UsageError, match="expected hf://owner/name"):
        engine.find_checkpoint(SPEC, name)


def test_a_name_that_the_hub_does_not_allow_is_refused():
    with pytest.raises(InputError, match="no name of a repo on the Hugging Face hub"):
        engine.find_checkpoint(SPEC, "hf://my--lab/model")


def test_the_file_of_a_place_is_taken(tmp_path, monkeypatch):
    save_file(make_state(), str(tmp_path / "x.safetensors"))
    asked = []

    def download(repo, name, *, revision, local_files_only):
        asked.append((repo, name, revision))
        return str(tmp_path / "x.safetensors")

    monkeypatch.setattr(hub.huggingface_hub, "hf_hub_download", download)
    source = engine.find_checkpoint(SPEC, "hf://owner/name@main/dir/y.safetensors")
    assert asked == [("owner/name", "dir/y.safetensors", "main")]
    assert source.label == "hf://owner/name@main/dir/y.safetensors"
    assert expected(make_state())
