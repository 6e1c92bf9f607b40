"""The ViT: equal to timm stage by stage, and blind to its neighbours and to the devices."""

import dataclasses
import functools
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_oracles
from flax import nnx
from machine import DEVICES

from pathorob_jax.core import devices
from pathorob_jax.core.checks import UsageError
from pathorob_jax.models import registry, vit
from pathorob_jax.models.vit import LayerNorm, Tokens, ViT, ViTConfig, pool

BATCH = 3
# Two implementations in float32 differ by the order of their sums. A pooled value takes part in few
# of them; a token of a stage may be small where it cancels, hence the wider bound of the stages.
STAGE_ERROR, POOLED_ERROR = 1e-4, 1e-5

GELU = ViTConfig(image_px=32, patch_px=8, dim=48, depth=3, heads=4, mlp_hidden=96)
REGISTERS = ViTConfig(
    image_px=42,
    patch_px=14,
    dim=48,
    depth=3,
    heads=3,
    mlp_hidden=120,
    n_registers=4,
    pos_embed="patch",
    layer_scale=True,
    eps=1e-5,
)
SWIGLU = ViTConfig(
    image_px=80,
    patch_px=16,
    dim=32,
    depth=4,
    heads=2,
    mlp_hidden=56,
    mlp="swiglu",
    n_registers=4,
    pos_embed="all",
    layer_scale=True,
)
VARIANTS = {
    "gelu, cls_patch": GELU,
    "gelu, LayerScale, registers, patch": REGISTERS,
    "swiglu, registers, all": SWIGLU,
    "swiglu, LayerScale, patch": dataclasses.replace(SWIGLU, n_registers=0, pos_embed="patch"),
    "no qkv bias": dataclasses.replace(GELU, qkv_bias=False, layer_scale=True),
    "eps 1e-5": dataclasses.replace(GELU, eps=1e-5),
    "one block, one patch": dataclasses.replace(GELU, image_px=14, patch_px=14, depth=1),
}


class Run(NamedTuple):
    """float32 stages of one network on the same images."""

    stem: np.ndarray
    blocks: np.ndarray
    cls: np.ndarray
    patches: np.ndarray


def _fill(shapes, rng):
    """Random values, all distinct, none 0 or 1, of the size that keeps activations near 1.

    Tokens enter the first block with a variance near 0.01, so that eps of its norm counts.
    """
    state = {}
    for name, shape in shapes.items():
        value = rng.standard_normal(shape)
        if name.endswith("gamma"):
            value = rng.uniform(0.3, 0.9, shape)
        elif "norm" in name and name.endswith("weight"):
            value = rng.uniform(0.5, 1.5, shape)
        elif name.startswith("patch_embed.") and name.endswith("weight"):
            value *= 0.07 / np.sqrt(np.prod(shape[1:]))
        elif "embed" in name or "token" in name:
            value *= 0.07
        elif name.endswith("weight"):
            value *= 1.5 / np.sqrt(shape[1])
        else:
            value *= 0.3
        state[name] = value.astype(np.float32)
    torch_oracles.check_no_neutral_values(state)
    return state


@pytest.mark.parametrize(("name", "value"), [("bias", 0.0), ("weight", 1.0)])
def test_values_that_would_hide_an_omission_are_found(name, value):
    state = {"weight": np.full((3, 2), 0.5, np.float32), "bias": np.full(2, 0.3, np.float32)}
    torch_oracles.check_no_neutral_values(state)
    state[name].flat[-1] = value
    with pytest.raises(AssertionError, match=f"{name}: 1 of"):
        torch_oracles.check_no_neutral_values(state)


def _to_params(state, config):
    """timm's state dict as our nested parameters."""

    def norm(name):
        return {"scale": state[f"{name}.weight"], "bias": state[f"{name}.bias"]}

    def linear(name):
        out = {"kernel": state[f"{name}.weight"].T}
        return out | ({"bias": state[f"{name}.bias"]} if f"{name}.bias" in state else {})

    def block(i):
        at = f"blocks.{i}"
        out = {
            "norm1": norm(f"{at}.norm1"),
            "qkv": linear(f"{at}.attn.qkv"),
            "proj": linear(f"{at}.attn.proj"),
            "norm2": norm(f"{at}.norm2"),
            "fc1": linear(f"{at}.mlp.fc1"),
            "fc2": linear(f"{at}.mlp.fc2"),
        }
        if config.layer_scale:
            out |= {"scale1": state[f"{at}.ls1.gamma"], "scale2": state[f"{at}.ls2.gamma"]}
        return out

    # timm's patch kernel is [out, channel, row, column]; a patch of ours runs row, column, channel.
    kernel = state["patch_embed.proj.weight"].transpose(2, 3, 1, 0).reshape(-1, config.dim)
    params = {
        "patch": {"kernel": kernel, "bias": state["patch_embed.proj.bias"]},
        "cls": state["cls_token"][0, 0],
        "pos_embed": state["pos_embed"][0],
        "blocks": jax.tree.map(lambda *x: np.stack(x), *map(block, range(config.depth))),
        "norm": norm("norm"),
    }
    if config.n_registers:
        params["registers"] = state["reg_token"][0]
    return params


def _timm_model(config):
    torch_oracles.import_timm()
    import torch
    from timm.layers import SwiGLUPacked
    from timm.models.vision_transformer import VisionTransformer

    swiglu = config.mlp == "swiglu"
    mlp = {"mlp_layer": SwiGLUPacked, "act_layer": torch.nn.SiLU} if swiglu else {}
    return VisionTransformer(
        img_size=config.image_px,
        patch_size=config.patch_px,
        embed_dim=config.dim,
        depth=config.depth,
        num_heads=config.heads,
        mlp_ratio=config.mlp_hidden * (2 if swiglu else 1) / config.dim,
        qkv_bias=config.qkv_bias,
        init_values=1.0 if config.layer_scale else None,
        no_embed_class=config.pos_embed == "patch",
        reg_tokens=config.n_registers,
        num_classes=0,
        global_pool="",
        norm_layer=functools.partial(torch.nn.LayerNorm, eps=config.eps),
        **mlp,
    ).eval()


@functools.cache
def _oracle(config):
    """Our parameters, the images, and what timm makes of them."""
    import torch

    model, rng = _timm_model(config), np.random.default_rng(7)
    state = _fill({name: tuple(t.shape) for name, t in model.state_dict().items()}, rng)
    model.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
    images = rng.standard_normal((BATCH, config.image_px, config.image_px, 3), np.float32)
    found = {}
    model.patch_drop.register_forward_hook(lambda m, a, out: found.update(stem=out))
    for i, block in enumerate(model.blocks):
        block.register_forward_hook(lambda m, a, out, i=i: found.update({i: out}))
    with torch.inference_mode():
        tokens = model(torch.from_numpy(images.transpose(0, 3, 1, 2))).numpy()
    n_prefix = 1 + config.n_registers
    return (
        _to_params(state, config),
        images,
        Run(
            found["stem"].numpy(),
            np.stack([found[i].numpy() for i in range(config.depth)]),
            tokens[:, 0],
            tokens[:, n_prefix:],
        ),
    )


@functools.cache
def _network(config):
    """Graph definition and the shapes of the parameters."""
    graph, state = nnx.split(nnx.eval_shape(lambda: ViT(config, rngs=nnx.Rngs(0))))
    return graph, nnx.to_pure_dict(state)


def _make_step(config, dtype):
    graph, _ = _network(config)
    return jax.jit(
        lambda params, images: nnx.merge(graph, params)(images, dtype=dtype, stages=True)
    )


_cached_step = functools.cache(_make_step)


def _run(config, params, images, dtype=jnp.float32, *, make_step=_cached_step):
    tokens, stages = make_step(config, dtype)(params, images)
    return Run(*map(np.asarray, (stages["stem"], stages["blocks"], tokens.cls, tokens.patches)))


def _pools(run):
    return {p: np.asarray(pool(Tokens(run.cls, run.patches), p)) for p in vit.POOLINGS}


def _relative(found, expected):
    """Largest difference of the two, in units of the largest expected value."""
    assert found.shape == expected.shape
    return np.abs(found - expected).max() / np.abs(expected).max()


def _pooled_error(found, expected):
    ours, theirs = _pools(found), _pools(expected)
    return max(
        np.linalg.norm(ours[p] - theirs[p], axis=1).max() / np.linalg.norm(theirs[p], axis=1).min()
        for p in vit.POOLINGS
    )


@pytest.mark.torch
@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_every_parameter_has_the_shape_that_the_mapping_gives(config):
    params, _, _ = _oracle(config)
    _, expected = _network(config)
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, expected)


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_every_stage_equals_timm(config):
    params, images, expected = _oracle(config)
    found = _run(config, params, images)
    assert _relative(found.stem, expected.stem) <= STAGE_ERROR
    for ours, theirs in zip(found.blocks, expected.blocks, strict=True):
        assert np.abs(ours - theirs).max() <= STAGE_ERROR
        assert _relative(ours, theirs) <= STAGE_ERROR
    assert np.abs(found.patches - expected.patches).max() <= STAGE_ERROR
    assert _pooled_error(found, expected) <= POOLED_ERROR


@pytest.mark.slow
@pytest.mark.torch
def test_positions_of_the_class_token_and_registers_without_any():
    # DINOv2's way: positions for class token and patches, registers put between them without. It is
    # the same network as positions for the patches alone and a class token that has its own added.
    params, images, expected = _oracle(REGISTERS)
    row = np.linspace(-0.3, 0.4, REGISTERS.dim, dtype=np.float32)
    moved = params | {
        "cls": params["cls"] - row,
        "pos_embed": np.concatenate([row[None, :], params["pos_embed"]]),
    }
    found = _run(dataclasses.replace(REGISTERS, pos_embed="cls_patch"), moved, images)
    assert _pooled_error(found, expected) <= POOLED_ERROR


def _swap_halves(array):
    return np.concatenate(np.split(array, 2, axis=-1)[::-1], axis=-1)


def _edit(params, path, change):
    """A copy of the parameters with one leaf changed."""
    key, *rest = path
    return params | {key: _edit(params[key], rest, change) if rest else change(params[key])}


@pytest.mark.torch
class TestToleranceSees:
    """Each of these mistakes must exceed the tolerance, or the parity above proves little."""

    def _error(self, config, params=None, wrong=None):
        right, images, expected = _oracle(config)
        return _pooled_error(_run(wrong or config, params or right, images), expected)

    @pytest.mark.slow
    def test_tanh_gelu(self, monkeypatch):
        exact = jax.nn.gelu
        monkeypatch.setattr(jax.nn, "gelu", lambda x, approximate: exact(x, approximate=True))
        params, images, expected = _oracle(GELU)
        found = _run(GELU, params, images, make_step=_make_step)  # traced anew
        assert _pooled_error(found, expected) > 5 * POOLED_ERROR

    @pytest.mark.slow
    @pytest.mark.parametrize(("right", "wrong"), [(1e-6, 1e-5), (1e-5, 1e-6), (1e-6, 1e-3)])
    def test_wrong_eps(self, right, wrong):
        config = dataclasses.replace(GELU, eps=right)
        assert self._error(config, wrong=dataclasses.replace(config, eps=wrong)) > 5 * POOLED_ERROR

    @pytest.mark.parametrize("leaf", ["kernel", "bias"])
    def test_swapped_swiglu_halves(self, leaf):
        params = _edit(_oracle(SWIGLU)[0], ("blocks", "fc1", leaf), _swap_halves)
        assert self._error(SWIGLU, params) > 100 * POOLED_ERROR

    def test_transposed_kernel(self):
        params = _edit(
            _oracle(GELU)[0], ("blocks", "proj", "kernel"), lambda k: k.transpose(0, 2, 1)
        )
        assert self._error(GELU, params) > 100 * POOLED_ERROR

    def test_transposed_patch(self):
        def transpose(kernel):
            return kernel.reshape(8, 8, 3, -1).transpose(1, 0, 2, 3).reshape(kernel.shape)

        params = _edit(_oracle(GELU)[0], ("patch", "kernel"), transpose)
        assert self._error(GELU, params) > 100 * POOLED_ERROR

    def test_swapped_class_token_and_register(self):
        params = _oracle(REGISTERS)[0]
        registers = params["registers"].copy()
        registers[0], cls = params["cls"], params["registers"][0]
        swapped = params | {"cls": cls, "registers": registers}
        assert self._error(REGISTERS, swapped) > 100 * POOLED_ERROR

    @pytest.mark.parametrize("config", [GELU, SWIGLU], ids=["cls_patch", "all"])
    def test_shifted_positions(self, config):
        params = _edit(_oracle(config)[0], ("pos_embed",), lambda p: np.roll(p, 1, axis=0))
        assert self._error(config, params) > 100 * POOLED_ERROR

    def test_swapped_layer_scales(self):
        params = _oracle(REGISTERS)[0]
        blocks = params["blocks"]
        swapped = blocks | {"scale1": blocks["scale2"], "scale2": blocks["scale1"]}
        assert self._error(REGISTERS, params | {"blocks": swapped}) > 100 * POOLED_ERROR

    def test_reversed_blocks(self):
        params = _oracle(GELU)[0]
        flipped = params | {"blocks": jax.tree.map(lambda x: x[::-1], params["blocks"])}
        assert self._error(GELU, flipped) > 100 * POOLED_ERROR


def _random_params(config, rng):
    """Parameters without torch: every leaf distinct."""
    _, shapes = _network(config)

    def fill(path, leaf):
        name = jax.tree_util.keystr(path)
        if "scale" in name:
            return rng.uniform(0.3, 1.5, leaf.shape).astype(np.float32)
        size = 1 / np.sqrt(leaf.shape[-2]) if "kernel" in name else 0.2
        return rng.standard_normal(leaf.shape, np.float32) * np.float32(size)

    return jax.tree_util.tree_map_with_path(fill, shapes)


def _images(config, rng, n=BATCH):
    return rng.standard_normal((n, config.image_px, config.image_px, 3), np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("config", [GELU, REGISTERS, SWIGLU], ids=["gelu", "registers", "swiglu"])
def test_bfloat16_points_the_same_way_as_float32(config, rng):
    # bfloat16 keeps 8 bits; the residual stream and the norms stay in float32.
    params, images = _random_params(config, rng), _images(config, rng)
    exact = _pools(_run(config, params, images))
    rounded = _pools(_run(config, params, images, jnp.bfloat16))
    for pooling in vit.POOLINGS:
        a, b = exact[pooling], rounded[pooling]
        cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        assert cosine.min() >= 0.999
        assert np.abs(a - b).max() > 1e-5, "products did not round: bfloat16 was not used"


# One encoder of each family; the depth is the real one, the width a quarter.
FAMILIES = {
    "DINOv2, GELU": "uni",
    "DINO, no LayerScale": "phikon",
    "DINOv2, SwiGLU, registers": "h_optimus_0",
    "SwiGLU, 8 registers": "uni2_h",
    "DINOv3": "dinov3_huge_plus",
    "DINOv3, one colour at a time": "genbio_pathfm",
}


@pytest.mark.campaign
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, id=kind, marks=[pytest.mark.campaign] * (name not in ("uni", "dinov3_huge_plus"))
        )
        for kind, name in FAMILIES.items()
    ],
)
def test_bfloat16_points_the_same_way_at_full_depth(name, rng):
    config = registry.get_spec(name).network
    config = dataclasses.replace(
        config,
        dim=config.dim // 4,
        heads=config.heads // 4,
        mlp_hidden=config.mlp_hidden // 4,
        image_px=4 * config.patch_px,
    )
    params, images = _random_params(config, rng), _images(config, rng)
    exact = _pools(_run(config, params, images))
    rounded = _pools(_run(config, params, images, jnp.bfloat16))
    for pooling in vit.POOLINGS:
        a, b = exact[pooling], rounded[pooling]
        cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        sys.stdout.write(f"{name} {pooling}: cosine with float32 {cosine.min():.6f}\n")
        assert cosine.min() >= 0.999


def test_stages_stay_float32_in_bfloat16(rng):
    params, images = _random_params(GELU, rng), _images(GELU, rng)
    assert {x.dtype for x in _run(GELU, params, images, jnp.bfloat16)} == {np.dtype(np.float32)}


def _embed(config):
    graph, _ = _network(config)
    return lambda params, images: pool(nnx.merge(graph, params)(images)[0], "clsmean")


@pytest.mark.slow
def test_stages_are_empty_unless_asked_for(rng):
    graph, _ = _network(GELU)
    params, images = _random_params(GELU, rng), _images(GELU, rng)
    tokens, stages = jax.jit(lambda p, x: nnx.merge(graph, p)(x))(params, images)
    assert stages == {}
    # Other fusions, hence not bit for bit.
    assert _relative(np.asarray(tokens.cls), _run(GELU, params, images).cls) <= POOLED_ERROR


@pytest.mark.slow
def test_an_embedding_does_not_depend_on_its_batch(rng):
    params, images = _random_params(REGISTERS, rng), _images(REGISTERS, rng, 8)
    embed = jax.jit(_embed(REGISTERS))
    whole = np.asarray(embed(params, images))
    others = images[::-1].copy()
    others[5] = images[5]
    np.testing.assert_array_equal(np.asarray(embed(params, others))[5], whole[5])
    order = rng.permutation(8)
    np.testing.assert_array_equal(np.asarray(embed(params, images[order])), whole[order])
    # Another batch size may sum in another order: equal to rounding only.
    assert _relative(np.asarray(embed(params, images[:3])), whole[:3]) <= POOLED_ERROR


@pytest.mark.slow
def test_devices_do_not_change_a_bit_at_equal_batch_per_device(rng):
    params, images = _random_params(SWIGLU, rng), _images(SWIGLU, rng, 16)
    embed = _embed(SWIGLU)
    found = []
    for n_devices in (1, 2, DEVICES):
        mesh = devices.make_mesh(jax.devices()[:n_devices])
        split, whole = devices.row_sharding(mesh), devices.replicated_sharding(mesh)
        step = jax.jit(embed, in_shardings=(whole, split), out_shardings=split)
        rows = [step(params, x) for x in np.split(images, 8 // n_devices)]
        found.append(np.concatenate([np.asarray(x) for x in rows]))
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


@pytest.mark.slow
def test_one_trace_per_shape(rng):
    traces = []
    embed = _embed(GELU)

    @jax.jit
    def step(params, images):
        traces.append(images.shape)
        return embed(params, images)

    params = _random_params(GELU, rng)
    for n in (4, 4, 2, 4, 2):
        step(params, _images(GELU, rng, n))
    assert [shape[0] for shape in traces] == [4, 2]


def test_pooling_of_known_tokens():
    tokens = Tokens(jnp.array([[1.0, 2.0]]), jnp.array([[[0.0, 4.0], [2.0, 8.0], [4.0, 6.0]]]))
    assert pool(tokens, "cls").tolist() == [[1.0, 2.0]]
    assert pool(tokens, "mean").tolist() == [[2.0, 6.0]]
    assert pool(tokens, "clsmean").tolist() == [[1.0, 2.0, 2.0, 6.0]]
    with pytest.raises(UsageError, match="pooling: expected one of .*'clsmean'.* found 'max'"):
        pool(tokens, "max")


def _norm(x, scale, bias, eps):
    layer = LayerNorm(x.shape[-1], rngs=nnx.Rngs(0))
    layer.scale[...], layer.bias[...] = jnp.asarray(scale), jnp.asarray(bias)
    graph, state = nnx.split(layer)
    return np.asarray(jax.jit(lambda state, x: nnx.merge(graph, state)(x, eps))(state, x))


def _norm64(x, scale, bias, eps):
    x = x.astype(np.float64)
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * scale + bias


@pytest.mark.parametrize("ratio", [0, 1, 30, 300, 3000])
def test_layer_norm_keeps_its_digits_where_the_mean_is_large(ratio, rng):
    # The tolerance is some thirty roundings of values up to 6. One pass without the shift is off
    # by 5e-2 at a ratio of 300.
    x = (rng.standard_normal((64, 768)) + ratio).astype(np.float32)
    scale, bias = rng.uniform(0.5, 1.5, 768), rng.standard_normal(768)
    scale, bias = scale.astype(np.float32), bias.astype(np.float32)
    found = _norm(x, scale, bias, 1e-6)
    np.testing.assert_allclose(found, _norm64(x, scale, bias, 1e-6), rtol=0, atol=1e-5)


@pytest.mark.parametrize("channel", [0, 5, 700])
@pytest.mark.parametrize("outlier", [30.0, 300.0, 1000.0])
def test_layer_norm_bears_a_massive_channel_wherever_it_is(channel, outlier, rng):
    # Trained networks grow them. Output values reach sqrt(768) = 28, the tolerance is in units of
    # that; shifting by the first channel alone is off by 1e-4 when it is the massive one.
    x = rng.standard_normal((64, 768)).astype(np.float32)
    x[:, channel] += outlier
    one, zero = np.ones(768, np.float32), np.zeros(768, np.float32)
    assert _relative(_norm(x, one, zero, 1e-6), _norm64(x, one, zero, 1e-6)) <= 2e-6


@pytest.mark.slow
def test_layer_norm_of_a_constant_is_its_bias():
    bias = np.linspace(-1, 1, 16, dtype=np.float32)
    x = np.full((2, 16), 1234.5, np.float32)
    found = _norm(x, np.full(16, 3.0, np.float32), bias, 1e-6)
    np.testing.assert_array_equal(found, np.stack([bias, bias]))
