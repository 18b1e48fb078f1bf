import io

import numpy as np
import pytest
from PIL import Image

from engine.images import Pixels
from engine.pictures import contact_sheet, mask_colour, overlay, png_bytes
from stages.rle import Mask, encode_rle


def grey(height: int, width: int) -> Pixels:
    return np.full((height, width, 3), 100, dtype=np.uint8)


def block(size_hw: tuple[int, int], y: slice, x: slice) -> Mask:
    mask = np.zeros(size_hw, dtype=bool)
    mask[y, x] = True
    return mask


def test_pixels_outside_all_masks_are_untouched() -> None:
    mask = block((40, 60), slice(10, 30), slice(10, 30))
    picture = overlay(grey(40, 60), [mask])
    assert picture.dtype == np.uint8
    assert (picture[~mask] == 100).all()
    assert (picture[mask] != 100).any(axis=-1).all()


def test_the_inside_is_mixed_half_and_half_and_the_border_is_lighter() -> None:
    picture = overlay(grey(40, 60), [block((40, 60), slice(10, 30), slice(10, 30))]).astype(float)
    assert np.abs(picture[20, 20] - (mask_colour(0) + 100) / 2).max() <= 0.5
    assert picture[10, 20].sum() > picture[20, 20].sum()


def test_parts_show_on_their_wholes_in_whatever_order_masks_come() -> None:
    whole = np.ones((40, 60), dtype=bool)
    part = block((40, 60), slice(10, 30), slice(10, 30))
    picture = overlay(grey(40, 60), [part, whole])
    assert np.array_equal(picture, overlay(grey(40, 60), [whole, part]))
    assert not np.array_equal(picture[20, 20], picture[20, 50])


def test_an_rle_is_drawn_as_its_mask() -> None:
    rng = np.random.default_rng(0)
    masks = [rng.random((30, 20)) < share for share in (0.1, 0.5, 0.9)]
    assert np.array_equal(
        overlay(grey(30, 20), masks), overlay(grey(30, 20), [encode_rle(mask) for mask in masks])
    )


def test_no_masks_and_empty_masks_leave_the_image_as_it_is() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    assert np.array_equal(overlay(pixels, []), pixels)
    assert np.array_equal(overlay(pixels, [np.zeros((9, 7), dtype=bool)]), pixels)


def test_an_image_of_one_pixel_can_be_overlaid() -> None:
    assert overlay(grey(1, 1), [np.ones((1, 1), dtype=bool)]).shape == (1, 1, 3)


def test_a_mask_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a mask of \(4, 5\) on an image of \(5, 4\)"):
        overlay(grey(5, 4), [np.ones((4, 5), dtype=bool)])


def test_the_first_forty_colours_are_visible_and_distinct() -> None:
    colours = np.asarray([mask_colour(rank) for rank in range(40)])
    apart = np.abs(colours[:, None] - colours[None]).max(axis=-1) + 255 * np.eye(40)
    assert apart.min() > 8
    assert colours.min() >= 0
    assert colours.max() <= 255
    assert colours.max(axis=1).min() > 120


def test_a_sheet_has_the_width_that_was_asked_for_and_rows_that_fill_it() -> None:
    pictures = [grey(60, 90), grey(90, 60), grey(60, 90), grey(50, 50)]
    sheet = contact_sheet(pictures, columns=3, width=600)
    assert sheet.shape[1] == 600
    first_row = np.flatnonzero((sheet[20] == 100).all(axis=-1))
    assert (first_row[0], first_row[-1]) == (12, pytest.approx(587, abs=3))
    last_row = np.flatnonzero((sheet[-20] == 100).all(axis=-1))
    assert len(last_row) == pytest.approx(600 / 3 - 16, abs=2)


def test_captions_stay_below_their_own_picture() -> None:
    pictures = [np.full((50, 80, 3), 255, dtype=np.uint8)] * 2
    sheet = contact_sheet(pictures, ["a caption much too long " * 9, ""], columns=2, width=500)
    inked = np.flatnonzero((sheet < 200).any(axis=(0, 2)))
    assert len(inked) > 100
    assert inked[-1] < 250


@pytest.mark.parametrize(("pictures", "captions"), [(0, 0), (2, 1), (1, 3)])
def test_a_sheet_needs_pictures_and_all_captions_or_none(pictures: int, captions: int) -> None:
    with pytest.raises(ValueError, match=f"{pictures} pictures and {captions} captions"):
        contact_sheet([grey(4, 4)] * pictures, ["x"] * captions)


def test_a_png_reads_back_to_the_same_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png_bytes(pixels)))), pixels)
