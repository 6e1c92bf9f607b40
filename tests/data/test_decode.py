"""Pixels equal PIL's for every file; whatever is no image says so and keeps its name."""

import io
import pathlib
import pickle

import numpy as np
import pytest
import simplejpeg
import skimage
from PIL import Image
from tilesets import encode

from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.data import decode as decoding
from pathorob_jax.data.decode import (
    TileError,
    check_image_range,
    decode_tile,
    parse_image_range,
)

H, W = 20, 24
# A strip of 60 x 72 pixels in the middle of a real histology image.
CROP = (256, 200, 328, 260)


@pytest.fixture(scope="module")
def tissue() -> Image.Image:
    path = pathlib.Path(skimage.__file__).parent / "data" / "ihc.png"
    with Image.open(path) as image:
        return image.convert("RGB")


@pytest.fixture
def noise(rng) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, (H, W, 3), np.uint8))


@pytest.fixture
def by_simplejpeg(monkeypatch):
    """Whether simplejpeg gave each image that was asked of it."""
    answers = []
    decode = simplejpeg.decode_jpeg

    def counted(data, **options):
        answers.append(False)
        pixels = decode(data, **options)
        answers[-1] = True
        return pixels

    monkeypatch.setattr(simplejpeg, "decode_jpeg", counted)
    return answers


def pixels_by_pil(data):
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def assert_equals_pil(data, label=""):
    found = decode_tile(data, "tile")
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, pixels_by_pil(data), err_msg=str(label))


@pytest.mark.parametrize("quality", [10, 50, 75, 90, 100])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_of_pil_equals_pil(tissue, by_simplejpeg, quality, progressive):
    options = {"quality": quality, "progressive": progressive}
    data = [
        encode(tissue.crop((*CROP[:2], CROP[0] + w, CROP[1] + h)), "JPEG", subsampling=s, **options)
        for s in ("4:4:4", "4:2:2", "4:2:0")
        for w, h in [(1, 1), (2, 3), (7, 5), (16, 16), (17, 33), (72, 60)]
    ]
    for one in data:
        assert_equals_pil(one)
    assert by_simplejpeg == [True] * len(data)


@pytest.mark.parametrize("subsampling", ["444", "422", "420", "440", "411", "Gray"])
def test_jpeg_of_libjpeg_turbo_equals_pil(tissue, by_simplejpeg, subsampling):
    for w, h in [(1, 1), (7, 5), (31, 9), (72, 60)]:
        pixels = np.asarray(tissue.crop((*CROP[:2], CROP[0] + w, CROP[1] + h)))
        assert_equals_pil(simplejpeg.encode_jpeg(pixels, 85, "RGB", subsampling))
    assert by_simplejpeg == [True] * 4


def test_whole_tiles_equal_pil(tissue, by_simplejpeg):
    for left in (0, 128, 256):
        tile = tissue.crop((left, left, left + 256, left + 256))
        assert_equals_pil(encode(tile, "JPEG", quality=90))
        assert_equals_pil(encode(tile, "PNG"))
    assert by_simplejpeg == [True] * 3


def test_unusual_jpegs_equal_pil(tissue, noise, by_simplejpeg):
    tile = tissue.crop(CROP)
    frames = io.BytesIO()
    tile.save(frames, "MPO", save_all=True, append_images=[tile.rotate(180)])
    plain = encode(tile, "JPEG")
    with_table = encode(tile, "JPEG", icc_profile=b"profile" * 99, comment=b"scanned")
    for label, data in {
        "several images": frames.getvalue(),
        "grey": encode(tile.convert("L"), "JPEG"),
        "RGB without transform": encode(tile, "JPEG", keep_rgb=True),
        "restart markers": encode(tile, "JPEG", restart_marker_blocks=2),
        "profile and comment": with_table,
        "bytes behind the end": plain + b"\xff\xd8 more" * 9,
        "noise": encode(noise, "JPEG", quality=95),
    }.items():
        assert_equals_pil(data, label)
    assert all(by_simplejpeg)
    assert len(by_simplejpeg) == 7


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_exif_orientation_is_not_applied(noise, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(noise, "JPEG", exif=exif)
    assert_equals_pil(data)
    np.testing.assert_array_equal(decode_tile(data, ""), pixels_by_pil(encode(noise, "JPEG")))


def test_cmyk_and_ycck_are_pils(tissue, by_simplejpeg):
    cmyk = tissue.crop(CROP).convert("CMYK")
    data = encode(cmyk, "JPEG", quality=95)
    adobe = data.index(b"Adobe")
    assert data[adobe + 11] == 0
    # The same four components, said to be YCCK.
    ycck = data[: adobe + 11] + b"\x02" + data[adobe + 12 :]
    with Image.open(io.BytesIO(ycck)) as image:
        assert image.mode == "CMYK"
    for one in (data, ycck):
        assert_equals_pil(one)
    assert (decode_tile(data, "") != decode_tile(ycck, "")).any()
    # What the printed colours are, by the rule: 255 less ink, times what black leaves.
    with Image.open(io.BytesIO(data)) as image:
        ink = np.asarray(image).astype(float)
    rgb = (255 - ink[..., :3]) * (255 - ink[..., 3:]) / 255
    assert np.abs(decode_tile(data, "") - rgb).max() <= 1
    assert by_simplejpeg == []


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_lossless_files_of_any_mode_become_rgb(rng, form):
    rgb = rng.integers(0, 256, (H, W, 3), np.uint8)
    grey, alpha = rgb[..., 0], rng.integers(0, 256, (H, W), np.uint8)
    palette = Image.fromarray(grey % 4)
    palette.putpalette([9, 8, 7, 1, 2, 3, 255, 0, 4, 5, 5, 5] + [0] * 756)
    colours = np.array([[9, 8, 7], [1, 2, 3], [255, 0, 4], [5, 5, 5]], np.uint8)
    cases = {
        "RGB": (Image.fromarray(rgb), rgb),
        "RGBA": (Image.fromarray(np.dstack([rgb, alpha])), rgb),
        "L": (Image.fromarray(grey), np.dstack([grey] * 3)),
        "LA": (Image.fromarray(np.dstack([grey, alpha])), np.dstack([grey] * 3)),
        "1": (Image.fromarray(grey > 99), np.dstack([np.where(grey > 99, 255, 0)] * 3)),
        "P": (palette, colours[grey % 4]),
    }
    for mode, (image, expected) in cases.items():
        assert image.mode == mode
        found = decode_tile(encode(image, form), mode)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, expected, err_msg=mode)


def test_tiffs_of_scanners_equal_pil(tissue):
    tile = tissue.crop(CROP)
    lab = Image.merge("LAB", tile.split())
    for label, data in {
        "JPEG inside": encode(tile, "TIFF", compression="jpeg"),
        "CMYK": encode(tile.convert("CMYK"), "TIFF"),
        "YCbCr": encode(tile.convert("YCbCr"), "TIFF"),
        "LAB": encode(lab, "TIFF"),
    }.items():
        assert_equals_pil(data, label)


def test_one_pixel_is_an_image():
    for form in ("JPEG", "PNG", "WEBP", "TIFF", "BMP"):
        found = decode_tile(encode(Image.new("RGB", (1, 1), (7, 7, 7)), form), form)
        assert found.shape == (1, 1, 3)
        assert np.abs(found.astype(int) - 7).max() <= 1


# PIL recommends RGBA; here the warning would end the test.
@pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning")
def test_transparency_is_dropped_from_a_palette(rng):
    idx = rng.integers(0, 3, (H, W), np.uint8)
    colours = np.array([[10, 20, 30], [200, 100, 0], [0, 0, 255]], np.uint8)
    image = Image.fromarray(idx)
    image.putpalette(colours.ravel().tolist())
    for transparency in (1, bytes([0, 128, 255])):
        data = encode(image, "PNG", transparency=transparency)
        np.testing.assert_array_equal(decode_tile(data, ""), colours[idx])


def test_pil_has_the_last_word(noise, by_simplejpeg, monkeypatch):
    # Bits flipped in the scan: libjpeg-turbo warns, PIL shows what it could decode.
    data = bytearray(encode(noise, "JPEG", quality=95))
    start = data.index(b"\xff\xda") + 60
    data[start : start + 40] = bytes(255 - b for b in data[start : start + 40])
    assert_equals_pil(bytes(data))
    # Without its end marker: both refuse, PIL says why.
    cut = encode(noise, "JPEG")[:-2]
    with pytest.raises(TileError, match=r"tile: cannot be decoded as an image \(image file is tru"):
        decode_tile(cut, "tile")
    # With PIL's switch for truncated files, its pixels count.
    monkeypatch.setattr("PIL.ImageFile.LOAD_TRUNCATED_IMAGES", True)
    assert_equals_pil(cut)
    assert by_simplejpeg == [False] * 3


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_more_pixels_than_pil_allows_are_refused(noise, monkeypatch, by_simplejpeg):
    data = encode(noise, "JPEG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", H * W // 2)
    assert_equals_pil(data)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", H * W // 2 - 1)
    with pytest.raises(TileError, match=r"exceeds limit of 478 pixels"):
        decode_tile(data, "tile")
    assert by_simplejpeg == [True]


# PIL warns before it raises; here the warning would hide what it raises.
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_damaged_bytes_are_pils_image_or_an_input_error(noise, form):
    data = encode(noise, form)
    refused = 0
    for at in range(0, len(data), max(1, len(data) // 150)):
        flipped = data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]
        for damaged in (data[:at], flipped, data[:at] + data[at + 3 :]):
            try:
                found = decode_tile(damaged, "some tile")
            except InputError as error:
                refused += str(error).startswith("some tile: cannot be decoded as an image (")
                with pytest.raises(decoding.DECODING_ERRORS):
                    pixels_by_pil(damaged)
            else:
                np.testing.assert_array_equal(found, pixels_by_pil(damaged))
    assert refused > 75


def test_a_bad_tile_says_what_is_wrong_the_same_each_time():
    for data, why in ((b"", "no bytes"), (b"no image" * 9, "no known format")):
        with pytest.raises(TileError) as caught:
            decode_tile(data, "a/b.jpg")
        assert caught.value.name == "a/b.jpg"
        assert caught.value.reason == f"cannot be decoded as an image ({why})"
        assert str(caught.value) == (
            f"a/b.jpg: {caught.value.reason}. Replace the file, or leave its row out of the "
            "tileset."
        )


def test_a_tile_error_crosses_processes():
    error = TileError("a.png", "is blue", "Paint it.")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is TileError
    assert (str(again), again.name, again.reason) == (
        "a.png: is blue. Paint it.",
        "a.png",
        "is blue",
    )


def _deep_images(rng):
    """Grey images of more than 8 bits, and their values as floats, by PIL's mode."""
    short = rng.integers(0, 65536, (H, W)).astype(np.uint16)
    whole = rng.integers(-70_000, 70_000, (H, W)).astype(np.int32)
    real = rng.normal(0.4, 0.4, (H, W)).astype(np.float32)
    return {
        ("I;16", "PNG"): (encode(Image.fromarray(short), "PNG"), short),
        ("I;16", "TIFF"): (encode(Image.fromarray(short), "TIFF"), short),
        ("I;16B", "TIFF"): (encode(Image.fromarray(short.astype(">u2")), "TIFF"), short),
        ("I", "TIFF"): (encode(Image.fromarray(whole), "TIFF"), whole),
        ("F", "TIFF"): (encode(Image.fromarray(real), "TIFF"), real),
    }


def _scaled(values, low, high):
    """Grey levels by plain numbers, rounded half to even."""
    share = (np.clip(values.astype(np.longdouble), low, high) - low) / (high - low)
    return np.dstack([np.rint(255 * share).astype(np.uint8)] * 3)


def test_grey_images_of_more_than_8_bits_are_bad_images_that_name_the_mode(rng):
    for (mode, _), (data, _) in _deep_images(rng).items():
        with Image.open(io.BytesIO(data)) as image:
            assert image.mode == mode
        with pytest.raises(TileError) as caught:
            decode_tile(data, "a.tif")
        assert f"mode {mode})" in caught.value.reason
        assert "--image_range=<low>,<high>" in str(caught.value)
        assert ("--image_range=full" in str(caught.value)) == (mode != "I")


@pytest.mark.parametrize("ends", [(0.0, 4095.0), (-3.5, 0.5), (0.25, 65535.0)])
def test_a_range_says_what_is_black_and_white(rng, ends):
    for (mode, form), (data, values) in _deep_images(rng).items():
        found = decode_tile(data, "", image_range=ends)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, _scaled(values, *ends), err_msg=f"{mode} {form}")


def test_the_full_range_is_that_of_the_type(rng):
    for (mode, form), (data, values) in _deep_images(rng).items():
        if mode == "I":
            with pytest.raises(TileError, match="32-bit integers"):
                decode_tile(data, "", image_range="full")
            continue
        found = decode_tile(data, "", image_range="full")
        expected = _scaled(values, 0, 1 if mode == "F" else 65535)
        np.testing.assert_array_equal(found, expected, err_msg=f"{mode} {form}")


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_floats_that_are_not_finite_are_bad_images(odd):
    data = encode(Image.fromarray(np.array([[0.5, odd]], np.float32)), "TIFF")
    with pytest.raises(TileError, match=r"mode F\) are NaN or infinite"):
        decode_tile(data, "", image_range="full")


def test_a_range_leaves_images_of_8_bits_alone(rng):
    rgb = rng.integers(0, 256, (H, W, 3), np.uint8)
    for image in (Image.fromarray(rgb), Image.fromarray(rgb[..., 0])):
        data = encode(image)
        np.testing.assert_array_equal(
            decode_tile(data, "", image_range=(10, 20)), pixels_by_pil(data)
        )


def test_ranges_are_read_from_text():
    assert parse_image_range(None) is None
    assert parse_image_range("full") == "full"
    assert parse_image_range("0,4095") == (0.0, 4095.0)
    assert parse_image_range("-1e3, 2.5") == (-1000.0, 2.5)


@pytest.mark.parametrize(
    "text", ["", "Full", "1", "1,2,3", "a,b", "5,5", "6,5", "nan,1", "0,inf", "-1e308,1e308", "0;1"]
)
def test_other_ranges_are_refused(text):
    with pytest.raises(UsageError, match="image_range: expected full, or .*<low>,<high>") as caught:
        parse_image_range(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("value", [[0, 1], (1, 0), 7, (0,), ("0", "1"), (0, np.nan)])
def test_other_ranges_are_refused_from_python(value):
    with pytest.raises(UsageError, match="image_range: expected full"):
        check_image_range(value)


def test_fully_transparent_images_show_their_hidden_colours(rng):
    rgb = rng.integers(0, 256, (H, W, 3), np.uint8)
    hidden = Image.fromarray(np.dstack([rgb, np.zeros((H, W), np.uint8)]))
    np.testing.assert_array_equal(decode_tile(encode(hidden), ""), rgb)
