"""LoRA adapters: merged as torch adds them, recorded, and refused by name where they do not fit."""

import dataclasses
import json
import math
import re

import numpy as np
import pytest
import torch_oracles
from safetensors.numpy import save_file
from small_vit import CONFIG, SPEC, expected, make_state

from converters import engine, oracles
from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.models import registry, weights
from pathorob_jax.models.spec import Lora
from pathorob_jax.models.vit import pool

OUTER = "base_model.model."
SETTINGS = {
    "peft_type": "LORA",
    "r": 3,
    "lora_alpha": 5,
    "lora_dropout": 0.1,
    "bias": "none",
    "init_lora_weights": True,
    "target_modules": ["attn.qkv", "attn.proj"],
    "base_model_name_or_path": "",
}
MODULES = [f"blocks.{i}.attn.{name}" for i in range(CONFIG.depth) for name in ("qkv", "proj")]


def make_update(state, modules=MODULES, *, ranks=None, seed=7):
    """Random A and B of modules, by PEFT's names in an adapter's file."""
    rng = np.random.default_rng(seed)
    found = {}
    for module in modules:
        shape, rank = state[f"{module}.weight"].shape, (ranks or {}).get(module, 3)
        kernel = shape[2:]
        found[f"{OUTER}{module}.lora_A.weight"] = rng.standard_normal((rank, *shape[1:]))
        found[f"{OUTER}{module}.lora_B.weight"] = rng.standard_normal(
            (shape[0], rank, *(1 for _ in kernel))
        )
    return {name: value.astype(np.float32) for name, value in found.items()}


def add_in_torch(state, update, scale):
    """W + scale B A of every module, as PEFT's merge_and_unload computes it."""
    torch = pytest.importorskip("torch")
    merged = dict(state)
    for name in [name for name in update if ".lora_A." in name]:
        a, b = (torch.from_numpy(update[name.replace(".lora_A.", f".lora_{x}.")]) for x in "AB")
        key = name.removeprefix(OUTER).replace(".lora_A.weight", ".weight")
        factor = scale(key.removesuffix(".weight")) if callable(scale) else scale
        delta = (b.flatten(1) @ a.flatten(1)).reshape(state[key].shape) * factor
        merged[key] = (torch.from_numpy(state[key]) + delta).numpy()
    return merged


def write(folder, update, **settings):
    """The folder of an adapter."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**SETTINGS, **settings})
    (folder / "adapter_config.json").write_text(text)
    save_file(update, folder / "adapter_model.safetensors")
    return str(folder)


def write_base(folder, state):
    path = str(folder / "model.safetensors")
    save_file(state, path)
    return path


def convert(folder, path, *, spec=SPEC, name="out", **options):
    engine.convert(spec, path, output=str(folder / name), **options)
    found = weights.open_converted(str(folder / name), spec.name)
    return found, weights.restore(found, registry.network_of(spec.network)[1])


def is_close(found, wanted):
    import jax

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), found, wanted)


@pytest.fixture
def state():
    """Weights near 0.1, as those of networks: 1e-6 is then a relative bound too."""
    return {name: value * np.float32(0.1) for name, value in make_state().items()}


@pytest.mark.torch
@pytest.mark.parametrize("given", ["folder", "adapter_model.safetensors", "adapter_config.json"])
def test_merged_is_base_and_adapter_as_torch_adds_them(given, state, tmp_path):
    update = make_update(state)
    where = write(tmp_path / "lora", update)
    where = where if given == "folder" else f"{where}/{given}"
    _, found = convert(tmp_path, write_base(tmp_path, state), adapter=where)
    is_close(found, expected(add_in_torch(state, update, 5 / 3)))


@pytest.mark.torch
def test_ranks_and_scales_by_pattern_and_by_root(state, tmp_path):
    ranks = {"blocks.1.attn.qkv": 2}
    update = make_update(state, ranks=ranks)
    where = write(
        tmp_path / "lora",
        update,
        use_rslora=True,
        rank_pattern={r"blocks\.1\.attn\.qkv": 2},
        alpha_pattern={"attn.proj": 7},
    )

    def scale(module):
        return (7 if module.endswith("proj") else 5) / math.sqrt(ranks.get(module, 3))

    made, found = convert(tmp_path, write_base(tmp_path, state), adapter=where)
    is_close(found, expected(add_in_torch(state, update, scale)))
    wanted = sorted({scale(module) for module in MODULES})
    np.testing.assert_allclose(made.info["conversion"]["adapter"]["scales"], wanted, rtol=1e-15)


@pytest.mark.torch
def test_a_convolution_and_names_within_other_modules(state, tmp_path):
    # The file is prefixed, and PEFT wrapped a module that holds the encoder; patches are embedded
    # by a convolution, whose update has its kernel in A.
    modules = ["patch_embed.proj", *MODULES]
    update = make_update(state, modules)
    names = {name.replace(OUTER, f"{OUTER}vision.tower."): x for name, x in update.items()}
    where = write(tmp_path / "lora", names, target_modules="all-linear")
    base = {f"backbone.{name}": value for name, value in state.items()}
    _, found = convert(tmp_path, write_base(tmp_path, base), adapter=where)
    is_close(found, expected(add_in_torch(state, update, 5 / 3)))


@pytest.mark.torch
def test_sums_are_float32_whatever_the_files_hold(state, tmp_path):
    import ml_dtypes

    half = {name: value.astype(ml_dtypes.bfloat16) for name, value in state.items()}
    update = {k: x.astype(ml_dtypes.bfloat16) for k, x in make_update(state).items()}
    where = write(tmp_path / "lora", update)
    _, found = convert(tmp_path, write_base(tmp_path, half), adapter=where)
    exact = {name: value.astype(np.float32) for name, value in half.items()}
    wide = {name: value.astype(np.float32) for name, value in update.items()}
    is_close(found, expected(add_in_torch(exact, wide, 5 / 3)))


HF = dataclasses.replace(
    registry.get_spec("midnight_12k"),
    name="hf",
    network=dataclasses.replace(
        registry.get_spec("midnight_12k").network,
        image_px=28, dim=24, depth=2, heads=2, mlp_hidden=40,
    ),
    preprocess=None,
)  # fmt: skip
# Modules as the file names them, and as transformers 5 names them in memory.
QKV = {"q_proj": "attention.query", "k_proj": "attention.key", "v_proj": "attention.value"}


def _hf_state():
    """Tensors of a gated Dinov2 in the names of the hub's files."""
    d, h, p = HF.network.dim, HF.network.mlp_hidden, HF.network.patch_px
    shapes = {
        "embeddings.cls_token": (1, 1, d), "embeddings.mask_token": (1, d),
        "embeddings.position_embeddings": (1, 5, d),
        "embeddings.patch_embeddings.projection.weight": (d, 3, p, p),
        "embeddings.patch_embeddings.projection.bias": (d,),
        "layernorm.weight": (d,), "layernorm.bias": (d,),
    }  # fmt: skip
    linear = {
        **{f"attention.{name}": (d, d) for name in QKV.values()}, "attention.output.dense": (d, d),
        "mlp.weights_in": (2 * h, d), "mlp.weights_out": (d, h),
    }  # fmt: skip
    for i in range(HF.network.depth):
        at = f"encoder.layer.{i}"
        for name, shape in linear.items():
            shapes |= {f"{at}.{name}.weight": shape, f"{at}.{name}.bias": shape[:1]}
        shapes |= {
            f"{at}.{n}.{leaf}": (d,) for n in ("norm1", "norm2") for leaf in ("weight", "bias")
        }
        shapes |= {f"{at}.layer_scale{k}.lambda1": (d,) for k in (1, 2)}
    rng = np.random.default_rng(3)
    return {k: rng.standard_normal(v, np.float32) * np.float32(0.1) for k, v in shapes.items()}


@pytest.mark.torch
@pytest.mark.parametrize("in_memory", [False, True])
def test_queries_keys_and_values_apart(in_memory, tmp_path):
    # The names of the files, or those of transformers 5, where gate and value of the MLP are apart
    # too: the halves of one weight of the file.
    state, half = _hf_state(), HF.network.mlp_hidden
    files = [f"encoder.layer.{i}.attention.{n}" for i in range(2) for n in (*QKV.values(),)]
    update = make_update(state, files)
    if in_memory:
        for memory, file in QKV.items():
            update = {k.replace(f".{file}.", f".{memory}."): x for k, x in update.items()}
        halves = {}
        for i in range(2):
            at = f"encoder.layer.{i}.mlp"
            for part, name in enumerate(("gate_proj", "up_proj")):
                rows = state[f"{at}.weights_in.weight"][part * half : (part + 1) * half]
                halves |= {f"{at}.{name}.weight": rows}
        update |= make_update(halves, [key.removesuffix(".weight") for key in halves])
    targets = [*QKV, "gate_proj", "up_proj"] if in_memory else ["query", "key", "value"]
    where = write(tmp_path / "lora", update, target_modules=targets)
    _, found = convert(tmp_path, write_base(tmp_path, state), spec=HF, adapter=where)
    plain = {**state, **(halves if in_memory else {})}
    if in_memory:
        for memory, file in QKV.items():
            update = {k.replace(f".{memory}.", f".{file}."): x for k, x in update.items()}
    merged = add_in_torch(plain, update, 5 / 3)
    for i in range(2):
        at = f"encoder.layer.{i}"
        joint = [merged[f"{at}.attention.{name}.weight"].T for name in QKV.values()]
        kernel = np.concatenate(joint, axis=1)
        np.testing.assert_allclose(found["blocks"]["qkv"]["kernel"][i], kernel, rtol=0, atol=1e-6)
        fc1 = merged[f"{at}.mlp.weights_in.weight"]
        if in_memory:
            names = ("gate_proj", "up_proj")
            fc1 = np.concatenate([merged[f"{at}.mlp.{name}.weight"] for name in names])
        np.testing.assert_allclose(found["blocks"]["fc1"]["kernel"][i], fc1.T, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.torch
def test_embeddings_are_those_of_torch_with_the_adapter_beside_its_base(tmp_path):
    torch_oracles.import_timm()
    import jax
    import torch
    from flax import nnx

    class WithLora(torch.nn.Module):
        """PEFT's layer in inference: base(x) + scale B A x."""

        def __init__(self, base, a, b, scale):
            super().__init__()
            self.base, self.scale = base, scale
            self.a, self.b = torch.from_numpy(a), torch.from_numpy(b)

        def forward(self, x):
            return self.base(x) + self.scale * (x @ self.a.T @ self.b.T)

    spec = torch_oracles.shrink(registry.get_spec("uni"))
    module = torch_oracles.fill(oracles.make_module(spec.torch))
    path = torch_oracles.save_as_library(module, str(tmp_path))
    state = {name: x.numpy() for name, x in module.state_dict().items()}
    update = {name: x * np.float32(0.1) for name, x in make_update(state).items()}
    _, params = convert(tmp_path, path, spec=spec, adapter=write(tmp_path / "lora", update))
    for i, block in enumerate(module.blocks):
        for name in ("qkv", "proj"):
            at = f"{OUTER}blocks.{i}.attn.{name}.lora_"
            base = getattr(block.attn, name)
            both = (update[f"{at}A.weight"], update[f"{at}B.weight"])
            setattr(block.attn, name, WithLora(base, *both, 5 / 3))
    side = spec.network.image_px
    images = np.random.default_rng(3).standard_normal((2, side, side, 3), np.float32)
    theirs = oracles.run_module(module, images)["tokens"]
    graph, _ = registry.network_of(spec.network)
    tokens, _ = jax.jit(lambda p, x: nnx.merge(graph, p)(x))(params, images)
    for pooling, wanted in (("cls", theirs[:, 0]), ("mean", theirs[:, 1:].mean(1))):
        ours = np.asarray(pool(tokens, pooling))
        error = np.linalg.norm(ours - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
        assert error.max() <= 1e-5


# A whole network as PEFT saves its state, CRISP's layout

WHOLE = dataclasses.replace(
    SPEC, weights=dataclasses.replace(SPEC.weights, lora=Lora(rank=3, alpha=5.0))
)


def _whole(state, update):
    base = {}
    for key, value in state.items():
        module, _, leaf = key.rpartition(".")
        base[OUTER + (f"{module}.base_layer.{leaf}" if module in MODULES else key)] = value
    return base | {k.replace(".weight", ".default.weight"): x for k, x in update.items()}


@pytest.mark.torch
def test_the_update_in_a_file_of_the_whole_network_is_merged(state, tmp_path):
    update = make_update(state)
    path = write_base(tmp_path, _whole(state, update))
    made, found = convert(tmp_path, path, spec=WHOLE)
    is_close(found, expected(add_in_torch(state, update, 5 / 3)))
    record = made.info["conversion"]["adapter"]
    assert (record["rank"], record["scales"], record["n_merged"]) == (3, [5 / 3], len(MODULES))
    with pytest.raises(InputError, match=r"does not say its rank and alpha; add weights: {lora:"):
        convert(tmp_path, path, name="other")
    with pytest.raises(UsageError, match="holds a LoRA already"):
        convert(tmp_path, path, spec=WHOLE, name="other", adapter=str(tmp_path))


def test_a_file_without_the_update_is_not_taken_for_one_with_it(state, tmp_path):
    with pytest.raises(InputError, match=r"expected the LoRA of small beside its weights"):
        convert(tmp_path, write_base(tmp_path, state), spec=WHOLE)


def test_crisp_names_the_rank_and_alpha_of_its_authors():
    crisp, base = registry.get_spec("crisp"), registry.get_spec("virchow2")
    assert crisp.weights.lora == Lora(rank=8, alpha=16.0)
    assert crisp.network == base.network
    assert crisp.preprocess == base.preprocess
    assert crisp.default_pooling == base.default_pooling == "clsmean"


# What is recorded


@pytest.mark.slow
def test_weights_with_an_adapter_are_other_weights(state, tmp_path):
    base = write_base(tmp_path, state)
    one = write(tmp_path / "one", make_update(state))
    two = write(tmp_path / "two", make_update(state, seed=8))
    options = ({}, {"adapter": one}, {"adapter": two}, {"adapter": one})
    made = [convert(tmp_path, base, name=f"out{i}", **each)[0] for i, each in enumerate(options)]
    digests = [each.identity["sha256"] for each in made]
    assert len(set(digests)) == 3
    assert digests[1] == digests[3]
    plain, merged = made[0].info, made[1].info
    assert "adapter" not in plain["conversion"]
    assert [x["name"] for x in merged["source"]["files"]] == [
        *("model.safetensors", "adapter_config.json", "adapter_model.safetensors")
    ]
    assert merged["conversion"]["adapter"]["label"] == "one"
    assert str(tmp_path) not in json.dumps(merged)
    with pytest.raises(InputError, match="exists, and is of another checkpoint"):
        convert(tmp_path, base, name="out1")


# What is refused


def _refused(tmp_path, state, update, match, **settings):
    where = write(tmp_path / "lora", update, **settings)
    with pytest.raises(InputError, match=match) as found:
        convert(tmp_path, write_base(tmp_path, state), adapter=where)
    assert not (tmp_path / "out").exists()
    return str(found.value)


def test_tensors_that_are_missing_are_named(state, tmp_path):
    update = make_update(state)
    lacking = {k: x for k, x in update.items() if k != f"{OUTER}blocks.1.attn.qkv.lora_B.weight"}
    _refused(tmp_path, state, lacking, r"1 problems:\n  missing: lora_B of blocks\.1\.attn\.qkv\n")
    layer = {k: x for k, x in update.items() if "blocks.1.attn.proj" not in k}
    _refused(tmp_path, state, layer, r"missing: lora_A and lora_B of blocks\.1\.attn\.proj\n")
    kind = {k: x for k, x in update.items() if "attn.proj" not in k}
    _refused(tmp_path, state, kind, r"missing: .* of all modules named attn\.proj\n")
    _refused(tmp_path, state, {"a": np.zeros(1)}, r"unknown: a\n  missing: tensors named lora_A")


@pytest.mark.slow
def test_layers_that_are_none_are_not_missed(state, tmp_path):
    first = {k: x for k, x in make_update(state).items() if "blocks.0." in k}
    base = write_base(tmp_path, state)
    ways = (
        {"layers_to_transform": [0]},
        {"target_modules": r"blocks\.0\.attn\.(qkv|proj)"},
        {"target_modules": ["blocks.0.attn.qkv", "blocks.0.attn.proj"]},
        {"exclude_modules": r"blocks\.1\..*"},
    )
    for i, way in enumerate(ways):
        where = write(tmp_path / f"lora{i}", first, **way)
        made, _ = convert(tmp_path, base, name=f"out{i}", adapter=where)
        assert made.info["conversion"]["adapter"]["n_merged"] == 2


def test_another_rank_is_refused(state, tmp_path):
    text = _refused(
        tmp_path, state, make_update(state), r"expected 4 by its settings, found 3", r=4
    )
    assert "rank: blocks.*.attn.qkv" in text
    update = make_update(state)
    name = f"{OUTER}blocks.0.attn.qkv.lora_A.weight"
    uneven = update | {name: np.concatenate([update[name], update[name][:1]])}
    _refused(tmp_path, state, uneven, r"lora_A is \[4, 24\], lora_B \[72, 3\]: no product")


def test_another_base_is_refused(state, tmp_path):
    wide = {name: np.concatenate([x, x]) for name, x in state.items() if x.ndim == 2}
    update = make_update({**state, **wide})
    message = r"base: blocks\.\*\.attn\.qkv: the update is \[144, 24\], the weight .* \[72, 24\]"
    _refused(tmp_path, state, update, message)
    base = "hf-hub:paige-ai/Virchow2"
    message = r"was trained on virchow2 \(paige-ai/Virchow2\), not on small; give --model=virchow2"
    _refused(tmp_path, state, make_update(state), message, base_model_name_or_path=base)


@pytest.mark.parametrize(
    "name",
    ["blocks.0.attn.qkv.lora_magnitude_vector", "blocks.0.attn.qkv.bias", "pre.lora_embedding_A"],
)
def test_tensors_without_a_place_are_named(name, state, tmp_path):
    update = make_update(state) | {f"{OUTER}{name}": np.ones(3, np.float32)}
    _refused(tmp_path, state, update, re.escape(f"unknown: {OUTER}{name}"))


def test_a_module_of_no_base_is_named_and_a_classifier_left_out(state, tmp_path):
    update = make_update(state)
    for half in "AB":
        update[f"{OUTER}neck.lora_{half}.weight"] = np.ones((3, 3), np.float32)
    _refused(tmp_path, state, update, r"unknown: neck is no module of the base network")
    head = make_update(state) | {f"{OUTER}head.weight": np.ones((2, 24), np.float32)}
    where = write(tmp_path / "head", head)
    made, _ = convert(tmp_path, write_base(tmp_path, state), adapter=where)
    assert made.info["conversion"]["adapter"]["dropped"] == [f"{OUTER}head.weight"]


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"use_dora": True}, "use_dora is not supported; merge the adapter with PEFT"),
        ({"peft_type": "IA3"}, "expected peft_type LORA, found IA3"),
        ({"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4' trains against a changed base"),
        ({"r": 0}, "expected a rank of at least 1, found 0"),
        ({"r": "8"}, "expected a number, found '8'"),
        ({"lora_alpha": float("inf")}, "expected a number, found 'inf'"),
        ({"target_modules": "("}, "expected PEFT's fields r, lora_alpha"),
        ({"rank_pattern": [1]}, "expected PEFT's fields r, lora_alpha"),
    ],
    ids=str,
)
def test_settings_that_change_the_sum_are_known_or_refused(settings, match, state, tmp_path):
    _refused(tmp_path, state, make_update(state), match, **settings)


@pytest.mark.slow
def test_what_is_no_adapter_is_refused(state, tmp_path):
    base = write_base(tmp_path, state)
    where = write(tmp_path / "lora", make_update(state))
    (tmp_path / "lora" / "adapter_config.json").write_text("{")
    with pytest.raises(InputError, match="adapter_config.json: cannot be read as JSON"):
        convert(tmp_path, base, adapter=where)
    (tmp_path / "lora" / "adapter_config.json").unlink()
    with pytest.raises(InputError, match=r"an adapter of PEFT is .* missing: adapter_config\.json"):
        convert(tmp_path, base, adapter=where)
    with pytest.raises(FileNotFoundError, match="nowhere: no such file or folder"):
        convert(tmp_path, base, adapter=str(tmp_path / "nowhere"))
