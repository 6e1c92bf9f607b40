"""Preprocessing: PIL's resize bit for bit, torchvision's whole chain without a difference."""

import functools
import importlib.util
import math
import pathlib

import jax
import numpy as np
import pytest
import torch_oracles
from PIL import Image

from pathorob_jax.core.checks import InputError
from pathorob_jax.models import preprocess, registry
from pathorob_jax.models.preprocess import Preprocess, resize, resized_shape

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
# (height, width) before and after.
SIZES = [
    ((256, 256), (224, 224)),
    ((512, 512), (224, 224)),
    ((200, 300), (224, 336)),
    ((224, 224), (448, 448)),
    ((257, 131), (97, 223)),
    ((33, 65), (32, 64)),
    ((1, 1), (7, 5)),
    ((1, 1), (1, 1)),
    ((60, 150), (71, 11)),
    ((181, 60), (90, 30)),
    ((50, 40), (50, 90)),
    ((50, 40), (13, 40)),
    ((2, 3), (1, 1)),
    ((5, 4), (50, 41)),
]
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def _noise(rng, height, width, n=2):
    return rng.integers(0, 256, (n, height, width, 3), np.uint8)


def _black_and_white(rng, height, width, n=2):
    # The hardest for clipping: both filters' sums leave 0..255 at edges.
    return (255 * rng.integers(0, 2, (n, height, width, 3))).astype(np.uint8)


def _by_pil(images, height, width, interpolation):
    """PIL's resize, horizontal pass first."""

    def one(image):
        image, pil_filter = Image.fromarray(image), FILTERS[interpolation]
        twice = image.resize((width, image.height), pil_filter).resize((width, height), pil_filter)
        if not _is_vertical_first(image.height, image.width, height, width):
            assert twice == image.resize((width, height), pil_filter)
        return np.asarray(twice)

    return np.stack([one(image) for image in images])


def _is_vertical_first(height, width, new_height, new_width):
    """Where Pillow 13 turned the two passes round; found on 1500 random pairs of sizes."""
    n_removed = height - new_height
    return n_removed > 0 and n_removed > 2 * (width - new_width)


def _by_us(images, height, width, interpolation):
    step = jax.jit(resize, static_argnums=(1, 2), static_argnames="interpolation")
    return np.asarray(step(images, height, width, interpolation=interpolation))


@functools.cache
def _histology():
    """uint8[512, 512, 3]: a real stained section that scikit-image ships."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        pytest.skip("scikit-image is not installed")
    path = pathlib.Path(spec.origin).parent / "data" / "ihc.png"
    if not path.is_file():
        pytest.skip(f"{path} is absent in this version of scikit-image")
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.slow
@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize(("before", "after"), SIZES)
def test_resize_equals_pil(before, after, interpolation, rng):
    images = np.concatenate([_noise(rng, *before, 1), _black_and_white(rng, *before, 1)])
    found = _by_us(images, *after, interpolation)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, _by_pil(images, *after, interpolation))


@pytest.mark.slow
@pytest.mark.parametrize("interpolation", FILTERS)
def test_resize_equals_pil_at_random_sizes(interpolation, rng):
    # Seeded pairs of sizes, along one axis each: the two passes share their code.
    for _ in range(8):
        before, after = (int(x) for x in rng.integers(1, [700, 518]))
        tall, wide = _black_and_white(rng, before, 2, 1), _noise(rng, 3, before, 1)
        np.testing.assert_array_equal(
            _by_us(tall, after, 2, interpolation), _by_pil(tall, after, 2, interpolation)
        )
        np.testing.assert_array_equal(
            _by_us(wide, 3, after, interpolation), _by_pil(wide, 3, after, interpolation)
        )


@pytest.mark.slow
@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("size_px", [224, 518])
def test_resize_equals_pil_on_a_real_section(interpolation, size_px):
    images = _histology()[None]
    np.testing.assert_array_equal(
        _by_us(images, size_px, size_px, interpolation),
        _by_pil(images, size_px, size_px, interpolation),
    )


@pytest.mark.slow
def test_resize_is_the_same_jitted_and_eager(rng):
    images = _noise(rng, 40, 30)
    np.testing.assert_array_equal(
        np.asarray(resize(images, 24, 18, interpolation="bicubic")),
        _by_us(images, 24, 18, "bicubic"),
    )


def test_weights_of_every_output_sum_to_one():
    # In fixed point: each of up to 38 weights is rounded by half a unit.
    for size_in, size_out in ((256, 224), (512, 224), (224, 518), (1, 9), (2000, 224)):
        for interpolation in FILTERS:
            start, weights = preprocess._taps(size_in, size_out, interpolation)
            assert np.abs(weights.sum(1) - (1 << preprocess.PRECISION_BITS)).max() <= 19
            assert start.min() >= 0
            assert start.max() < size_in


@pytest.mark.torch
def test_resized_shape_equals_torchvision(rng):
    torch_oracles.import_torchvision()
    from torchvision.transforms.functional import _compute_resized_output_size

    shapes = [(1, 1), (224, 224), (225, 224), (224, 225), (3, 500), (500, 3), (1023, 1024)]
    shapes += rng.integers(1, 3000, (1000, 2)).tolist()
    for height, width in shapes:
        for shorter_px in (7, 224, 336, 518):
            expected = _compute_resized_output_size((height, width), [shorter_px])
            assert list(resized_shape(height, width, shorter_px)) == expected


@pytest.mark.torch
@pytest.mark.parametrize("statistics", ["imagenet", "clip", "halves"])
def test_normalisation_table_equals_torchvision(statistics):
    import torch

    torch_oracles.import_torchvision()
    from torchvision import transforms

    mean, std = {
        "imagenet": (preprocess.IMAGENET_MEAN, preprocess.IMAGENET_STD),
        "clip": (CLIP_MEAN, CLIP_STD),
        "halves": ((0.5,) * 3, (0.5,) * 3),
    }[statistics]
    values = np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], 3, axis=2)
    chain = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])
    expected = chain(Image.fromarray(values))
    assert expected.dtype == torch.float32
    found = preprocess.normalisation_table(mean, std)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected.numpy()[:, :, 0].T)


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize(
    ("height", "width", "resize_px", "crop_px", "interpolation"),
    [
        (256, 256, 224, 224, "bicubic"),
        (512, 512, 256, 224, "bilinear"),
        (200, 301, 224, 224, "bilinear"),  # an odd margin of the crop
        (301, 200, 231, 224, "bicubic"),  # margins of 3.5 and 61.5: rounded to even
        (101, 67, 64, 53, "bilinear"),
        (40, 40, 96, 96, "bicubic"),
        (37, 53, None, 32, "bicubic"),
        (36, 35, None, 35, "bicubic"),
        (64, 64, 64, 64, "bicubic"),
    ],
)
def test_preprocess_equals_torchvision(height, width, resize_px, crop_px, interpolation, rng):
    torch_oracles.import_torchvision()
    from torchvision import transforms

    mode = transforms.InterpolationMode(interpolation)
    mean, std = CLIP_MEAN, CLIP_STD
    chain = transforms.Compose(
        ([transforms.Resize(resize_px, interpolation=mode)] if resize_px else [])
        + [transforms.CenterCrop(crop_px), transforms.ToTensor(), transforms.Normalize(mean, std)]
    )
    images = np.concatenate(
        [_noise(rng, height, width, 1), _black_and_white(rng, height, width, 1)]
    )
    expected = np.stack([chain(Image.fromarray(x)).numpy().transpose(1, 2, 0) for x in images])
    ours = Preprocess(resize_px, crop_px, interpolation, mean, std)
    found = np.asarray(jax.jit(ours)(images))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("crop_px", [224, 448])
@pytest.mark.parametrize("side", [224, 256, 448, 512, 333, (257, 301)])
def test_preprocess_equals_torchvision_at_the_usual_sizes(side, crop_px, interpolation, rng):
    torch_oracles.import_torchvision()
    from torchvision import transforms

    height, width = side if isinstance(side, tuple) else (side, side)
    mode = transforms.InterpolationMode(interpolation)
    images = np.concatenate(
        [_noise(rng, height, width, 1), _black_and_white(rng, height, width, 1)]
    )
    for keep_aspect in (True, False):
        size = crop_px if keep_aspect else (crop_px, crop_px)
        chain = transforms.Compose(
            [
                transforms.Resize(size, interpolation=mode, antialias=True),
                transforms.CenterCrop(crop_px),
                transforms.ToTensor(),
                transforms.Normalize(CLIP_MEAN, CLIP_STD),
            ]
        )
        expected = np.stack([chain(Image.fromarray(x)).numpy().transpose(1, 2, 0) for x in images])
        ours = Preprocess(
            crop_px, crop_px, interpolation, CLIP_MEAN, CLIP_STD, keep_aspect=keep_aspect
        )
        np.testing.assert_array_equal(np.asarray(jax.jit(ours)(images)), expected)


def _registered():
    """Every way in which an entry of the registry resizes."""
    specs = registry.MODELS.values()
    ways = [spec.preprocess for spec in specs]
    ways += [spec.pathorob.preprocess for spec in specs if spec.pathorob]
    return sorted({(p.resize_px, p.interpolation, p.keep_aspect) for p in ways if p}, key=str)


@pytest.mark.slow
@pytest.mark.parametrize("resize_px", sorted({way[0] for way in _registered()}))
@pytest.mark.parametrize("size", [(224, 224), (256, 256), (512, 512), (300, 257)])
def test_every_registered_resize_is_pil_s_on_noise_and_on_tissue(resize_px, size, rng):
    height, width = size
    images = np.concatenate([_noise(rng, height, width, 1), _histology()[None, :height, :width]])
    for px, interpolation, keep_aspect in _registered():
        if px != resize_px:
            continue
        shape = resized_shape(height, width, px) if keep_aspect else (px, px)
        expected = _by_pil(images, *shape, interpolation)
        np.testing.assert_array_equal(_by_us(images, *shape, interpolation), expected)


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize(("side", "crop_pct"), [(224, 1.0), (256, 1.0), (301, 0.9), (512, 0.875)])
def test_preprocess_equals_timm(side, crop_pct, interpolation, rng):
    torch_oracles.import_timm()
    from timm.data import create_transform

    chain = create_transform(
        input_size=(3, 224, 224),
        interpolation=interpolation,
        crop_pct=crop_pct,
        mean=preprocess.IMAGENET_MEAN,
        std=preprocess.IMAGENET_STD,
    )
    image = _noise(rng, side, side, 1)
    ours = Preprocess(math.floor(224 / crop_pct), 224, interpolation)
    expected = chain(Image.fromarray(image[0])).numpy().transpose(1, 2, 0)
    np.testing.assert_array_equal(np.asarray(jax.jit(ours)(image))[0], expected)


@pytest.mark.torch
def test_preprocess_equals_torchvision_on_a_real_section():
    torch_oracles.import_torchvision()
    from torchvision import transforms

    image = _histology()[:, 100:]
    chain = transforms.Compose(
        [
            transforms.Resize(224, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(preprocess.IMAGENET_MEAN, preprocess.IMAGENET_STD),
        ]
    )
    found = np.asarray(jax.jit(Preprocess(224, 224))(image[None]))[0]
    expected = chain(Image.fromarray(image)).numpy().transpose(1, 2, 0)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
def test_a_tile_smaller_than_the_crop_is_refused():
    tiles = np.zeros((1, 200, 240, 3), np.uint8)
    message = r"expected at least 224 x 224 pixels for the crop, found 240 x 200; use larger tiles"
    with pytest.raises(InputError, match=message):
        Preprocess(None, 224)(tiles)
    with pytest.raises(InputError, match="found 192 x 160"):
        Preprocess(160, 224)(tiles)


def test_the_longer_side_never_vanishes():
    assert resized_shape(1, 3000, 7) == (7, 21000)
    assert resized_shape(3000, 1, 7) == (21000, 7)


@pytest.mark.slow
def test_images_of_a_batch_do_not_touch(rng):
    images = _noise(rng, 40, 48, 4)
    step = jax.jit(Preprocess(32, 24))
    whole = np.asarray(step(images))
    for i in range(4):
        np.testing.assert_array_equal(np.asarray(step(images[i : i + 1]))[0], whole[i])
