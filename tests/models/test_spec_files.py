"""Specs from strangers: numbers out of range, and YAML that is larger than it looks."""

import time

import pytest

from pathorob_jax.core.checks import UsageError
from pathorob_jax.models import registry
from pathorob_jax.models.families import FAMILIES, POOLINGS_OF
from pathorob_jax.models.spec import read_specs

# Newer parsers refuse it themselves.
TOO_DEEP = "nested more than 32 deep|exceeded maximum nesting depth"
YAML = """
mine:
  summary: A private ViT.
  network: {family: vit, image_px: 32, patch_px: 8, dim: 24, depth: 2, heads: 3, mlp_hidden: 48,
    n_registers: 0, eps: 1e-6, rope_theta: 100.0}
  preprocess: {resize_px: 32, crop_px: 32, mean: [0.5, 0.0, -0.5], std: [0.5, 0.5, 0.5]}
  poolings: [cls, mean]
  default_pooling: cls
  seed: 0
  weights: {schemes: [timm], resample: timm, unused_params: 0}
  torch: {library: timm, constructor: vit_tiny_patch16_224, kwargs: {img_size: 32}}
"""


def _read(tmp_path, text):
    path = tmp_path / "my.yaml"
    path.write_text(text)
    return read_specs(str(path))


def test_numbers_at_the_ends_of_their_ranges_are_taken(tmp_path):
    [spec] = _read(tmp_path, YAML).values()
    assert (spec.network.n_registers, spec.seed, spec.preprocess.mean[2]) == (0, 0, -0.5)


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("patch_px: 8", "patch_px: 0", "mine.network: ViTConfig.patch_px: expected 1 to 1048576"),
        ("heads: 3", "heads: 0", "heads: expected 1 to"),
        ("heads: 3", "heads: 4", "rotary positions need .* to be a multiple of 4, found 6"),
        ("heads: 3", "heads: -3", "heads: expected 1 to .* found -3"),
        ("depth: 2", "depth: 100000", "depth: expected 1 to 1024"),
        ("image_px: 32", "image_px: 0", "image_px: expected 1 to"),
        ("dim: 24", "dim: 3000000000000", "dim: expected 1 to"),
        ("n_registers: 0", "n_registers: -1", "n_registers: expected 0 to"),
        ("eps: 1e-6", "eps: 0", "eps: expected a finite number above 0, found 0.0"),
        ("eps: 1e-6", "eps: nan", "eps: expected a finite number above 0, found nan"),
        ("eps: 1e-6", "eps: .inf", "eps: expected a finite number above 0, found inf"),
        ("rope_theta: 100.0", "rope_theta: 0", "rope_theta: expected a finite number above 0"),
        ("resize_px: 32", "resize_px: 0", "mine.preprocess.resize_px: expected 1 to"),
        ("resize_px: 32", "resize_px: 31", "resize_px of at least crop_px"),
        ("std: [0.5, 0.5,", "std: [0.5, 0.0,", "std: expected a finite number above 0, found 0.0"),
        ("mean: [0.5, 0.0,", "mean: [0.5, .nan,", "mean: expected a finite number, found nan"),
        ("seed: 0", "seed: -1", "seed: expected 0 to"),
        ("seed: 0", "seed: 4294967296", r"seed: expected 0 to 2\*\*32 - 1, found 429"),
        ("unused_params: 0", "unused_params: -1", "unused_params: expected 0 to"),
        ("unused_params: 0", "stored_px: 0", "stored_px: expected 1 to"),
        ("poolings: [cls, mean]", "poolings: [cls, head]", "offers cls, mean, clsmean, found head"),
        ("vit_tiny_patch16_224", "hf-hub:owner/name", "torch.constructor: expected a name in timm"),
        ("{img_size: 32}", "{pretrained: true}", r"expected arguments .* \['pretrained'\]"),
        ("{img_size: 32}", "{checkpoint_path: x}", r"expected arguments .* \['checkpoint_path'\]"),
    ],
)  # fmt: skip
def test_a_number_out_of_range_is_refused_by_name(old, new, match, tmp_path):
    assert old in YAML
    with pytest.raises(UsageError, match=match) as caught:
        _read(tmp_path, YAML.replace(old, new))
    assert str(caught.value).startswith(f"{tmp_path}/my.yaml: mine")


@pytest.mark.parametrize(
    "network",
    [
        "family: swin, image_px: 224, width: 96, depths: [], heads: [], window: 7",
        "family: swin, image_px: 224, width: 0, depths: [2, 2], heads: [3, 6], window: 7",
        "family: swin, image_px: 224, width: 96, depths: [2, 2], heads: [3, 0], window: 7",
        "family: swin, image_px: 224, width: 96, depths: [2, 2], heads: [3, 6], window: 0",
        "family: swin, image_px: 224, width: 96, depths: [1, 1, 1, 1, 1, 1, 1, 1, 1], "
        "heads: [1, 1, 1, 1, 1, 1, 1, 1, 1], window: 1",
        "family: resnet, image_px: 224, depths: [0, 2], block: basic",
        "family: resnet, image_px: 224, depths: [1, 1, 1, 1, 1, 1, 1, 1, 1], block: basic",
        "family: clip, image_px: 32, patch_px: 8, dim: 24, depth: 2, heads: 3, mlp_hidden: 48, "
        "head: attention, head_out: 16, query_heads: 0",
    ],
)
def test_other_families_have_ranges_too(network, tmp_path):
    text = f"mine:\n  summary: x\n  network: {{{network}}}\n  poolings: [mean]\n"
    with pytest.raises(UsageError, match="mine.network: .*expected"):
        _read(tmp_path, text)


def test_an_encoder_has_a_network_or_the_reason_why_not(tmp_path):
    with pytest.raises(UsageError, match=r"my.yaml: mine: expected a field 'network'"):
        _read(tmp_path, "mine: {summary: x}")
    [spec] = _read(tmp_path, "mine: {summary: x, unavailable: It is private.}").values()
    assert (spec.network, spec.unavailable) == (None, "It is private.")


def test_a_network_may_take_tiles_as_they_are(tmp_path):
    lines = [line for line in YAML.splitlines() if "preprocess" not in line]
    [spec] = _read(tmp_path, "\n".join(lines)).values()
    assert (spec.preprocess, spec.network.image_px) == (None, 32)


def test_every_family_says_which_poolings_it_offers():
    assert POOLINGS_OF.keys() == FAMILIES.keys()
    for spec in registry.MODELS.values():
        if spec.network is not None:
            family = next(n for n, kind in FAMILIES.items() if type(spec.network) is kind)
            assert set(spec.poolings) <= set(POOLINGS_OF[family])


_BOMB = "a0: &a0 [x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30)
)
_MERGES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 30)
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "match"),
    [
        (_BOMB, "aliases that stand for more than 200,000 values"),
        (_MERGES, "aliases that stand for more than 200,000 values"),
        ("mine: " + "[" * 10**5, TOO_DEEP),
        ("- " * 10**5, TOO_DEEP),
        ("mine: &a [*a]", "an alias of itself"),
        ("mine: &a {b: *a}", "an alias of itself"),
        ("mine: {dim: 1, dim: 2}", "'dim' twice, the second time in line 1"),
        (YAML + YAML, "'mine' twice, the second time in line 13"),
        ("1: {}", "a name that is no text in line 1: 1; put it in quotes"),
        ("? [a]\n: b", "a name that is no text in line 1: a list or mapping"),
        ("mine: !!python/object/apply:os.mkdir [x]", "expected YAML"),
        ("mine: 2024-13-45", "expected YAML"),
        ("mine: " + "9" * 10_000, "expected YAML"),
        ("mine: !!int x", "expected YAML"),
        ("---\n---\n", "expected YAML"),
        ("", "expected a mapping of encoder names"),
        (" " * 5_000_000, "expected a YAML of encoders, found 5,000,000 bytes"),
    ],
)
def test_yaml_that_is_more_than_it_looks_is_refused(text, match, tmp_path):
    start = time.monotonic()
    with pytest.raises(UsageError, match=match) as caught:
        _read(tmp_path, text)
    assert len(str(caught.value)) < 1500
    assert time.monotonic() - start < 60  # a bomb would take for ever
