"""Stain kernels against torchstain's NumPy code, on real tiles; blank tiles stay."""

import pathlib

import jax
import numpy as np
import pytest
from PIL import Image

from pathorob_jax.embeddings.tile_transform import Outcome
from pathorob_jax.robustify import macenko, reinhard

CROPS = pathlib.Path(__file__).resolve().parents[1] / "data" / "stain"


@pytest.fixture(scope="module")
def tiles():
    """Three crops of H&E, and two of immunohistochemistry (scikit-image)."""
    data = pytest.importorskip("skimage.data", reason="scikit-image is not installed")
    crops = [np.asarray(Image.open(path)) for path in sorted(CROPS.glob("*.png"))]
    other = data.immunohistochemistry()
    return np.stack([*crops, other[:192, :192], other[300:492, 200:392]])


def load_torchstain(name):
    """A module of torchstain's NumPy code, without its face, which imports torch and tensorflow."""
    pytest.importorskip("torchstain", reason="torchstain is not installed")
    return pytest.importorskip(f"torchstain.numpy.normalizers.{name}")


def levels_off(ours, theirs):
    return np.abs(np.asarray(ours).astype(int) - theirs.astype(int))


@pytest.mark.slow
def test_macenko_as_torchstain(tiles):
    theirs = load_torchstain("macenko").NumpyMacenkoNormalizer()
    theirs.fit(tiles[1])
    found = macenko.find_stains(tiles)
    assert np.asarray(found.usable).tolist() == [True, True, True, True, True]
    np.testing.assert_allclose(found.vectors[1], theirs.HERef, atol=2e-6)
    np.testing.assert_allclose(found.density[1], theirs.maxCRef, rtol=1e-5)
    ours, outcome = macenko.normalize_macenko(
        tiles, theirs.HERef.astype(np.float32), theirs.maxCRef.astype(np.float32)
    )
    assert (np.asarray(outcome) == Outcome.NORMALIZED).all()
    for tile, mine in zip(tiles, np.asarray(ours), strict=True):
        off = levels_off(mine, theirs.normalize(tile, stains=False)[0])
        # Values are truncated: where float64 lies within float32's rounding of a whole number, one
        # level is lost or won.
        assert off.max() <= 1
        assert (off > 0).mean() < 1e-3


@pytest.mark.slow
def test_reinhard_as_torchstain(tiles):
    theirs = load_torchstain("reinhard").NumpyReinhardNormalizer()
    theirs.fit(tiles[2])
    found = reinhard.measure_colors(tiles, tissue_only=False)
    # torchstain's statistics are of L * 2.55 / 2.55, a and b.
    np.testing.assert_allclose(found.mean[2], theirs.target_means, atol=2e-2)
    np.testing.assert_allclose(found.std[2], theirs.target_stds, atol=2e-2)
    ours, _ = reinhard.normalize_reinhard(tiles, found.mean[2], found.std[2], tissue_only=False)
    for tile, mine in zip(tiles, np.asarray(ours), strict=True):
        assert levels_off(mine, theirs.normalize(tile)).max() <= 1


def test_background_keeps_its_bytes(tiles):
    found = reinhard.measure_colors(tiles)
    ours = np.asarray(reinhard.normalize_reinhard(tiles, found.mean[3], found.std[3])[0])
    lab = np.asarray(reinhard._rgb_to_lab(tiles)[0])
    np.testing.assert_array_equal(ours[lab >= 80], tiles[lab >= 80])
    assert (ours[0][lab[0] < 80] != tiles[0][lab[0] < 80]).any()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["white", "black", "one colour", "two pixels", "one stain"])
def test_tiles_without_two_stains_stay(kind, tiles, rng):
    tile = np.full((1, 192, 192, 3), 243, np.uint8)
    if kind == "black":
        tile[:] = 0
    elif kind == "one colour":
        tile[:] = (180, 90, 150)
    elif kind == "two pixels":
        tile[0, 3, 4:6] = (90, 40, 120), (150, 60, 100)
    elif kind == "one stain":
        strength = rng.uniform(0.3, 1.5, (192, 192, 1))
        tile[0] = 240 * np.exp(-strength * np.array([0.65, 0.70, 0.29]))
    target = macenko.find_stains(tiles[:1])
    found = macenko.find_stains(tile)
    assert not found.usable[0]
    ours, outcome = macenko.normalize_macenko(tile, target.vectors[0], target.density[0])
    has_tissue = kind in ("black", "one colour", "one stain")
    assert outcome[0] == (Outcome.PLAIN if has_tissue else Outcome.BLANK)
    np.testing.assert_array_equal(ours, tile)
    if kind != "one stain":
        colors = reinhard.measure_colors(tile)
        assert not colors.usable[0]
        wanted = np.array([60.0, 20, -10], np.float32), np.ones(3, np.float32)
        ours, outcome = reinhard.normalize_reinhard(tile, *wanted)
        assert outcome[0] in (Outcome.PLAIN, Outcome.BLANK)
        np.testing.assert_array_equal(ours, tile)


def test_planted_stains_are_found(rng):
    """Known vectors, mixed at random: both within five degrees."""
    planted = np.array([[0.65, 0.70, 0.29], [0.27, 0.87, 0.41]]).T
    planted /= np.linalg.norm(planted, axis=0)
    strength = rng.gamma(2.0, 0.35, (2, 192 * 192))
    strength[0, rng.random(192 * 192) < 0.5] *= 0.05  # pixels of eosin alone, and of haematoxylin
    strength[1, rng.random(192 * 192) < 0.3] *= 0.05
    light = 240 * np.exp(-(planted @ strength)) - 1
    tile = np.clip(np.round(light), 0, 255).T.reshape(1, 192, 192, 3).astype(np.uint8)
    found = macenko.find_stains(tile)
    assert found.usable[0]
    cosine = (np.asarray(found.vectors[0]) * planted).sum(0)
    assert np.rad2deg(np.arccos(np.minimum(cosine, 1))).max() < 5


@pytest.mark.slow
def test_percentiles_as_numpy(rng):
    """The heap of largest values holds the percentile, whatever is masked; ties, one value."""
    values = rng.normal(size=(4, 50, 100)).astype(np.float32)
    values[1, ::2] = 0.25
    values[2] = np.round(values[2])
    mask = rng.random((4, 50, 100)) < 0.6
    mask[2] = True
    mask[3] = False
    mask[3, 7, 9] = True
    n = mask.sum((1, 2)).astype(np.int32)
    with jax.enable_x64(True):
        kept = np.where(mask, values, -np.inf).astype(np.float32)
        ours = np.asarray(macenko._extreme(kept, n, lambda value: value))
    for row in range(4):
        expected = np.percentile(values[row][mask[row]].astype(np.float64), 99)
        np.testing.assert_allclose(ours[row], expected, rtol=1e-12)


def test_ranks_grow_with_angles(rng):
    angle = np.sort(rng.uniform(-np.pi, np.pi, 1000))
    first, second = np.cos(angle), np.sin(angle)
    share = first / (np.abs(first) + np.abs(second))
    rank = np.where(second >= 0, 1 - share, share - 1)
    assert (np.diff(rank) > 0).all()
    with jax.enable_x64(True):
        np.testing.assert_allclose(macenko._angle_of(rank), angle, atol=1e-12)
        np.testing.assert_allclose(macenko._angle_of_negative(-rank), -angle, atol=1e-12)


def test_numbers_of_others_normalise_a_tile(tiles):
    """A source that is given takes the place of the tile's own, as of its slide."""
    found = macenko.find_stains(tiles)
    other = jax.tree.map(lambda part: part[np.array([1, 1, 1, 1, 1])], found)
    target = found.vectors[2], found.density[2]
    ours = np.asarray(macenko.normalize_macenko(tiles, *target, source=other)[0])
    own = np.asarray(macenko.normalize_macenko(tiles, *target)[0])
    np.testing.assert_array_equal(ours[1], own[1])
    assert (ours[0] != own[0]).mean() > 0.5
    blank = np.full_like(tiles, 243)
    same, changed = macenko.normalize_macenko(blank, *target, source=other)
    np.testing.assert_array_equal(same, blank)
    assert not np.asarray(changed).any()


@pytest.mark.slow
def test_a_tile_with_too_little_tissue_takes_the_stains_of_its_slide(tiles):
    found = macenko.find_stains(tiles)
    target = found.vectors[2], found.density[2]
    scarce = np.full_like(tiles[:1], 243)
    scarce[0, :10, :10] = tiles[0, :10, :10]
    assert 0 < macenko.find_stains(scarce).n_pixels[0] < macenko.MIN_STAIN_PIXELS
    white = np.full_like(tiles[:1], 250)
    four = np.concatenate([tiles[:1], scarce, white, scarce])
    fallback = jax.tree.map(lambda part: np.repeat(np.asarray(part)[:1], 4, axis=0), found)
    fallback = fallback._replace(usable=np.array([True, True, True, False]))
    ours, outcome = macenko.normalize_macenko(four, *target, fallback=fallback)
    expected = [Outcome.NORMALIZED, Outcome.BY_SLIDE, Outcome.BLANK, Outcome.BLANK]
    assert np.asarray(outcome).tolist() == expected
    np.testing.assert_array_equal(ours[2:], four[2:])
    # Pixel by pixel the same map as that of the slide's other tile.
    whole = np.asarray(macenko.normalize_macenko(four[:1], *target)[0])[0]
    np.testing.assert_array_equal(np.asarray(ours)[1, :10, :10], whole[:10, :10])
    np.testing.assert_array_equal(np.asarray(ours)[0], whole)
