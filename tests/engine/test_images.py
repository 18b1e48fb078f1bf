import contextlib
import io
import struct
import threading
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from engine.errors import UnreadableImageError
from engine.images import (
    ImageLimits,
    WorkSize,
    probe,
    read_pixels,
    resize_to_work_size,
    work_size_hw,
)

LIMITS = ImageLimits()


def scene(height=24, width=40, seed=0):
    """Smooth enough for JPEG, different at every corner."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR))


def encoded(image, format="PNG", **options):
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(
        file, format, **options
    )
    return file.getvalue()


def with_orientation(pixels, orientation, format="JPEG", **options):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(pixels, format, exif=exif, **options)


def refusal(data, limits=LIMITS):
    with pytest.raises(UnreadableImageError) as caught:
        read_pixels(data, limits)
    return caught.value


def test_an_rgb_png_comes_back_pixel_by_pixel_and_writable():
    pixels = read_pixels(encoded(scene()), LIMITS)
    assert np.array_equal(pixels, scene())
    assert pixels.dtype == np.uint8
    assert pixels.flags.writeable
    assert pixels.flags.c_contiguous


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_turned_upright(orientation):
    upright = scene()
    rows, columns = upright, upright.transpose(1, 0, 2)
    stored = {
        1: rows,
        2: rows[:, ::-1],
        3: rows[::-1, ::-1],
        4: rows[::-1],
        5: columns,
        6: columns[::-1],
        7: columns[::-1, ::-1],
        8: columns[:, ::-1],
    }[orientation]
    for format, options in (("PNG", {}), ("WEBP", {"lossless": True})):
        data = with_orientation(np.ascontiguousarray(stored), orientation, format, **options)
        assert np.array_equal(read_pixels(data, LIMITS), upright)
        header = probe(data, LIMITS)
        assert (header.width, header.height, header.orientation) == (40, 24, orientation)


def test_probe_and_decode_agree_on_a_rotated_jpeg_and_tiff():
    for data in (
        with_orientation(scene(), 6),
        with_orientation(scene(), 6, "TIFF"),
    ):
        header = probe(data, LIMITS)
        assert read_pixels(data, LIMITS).shape == (header.height, header.width, 3) == (40, 24, 3)


@pytest.mark.parametrize("value", [0, 9, 77, 65535])
def test_an_impossible_orientation_is_ignored(value):
    assert read_pixels(with_orientation(scene(), value), LIMITS).shape == (24, 40, 3)


def test_broken_exif_costs_the_orientation_and_not_the_image():
    data = encoded(scene(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xffrubbish")
    assert read_pixels(data, LIMITS).shape == (24, 40, 3)


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr"])
def test_every_colour_mode_becomes_rgb_close_to_the_original(mode):
    format = {"CMYK": "JPEG", "YCbCr": "JPEG"}.get(mode, "PNG")
    image = Image.fromarray(scene()).convert(mode)
    pixels = read_pixels(
        encoded(image, format, **({"quality": 95} if format == "JPEG" else {})), LIMITS
    )
    expected = np.asarray(image.convert("RGB"), dtype=float)
    assert pixels.shape == (24, 40, 3)
    assert np.abs(pixels - expected).mean() < (6 if format == "JPEG" else 1e-9)


def test_a_palette_image_with_transparency_shows_white_where_it_is_transparent():
    image = Image.new("P", (4, 2), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((3, 1), 1)
    for transparency in (0, b"\x00\xff"):
        pixels = read_pixels(encoded(image, transparency=transparency), LIMITS)
        assert tuple(pixels[0, 0]) == (255, 255, 255)
        assert tuple(pixels[1, 3]) == (0, 0, 255)


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("RGBA", (200, 100, 0, 0), (255, 255, 255)),
        ("RGBA", (200, 100, 0, 255), (200, 100, 0)),
        ("RGBA", (200, 100, 0, 128), (227, 177, 127)),
        ("LA", (60, 0), (255, 255, 255)),
        ("LA", (60, 255), (60, 60, 60)),
    ],
)
def test_alpha_is_laid_over_white(mode, colour, expected):
    pixels = read_pixels(encoded(Image.new(mode, (3, 2), colour)), LIMITS)
    assert np.abs(pixels.astype(int) - expected).max() <= 1


def test_an_rgb_image_with_one_transparent_colour_shows_white_there():
    image = Image.new("RGB", (2, 1), (9, 8, 7))
    image.putpixel((1, 0), (1, 2, 3))
    pixels = read_pixels(encoded(image, transparency=(9, 8, 7)), LIMITS)
    assert pixels.tolist() == [[[255, 255, 255], [1, 2, 3]]]


def test_sixteen_bit_grey_is_scaled_by_its_range_and_not_clipped():
    twelve_bit = np.linspace(100, 4100, 256).astype(np.uint16).reshape(16, 16)
    for format in ("PNG", "TIFF"):
        pixels = read_pixels(encoded(twelve_bit, format), LIMITS)
        assert pixels[0, 0].tolist() == [0, 0, 0]
        assert pixels[-1, -1].tolist() == [255, 255, 255]
        assert np.abs(pixels[..., 0].ravel() - np.arange(256.0)).max() <= 1


def test_float_pixels_are_scaled_and_what_is_not_finite_is_black():
    values = np.array([[-1.0, 0.0, 1.0], [np.nan, np.inf, -np.inf]], dtype=np.float32)
    pixels = read_pixels(encoded(values, "TIFF"), LIMITS)
    assert pixels[..., 0].tolist() == [[0, 128, 255], [0, 0, 0]]


def test_thirty_two_bit_integers_are_scaled():
    values = np.array([[-(2**31), 0, 2**31 - 1]], dtype=np.int32)
    assert read_pixels(encoded(values, "TIFF"), LIMITS)[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("value", [0, 7, 65535])
def test_a_uniform_sixteen_bit_image_is_valid(value):
    assert read_pixels(encoded(np.full((3, 5), value, np.uint16)), LIMITS).max() == 0


@pytest.mark.parametrize("format", ["GIF", "PNG", "TIFF", "WEBP"])
def test_only_the_first_frame_of_many_is_read(format):
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert set(map(tuple, read_pixels(data, LIMITS).reshape(-1, 3).tolist())) == {(255, 0, 0)}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 4096,
        b"plain text, named photo.jpg",
        b"\xff\xd8\xff",
        b"GIF89a",
        b"\x89PNG\r\n\x1a\n",
    ],
)
def test_what_is_no_image_is_refused_as_unreadable_with_a_reason(data):
    error = refusal(data)
    assert error.status == "unreadable"
    assert error.reason
    assert "object at 0x" not in error.reason
    if not data:
        assert "empty" in error.reason


@pytest.mark.parametrize("format", ["JPEG", "PROGRESSIVE", "PNG", "GIF", "BMP", "TIFF", "WEBP"])
def test_a_file_cut_anywhere_is_refused_or_whole_and_never_half_grey(format):
    options = {"progressive": True} if format == "PROGRESSIVE" else {}
    data = encoded(scene(), "JPEG" if options else format, **options)
    whole = read_pixels(data, LIMITS)
    refused = 0
    for length in range(1, len(data), max(1, len(data) // 60)):
        try:
            assert np.array_equal(read_pixels(data[:length], LIMITS), whole)
        except UnreadableImageError:
            refused += 1
    assert refused > 30


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_an_end_that_was_allocated_but_never_written_is_found(format):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(noise, format)
    for kept in (len(data) - 100, len(data) // 2):
        assert refusal(data[:kept] + bytes(len(data) - kept)).status == "unreadable"


def test_bytes_behind_a_jpeg_such_as_a_phone_s_video_do_no_harm():
    data = with_orientation(scene(), 6) + b"ftypmp42\xff\xda" + bytes(500)
    assert read_pixels(data, LIMITS).shape == (40, 24, 3)


def test_a_cut_jpeg_is_refused_even_when_another_library_made_pillow_lenient(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    data = encoded(scene(200, 200), "JPEG")
    assert refusal(data[: len(data) // 2]).status == "unreadable"
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def huge_png(width, height):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


@pytest.mark.parametrize("size", [(60_000, 60_000), (2**31 - 1, 2**31 - 1), (200_000_001, 1)])
def test_a_bomb_is_refused_on_its_header(size):
    error = refusal(huge_png(*size))
    assert error.status == "too_large"
    assert "200000000" in error.reason
    with pytest.raises(UnreadableImageError):
        probe(huge_png(*size), LIMITS)


def test_the_pixel_limit_is_exact_and_beyond_pillow_s_own():
    data = encoded(scene(10, 10))
    assert read_pixels(data, ImageLimits(max_pixels=100)).shape == (10, 10, 3)
    assert refusal(data, ImageLimits(max_pixels=99)).status == "too_large"
    assert probe(huge_png(19_000, 10_000), LIMITS).width == 19_000  # Pillow alone refuses 179 MP


def test_pillow_s_settings_and_warnings_are_left_alone(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 12345)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read_pixels(encoded(scene(150, 150)), LIMITS)  # beyond 12345: would warn
        refusal(b"rubbish")
    assert not caught
    assert Image.MAX_IMAGE_PIXELS == 12345


def test_many_threads_may_read_at_once():
    data = [encoded(scene(seed=seed)) for seed in range(8)]
    results = {}

    def read(index):
        results[index] = read_pixels(data[index], LIMITS)

    limit = Image.MAX_IMAGE_PIXELS
    threads = [threading.Thread(target=read, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(results[index], scene(seed=index)) for index in range(8))
    assert limit == Image.MAX_IMAGE_PIXELS


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged_bytes_give_pixels_or_a_refusal_and_nothing_else(data):
    source = bytearray(encoded(scene(), data.draw(st.sampled_from(["JPEG", "PNG", "GIF", "WEBP"]))))
    for _ in range(data.draw(st.integers(1, 8))):
        source[data.draw(st.integers(0, len(source) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(UnreadableImageError):
        assert read_pixels(bytes(source), ImageLimits(max_pixels=1_000_000)).ndim == 3


@pytest.mark.parametrize(
    ("size_hw", "size", "expected"),
    [
        ((1500, 2250), WorkSize(), (1500, 2250)),
        ((3000, 4500), WorkSize(), (1500, 2250)),
        ((4500, 3000), WorkSize(), (2250, 1500)),
        ((1, 1), WorkSize(), (1, 1)),
        ((200, 20_000), WorkSize(), (200, 20_000)),
        ((200, 20_000), WorkSize(max_long_side=1000), (10, 1000)),
        ((1, 20_000), WorkSize(max_long_side=1000), (1, 1000)),
        ((5000, 5000), WorkSize(max_short_side=None), (5000, 5000)),
        ((400, 300), WorkSize(max_short_side=200, max_long_side=100), (100, 75)),
    ],
)
def test_work_size_shrinks_by_the_tighter_limit_and_never_enlarges(size_hw, size, expected):
    assert work_size_hw(size_hw, size) == expected


def test_resizing_keeps_the_picture_and_leaves_small_ones_untouched():
    pixels = scene(60, 100)
    assert resize_to_work_size(pixels, WorkSize()) is pixels
    small = resize_to_work_size(pixels, WorkSize(max_short_side=30))
    assert small.shape == (30, 50, 3)
    assert small.flags.writeable
    means = pixels.astype(float).reshape(30, 2, 50, 2, 3).mean((1, 3))
    assert np.abs(small - means).mean() < 2
    assert resize_to_work_size(scene(20, 2000), WorkSize(max_long_side=100)).shape == (1, 100, 3)
