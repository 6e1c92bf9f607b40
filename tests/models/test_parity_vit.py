"""Every ViT of the registry: its file, through the real converter, equals its library's network.

Encoders that differ in size alone are one case, as the small networks are the same.
The networks are narrow and two blocks deep, with every option of the real one; each tensor is
random; the file has the names, wrappers and prefixes of the real one.
"""

import dataclasses
import functools
import os
import tempfile
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_oracles
from flax import nnx

from converters import engine, oracles, resampling, transforms
from pathorob_jax.models import registry, vit, weights
from pathorob_jax.models.spec import TorchNetwork
from pathorob_jax.models.vit import Tokens, ViTConfig, pool

pytestmark = pytest.mark.torch

BATCH = 2
# Two implementations in float32 differ by the order of their sums.
STAGE_ERROR, POOLED_ERROR = 1e-4, 1e-5
VITS = [
    name
    for name, spec in registry.MODELS.items()
    if type(spec.network) is ViTConfig and spec.weights and name != "genbio_pathfm"
]


def _what_parity_reads(name):
    """All that a small encoder's file and both networks are made from; equal: the same test."""
    spec = torch_oracles.shrink(registry.get_spec(name))
    where = spec.weights
    network_of_library = (
        spec.torch.library,
        spec.torch.constructor,
        tuple(sorted(spec.torch.kwargs.items())),
    )
    return spec.network, where.schemes, where.stored_px, where.resample, network_of_library


def _groups(names):
    """Names that share all of the above, in the order of the first of each."""
    groups = {}
    for name in names:
        groups.setdefault(_what_parity_reads(name), []).append(name)
    return list(groups.values())


GROUPS = _groups(VITS)
# Files of the same encoders in their other names.
OTHER_NAMES = [
    ("gpfm", "dinov2"),
    ("phikon", "dino"),
    ("dinov2_small", "dinov2"),
    ("dinov2_small", "timm"),
    ("dinov2_small_reg", "dinov2"),
    ("dinov2_small_reg", "timm_folded"),
    ("dinov2_giant", "dinov2"),
]
# Native names of DINOv2, by those of transformers.
_NATIVE = (
    ("embeddings.cls_token", "cls_token"),
    ("embeddings.mask_token", "mask_token"),
    ("embeddings.register_tokens", "register_tokens"),
    ("embeddings.position_embeddings", "pos_embed"),
    ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
    ("encoder.layer.", "blocks."),
    ("attention.output.dense", "attn.proj"),
    ("layer_scale1.lambda1", "ls1.gamma"),
    ("layer_scale2.lambda1", "ls2.gamma"),
    ("mlp.weights_in", "mlp.w12"),
    ("mlp.weights_out", "mlp.w3"),
    ("layernorm.", "norm."),
)

_NATIVE_V3_BLOCK = (
    ("embeddings.cls_token", "cls_token"),
    ("embeddings.mask_token", "mask_token"),
    ("embeddings.register_tokens", "storage_tokens"),
    ("embeddings.patch_embeddings", "patch_embed.proj"),
    ("layer.", "blocks."),
    ("attention.o_proj", "attn.proj"),
    ("layer_scale1.lambda1", "ls1.gamma"),
    ("layer_scale2.lambda1", "ls2.gamma"),
)
_NATIVE_V3 = {
    "gelu": (*_NATIVE_V3_BLOCK, ("mlp.up_proj", "mlp.fc1"), ("mlp.down_proj", "mlp.fc2")),
    "swiglu": (
        *_NATIVE_V3_BLOCK,
        ("mlp.gate_proj", "mlp.w1"),
        ("mlp.up_proj", "mlp.w2"),
        ("mlp.down_proj", "mlp.w3"),
    ),
}


class Case(NamedTuple):
    """A small encoder, its file, and what its library makes of images."""

    spec: object
    path: str
    images: np.ndarray
    expected: dict


def _stored_module(spec, network):
    """A filled network of the library at the resolution of the file."""
    key = "img_size" if network.library == "timm" else "image_size"
    kwargs = {**network.kwargs, key: spec.weights.stored_px or spec.network.image_px}
    return torch_oracles.fill(oracles.make_module(dataclasses.replace(network, kwargs=kwargs)))


def _join(tensors, names):
    """q, k and v of transformers under their joint native name; all else as it is."""
    import torch

    out = {}
    for key, value in tensors.items():
        at, found, leaf = key.partition(names[0])
        if found:
            parts = [tensors[f"{at}{name}{leaf}"] for name in names]
            out[f"{at}attn.qkv{leaf}"] = torch.cat(parts)
        elif not any(name in key for name in names):
            out[key] = value
    return out


def _rename(tensors, table):
    for old, new in table:
        tensors = {key.replace(old, new): value for key, value in tensors.items()}
    return tensors


def _to_native(tensors):
    """DINOv2's own names."""
    at = "attention.attention."
    return _rename(_join(tensors, (f"{at}query", f"{at}key", f"{at}value")), _NATIVE)


def _to_native_v3(tensors, config):
    """DINOv3's own names, with its buffers; what the file has for the keys' bias is not used."""
    import torch

    width = config.dim
    for i in range(config.depth if config.qkv_bias else 0):
        junk = torch.full((width,), float("nan"))
        tensors[f"layer.{i}.attention.k_proj.bias"] = junk
    names = ("attention.q_proj", "attention.k_proj", "attention.v_proj")
    native = _rename(_join(tensors, names), _NATIVE_V3[config.mlp])
    for i in range(config.depth if config.qkv_bias else 0):
        mask = torch.cat([torch.ones(width), torch.zeros(width), torch.ones(width)])
        native[f"blocks.{i}.attn.qkv.bias_mask"] = mask
    powers = 2 * torch.arange(config.head_dim // 4) / (config.head_dim // 2)
    native["rope_embed.periods"] = config.rope_theta**powers
    return native


def _write(spec, scheme, folder):
    """A file of the encoder in the names of the scheme, as its authors would have saved it."""
    import torch
    from safetensors.torch import load_file, save_file

    network, path = spec.torch, os.path.join(folder, "checkpoint.pth")
    if scheme in ("dino", "timm", "timm_folded") and network.library != "timm":
        network = oracles.timm_network(spec.network)
    saved = torch_oracles.save_as_library(_stored_module(spec, network), folder)
    tensors = load_file(saved)
    if scheme == "dino":
        head = {"head.mlp.0.weight": torch.ones(4, 4), "head.last_layer.weight_v": torch.ones(4)}
        wrapped = {f"module.backbone.{key}": x for key, x in tensors.items()}
        wrapped |= {f"module.{key}": x for key, x in head.items()}
        torch.save({"student": {}, "teacher": wrapped, "epoch": 99}, path)
    elif scheme == "dinov2" and network.library == "timm":
        # A training checkpoint: wrapped, prefixed, in chunks, with a head.
        tensors["mask_token"] = torch.ones(1, spec.network.dim)
        chunked = {key.replace("blocks.", "blocks.0."): x for key, x in tensors.items()}
        wrapped = {f"backbone.{key}": x for key, x in chunked.items()}
        wrapped |= {"dino_head.mlp.0.bias": torch.ones(4), "ibot_head.mlp.2.bias": torch.ones(4)}
        torch.save({"teacher": wrapped, "iteration": 3}, path)
    elif scheme == "dinov2":
        torch.save(_to_native(tensors), path)
    else:
        save_file(tensors, saved, metadata={"format": "pt"})
        return saved
    return path


@functools.cache
def _case(name, scheme=None):
    """Cached: several tests look at the same encoder."""
    torch_oracles.import_transformers()
    torch_oracles.import_timm()
    import torch

    spec = torch_oracles.shrink(registry.get_spec(name))
    scheme = scheme or spec.weights.schemes[0]
    path = _write(spec, scheme, tempfile.mkdtemp(dir=_case.folder))
    source = engine.find_checkpoint(spec, path)
    plan = engine.plan_conversion(spec, source, registry.network_of(spec.network)[1])
    assert plan.scheme == scheme or {plan.scheme, scheme} <= {"timm", "dino", "dinov2"}
    found = source.sets[plan.weights_key]
    tensors = {key: torch.from_numpy(np.array(found.read(key))) for key in found.shapes}
    module = oracles.load_module(
        spec, tensors, scheme=scheme, prefix=plan.prefix, dropped=plan.dropped
    )
    side = spec.network.image_px
    rng = np.random.default_rng(3)
    images = rng.standard_normal((BATCH, side, side, 3), np.float32)
    return Case(spec, path, images, oracles.run_module(module, images))


@pytest.fixture(autouse=True, scope="module")
def _folder(tmp_path_factory):
    _case.folder = str(tmp_path_factory.mktemp("parity"))
    yield
    _case.cache_clear()


@functools.cache
def _step(config, dtype="float32"):
    graph, _ = registry.network_of(config)
    return jax.jit(
        lambda params, images: nnx.merge(graph, params)(images, dtype=jnp.dtype(dtype), stages=True)
    )


def _convert(spec, path, **options):
    """Parameters through the whole converter and back from disk."""
    with tempfile.TemporaryDirectory(dir=_case.folder) as root:
        engine.convert(spec, path, output=root, **options)
        abstract = registry.network_of(spec.network)[1]
        return weights.restore(weights.open_converted(root, spec.name), abstract)


def _errors(config, params, images, expected, *, step=_step):
    """Relative errors: largest of the stages, largest of the poolings."""
    tokens, stages = step(config)(params, images)
    ours = {"stem": stages["stem"]}
    ours |= {f"block_{i:02}": x for i, x in enumerate(stages["blocks"])}
    worst = max(
        np.abs(np.asarray(ours[key]) - expected[key]).max() / np.abs(expected[key]).max()
        for key in ours
    )
    n_prefix = 1 + config.n_registers
    theirs = Tokens(expected["tokens"][:, 0], expected["tokens"][:, n_prefix:])
    pooled = max(
        np.linalg.norm(np.asarray(pool(tokens, p)) - np.asarray(pool(theirs, p)), axis=1).max()
        / np.linalg.norm(np.asarray(pool(theirs, p)), axis=1).min()
        for p in vit.POOLINGS
    )
    assert set(ours) | {"tokens"} == set(expected)
    return worst, pooled


def test_every_vit_is_in_one_group():
    assert sorted(name for group in GROUPS for name in group) == sorted(VITS)
    for group in GROUPS:
        assert len({_what_parity_reads(name) for name in group}) == 1


@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS, ids="=".join)
def test_an_encoder_equals_its_library(group):
    case = _case(group[0])
    params = _convert(case.spec, case.path)
    stage, pooled = _errors(case.spec.network, params, case.images, case.expected)
    assert stage <= STAGE_ERROR
    assert pooled <= POOLED_ERROR


@pytest.mark.slow
@pytest.mark.parametrize(("name", "scheme"), OTHER_NAMES)
def test_other_names_of_the_same_encoder(name, scheme):
    case = _case(name, scheme)
    params = _convert(case.spec, case.path)
    stage, pooled = _errors(case.spec.network, params, case.images, case.expected)
    assert stage <= STAGE_ERROR
    assert pooled <= POOLED_ERROR


@pytest.mark.parametrize("name", ["dinov3_small", "dinov3_small_plus"])
def test_native_names_of_dinov3(name, tmp_path):
    # No library reads them; the network is that of transformers, which the file was made from.
    import torch
    from safetensors.torch import load_file

    torch_oracles.import_transformers()
    spec = torch_oracles.shrink(registry.get_spec(name))
    module = _stored_module(spec, spec.torch)
    tensors = load_file(torch_oracles.save_as_library(module, str(tmp_path)))
    path = str(tmp_path / "native.pth")
    torch.save(_to_native_v3(tensors, spec.network), path)
    side = spec.network.image_px
    images = np.random.default_rng(3).standard_normal((BATCH, side, side, 3), np.float32)
    params = _convert(spec, path)
    found = _errors(spec.network, params, images, oracles.run_module(module, images))
    assert found[0] <= STAGE_ERROR
    assert found[1] <= POOLED_ERROR


def _rounded_rotation(monkeypatch):
    """Makes transformers turn queries and keys in bfloat16, as DINOv3's own code does if asked."""
    import math

    import torch
    from transformers.models.dinov3_vit import modeling_dinov3_vit as dinov3

    kind = torch.bfloat16

    def forward(self, pixel_values):
        side = pixel_values.shape[-1] // self.config.patch_size
        centres = torch.arange(0.5, side, dtype=kind) / side
        coords = torch.stack(torch.meshgrid(centres, centres, indexing="ij"), -1).flatten(0, 1)
        periods = (1 / self.inv_freq).to(kind)
        angles = 2 * math.pi * (2.0 * coords - 1.0)[:, :, None] / periods[None, None, :]
        angles = angles.flatten(1, 2).tile(2)
        return torch.cos(angles), torch.sin(angles)

    def apply(q, k, cos, sin, **_):
        n_prefix = q.shape[-2] - cos.shape[-2]

        def one(x):
            rounded = x.to(kind)
            prefix, patches = rounded[..., :n_prefix, :], rounded[..., n_prefix:, :]
            turned = patches * cos + dinov3.rotate_half(patches) * sin
            return torch.cat([prefix, turned], dim=-2).to(x.dtype)

        return one(q), one(k)

    monkeypatch.setattr(dinov3.DINOv3ViTRopePositionEmbedding, "forward", forward)
    monkeypatch.setattr(dinov3, "apply_rotary_pos_emb", apply)


@pytest.mark.slow
def test_genbio_pathfm_equals_three_passes_of_dinov3(tmp_path, monkeypatch):
    # No library has it: transformers' DINOv3 with one input channel, without bias of q, k and v,
    # run once for each colour, rotation in bfloat16 (genbio-ai/genbio-pathfm repo).
    torch_oracles.import_transformers()
    import torch
    from safetensors.torch import load_file

    spec = registry.get_spec("genbio_pathfm")
    config = spec.network
    kwargs = {
        "patch_size": config.patch_px,
        "num_channels": 1,
        "num_register_tokens": config.n_registers,
        "rope_theta": config.rope_theta,
        "layer_norm_eps": config.eps,
        "use_gated_mlp": True,
        "hidden_act": "silu",
        "query_bias": False,
        "value_bias": False,
        "intermediate_size": 128,
    }
    spec = dataclasses.replace(spec, torch=TorchNetwork("transformers", "DINOv3ViTModel", kwargs))
    spec = torch_oracles.shrink(spec)
    _rounded_rotation(monkeypatch)
    module = _stored_module(spec, spec.torch)
    tensors = load_file(torch_oracles.save_as_library(module, str(tmp_path)))
    del tensors["embeddings.mask_token"]
    path = str(tmp_path / "model.pth")
    torch.save(_to_native_v3(tensors, spec.network), path)
    side = spec.network.image_px
    images = np.random.default_rng(3).standard_normal((BATCH, side, side, 3), np.float32)
    runs = [oracles.run_module(module, images[..., c : c + 1]) for c in range(3)]
    expected = {key: np.concatenate([run[key] for run in runs]) for key in runs[0]}
    expected["tokens"] = np.concatenate([run["tokens"] for run in runs], axis=-1)
    stage, pooled = _errors(spec.network, _convert(spec, path), images, expected)
    # Both round to bfloat16 at the same steps; a value between two neighbours may fall either way.
    assert stage <= 3e-3
    assert pooled <= 1e-3
    assert pool(_step(spec.network)(_convert(spec, path), images)[0], "cls").shape == (BATCH, 144)


# Options that no registered encoder has, by timm's network of the same configuration.
OPTIONS = {
    "qk_norm": {"qk_norm": True},
    "no qkv bias": {"qkv_bias": False, "layer_scale": True},
    "swiglu without LayerScale": {"mlp": "swiglu", "mlp_hidden": 88, "n_registers": 2},
}


@pytest.mark.slow
@pytest.mark.parametrize("change", OPTIONS.values(), ids=OPTIONS)
def test_options_of_a_private_encoder(change, tmp_path):
    torch_oracles.import_timm()
    config = ViTConfig(
        image_px=24, patch_px=8, dim=48, depth=2, heads=3, mlp_hidden=192, pos_embed="patch"
    )
    config = dataclasses.replace(config, **change)
    spec = registry.get_spec("uni")
    spec = dataclasses.replace(spec, name="private", network=config)
    module = torch_oracles.fill(oracles.make_module(oracles.timm_network(config)))
    if config.qk_norm:
        for block in module.blocks:
            block.attn.q_norm.eps = block.attn.k_norm.eps = config.eps
    path = torch_oracles.save_as_library(module, str(tmp_path))
    images = np.random.default_rng(3).standard_normal((BATCH, 24, 24, 3), np.float32)
    found = _errors(config, _convert(spec, path), images, oracles.run_module(module, images))
    assert found[0] <= STAGE_ERROR
    assert found[1] <= POOLED_ERROR


@pytest.mark.parametrize("rule", resampling.RESAMPLERS)
@pytest.mark.parametrize(("old", "new"), [(37, 16), (14, 16), (14, 28), (5, 3), (3, 5), (16, 37)])
def test_resampling_equals_torch(rule, old, new):
    # PyTorch's sample points are float32: at 37 rows they are off by up to 4e-6.
    torch_oracles.import_torchvision()
    import torch

    how = resampling.RESAMPLERS[rule]
    grid = np.random.default_rng(0).standard_normal((old, old, 6)).astype(np.float32)
    scale = {"scale_factor": (new + how.offset) / old} if how.offset else {"size": (new, new)}
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(grid.transpose(2, 0, 1)[None]),
        mode=how.mode,
        antialias=how.antialias,
        align_corners=False,
        **scale,
    )
    np.testing.assert_allclose(
        how(grid, new), expected[0].numpy().transpose(1, 2, 0), rtol=0, atol=1e-5
    )


def test_the_rules_of_resampling_differ():
    grid = np.random.default_rng(0).standard_normal((37, 37, 2)).astype(np.float32)
    found = {name: how(grid, 16) for name, how in resampling.RESAMPLERS.items()}
    assert np.array_equal(found.pop("timm"), found["dinov2_reg"])
    names = list(found)
    for i, one in enumerate(names):
        for other in names[:i]:
            assert np.abs(found[one] - found[other]).max() > 1e-2


def _swap_halves(array):
    return jnp.concatenate(jnp.split(array, 2, axis=-1)[::-1], axis=-1)


class TestToleranceSees:
    """Each of these mistakes must exceed the tolerance, or the parity above proves little."""

    def _error(self, name, *, config=None, edit=None, step=_step):
        case = _case(name)
        params = _convert(case.spec, case.path)
        params = edit(params) if edit else params
        config = config or case.spec.network
        return _errors(config, params, case.images, case.expected, step=step)[1]

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["uni", "phikon", "dinov3_small", "dinov2_small"])
    def test_tanh_gelu(self, name, monkeypatch):
        exact = jax.nn.gelu
        monkeypatch.setattr(jax.nn, "gelu", lambda x, approximate: exact(x, approximate=True))
        assert self._error(name, step=_step.__wrapped__) > 5 * POOLED_ERROR

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["virchow2", "uni", "midnight_12k", "dinov3_small", "phikon"])
    def test_wrong_eps(self, name):
        config = _case(name).spec.network
        wrong = 1e-6 if config.eps == 1e-5 else 1e-5
        config = dataclasses.replace(config, eps=wrong)
        assert self._error(name, config=config) > 5 * POOLED_ERROR

    @pytest.mark.parametrize("name", ["uni2_h", "midnight_12k", "hibou_b", "dinov3_small_plus"])
    def test_swapped_swiglu_halves(self, name):
        def swap(params):
            fc1 = {key: _swap_halves(x) for key, x in params["blocks"]["fc1"].items()}
            return params | {"blocks": params["blocks"] | {"fc1": fc1}}

        assert self._error(name, edit=swap) > 100 * POOLED_ERROR

    def test_transposed_kernel(self, monkeypatch):
        monkeypatch.setitem(transforms.TRANSFORMS, "transpose", _transpose_only_if_it_must)
        assert self._error("uni") > 100 * POOLED_ERROR

    @pytest.mark.parametrize("name", ["uni2_h", "hibou_b", "virchow2", "dinov3_small"])
    def test_swapped_class_token_and_register(self, name):
        def swap(params):
            registers = params["registers"].at[0].set(params["cls"])
            return params | {"cls": params["registers"][0], "registers": registers}

        assert self._error(name, edit=swap) > 100 * POOLED_ERROR

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["kaiko_vitl14", "hipt_vit256", "midnight_12k"])
    @pytest.mark.parametrize("rule", resampling.RESAMPLERS)
    def test_wrong_resampling(self, name, rule):
        case = _case(name)
        right = case.spec.weights.resample
        same = {"timm", "dinov2_reg"}
        if rule == right or {rule, right} == same:
            return
        where = dataclasses.replace(case.spec.weights, resample=rule)
        params = _convert(dataclasses.replace(case.spec, weights=where), case.path)
        error = _errors(case.spec.network, params, case.images, case.expected)[1]
        assert error > 5 * POOLED_ERROR

    def test_key_bias_that_is_not_masked(self):
        def unmask(params):
            blocks = params["blocks"]
            bias = blocks["qkv"]["bias"].at[:, 48:96].set(0.3)
            return params | {"blocks": blocks | {"qkv": blocks["qkv"] | {"bias": bias}}}

        assert self._error("dinov3_small", edit=unmask) > 5 * POOLED_ERROR

    @pytest.mark.slow
    def test_positions_of_registers_left_out(self):
        config = dataclasses.replace(_case("virchow2").spec.network, pos_embed="cls_patch")

        def cut(params):
            rows = params["pos_embed"]
            return params | {"pos_embed": jnp.concatenate([rows[:1], rows[5:]])}

        assert self._error("virchow2", config=config, edit=cut) > 100 * POOLED_ERROR


def _transpose_only_if_it_must(x, slot):
    return x if x.shape == slot.shape else x.T
