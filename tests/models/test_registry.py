"""Names of encoders: what they stand for, what they refuse, and what a store is called."""

import dataclasses
import json
import math
import re
import sys

import jax
import newer_encoders
import numpy as np
import pytest
import yaml
from machine import DEVICES

from converters import engine, rules
from converters.listing import list_models
from pathorob_jax.core import devices as sharding
from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.core.plain import as_plain
from pathorob_jax.models import parameter_sharding, registry, vit, weights
from pathorob_jax.models.registry import MODELS, embedding_dim, load_encoder
from pathorob_jax.models.vit import ViTConfig

YAML = """
mine:
  summary: A private ViT.
  network: {family: vit, image_px: 32, patch_px: 8, dim: 24, depth: 2, heads: 3, mlp_hidden: 48,
    layer_scale: true, eps: 1e-6}
  preprocess: {resize_px: 32, crop_px: 32, mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}
  poolings: [cls, mean]
  default_pooling: cls
  weights: {schemes: [timm]}
"""
DEMO = ("color_stats", "nuclear_texture", "vit_random")
# Two 256-pixel tiles of seeded noise through vit_random: entries 0 to 4 of each embedding.
PINNED = [
    [-1.537210, 0.255534, 0.394162, -1.244007, 0.967533],
    [-1.673352, 0.536594, 0.321649, -1.143036, 1.383359],
]


@pytest.fixture(scope="module")
def tiles():
    return np.random.default_rng(5).integers(0, 256, (2, 256, 256, 3), np.uint8)


def _embed(encoder, tiles):
    return np.asarray(jax.jit(encoder.apply)(encoder.params, tiles))


@pytest.fixture(scope="module")
def embedded(tiles):
    """What vit_random makes of the tiles."""
    return _embed(load_encoder("vit_random"), tiles)


def test_the_demo_encoders_are_known_by_these_names():
    assert set(DEMO) <= set(MODELS)
    for name, spec in MODELS.items():
        assert spec.name == name
        assert registry.get_spec(name) is spec
        assert spec.summary.endswith(".")
        assert spec.licence


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(UsageError, match=r"'color_stat'\. Did you mean 'color_stats'\? Known: .*"):
        load_encoder("color_stat")
    with pytest.raises(UsageError, match="compute_dtype: unknown name 'float16'.* 'bfloat16'"):
        load_encoder("vit_random", compute_dtype="float16")


def test_a_pooling_that_is_not_offered_is_refused():
    with pytest.raises(UsageError, match="vit_random does not offer 'max'.* cls, mean, clsmean"):
        load_encoder("vit_random", pooling="max")
    with pytest.raises(UsageError, match="color_stats does not offer 'cls'.*no tokens to pool"):
        load_encoder("color_stats", pooling="cls")


def test_a_type_that_would_change_nothing_is_refused():
    # Else the store would claim bfloat16 for numbers computed in float32.
    with pytest.raises(UsageError, match="color_stats does not offer 'bfloat16'; .* float32"):
        load_encoder("color_stats", compute_dtype="bfloat16")
    same = load_encoder("color_stats", compute_dtype="float32").identity
    assert same == load_encoder("color_stats").identity


@pytest.mark.parametrize("name", DEMO)
def test_identity_comes_back_from_a_file_as_it_was(name):
    # A resumed store compares the two.
    identity = load_encoder(name).identity
    assert json.loads(json.dumps(identity)) == identity


@pytest.mark.slow
def test_identity_changes_with_everything_that_changes_an_embedding(monkeypatch):
    spec = MODELS["vit_random"]
    changed = [dataclasses.replace(spec, seed=1)]
    changed += [
        dataclasses.replace(spec, preprocess=dataclasses.replace(spec.preprocess, **change))
        for change in ({"resize_px": 256}, {"interpolation": "bilinear"}, {"std": (0.5,) * 3})
    ]
    seen = [
        load_encoder("vit_random", pooling=p, compute_dtype=d).identity
        for p in vit.POOLINGS
        for d in registry.COMPUTE_DTYPES
    ]
    for one in changed:
        monkeypatch.setitem(MODELS, "vit_random", one)
        seen.append(load_encoder("vit_random").identity)
    assert len({json.dumps(identity) for identity in seen}) == len(seen) == 10


def test_a_store_is_named_after_the_model_and_any_other_pooling():
    assert load_encoder("vit_random").name == "vit_random"
    assert load_encoder("vit_random", pooling="default").name == "vit_random"
    assert load_encoder("vit_random", pooling="cls").name == "vit_random"
    assert load_encoder("vit_random", pooling="mean").name == "vit_random_mean"
    assert load_encoder("vit_random", pooling="clsmean").name == "vit_random_clsmean"
    assert load_encoder("vit_random", compute_dtype="bfloat16").name == "vit_random"
    assert load_encoder("nuclear_texture").name == "nuclear_texture"


@pytest.mark.slow
def test_vit_random_is_the_same_everywhere(embedded):
    # The weights are drawn bit for bit alike; the products of another machine or device differ in
    # the order of their sums, hence the tolerance (embeddings have unit variance).
    assert embedded.dtype == np.float32
    np.testing.assert_allclose(embedded[:, :5], PINNED, rtol=0, atol=1e-5)
    one, two = (load_encoder("vit_random").params for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, one, two)


def test_vit_random_follows_its_seed(monkeypatch, tiles, embedded):
    monkeypatch.setitem(MODELS, "vit_random", dataclasses.replace(MODELS["vit_random"], seed=1))
    after = _embed(load_encoder("vit_random"), tiles)
    length = np.linalg.norm(embedded, axis=1) * np.linalg.norm(after, axis=1)
    cosine = (embedded * after).sum(1) / length
    assert np.abs(cosine).max() < 0.5  # unrelated directions


@pytest.mark.slow
def test_poolings_of_one_encoder_fit_together(tiles, embedded):
    mean, both = (_embed(load_encoder("vit_random", pooling=p), tiles) for p in ("mean", "clsmean"))
    # One computation and three, hence not bit for bit.
    np.testing.assert_allclose(both, np.concatenate([embedded, mean], 1), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_bfloat16_reaches_the_network(tiles, embedded):
    rounded = _embed(load_encoder("vit_random", compute_dtype="bfloat16"), tiles)
    assert rounded.dtype == np.float32
    assert 1e-4 < np.abs(embedded - rounded).max() < 0.1  # products of 8-bit operands


@pytest.mark.slow
@pytest.mark.parametrize("name", DEMO)
def test_embedding_dim_is_the_real_one(name):
    encoder = load_encoder(name)
    found = _embed(encoder, np.full((1, 64, 48, 3), 128, np.uint8))
    assert found.shape == (1, embedding_dim(encoder, 64, 48))
    assert np.isfinite(found).all()
    assert embedding_dim(encoder, 256, 256) == found.shape[1]


def test_embedding_dim_of_both_tokens_is_twice_the_width():
    assert embedding_dim(load_encoder("vit_random", pooling="clsmean"), 256, 256) == 2 * 192


# The entries


def _shapes(config):
    return {
        path: tuple(leaf.shape)
        for path, leaf in weights.flatten(registry.network_of(config)[1]).items()
    }


VITS = [n for n, s in MODELS.items() if s.weights and isinstance(s.network, ViTConfig)]
# What the issue of encoders asks for at least.
ASKED = {
    "virchow", "virchow2", "h_optimus_0", "h_optimus_1",
    "h0_mini", "uni", "uni2_h", "prov_gigapath",
    "kaiko_vits16", "kaiko_vits8", "kaiko_vitb16", "kaiko_vitb8",
    "kaiko_vitl14", "lunit_vits8", "lunit_vits16", "kang_dino",
    "phikon", "phikon_v2", "midnight_12k", "hibou_b",
    "hibou_l", "gpfm", "openmidnight", "hipt_vit256",
    "dinov2_small", "dinov2_base", "dinov2_large", "dinov2_giant",
    "dinov2_small_reg", "dinov2_base_reg", "dinov2_large_reg", "dinov2_giant_reg",
    "dinov3_small", "dinov3_base", "dinov3_large", "dinov3_huge_plus",
    "atlas", "rudolfv",
}  # fmt: skip


def test_the_encoders_that_were_asked_for_are_known():
    assert set(MODELS) >= ASKED


@pytest.mark.slow
@pytest.mark.parametrize("name", VITS)
def test_parameters_at_full_size_are_as_many_as_published(name):
    # At the resolution of the file, with what the file holds beside; nothing is allocated.
    spec = MODELS[name]
    side = spec.weights.stored_px or spec.network.image_px
    shapes = _shapes(dataclasses.replace(spec.network, image_px=side))
    found = sum(map(math.prod, shapes.values())) + spec.weights.unused_params
    n_periods = math.prod(shapes.get("rope_periods", (0,)))
    # Periods are a buffer; one publication counts it among the parameters.
    assert spec.n_params == found - (0 if name == "genbio_pathfm" else n_periods)


@pytest.mark.parametrize("name", [n for n in VITS if MODELS[n].weights.n_tensors])
def test_a_file_has_as_many_tensors_as_published(name):
    spec = MODELS[name]
    scheme = engine.SCHEMES[spec.weights.schemes[0]]
    cells = rules.expected_keys(scheme, _shapes(spec.network))
    assert spec.weights.n_tensors == len(cells) + (1 if spec.weights.unused_params else 0)


@pytest.fixture(scope="session")
def facts(shared):
    path = shared / "models" / "fm_specs.yaml"
    if not path.is_file():
        pytest.skip(f"{path} is absent: no facts to compare with")
    entries = yaml.load(path.read_bytes(), Loader=yaml.CSafeLoader)["models"]
    return {entry["key"]: entry for entry in entries}


@pytest.mark.slow
def test_every_encoder_of_the_facts_is_registered_or_listed_with_a_reason(facts):
    for name in facts:
        spec = MODELS.get(name)
        assert spec is not None, name
        assert (spec.network is None) == (spec.unavailable is not None)


@pytest.mark.parametrize(
    "name",
    [n for n in VITS if type(MODELS[n].network) is ViTConfig and n not in newer_encoders.NAMES],
)
def test_an_entry_says_what_the_facts_say(name, facts):
    spec, fact = MODELS[name], facts[name]
    arch, network, norm = fact["arch"], spec.network, fact["arch"]["norm"]
    assert (network.image_px, network.dim, network.depth, network.heads) == (
        arch["img_size"],
        arch["embed_dim"],
        arch["depth"],
        arch["heads"],
    )
    assert network.n_registers == arch["register_tokens"]
    assert network.mlp_hidden == arch["mlp"]["hidden"]
    assert (network.mlp == "swiglu") == (arch["mlp"]["type"] == "SwiGLU")
    assert network.layer_scale == arch["layerscale"]["present"]
    assert network.eps == pytest.approx(float(str(norm["eps"]).split()[0]), rel=1e-12)
    assert network.qkv_bias == arch["qkv_bias"]
    pos = arch["pos_embed"]
    if pos["stored_shape"]:
        side = spec.weights.stored_px or network.image_px
        stored = dataclasses.replace(network, image_px=side)
        assert [1, stored.n_pos, stored.dim] == pos["stored_shape"]
    preprocess, want = spec.preprocess, fact["preprocess"]
    assert list(preprocess.mean) == want["mean"]
    assert list(preprocess.std) == want["std"]
    if want["interpolation"]:
        assert want["interpolation"].startswith(preprocess.interpolation)
    else:
        assert spec.assumed
    assert spec.gflops == fact["compute"]["gflops_forward"]
    assert spec.n_params == fact["compute"]["params"]
    use = fact["embedding"]["pathorob_dim"]
    if use is not None:
        assert spec.pathorob.dim == use == 2 * network.dim
        assert spec.pathorob.pooling == "clsmean"
    width = {"cls": 1, "mean": 1, "clsmean": 2}[spec.default_pooling] * network.dim
    authors = fact["embedding"]["authors_dim"]
    width *= 3 if network.per_channel else 1
    assert width in (authors if isinstance(authors, list) else [authors])


def test_what_pathorob_did_is_certain_for_five():
    certain = {
        name
        for name, spec in MODELS.items()
        if spec.pathorob and spec.pathorob.confidence != "inferred"
    }
    assert certain == {"uni2_h", "phikon_v2", "h_optimus_0", "conch", "conch_v1_5"}


def test_the_table_has_a_line_for_every_encoder():
    lines = list_models().splitlines()
    for name, spec in MODELS.items():
        [line] = [line for line in lines if line.split()[:1] in ([name], [f"{name}:"])]
        if spec.weights and spec.weights.repo and spec.network:
            assert spec.weights.repo in line
        if spec.unavailable:
            assert spec.unavailable in line
    assert "No public weights: bring embeddings" in next(x for x in lines if "atlas:" in x)


# Choices


def test_an_encoder_without_public_weights_says_what_to_do():
    with pytest.raises(UsageError, match="atlas cannot be run. No public weights: bring embedd"):
        load_encoder("atlas")


def test_weights_are_asked_for_with_the_command_that_makes_them(tmp_path):
    with pytest.raises(UsageError, match=r"python -m converters.convert --model=uni --output"):
        registry.check_encoder("uni")
    with pytest.raises(InputError, match=r"make it with python -m converters.convert --model=uni"):
        registry.check_encoder("uni", weights_dir=str(tmp_path))


@pytest.fixture
def mine(tmp_path):
    """A private encoder from its YAML, with converted random weights."""
    path = tmp_path / "my_encoder.yaml"
    path.write_text(YAML)
    [spec] = registry.read_specs(str(path)).values()
    graph, abstract = registry.network_of(spec.network)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: jax.numpy.asarray(rng.standard_normal(x.shape, np.float32) * 0.3), abstract
    )
    info = {
        "network": as_plain(spec.network),
        "dtype": "float32",
        "source": {"sha256": "abc"},
    }
    weights.save(str(tmp_path), "mine", params, info)
    return spec


@pytest.mark.slow
def test_a_private_encoder_needs_its_yaml_only(mine, tmp_path, tiles):
    encoder = load_encoder(mine, weights_dir=str(tmp_path))
    found = _embed(encoder, tiles)
    assert found.shape == (2, 24)
    assert encoder.identity["weights"] == {"sha256": "abc", "dtype": "float32"}
    assert encoder.name == "mine"
    both = load_encoder(mine, weights_dir=str(tmp_path), pooling="mean")
    assert both.name == "mine_mean"
    with pytest.raises(UsageError, match="mine does not offer 'clsmean'; it offers cls, mean"):
        load_encoder(mine, weights_dir=str(tmp_path), pooling="clsmean")


@pytest.mark.slow
def test_unit_norm_is_of_length_one(mine, tmp_path, tiles):
    spec = dataclasses.replace(mine, unit_norm=True)
    encoder = load_encoder(spec, weights_dir=str(tmp_path))
    plain = _embed(load_encoder(mine, weights_dir=str(tmp_path)), tiles)
    found = _embed(encoder, tiles)
    length = np.linalg.norm(plain, axis=1, keepdims=True)
    np.testing.assert_allclose(found, plain / length, rtol=0, atol=1e-6)
    assert encoder.identity["unit_norm"] is True


def test_weights_of_another_network_are_refused(mine, tmp_path):
    network = dataclasses.replace(mine.network, eps=1e-5)
    with pytest.raises(InputError, match="converted for another network than mine is now"):
        load_encoder(dataclasses.replace(mine, network=network), weights_dir=str(tmp_path))


@pytest.mark.slow
def test_parameters_in_bfloat16_on_all_devices(mine, tmp_path, tiles, mesh):
    whole = sharding.replicated_sharding(mesh)
    options = {"weights_dir": str(tmp_path), "sharding": lambda shape: whole}
    encoder = load_encoder(mine, param_dtype="bfloat16", **options)
    leaves = jax.tree.leaves(encoder.params)
    assert {(leaf.dtype.name, leaf.sharding) for leaf in leaves} == {("bfloat16", whole)}
    exact, rounded = _embed(load_encoder(mine, **options), tiles), _embed(encoder, tiles)
    assert rounded.dtype == np.float32
    cosine = (exact * rounded).sum(1) / np.linalg.norm(exact, axis=1)
    assert (cosine / np.linalg.norm(rounded, axis=1)).min() > 0.999
    assert encoder.identity["param_dtype"] == "bfloat16"


def test_the_preset_sets_pooling_and_preprocessing_and_says_how_sure_it_is(mine, tmp_path):
    use = registry.get_spec("phikon_v2").pathorob
    preprocess = dataclasses.replace(use.preprocess, resize_px=40, crop_px=32)
    use = dataclasses.replace(use, pooling="mean", preprocess=preprocess)
    spec = dataclasses.replace(mine, pathorob=use)
    encoder = load_encoder(spec, weights_dir=str(tmp_path), preset="pathorob")
    assert encoder.name == "mine_pathorob"
    assert encoder.identity["pooling"] == "mean"
    assert encoder.identity["preprocess"]["interpolation"] == "bilinear"
    assert encoder.identity["preprocess"]["resize_px"] == 40
    assert encoder.identity["preset"] == {"name": "pathorob", "confidence": "read"}
    with pytest.raises(UsageError, match="--preset=pathorob sets the pooling; give one of the two"):
        load_encoder(spec, weights_dir=str(tmp_path), preset="pathorob", pooling="mean")
    with pytest.raises(UsageError, match="how PathoROB used mine is not known"):
        load_encoder(mine, weights_dir=str(tmp_path), preset="pathorob")
    with pytest.raises(UsageError, match="preset: unknown name 'patho'"):
        load_encoder(mine, weights_dir=str(tmp_path), preset="patho")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("patch_px: 8", "patch_pix: 8", "mine.network: field: unknown name 'patch_pix'. Did you"),
        ("dim: 24, ", "", r"mine.network: lacks the keys \['dim'\]"),
        ("dim: 24", "dim: wide", "mine.network.dim: expected int, found 'wide'"),
        ("dim: 24", "dim: 24.5", "mine.network.dim: expected int, found 24.5"),
        ("heads: 3", "heads: true", "mine.network.heads: expected int, found True"),
        ("heads: 3", "heads: 5", "dim must be a multiple of heads, found 24 and 5"),
        ("eps: 1e-6", "eps: small", "mine.network.eps: expected float, found 'small'"),
        ("layer_scale: true", "layer_scale: 1", "layer_scale: expected bool, found 1"),
        ("family: vit", "family: vti", "mine.network.family: unknown name 'vti'"),
        ("family: vit, ", "", "expected a mapping with a field 'family'"),
        ("mean: [0.5, 0.5, 0.5]", "mean: [0.5]", "mean: expected 3 values, found 1"),
        ("crop_px: 32", "crop_px: 40", "network.image_px is 32, preprocess.crop_px 40"),
        ("poolings: [cls, mean]", "poolings: [max]", r"poolings\[0\]: unknown name 'max'"),
        ("poolings: [cls, mean]", "poolings: [mean]", "default_pooling: expected one of mean"),
        ("  weights: {schemes: [timm]}", "", "expected a field 'weights'"),
        ("schemes: [timm]", "schemes: timm", "schemes: expected .*, found 'timm'"),
        ("summary: A private ViT.", "function: x\n  summary: x", "cannot hold functions"),
        ("mine:", "a/b:", "expected a plain name"),
        ("mine:", "mine: 3\nb:", "expected a mapping of encoder names"),
        ("mine:", "mine: [", "expected YAML"),
    ],
)
def test_an_error_in_a_private_spec_names_the_field(old, new, message, tmp_path):
    assert old in YAML
    path = tmp_path / "my_encoder.yaml"
    path.write_text(YAML.replace(old, new))
    with pytest.raises(UsageError, match=message):
        registry.read_specs(str(path))


@pytest.mark.slow
@pytest.mark.campaign
def test_bfloat16_moves_no_metric(tmp_path):
    # What counts of rounding: the benchmark's numbers of the same tiles.
    from pathorob_jax.data import synthetic_tiles, tileset
    from pathorob_jax.embeddings import extraction
    from pathorob_jax.evaluation import run, settings

    tiles = str(tmp_path / "tiles")
    config = synthetic_tiles.SyntheticConfig(n_slides=3, n_tiles=16, tile_px=64)
    config = dataclasses.replace(config, classes=config.classes[:2], centers=config.centers[:3])
    synthetic_tiles.write_tileset(tiles, config)
    found = {}
    for dtype in registry.COMPUTE_DTYPES:
        root = str(tmp_path / dtype)
        store = extraction.extract(
            tileset.open_tileset(tiles),
            [load_encoder("vit_random", compute_dtype=dtype)],
            root=root,
            dataset="synthetic",
            mesh=sharding.make_mesh(jax.devices()[:1]),
        ).stores[0]
        paths = run.evaluate_store(
            store,
            model="vit_random",
            dataset="synthetic",
            output=f"{root}/results",
            metrics=("robustness_index", "clustering_score"),
            settings=settings.Settings(
                k=21,
                draws=200,
                clustering_score=settings.ClusteringSettings(trials=20, k_max=8),
            ),
        ).paths
        values = {}
        for path in paths:
            with open(path) as stream:
                values |= json.load(stream)
        found[dtype] = np.array([values["robustness_index"], values["clustering_score"]])
    difference = np.abs(found["float32"] - found["bfloat16"])
    sys.stdout.write(f"RI, CS in float32 {found['float32']}, bfloat16 off by {difference}\n")
    assert (difference <= 0.002).all()


@pytest.mark.slow
def test_split_parameters_embed_the_same_and_are_gathered_layer_by_layer(mine, tmp_path, tiles):
    mesh = sharding.make_mesh(jax.devices())
    options = {"weights_dir": str(tmp_path), "compute_dtype": "float32"}
    found = {}
    for how in ("replicated", "split"):
        place = registry.choose_sharding(mine, mesh, how=how)
        encoder = load_encoder(mine, sharding=place, **options)
        embed = jax.jit(encoder.apply, out_shardings=sharding.row_sharding(mesh))
        tileset = np.resize(tiles, (16, *tiles.shape[1:]))
        tileset = jax.device_put(tileset, sharding.row_sharding(mesh))
        compiled = embed.lower(encoder.params, tileset).compile()
        embeddings = np.asarray(compiled(encoder.params, tileset))
        found[how] = encoder.params, embeddings, compiled.as_text()
    params, embeddings, text = found["split"]
    np.testing.assert_array_equal(embeddings, found["replicated"][1])
    assert "all-gather" in text
    assert "all-gather" not in found["replicated"][2]
    kernel = params["blocks"]["fc1"]["kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // DEVICES
    # One layer at a time, and nothing else is sent around.
    assert kernel.shape[0] > 1
    sent = re.findall(r"= \S*?\[([\d,]*)\]\S* (all-gather|all-reduce|collective|all-to-all)", text)
    assert len(sent) == 4, "the four matrices of a block"
    assert all(kind == "all-gather" and shape.startswith("1,") for shape, kind in sent), sent


@pytest.mark.slow
def test_parameters_are_split_only_where_a_device_cannot_hold_them(mine, monkeypatch):
    mesh = sharding.make_mesh(jax.devices()[:2])
    kernel = (2, 64, 128)
    whole = sharding.replicated_sharding(mesh)
    assert registry.choose_sharding(mine, mesh)(kernel) == whole
    n_bytes = 4 * weights.count_params(registry.network_of(mine.network)[1])
    limit = n_bytes / parameter_sharding.PARAMETER_SHARE

    class Device:
        def __init__(self, bytes_limit):
            self._stats = {"bytes_limit": bytes_limit}

        def memory_stats(self):
            return self._stats

    class Mesh:
        devices = np.asarray([Device(10 * limit), Device(limit)])

    assert parameter_sharding.parameters_fit(n_bytes, Mesh())
    Mesh.devices[1] = Device(limit - 4)
    assert not parameter_sharding.parameters_fit(n_bytes, Mesh())
    monkeypatch.setattr(registry, "parameters_fit", lambda n, mesh: n > n_bytes)
    assert registry.choose_sharding(mine, mesh)(kernel) != whole
    assert registry.choose_sharding(mine, mesh, how="replicated")(kernel) == whole
    assert registry.choose_sharding(mine, mesh)((3, 5, 7)) == whole, "the mesh divides no axis"
    assert registry.choose_sharding(mine, mesh, how="split")((8,)) == whole
