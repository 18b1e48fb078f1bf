from typing import Any

import numpy as np
import pytest
import torch

from fakes import ColourSam, rectangle, tiny_sam
from model.sam import Sam
from model.transforms import ResizeLongestSide
from stages.assisted_manual import MaskSession, replay
from stages.predictor import Answer, Pixels, Predictor, embed
from stages.prompts import Point, mask_iou
from stages.rle import Mask, decode_rle
from stages.zoom_in import (
    BACKGROUND,
    View,
    ZoomInPredictor,
    carry,
    predictor_of,
    predictors_of_log,
)

SIZE_HW = (360, 480)
PEBBLE_CENTRE = (100.0, 90.0)


def disc(centre: Point, radius: float) -> Mask:
    rows, columns = np.indices(SIZE_HW)
    return np.hypot(columns - centre[0], rows - centre[1]) <= radius


PEBBLE = disc(PEBBLE_CENTRE, 11)
WALL = rectangle(SIZE_HW, 0, 240, 360, 480)


class CountingSam(ColourSam):
    """Counts the images it has encoded."""

    encoded = 0

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        self.encoded += len(images)
        return super().encode(images)


def painted(*objects: Mask) -> Pixels:
    pixels = np.full((*SIZE_HW, 3), 90, dtype=np.uint8)
    for mask, colour in zip(objects, ((240, 20, 240), (20, 240, 40)), strict=True):
        pixels[mask] = colour
    return pixels


def predictors(pixels: Pixels) -> tuple[Predictor, ZoomInPredictor, CountingSam]:
    sam = CountingSam(image_size=256)
    embedding = embed(sam, pixels)  # type: ignore[arg-type]
    sam.encoded = 0
    plain = Predictor(sam, SIZE_HW, embedding)  # type: ignore[arg-type]
    return plain, ZoomInPredictor(sam, pixels, embedding), sam  # type: ignore[arg-type]


def test_a_small_object_is_drawn_from_nearer() -> None:
    plain, zooming, sam = predictors(painted(PEBBLE, WALL))
    ious = [
        mask_iou(one.predict((PEBBLE_CENTRE,), (1,), multimask_output=True).masks[0], PEBBLE)
        for one in (plain, zooming)
    ]
    assert ious[0] < 0.85
    assert ious[1] > 0.93
    assert sam.encoded == 1


def test_a_log_is_answered_again_as_each_of_its_actions_was() -> None:
    pixels = painted(PEBBLE, WALL)
    _, _, sam = predictors(pixels)
    embedding = embed(sam, pixels)  # type: ignore[arg-type]
    asked = predictors_of_log(sam, pixels, embedding)  # type: ignore[arg-type]
    session = MaskSession(predictor_of(sam, pixels, embedding, zoom_in=True, snap=True))  # type: ignore[arg-type]
    session.click(PEBBLE_CENTRE, 1, seconds=0)
    session.predictor = predictor_of(sam, pixels, embedding, zoom_in=False)  # type: ignore[arg-type]
    session.click((PEBBLE_CENTRE[0] + 4, PEBBLE_CENTRE[1]), 1, seconds=0)
    session.brush(disc(PEBBLE_CENTRE, 3), 0, seconds=0)
    said = [(action.snapped, action.zoomed_in) for action in session.interactions]
    assert said == [(True, True), (False, False), (None, None)]
    assert np.array_equal(replay(asked, session.interactions), session.mask)
    first = decode_rle(session.interactions[0].answer)
    assert np.array_equal(replay(asked, session.interactions[:1]), first)
    assert not np.array_equal(replay(lambda _: session.predictor, session.interactions[:1]), first)


@pytest.mark.parametrize("zoom_in", [False, True])
def test_a_model_whose_clicks_nobody_can_judge_is_refused_with_superpixels(zoom_in: bool) -> None:
    pixels = painted(PEBBLE, WALL)
    config = tiny_sam().config.model_copy(update={"num_multimask_outputs": 2})
    sam = Sam(config).eval()
    embedding = embed(sam, pixels)
    with pytest.raises(ValueError, match=r"num_multimask_outputs is 2; .* set snap: false"):
        predictor_of(sam, pixels, embedding, zoom_in=zoom_in, snap=True)
    answer = predictor_of(sam, pixels, embedding, zoom_in=False).predict(
        (PEBBLE_CENTRE,), (1,), multimask_output=True
    )
    assert len(answer.masks) == 2


def test_further_clicks_are_answered_in_a_second_look_by_the_model_alone() -> None:
    pixels = painted(PEBBLE, WALL)
    _, _, sam = predictors(pixels)
    zooming = ZoomInPredictor(sam, pixels, embed(sam, pixels), snap=True)  # type: ignore[arg-type]
    click = (PEBBLE_CENTRE[0] + 8, PEBBLE_CENTRE[1])
    before = disc(PEBBLE_CENTRE, 6)
    answer = zooming.predict((PEBBLE_CENTRE, click), (1, 1), before=before, multimask_output=False)
    assert answer.zoomed_in
    assert answer.snapped
    assert answer.are_regions == (False,)
    assert mask_iou(answer.masks[0], PEBBLE) > 0.9


@pytest.mark.parametrize("snapped", [False, True])
def test_masks_of_superpixels_are_drawn_again_as_those_most_like_them(
    snapped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs of the model as those of their number, which says how much of an object they are."""
    _, zooming, _ = predictors(painted(PEBBLE, WALL))
    crop = View.around(PEBBLE_CENTRE, zooming.transform).slices

    def looked(self: Predictor, *_args: object, **_kwargs: object) -> Answer:
        is_near = self is not zooming
        radii = (12, 40, 24) if is_near else (42, 25, 10)
        masks = (
            disc(PEBBLE_CENTRE, radius)[crop] if is_near else disc(PEBBLE_CENTRE, radius)
            for radius in radii
        )
        regions = (True, False, False) if is_near else (False,) * 3
        worth = (0.5, 0.9, 0.7) if is_near else (0.1, 0.2, 0.3)
        return Answer(tuple(masks), worth, worth, torch.zeros(3, 64, 64), regions, snapped=snapped)

    monkeypatch.setattr(Predictor, "predict", looked)
    answer = zooming.predict((PEBBLE_CENTRE,), (1,), multimask_output=True)
    order = (40, 24, 12) if snapped else (12, 40, 24)
    assert answer.predicted_iou == ((0.9, 0.7, 0.5) if snapped else (0.5, 0.9, 0.7))
    assert answer.are_regions == ((False, False, True) if snapped else (True, False, False))
    for mask, radius in zip(answer.masks, order, strict=True):
        np.testing.assert_array_equal(mask, disc(PEBBLE_CENTRE, radius))
    levels = [float(logits.max()) for logits in answer.low_res_masks]
    assert [level > 5 for level in levels] == list(answer.are_regions)


def test_what_a_click_beyond_the_crop_has_mended_stands() -> None:
    pixels = painted(PEBBLE, WALL)
    _, _, sam = predictors(pixels)
    zooming = ZoomInPredictor(sam, pixels, embed(sam, pixels), snap=True)  # type: ignore[arg-type]
    before = PEBBLE | WALL
    answer = zooming.predict(
        (PEBBLE_CENTRE, (400.0, 300.0)), (1, 0), before=before, multimask_output=False
    )
    assert mask_iou(answer.masks[0], PEBBLE) > 0.8
    assert answer.zoomed_in == (not answer.are_regions[0])


def test_an_object_too_large_for_the_crop_is_answered_as_before() -> None:
    plain, zooming, sam = predictors(painted(PEBBLE, WALL))
    asked = {"points": ((360.0, 180.0),), "labels": (1,), "multimask_output": True}
    first, second = plain.predict(**asked), zooming.predict(**asked)  # type: ignore[arg-type]
    assert all(map(np.array_equal, first.masks, second.masks))
    assert torch.equal(first.low_res_masks, second.low_res_masks)
    assert sam.encoded == 0


def test_all_clicks_of_an_object_share_one_look() -> None:
    _, zooming, sam = predictors(painted(PEBBLE, WALL))
    session = MaskSession(zooming)
    session.click(PEBBLE_CENTRE, 1, seconds=0)
    session.click((120.0, 90.0), 0, seconds=0)
    session.click((102.0, 92.0), 1, seconds=0)
    assert mask_iou(session.mask, PEBBLE) > 0.93
    assert sam.encoded == 1


def test_a_click_that_adds_something_beyond_the_crop_means_a_large_object() -> None:
    plain, zooming, sam = predictors(painted(PEBBLE, WALL))
    points, far_away = (PEBBLE_CENTRE, (400.0, 300.0)), (1, 1)
    for labels, encoded in ((far_away, 0), ((1, 0), 1)):
        answers = [one.predict(points, labels, multimask_output=False) for one in (plain, zooming)]
        assert np.array_equal(answers[0].masks[0], answers[1].masks[0]) == (encoded == 0)
        assert sam.encoded == encoded


def test_a_box_is_looked_at_from_its_middle_if_it_fits() -> None:
    plain, zooming, sam = predictors(painted(PEBBLE, WALL))
    box = (PEBBLE_CENTRE[0] - 11, PEBBLE_CENTRE[1] - 11, PEBBLE_CENTRE[0] + 11, 101.0)
    near = zooming.predict(box_xyxy=box, multimask_output=False)
    assert mask_iou(near.masks[0], PEBBLE) > 0.93
    assert sam.encoded == 1
    large = (20.0, 20.0, 190.0, 160.0)
    answers = [one.predict(box_xyxy=large, multimask_output=False) for one in (plain, zooming)]
    assert np.array_equal(answers[0].masks[0], answers[1].masks[0])
    assert sam.encoded == 1


def test_logits_of_the_answer_are_those_of_its_mask() -> None:
    """They are the next prompt, and the first look's would be another shape."""
    _, zooming, _ = predictors(painted(PEBBLE, WALL))
    answer = zooming.predict((PEBBLE_CENTRE,), (1,), multimask_output=True)
    for logits, mask in zip(answer.low_res_masks, answer.masks, strict=True):
        again = (zooming.transform.upscale(logits) > 0).numpy()
        assert mask_iou(again, mask) > 0.8


@pytest.mark.parametrize(
    "asked",
    [
        {"points": ((SIZE_HW[1], 90.0),), "labels": (0,)},
        {"points": ((-1.0, 90.0),), "labels": (0,), "mask_input": torch.zeros(64, 64)},
        {"mask_input": torch.zeros(64, 64)},
    ],
    ids=["a click beside the image", "one for a mask", "a mask alone"],
)
def test_a_prompt_without_a_place_in_the_image_is_answered_as_before(
    asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels, sam = painted(PEBBLE, WALL), tiny_sam(image_size=256)
    embedding = embed(sam, pixels)
    monkeypatch.setattr(View, "fits", lambda *_: True)
    first, second = (
        predictor_of(sam, pixels, embedding, zoom_in=zoom_in).predict(
            **asked, multimask_output=False
        )
        for zoom_in in (False, True)
    )
    assert np.array_equal(first.masks[0], second.masks[0])
    assert torch.equal(first.low_res_masks, second.low_res_masks)
    assert not second.zoomed_in


def test_a_mask_prompt_reaches_the_second_look_in_its_frame() -> None:
    whole = View((0, 0), ResizeLongestSide(SIZE_HW, 256))
    crop = View.around(PEBBLE_CENTRE, whole.transform)
    seen = torch.where(torch.tensor(PEBBLE), 5.0, -5.0)
    cells = torch.nn.functional.interpolate(seen[None, None], (48, 64), mode="area")[0]
    far = torch.nn.functional.pad(cells, (0, 0, 0, 16), value=-10)
    near = crop.transform.upscale(carry(far, whole, crop))[0] > 0
    assert mask_iou(near.numpy(), PEBBLE[crop.slices]) > 0.75
    back = carry(carry(far, whole, crop), crop, whole)
    assert (back[far > 4] > 0).all()
    assert (back[far < -4] < 0).all()


def test_what_touches_the_border_of_the_image_does_so_in_a_second_look() -> None:
    whole = View((0, 0), ResizeLongestSide((256, 256), 256))
    crop = View.around((3.0, 3.0), whole.transform)
    object_everywhere = torch.full((1, 64, 64), 5.0)
    assert (carry(object_everywhere, whole, crop) == 5).all()
    back = carry(object_everywhere, crop, whole)
    side = crop.transform.size_hw_orig[0] // 4
    assert (back[:, :side, :side] == 5).all()
    assert (back[:, side + 1 :] == BACKGROUND).all()
    assert (back[:, :, side + 1 :] == BACKGROUND).all()


@pytest.mark.parametrize("size_hw", [(360, 480), (480, 360), (1, 900), (900, 2), (1, 1), (5, 7)])
@pytest.mark.parametrize("place", [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0)])
def test_a_crop_lies_in_the_image_and_holds_its_prompt(
    size_hw: tuple[int, int], place: tuple[float, float]
) -> None:
    point = (place[0] * (size_hw[1] - 1), place[1] * (size_hw[0] - 1))
    view = View.around(point, ResizeLongestSide(size_hw, 128))
    rows, columns = view.slices
    assert 0 <= rows.start < rows.stop <= size_hw[0]
    assert 0 <= columns.start < columns.stop <= size_hw[1]
    assert view.holds(point)
    assert np.ones(size_hw)[view.slices].shape == view.transform.size_hw_orig


@pytest.mark.parametrize(
    ("size_hw", "centre", "box_xyxy"),
    [
        ((480, 640), (10.0, 300.0), (0, 194, 213, 407)),
        ((321, 481), (240.5, 160.0), (161, 80, 321, 240)),
        ((321, 481), (480.0, 320.0), (321, 161, 481, 321)),
        ((1500, 2250), (1033.0, 7.0), (658, 0, 1408, 750)),
        ((1, 900), (450.0, 0.0), (300, 0, 600, 1)),
        ((1, 1), (0.0, 0.0), (0, 0, 1, 1)),
    ],
)
def test_the_page_has_the_same_crops(
    size_hw: tuple[int, int], centre: Point, box_xyxy: tuple[int, int, int, int]
) -> None:
    """As in web/ui/tests/geometry.test.ts."""
    rows, columns = View.around(centre, ResizeLongestSide(size_hw, 128)).slices
    assert (columns.start, rows.start, columns.stop, rows.stop) == box_xyxy
