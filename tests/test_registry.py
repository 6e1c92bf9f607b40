"""Names of encoders: what they stand for, what they refuse, and what a store is called."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from pathorob_jax.checks import UsageError
from pathorob_jax.models import registry, vit
from pathorob_jax.models.registry import MODELS, embedding_dim, load_encoder

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


def test_poolings_of_one_encoder_fit_together(tiles, embedded):
    mean, both = (_embed(load_encoder("vit_random", pooling=p), tiles) for p in ("mean", "clsmean"))
    # One computation and three, hence not bit for bit.
    np.testing.assert_allclose(both, np.concatenate([embedded, mean], 1), rtol=0, atol=1e-5)


def test_bfloat16_reaches_the_network(tiles, embedded):
    rounded = _embed(load_encoder("vit_random", compute_dtype="bfloat16"), tiles)
    assert rounded.dtype == np.float32
    assert 1e-4 < np.abs(embedded - rounded).max() < 0.1  # products of 8-bit operands


@pytest.mark.parametrize("name", DEMO)
def test_embedding_dim_is_the_real_one(name):
    encoder = load_encoder(name)
    found = _embed(encoder, np.full((1, 64, 48, 3), 128, np.uint8))
    assert found.shape == (1, embedding_dim(encoder, 64, 48))
    assert np.isfinite(found).all()
    assert embedding_dim(encoder, 256, 256) == found.shape[1]


def test_embedding_dim_of_both_tokens_is_twice_the_width():
    assert embedding_dim(load_encoder("vit_random", pooling="clsmean"), 256, 256) == 2 * 192
