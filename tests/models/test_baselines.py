"""The two plain encoders: what each sees, what each is blind to, and their edges."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from pathorob_jax.core.checks import InputError
from pathorob_jax.data import synthetic_tiles
from pathorob_jax.models import baselines

ENCODERS = {
    "color_stats": (baselines.color_stats, len(baselines.COLOR_STATS_ENTRIES)),
    "nuclear_texture": (baselines.nuclear_texture, len(baselines.NUCLEAR_TEXTURE_ENTRIES)),
}
CONFIG = synthetic_tiles.SyntheticConfig(n_slides=2, n_tiles=5, tile_px=128)
SAME_CENTERS = tuple(
    dataclasses.replace(synthetic_tiles.CENTERS[0], name=center.name)
    for center in synthetic_tiles.CENTERS
)
SAME_CLASSES = tuple(
    dataclasses.replace(synthetic_tiles.CLASSES[2], name=one.name)
    for one in synthetic_tiles.CLASSES
)


@functools.cache
def _tiles(config):
    """uint8[N, H, W, 3], and class, centre and slide of each tile as int[N]."""
    rows = [
        (bio, center, center * config.n_slides + slide, tile)
        for center in range(len(config.centers))
        for bio in range(len(config.classes))
        for slide in range(config.n_slides)
        for tile in range(config.n_tiles)
    ]
    images = np.stack(
        [
            synthetic_tiles.render_tile(config, class_idx=b, center_idx=m, slide_idx=s, tile_idx=t)
            for b, m, s, t in rows
        ]
    )
    bio, center, slide, _ = np.array(rows).T
    return images, bio, center, 1000 * bio + slide


def _knn(name, config, k=11):
    """Robustness index, share of decisive neighbours and kNN accuracy of class; plain NumPy."""
    images, bio, center, slide = _tiles(config)
    x = np.asarray(ENCODERS[name][0](images), np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    similarity = x @ x.T
    similarity[slide[:, None] == slide[None, :]] = -np.inf
    neighbors = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    same_bio, same_center = bio[neighbors] == bio[:, None], center[neighbors] == center[:, None]
    n_so, n_os = (same_bio & ~same_center).sum(), (~same_bio & same_center).sum()
    votes = np.array([np.bincount(row, minlength=4).argmax() for row in bio[neighbors]])
    return n_so / (n_so + n_os), (n_so + n_os) / same_bio.size, (votes == bio).mean()


@pytest.mark.slow
def test_color_stats_follows_the_center():
    index, support, _ = _knn("color_stats", CONFIG)
    assert index < 0.3
    assert support > 0.1


@pytest.mark.campaign
def test_nuclear_texture_follows_the_class():
    index, support, accuracy = _knn("nuclear_texture", CONFIG)
    assert index > 0.8
    assert support > 0.3
    assert accuracy > 0.9


@pytest.mark.slow
def test_color_stats_is_blind_where_centers_are_equal():
    # Nothing but chance and biology is left: at least the 0.5 of a coin between SO and OS.
    index, _, _ = _knn("color_stats", dataclasses.replace(CONFIG, centers=SAME_CENTERS))
    assert index > 0.5


@pytest.mark.campaign
def test_nuclear_texture_is_blind_where_classes_are_equal():
    # Chance is 1/4; slides of their own density and the excluded own slide move it a little.
    config = dataclasses.replace(CONFIG, classes=SAME_CLASSES)
    _, _, accuracy = _knn("nuclear_texture", config)
    assert accuracy < 0.4


@pytest.mark.slow
def test_nuclear_texture_changes_less_by_center_than_by_class():
    plain = dataclasses.replace(CONFIG, slide_strength=0.0)
    images = np.stack(
        [
            synthetic_tiles.render_tile(plain, class_idx=b, center_idx=m, slide_idx=0, tile_idx=0)
            for b in range(4)
            for m in range(4)
        ]
    )
    by = np.asarray(baselines.nuclear_texture(images)).reshape(4, 4, -1)
    of_center = np.linalg.norm(by - by.mean(1, keepdims=True), axis=-1).max()
    of_class = np.linalg.norm(by.mean(1)[:, None] - by.mean(1)[None, :], axis=-1)
    assert of_center < 0.5 * of_class[~np.eye(4, dtype=bool)].min()


@pytest.mark.slow
@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("size", [(64, 64), (97, 130), (32, 300)])
def test_shape_and_dtype(name, size):
    encode, dim = ENCODERS[name]
    images = np.random.default_rng(0).integers(0, 256, (2, *size, 3), dtype=np.uint8)
    embeddings = encode(images)
    assert embeddings.shape == (2, dim)
    assert dim <= 64
    assert embeddings.dtype == np.float32
    assert np.isfinite(embeddings).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ENCODERS)
def test_constant_images_are_defined(name):
    levels = np.array([[255] * 3, [0] * 3, [254, 255, 255], [128] * 3, [230, 150, 190]], np.uint8)
    images = np.broadcast_to(levels[:, None, None, :], (5, 64, 64, 3))
    embeddings = np.asarray(ENCODERS[name][0](images))
    assert np.isfinite(embeddings).all()
    assert (np.abs(embeddings).max(axis=1) > 0.1).all()
    if name == "nuclear_texture":  # no contrast is no contrast, whatever the colour
        np.testing.assert_allclose(embeddings, embeddings[[0] * 5], atol=1e-3)


def test_neutral_values_of_an_empty_tile():
    images = np.full((5, 64, 64, 3), 255, np.uint8)
    for name, entries in (
        ("color_stats", baselines.COLOR_STATS_ENTRIES),
        ("nuclear_texture", baselines.NUCLEAR_TEXTURE_ENTRIES),
    ):
        found = np.asarray(ENCODERS[name][0](images))[0]
        for value, (entry, center, scale) in zip(found, entries, strict=True):
            want = 1 / 3 if "share" in entry else 1 / 4 if "band" in entry else 0
            # sigmoids far from their threshold leave up to a hundredth
            assert value * scale + center == pytest.approx(want, abs=0.02), entry


@pytest.mark.campaign
@pytest.mark.parametrize("name", ENCODERS)
def test_row_does_not_depend_on_its_batch(name):
    encode, _ = ENCODERS[name]
    images = _tiles(CONFIG)[0][::23]
    together = np.asarray(encode(images))
    for i in (0, len(images) - 1):
        # float32 sums may be split otherwise for another batch size
        np.testing.assert_allclose(np.asarray(encode(images[i : i + 1]))[0], together[i], atol=2e-4)


@pytest.mark.campaign
@pytest.mark.parametrize("name", ENCODERS)
def test_one_trace_per_shape(name):
    traces = []

    @jax.jit
    def counted(images):
        traces.append(images.shape)
        return ENCODERS[name][0](images)

    images = _tiles(CONFIG)[0]
    first, second = counted(images[:2]), counted(images[2:4])
    assert len(traces) == 1
    np.testing.assert_allclose(second, ENCODERS[name][0](images[2:4]), atol=2e-4)
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("name", ENCODERS)
def test_wrong_input_is_named(name):
    encode, _ = ENCODERS[name]
    with pytest.raises(TypeError, match=r"images: expected dtype uint8, found float32"):
        encode(np.zeros((1, 64, 64, 3), np.float32))
    with pytest.raises(InputError, match=r"H and W >= 32, found \(1, 16, 64, 3\)"):
        encode(np.zeros((1, 16, 64, 3), np.uint8))
    with pytest.raises(InputError, match="expected shape"):
        encode(np.zeros((64, 64, 3), np.uint8))


def test_colour_deconvolution_is_scikit_images():
    colorconv = pytest.importorskip("skimage.color.colorconv")
    np.testing.assert_allclose(
        baselines._HAEMATOXYLIN_FROM_OD, colorconv.hed_from_rgb[:, 0], atol=5e-4
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ENCODERS)
def test_names_of_entries_are_unique(name):
    entries = getattr(baselines, f"{name.upper()}_ENTRIES")
    assert len({entry[0] for entry in entries}) == len(entries) == ENCODERS[name][1]
