"""Seeded campaigns with damaged, lying and malicious checkpoints and specs.

Each case is one input made from a good one. Its outcome is a ``clean error``, ``equal to the
oracle`` (readers of safetensors and PyTorch, and tensors put in their places by hand), a
``traceback``, or ``silent``: something else was accepted, code was executed, or a good file was
refused.
"""

import argparse
import io
import json
import os
import pathlib
import tempfile
import time
import warnings
import zipfile
from collections import Counter

import jax
import numpy as np
import torch
import yaml
from safetensors.torch import load_file, save_file
from small_vit import CONFIG, SPEC, expected, make_state, with_schemes

from converters import engine
from pathorob_jax.core.checks import InputError
from pathorob_jax.core.plain import as_plain
from pathorob_jax.models import registry, weights
from pathorob_jax.models.spec import read_specs

CLEAN, EQUAL, TRACEBACK, SILENT = "clean error", "equal to the oracle", "traceback", "silent"
REFUSE, LIBRARY = "refuse", "library"
LIMIT_S = 20.0
STATE, OTHER = make_state(seed=0), make_state(seed=1)
NAMES = list(STATE)


def fuzz_checkpoints(n, seed):
    """Outcomes of ``n`` checkpoints, counted."""
    outcomes: Counter = Counter()
    for i in range(n):
        rng = np.random.default_rng([seed, i])
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            make = MAKERS[i % len(MAKERS)]
            path, want, spec = make(rng, folder)
            outcome = _run_checkpoint(path, want, spec, folder / "executed")
            outcomes[outcome] += 1
            if outcome in (TRACEBACK, SILENT):
                outcomes[f"{outcome}: {make.__name__} {i}"] += 1
    return outcomes


def _run_checkpoint(path, want, spec, sentinel):
    start = time.monotonic()
    try:
        source = engine.find_checkpoint(spec, str(path))
        abstract = registry.network_of(CONFIG)[1]
        plan = engine.plan_conversion(spec, source, abstract)
        leaves = engine.fill(plan, source, weights.flatten(abstract), spec, dtype="float32")
        found = engine.unflatten(leaves, abstract)
    except (InputError, FileNotFoundError) as error:
        is_clean = len(str(error)) < 10_000 and os.path.basename(str(path)) in str(error)
        outcome = CLEAN if is_clean and want in (REFUSE, LIBRARY) else SILENT
    except Exception:  # noqa: BLE001 - this is what is counted
        outcome = TRACEBACK
    else:
        wanted = _read_by_library(path) if want == LIBRARY else want
        outcome = EQUAL if wanted is not REFUSE and _is_equal(found, wanted) else SILENT
    if sentinel.exists() or time.monotonic() - start > LIMIT_S:
        return SILENT
    return outcome


def _is_equal(found, state):
    wanted = expected(state)
    if jax.tree.structure(found) != jax.tree.structure(wanted):
        return False
    return all(map(np.array_equal, jax.tree.leaves(found), jax.tree.leaves(wanted)))


def _read_by_library(path):
    """The tensors as their own libraries read them, if they are what the network needs."""
    name = str(path)
    try:
        found = load_file(name) if name.endswith("safetensors") else torch.load(name)
    except Exception:  # noqa: BLE001 - a library refuses with whatever it likes
        return REFUSE
    while isinstance(found, dict) and not set(NAMES) <= set(found):
        inner = [x for x in found.values() if isinstance(x, dict)]
        if len(inner) != 1:
            return REFUSE
        [found] = inner
    tensors = {k: x for k, x in found.items() if isinstance(x, torch.Tensor)}
    if set(tensors) != set(NAMES) or not all(x.is_floating_point() for x in tensors.values()):
        return REFUSE
    return {key: x.to(torch.float32).numpy() for key, x in tensors.items()}


def _tensors(state=STATE):
    return {key: torch.from_numpy(x.copy()) for key, x in state.items()}


# safetensors: the header is ours to write


def _write_raw(path, header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def _header_and_data(state=STATE):
    header, data = {}, b""
    for key, x in state.items():
        header[key] = {
            "dtype": "F32",
            "shape": list(x.shape),
            "data_offsets": [len(data), len(data) + x.nbytes],
        }
        data += x.tobytes()
    return header, data


def lying_shape(rng, folder):
    header, data = _header_and_data()
    entry = header[NAMES[rng.integers(len(NAMES))]]
    odd = [16.7, "16", -1, True, None, 10**40, [24], float(entry["shape"][-1]), 0, 2**47]
    entry["shape"][-1] = odd[rng.integers(len(odd))]
    return _write_raw(folder / "x.safetensors", header, data), REFUSE, SPEC


def lying_offsets(rng, folder):
    header, data = _header_and_data()
    entry = header[NAMES[rng.integers(len(NAMES))]]
    begin, end = entry["data_offsets"]
    odd = [
        [begin, end + 4], [begin + 4, end], [end, begin], [begin, float(end)], [begin, str(end)],
        [begin], None, [-4, end], [begin, 2**70], [0, end - begin] if begin else [4, end + 4],
        [begin, end, end], [begin, True],
    ]  # fmt: skip
    entry["data_offsets"] = odd[rng.integers(len(odd))]
    return _write_raw(folder / "x.safetensors", header, data), REFUSE, SPEC


def lying_type(rng, folder):
    header, data = _header_and_data()
    entry = header[NAMES[rng.integers(len(NAMES))]]
    odd = ["I32", "U32", "F64", "BF16", "C64", "F8_E4M3", "F4", "", None, 3, "f32", ["F32"], "BOOL"]
    entry["dtype"] = odd[rng.integers(len(odd))]
    return _write_raw(folder / "x.safetensors", header, data), REFUSE, SPEC


def odd_header(rng, folder):
    header, data = _header_and_data()
    text = json.dumps(header).encode()
    twice = text[:-1] + b', "cls_token": ' + json.dumps(header["cls_token"]).encode() + b"}"
    depth = int(rng.integers(10, 10**5))
    odd = [
        twice, b"[" * depth + b"]" * depth, b'{"a":' * depth + b"1" + b"}" * depth, b"null", b"",
        text[:-1], text + b"}", b"\xff" + text[1:], b'{"a": 1e999}', b'{"\\ud800": 1}',
        b'{"a": ' + b"9" * 10_000 + b"}", text.replace(b'"F32"', b"NaN", 1),
        text.replace(b"cls_token", b"cls\\u0000token"), text.replace(b"cls_token", b"c\\ud800"),
    ]  # fmt: skip
    return _write_raw(folder / "x.safetensors", odd[rng.integers(len(odd))], data), REFUSE, SPEC


def wrong_length(rng, folder):
    path = _write_raw(folder / "x.safetensors", *_header_and_data())
    data = bytearray(path.read_bytes())
    how = rng.integers(4)
    if how == 0:
        data = data[: rng.integers(len(data))]
    elif how == 1:
        data += bytes(int(rng.integers(1, 100)))
    elif how == 2:
        data[:8] = int(rng.integers(0, 2**62)).to_bytes(8, "little")
    else:
        n = int.from_bytes(data[:8], "little") + int(rng.choice([-9, -1, 1, 8]))
        data[:8] = n.to_bytes(8, "little")
    path.write_bytes(data)
    return path, REFUSE, SPEC


def flipped_safetensors(rng, folder):
    path = _write_raw(folder / "x.safetensors", *_header_and_data())
    data = bytearray(path.read_bytes())
    n_header = 8 + int.from_bytes(data[:8], "little")
    limit = n_header if rng.random() < 0.7 else len(data)
    for _ in range(rng.integers(1, 4)):
        data[rng.integers(limit)] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)
    return path, LIBRARY, SPEC


# Values, types and names, in either container


def _save(rng, folder, value, name="x"):
    """A flat dict in one of the containers, or a pickle of anything else."""
    is_flat = all(isinstance(x, torch.Tensor) for x in value.values())
    if is_flat and rng.random() < 0.4:
        path = folder / f"{name}.safetensors"
        save_file({key: x.contiguous() for key, x in value.items()}, path)
        return path
    path = folder / f"{name}.{rng.choice(['pth', 'bin', 'pt', 'ckpt'])}"
    torch.save(value, path, _use_new_zipfile_serialization=bool(rng.random() < 0.7))
    return path


def wrong_names(rng, folder):
    value, key = _tensors(), NAMES[rng.integers(len(NAMES))]
    how = rng.integers(4)
    if how == 0:
        del value[key]
    elif how == 1:
        value["blocks.0.attn.extra"] = torch.ones(3)
    elif how == 2:
        value[key.upper()] = value.pop(key)
    else:
        value = {f"my_net.{name}": x for name, x in value.items()}
    return _save(rng, folder, value), REFUSE, SPEC


def wrong_shapes(rng, folder):
    value, key = _tensors(), NAMES[rng.integers(len(NAMES))]
    shape = list(value[key].shape)
    how = rng.integers(4)
    if how == 0:
        shape[-1] += 1
    elif how == 1:
        shape = [1] * int(rng.integers(5, 70)) + shape
    elif how == 2:
        shape = [0, *shape]
    else:
        shape = [7]
    value[key] = torch.ones(shape)
    return _save(rng, folder, value), REFUSE, SPEC


def wrong_values(rng, folder):
    value, key = _tensors(), NAMES[rng.integers(len(NAMES))]
    x = value[key].to([torch.float32, torch.float64, torch.bfloat16][rng.integers(3)])
    odd = [float("nan"), float("inf"), -float("inf")] + [1e300] * (x.dtype is torch.float64)
    x.view(-1)[int(rng.integers(x.numel()))] = odd[rng.integers(len(odd))]
    value[key] = x
    return _save(rng, folder, value), REFUSE, SPEC


def other_floats(rng, folder):
    value, state = _tensors(), dict(STATE)
    for key in rng.choice(NAMES, 5, replace=False):
        kind = [torch.float16, torch.bfloat16, torch.float64][rng.integers(3)]
        value[key] = value[key].to(kind)
        state[key] = value[key].to(torch.float32).numpy()
    return _save(rng, folder, value), state, SPEC


def no_floats(rng, folder):
    value, key = _tensors(), NAMES[rng.integers(len(NAMES))]
    x = value[key]
    makers = [
        *(lambda x, kind=kind: (x * 9).to(kind) for kind in (
            torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool,
            torch.uint16, torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64,
        )),
        lambda x: x.to_sparse(),
        lambda x: x.to("meta"),
        lambda x: torch.quantize_per_tensor(x, 0.01, 0, torch.qint8),
    ]  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # quantised types are deprecated in PyTorch
        value[key] = makers[rng.integers(len(makers))](x)
    path = folder / "x.pth"
    if value[key].layout is torch.strided and not value[key].is_quantized and rng.random() < 0.3:
        path = folder / "x.safetensors"
        try:
            save_file({k: t.contiguous() for k, t in value.items()}, path)
            return path, REFUSE, SPEC
        except Exception:  # noqa: BLE001 - a type that safetensors cannot hold
            path = folder / "x.pth"
    torch.save(value, path)
    return path, REFUSE, SPEC


def wrapped_names(rng, folder):
    parts = ["module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"]
    before = [*rng.choice(parts, rng.integers(0, 3)), *rng.choice(["", "backbone", "model"], 1)]
    start = "".join(f"{part}." for part in before if part)
    inner = f"{rng.choice(parts)}." if rng.random() < 0.5 else ""
    value = {
        start + key.replace("blocks.0.", f"blocks.0.{inner}"): x for key, x in _tensors().items()
    }
    return _save(rng, folder, value), STATE, SPEC


def several_sets(rng, folder):
    pairs = [("state_dict", "state_dict_ema"), ("model", "model_ema"), ("model", "teacher"),
             ("student", "teacher"), ("model", "ema"), ("model", "state_dict")]  # fmt: skip
    raw, averaged = pairs[rng.integers(len(pairs))]
    value = {"epoch": 3, raw: _tensors(OTHER), averaged: _tensors(STATE), "optimizer": {"lr": 0.1}}
    path = folder / "x.pth"
    torch.save(value, path)
    return path, REFUSE if averaged == "state_dict" else STATE, SPEC


def training_file(rng, folder):
    value = {}
    for who, state in (("student", OTHER), ("teacher", STATE)):
        for key, x in _tensors(state).items():
            value[f"{who}.backbone.{key.replace('reg_token', 'register_tokens')}"] = x
        value[f"{who}.backbone.mask_token"] = torch.zeros(1, CONFIG.dim)
        for head in ("dino_head", "ibot_head"):
            value[f"{who}.{head}.mlp.0.weight"] = torch.zeros(4, CONFIG.dim)
            value[f"{who}.{head}.last_layer.weight_g"] = torch.zeros(4, 1)
    value |= {"dino_loss.center": torch.zeros(1, 4), "ibot_patch_loss.center": torch.zeros(1, 1, 4)}
    want = STATE
    if rng.random() < 0.4:
        value[["more", "teacher.backbone.more", "loss.center"][rng.integers(3)]] = torch.zeros(2)
        want = REFUSE
    path = folder / "model_final.rank_0.pth"
    torch.save({"model": value, "iteration": 12499}, path)
    return path, want, with_schemes("dinov2")


def shards(rng, folder):
    index, value = {}, _tensors()
    kind = [".safetensors", ".bin"][rng.integers(2)]
    for i, keys in enumerate((NAMES[::2], NAMES[1::2])):
        part = {key: value[key] for key in keys}
        path = folder / f"model-{i}{kind}"
        save_file(part, path) if kind == ".safetensors" else torch.save(part, path)
        index |= dict.fromkeys(keys, path.name)
    names = {"weight_map": index}
    odd = [
        None, None, {"weight_map": index | {"more": f"model-0{kind}"}}, {}, [],
        {"weight_map": index | {"cls_token": "../x.bin"}}, {"weight_map": {"cls_token": 3}},
        {"weight_map": index | {"cls_token": f"model-1{kind}", "x": "model-9.bin"}},
        {"weight_map": index | {"cls_token": ""}}, {"weight_map": None},
    ]  # fmt: skip
    chosen = odd[rng.integers(len(odd))]
    path = folder / f"model{kind}.index.json"
    path.write_text(json.dumps(names if chosen is None else chosen))
    return path, STATE if chosen is None else REFUSE, SPEC


# Pickles


class _Call:
    """Pickles as a call."""

    def __init__(self, function, *args):
        self._call = function, args

    def __reduce__(self):
        return self._call


def malicious_pickle(rng, folder):
    import builtins
    import shutil
    import subprocess

    sentinel = str(folder / "executed")
    calls = [
        (os.system, f"touch {sentinel}"), (os.mkdir, sentinel), (builtins.open, sentinel, "w"),
        (builtins.exec, f"open({sentinel!r}, 'w')"), (builtins.eval, f"open({sentinel!r}, 'w')"),
        (subprocess.check_call, ["touch", sentinel]), (shutil.copy, __file__, sentinel),
        (os.makedirs, sentinel), (builtins.__import__, "antigravity"), (torch.save, 1, sentinel),
        (pathlib.Path.touch, pathlib.Path(sentinel)), (np.save, sentinel, np.zeros(1)),
        (builtins.getattr, pathlib.Path, "mkdir"), (torch.hub.load, "a/b", "c"),
    ]  # fmt: skip
    call, value = _Call(*calls[rng.integers(len(calls))]), _tensors()
    places = [
        lambda: value | {"cls_token": call},
        lambda: {"model": value, "args": call},
        lambda: {"model": value, "args": argparse.Namespace(x=call)},
        lambda: {"model": value, "hooks": [(1, {"x": call})]},
        lambda: [call],
        lambda: call,
    ]
    path = folder / "x.pth"
    torch.save(
        places[rng.integers(len(places))](),
        path,
        pickle_protocol=int(rng.integers(2, 5)),
        _use_new_zipfile_serialization=bool(rng.random() < 0.6),
    )
    return path, REFUSE, SPEC


def beside_tensors(rng, folder):
    beside = {
        "best_acc": np.float64(0.9), "epoch": np.int64(3), "flag": np.bool_(True),
        "args": argparse.Namespace(lr=0.1, out=pathlib.PosixPath("/data"), n=np.float32(2)),
        "rng": np.arange(3), "text": "x", "none": None, "list": [1, (2, 3)], "step": 4,
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1.0}]},
    }  # fmt: skip
    chosen = {key: beside[key] for key in rng.choice(list(beside), 4, replace=False)}
    path = folder / "x.pth"
    torch.save({"model": _tensors(), **chosen}, path)
    return path, STATE, SPEC


def _rewrite(path, change):
    """Change the pickle inside a file of torch, and keep the archive sound."""
    out = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as new:
        for info in old.infolist():
            data = old.read(info)
            new.writestr(info.filename, change(data) if info.filename.endswith(".pkl") else data)
    path.write_bytes(out.getvalue())


def flipped_pickle(rng, folder):
    path = folder / "x.pth"
    torch.save(_tensors(), path)

    def flip(data):
        data = bytearray(data)
        for _ in range(rng.integers(1, 4)):
            data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        return bytes(data)

    _rewrite(path, flip)
    return path, LIBRARY, SPEC


def odd_pickle(rng, folder):
    path, deep = folder / "x.pth", 10 ** int(rng.integers(4, 6))
    tail = b"0."  # pop what was made, stop
    texts = [
        b"\x80\x02}" + b")" + b"\x85" * deep + b"K\x01s.",  # a deep tuple as a key
        b"\x80\x02" + b"]" * deep + b"a" * (deep - 1) + b".",
        b"\x80\x02" + b"(" * deep + b".", b"\x80\x02}q\x00h\x00h\x00s.", b"", b".",
        b"\x80\x02h\x07.",
        b"\x80\x02cos\nsystem\n(X\x04\x00\x00\x00truetR" + tail, b"\x80\x05\x95", b"\x80\x02Nb.",
        b"\x80\x02X\xff\xff\xff\x7fabc.", b"\x80\x02}(K\x01u.", b"\x80\x02" + b"K\x01" * 9 + b"R.",
        b"\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.",
    ]  # fmt: skip
    torch.save(_tensors(), path)
    _rewrite(path, lambda _: texts[rng.integers(len(texts))])
    return path, REFUSE, SPEC


def damaged_pickle(rng, folder):
    path = folder / "x.pth"
    torch.save(_tensors(), path, _use_new_zipfile_serialization=bool(rng.random() < 0.5))
    data = bytearray(path.read_bytes())
    how = rng.integers(3)
    if how == 0:
        data = data[: rng.integers(len(data))]
    elif how == 1:
        data = bytearray(rng.bytes(int(rng.integers(1, 500))))
    else:
        for _ in range(rng.integers(1, 5)):
            data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)
    return path, LIBRARY if how == 2 else REFUSE, SPEC


MAKERS = (
    lying_shape, lying_offsets, lying_type, odd_header, wrong_length, flipped_safetensors,
    wrong_names, wrong_shapes, wrong_values, other_floats, no_floats, wrapped_names, several_sets,
    training_file, shards, malicious_pickle, beside_tensors, flipped_pickle, odd_pickle,
    damaged_pickle, malicious_pickle,
)  # fmt: skip


# Specs

SPEC_TEXT = """
mine:
  summary: A private ViT.
  network: {family: vit, image_px: 32, patch_px: 8, dim: 24, depth: 2, heads: 3, mlp_hidden: 48,
    mlp: gelu, n_registers: 2, pos_embed: cls_patch, qkv_bias: true, layer_scale: true, eps: 1e-6}
  preprocess: {resize_px: 36, crop_px: 32, interpolation: bicubic, mean: [0.5, 0.5, 0.5],
    std: [0.5, 0.25, 0.5]}
  poolings: [cls, mean]
  default_pooling: cls
  unit_norm: false
  revision: 2
  seed: 3
  weights: {schemes: [timm], resample: timm, files: [x.pth], n_tensors: 9}
  torch: {library: timm, constructor: vit_tiny_patch16_224, kwargs: {img_size: 32}}
"""
_ODD = (
    *(0, -1, 1, 10**6, 10**30, -(2**63), 1.5, float("nan"), float("inf"), -0.0, True, None),
    *("", "0", "x" * 5000, "../x", "a/b", "cls", [], {}, [[]], {"a": 1}, [1, 2, 3], [0, 0, 0]),
    *("hf-hub:a/b", "\0", "\u202e", "1e-6", "nan", 2**31),
)


def fuzz_specs(n, seed):
    """Outcomes of ``n`` specs, counted."""
    outcomes: Counter = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for i in range(n):
            rng = np.random.default_rng([seed, i])
            path, sentinel = pathlib.Path(folder) / "spec.yaml", pathlib.Path(folder) / "executed"
            make = SPEC_MAKERS[i % len(SPEC_MAKERS)]
            made = make(rng, sentinel)
            path.write_bytes(made if isinstance(made, bytes) else made.encode())
            outcome = _run_spec(path, sentinel)
            outcomes[outcome] += 1
            if outcome in (TRACEBACK, SILENT):
                outcomes[f"{outcome}: {make.__name__} {i}"] += 1
    return outcomes


def _run_spec(path, sentinel):
    start = time.monotonic()
    try:
        specs = read_specs(str(path))
        for spec in specs.values():
            if spec.network is not None:
                registry.network_of(spec.network)
    except InputError as error:
        outcome = CLEAN if len(str(error)) < 3000 and "spec.yaml" in str(error) else SILENT
    except Exception:  # noqa: BLE001 - this is what is counted
        outcome = TRACEBACK
    else:
        entries = yaml.safe_load(path.read_bytes())
        same = list(entries) == list(specs) and all(
            _agrees(entry, as_plain(specs[name])) for name, entry in entries.items()
        )
        outcome = EQUAL if same else SILENT
    if sentinel.exists() or time.monotonic() - start > LIMIT_S:
        return SILENT
    return outcome


def _agrees(given, found):
    """Whether every value of a file stands in the record, numbers as numbers."""
    if isinstance(given, dict):
        return all(key == "family" or _agrees(x, found[key]) for key, x in given.items())
    if isinstance(given, list):
        return len(given) == len(found) and all(map(_agrees, given, found))
    if isinstance(found, float) and not isinstance(given, bool):
        return float(given) == found
    return type(given) is type(found) and given == found


def one_odd_value(rng, sentinel):
    entries = yaml.safe_load(SPEC_TEXT)
    places = _places(entries["mine"])
    parent, key = places[rng.integers(len(places))]
    parent[key] = _ODD[rng.integers(len(_ODD))]
    return yaml.safe_dump(entries, sort_keys=False)


def one_field_less(rng, sentinel):
    entries = yaml.safe_load(SPEC_TEXT)
    places = [(parent, key) for parent, key in _places(entries["mine"]) if isinstance(parent, dict)]
    parent, key = places[rng.integers(len(places))]
    value = parent.pop(key)
    if rng.random() < 0.5:
        parent[f"{key}s"] = value
    return yaml.safe_dump(entries, sort_keys=False)


def _places(value):
    """Every (mapping or list, key) in a nested value."""
    items = list(value.items() if isinstance(value, dict) else enumerate(value))
    inner = [x for _, x in items if isinstance(x, dict | list)]
    return [(value, key) for key, _ in items] + [place for x in inner for place in _places(x)]


def odd_yaml(rng, sentinel):
    bomb = "a0: &a0 [x, x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30)
    )
    merges = "a0: &a0 {x: 1}\n" + "".join(
        f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 20)
    )
    deep = int(rng.integers(50, 10**5))
    texts = [
        bomb, merges, bomb + SPEC_TEXT, "mine: " + "[" * deep, "mine: " + "[" * deep + "]" * deep,
        "? " * min(deep, 500) + "x", "- " * deep, "{" * deep, "mine: &a [*a]", "mine: &a {b: *a}",
        f"mine: !!python/object/apply:os.system ['touch {sentinel}']",
        f"mine: !!python/object/new:os.mkdir ['{sentinel}']", "mine: !!binary x", "mine: !!int x",
        "mine: 2024-13-45", "mine: !!float x", "? [a]\n: b", "1: {}", "null: {}", "", "---\n---\n",
        "mine: {dim: 1, dim: 2}", SPEC_TEXT + SPEC_TEXT, "%YAML 9.9\n---\na: b", "\t", "@", "a: *b",
        SPEC_TEXT.replace("depth: 2", "depth: 2, depth: 2"), "mine: " + "9" * 10_000, "\ufeff" * 3,
        SPEC_TEXT.replace("dim: 24", "1: 24"), SPEC_TEXT.replace("mine:", "a/b:"),
        SPEC_TEXT.replace("kwargs: {", "kwargs: {pretrained: true, "), "mine: &x\n  *x : 1",
        SPEC_TEXT.replace("vit_tiny_patch16_224", "hf-hub:owner/name"),
    ]  # fmt: skip
    return texts[rng.integers(len(texts))]


def flipped_yaml(rng, sentinel):
    data = bytearray(SPEC_TEXT.encode())
    for _ in range(rng.integers(1, 4)):
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    return bytes(data[: rng.integers(len(data))] if rng.random() < 0.2 else data)


SPEC_MAKERS = (one_odd_value, odd_yaml, flipped_yaml, one_odd_value, one_field_less)
