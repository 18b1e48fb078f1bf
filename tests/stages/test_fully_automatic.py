import numpy as np
import PIL.Image
import pytest
import torch
from numpy.typing import NDArray

from fakes import ColourSam, tiny_sam
from model.checkpoint import load_checkpoint
from model.mask_decoder import MaskPrediction
from model.prompt_encoder import Prompts
from stages.base import Provenance, StageOutput
from stages.crops import Crop
from stages.filters import DropReason, Drops, FilterConfig, box_nms, mask_box
from stages.fully_automatic import (
    FullyAutomatic,
    FullyAutomaticConfig,
    Preset,
    confident_masks,
)
from stages.predictor import Image, Predictor, embed
from stages.prompts import mask_iou, point_grid
from stages.records import Source, StageName
from stages.rle import decode_rle, rle_area, rle_bbox

PROVENANCE = Provenance(round=3, checkpoint="colours@0123456789ab")
ANY_MASK = FilterConfig(pred_iou_thresh=-10.0, stability_score_thresh=0.0, crop_edge_tolerance=-1)
"""Nothing is refused for its scores or its place."""


def scene(size_hw: tuple[int, int] = (120, 160)) -> NDArray[np.uint8]:
    """Two squares and a bar of their own colours on black."""
    height, width = size_hw
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[height // 8 : height // 2, width // 8 : width // 2] = (250, 30, 30)
    pixels[height // 8 : height // 2, 5 * width // 8 : 7 * width // 8] = (30, 250, 30)
    pixels[5 * height // 8 : 7 * height // 8, width // 8 : 7 * width // 8] = (60, 60, 250)
    return pixels


def run(
    pixels: NDArray[np.uint8], config: FullyAutomaticConfig, sam: torch.nn.Module | None = None
) -> StageOutput:
    stage = FullyAutomatic(sam or ColourSam(), config, PROVENANCE)  # type: ignore[arg-type]
    return stage.run(Image(7, pixels), np.random.default_rng(0))


def one_window(points_per_side: int = 8, **filters: object) -> FullyAutomaticConfig:
    return FullyAutomaticConfig(
        points_per_side=points_per_side, crop_n_layers=0, filters=FilterConfig(**filters)
    )


def num_points(config: FullyAutomaticConfig) -> int:
    """Over all windows of an image large enough to have all of them."""
    factor = config.crop_n_points_downscale_factor
    return sum(
        4**layer * (config.points_per_side // factor**layer) ** 2
        for layer in range(config.crop_n_layers + 1)
    )


def test_every_object_of_a_plain_scene_is_found_once() -> None:
    output = run(scene(), one_window())
    found = {mask.point_coords[0]: decode_rle(mask.segmentation) for mask in output.masks}
    colours = {tuple(scene()[int(y), int(x)]) for x, y in found}
    assert len(output.masks) == len(colours) == 4  # the black around them is one as well
    for (x, y), mask in found.items():
        same_colour = (scene() == scene()[int(y), int(x)]).all(axis=2)
        assert mask_iou(mask, same_colour) > 0.85


def test_records_say_where_they_come_from_and_measure_their_mask() -> None:
    masks = run(scene(), one_window()).masks
    assert [mask.id for mask in masks] == list(range(len(masks)))
    for mask in masks:
        assert (mask.stage, mask.round) == (StageName.FULLY_AUTOMATIC, 3)
        assert (mask.source, mask.annotator) == (Source.AUTOMATIC, "")
        assert mask.checkpoint == PROVENANCE.checkpoint
        assert (mask.seconds, mask.num_clicks, mask.interactions) == (0, 0, ())
        assert mask.area == rle_area(mask.segmentation)
        assert mask.bbox == rle_bbox(mask.segmentation)
        assert mask.crop_box == (0, 0, 160, 120)
        assert mask.segmentation.size == (120, 160)
        assert mask.predicted_iou == pytest.approx(0.95)
        assert mask.stability_score >= 0.95


@pytest.mark.parametrize(("layers", "snap"), [(0, False), (1, False), (2, False), (1, True)])
def test_every_candidate_survives_or_is_dropped_for_one_reason(layers: int, snap: bool) -> None:
    config = FullyAutomaticConfig(points_per_side=8, crop_n_layers=layers, snap=snap)
    output = run(scene((240, 320)), config)
    assert len(output.masks) >= 4
    assert len(output.masks) + sum(output.drops.values()) == 3 * num_points(config)
    assert set(output.drops) <= {str(reason) for reason in DropReason}


@pytest.mark.parametrize("seed", [0, 1])
def test_candidates_of_a_model_that_knows_nothing_add_up_too(seed: int) -> None:
    config = FullyAutomaticConfig(points_per_side=4, crop_n_layers=1, filters=ANY_MASK)
    pixels = np.random.default_rng(seed).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    output = run(pixels, config, tiny_sam(seed))
    assert len(output.masks) + sum(output.drops.values()) == 3 * num_points(config)


def test_masks_of_superpixels_are_the_objects_to_the_pixel_and_say_what_they_are_worth() -> None:
    pixels = scene((480, 512))
    sam = ColourSam(image_size=64)  # 32 pixels of the image to a cell

    def worst(snap: bool) -> tuple[float, float]:
        config = one_window(stability_score_thresh=0.0, pred_iou_thresh=0.7)
        masks = run(pixels, config.model_copy(update={"snap": snap}), sam).masks
        assert len(masks) == 4
        ious = []
        for mask in masks:
            ((x, y),) = mask.point_coords
            same_colour = (pixels == pixels[int(y), int(x)]).all(axis=2)
            ious.append(mask_iou(decode_rle(mask.segmentation), same_colour))
            if snap:
                assert mask.predicted_iou == pytest.approx(
                    (0.95 * mask.stability_score**4) ** (1 / 5)
                )
        return min(ious), min(mask.stability_score for mask in masks)

    assert worst(snap=False)[0] < 0.95
    iou, agreement = worst(snap=True)
    assert iou > 0.96
    assert 0.9 < agreement <= 1


def test_masks_that_are_scored_again_are_the_same_and_worth_what_the_scorer_says() -> None:
    pixels = scene((240, 320))
    keep_all = ANY_MASK.model_copy(update={"box_nms_thresh": 1.0})
    config = FullyAutomaticConfig(points_per_side=4, crop_n_layers=0, snap=True, filters=keep_all)
    rescored = config.model_copy(update={"rescore": True})
    before, after = (
        {(mask.point_coords, mask.segmentation.counts): mask for mask in run(pixels, how).masks}
        for how in (config, rescored)
    )
    assert len(before) > 4
    assert before.keys() == after.keys()
    for key, mask in after.items():
        assert mask.stability_score == before[key].stability_score
        assert 0 < mask.predicted_iou < 1
        assert mask.predicted_iou != before[key].predicted_iou
    without_snap = run(pixels, rescored.model_copy(update={"snap": False})).masks
    assert without_snap == run(pixels, config.model_copy(update={"snap": False})).masks


def test_a_snapped_mask_is_refused_for_what_it_is_worth_and_not_for_what_the_head_says() -> None:
    generator = np.random.default_rng(0)
    patches = generator.integers(0, 256, (6, 8, 3)).astype(np.uint8)
    pixels = np.asarray(
        PIL.Image.fromarray(patches).resize((320, 240), PIL.Image.Resampling.BICUBIC)
    )

    def worth(pred_iou_thresh: float) -> list[float]:
        filters = ANY_MASK.model_copy(update={"pred_iou_thresh": pred_iou_thresh})
        config = FullyAutomaticConfig(
            points_per_side=6, crop_n_layers=0, snap=True, filters=filters
        )
        return sorted(mask.predicted_iou for mask in run(pixels, config, ColourSam()).masks)

    everything = worth(0.0)
    middle = everything[len(everything) // 2]
    assert everything[0] < middle < everything[-1]
    assert worth(middle) == [value for value in everything if value > middle]


def test_crops_find_what_is_too_small_for_the_whole_image() -> None:
    pixels = np.zeros((320, 320, 3), dtype=np.uint8)
    pixels[86:100, 86:100] = (250, 250, 250)  # between the points of the coarse grid
    white = pixels.any(axis=2)
    config = FullyAutomaticConfig(
        points_per_side=8,
        crop_n_layers=1,
        crop_n_points_downscale_factor=1,
        filters=FilterConfig(stability_score_thresh=0.8),  # its rim is a good part of it
    )

    def best_iou(config: FullyAutomaticConfig) -> float:
        masks = run(pixels, config, ColourSam(image_size=128)).masks
        return max((mask_iou(decode_rle(m.segmentation), white) for m in masks), default=0)

    assert best_iou(config.model_copy(update={"crop_n_layers": 0})) == 0
    assert best_iou(config) > 0.5


def test_of_a_mask_found_in_several_windows_that_of_the_smallest_stays() -> None:
    pixels = np.zeros((240, 320, 3), dtype=np.uint8)
    pixels[40:90, 40:110] = (250, 30, 30)  # well within the first of four crops
    config = FullyAutomaticConfig(
        points_per_side=8, crop_n_layers=1, crop_n_points_downscale_factor=1
    )
    crop_boxes = [mask.crop_box for mask in run(pixels, config).masks if mask.area < 10_000]
    assert len(crop_boxes) == 1
    assert crop_boxes[0][:2] == (0, 0)
    assert crop_boxes[0][2] < 320


def test_confidence_must_exceed_its_threshold_and_stability_reach_it() -> None:
    assert run(scene(), one_window(pred_iou_thresh=0.95)).masks == ()
    least_stable = min(mask.stability_score for mask in run(scene(), one_window()).masks)
    exactly = one_window(stability_score_thresh=least_stable)
    assert len(run(scene(), exactly).masks) == 4
    beyond = one_window(stability_score_thresh=least_stable + 1e-6)
    assert len(run(scene(), beyond).masks) < 4


def test_masks_of_a_crop_lie_where_they_lie_in_the_image() -> None:
    pixels = scene((240, 320))
    crop = Crop((100, 80, 320, 240), layer=1)
    sam = ColourSam()
    predictor = Predictor(sam, crop.size_hw, embed(sam, crop.cut(pixels)))  # type: ignore[arg-type]
    points = np.float32([[60, 100]])  # (160, 180) in the image: the bar
    found = confident_masks(
        predictor,
        crop,
        (240, 320),
        points,
        FilterConfig(crop_edge_tolerance=-1),
        Drops(),
        prompts_per_batch=64,
    )
    bar = (pixels == (60, 60, 250)).all(axis=2)
    bar[:, :100] = bar[:80] = False
    mask = decode_rle(found.rles[0])
    assert mask_iou(mask, bar) > 0.9
    assert found.prompts.tolist() == [[160, 180]]
    assert found.crop_boxes_xyxy.tolist() == [[100, 80, 320, 240]]
    rows, columns = np.nonzero(mask)
    corners = [columns.min(), rows.min(), columns.max(), rows.max()]
    assert found.boxes_xyxy.tolist() == [corners]


def test_a_mask_cut_by_the_edge_of_its_crop_is_dropped() -> None:
    pixels = scene((240, 320))
    crop = Crop((100, 80, 320, 240), layer=1)
    sam = ColourSam()
    predictor = Predictor(sam, crop.size_hw, embed(sam, crop.cut(pixels)))  # type: ignore[arg-type]
    drops = Drops()
    points = np.float32([[60, 100], [140, 20]])  # the bar, which is cut; the green square
    found = confident_masks(
        predictor, crop, (240, 320), points, FilterConfig(), drops, prompts_per_batch=1
    )
    assert drops[DropReason.CROP_EDGE] == 2  # green is cut at the top
    assert len(found) == 0


def test_threads_that_share_the_prompts_find_what_one_finds() -> None:
    config = one_window().model_copy(update={"points_per_batch": 5})
    alone = run(scene(), config)
    torch.set_num_threads(3)
    try:
        shared = run(scene(), config)
    finally:
        torch.set_num_threads(1)
    assert len(alone.masks) == 4
    assert [mask.segmentation for mask in shared.masks] == [m.segmentation for m in alone.masks]
    assert shared.drops == alone.drops
    assert alone.drops["duplicate"] > 0


def test_nothing_survives_a_threshold_that_nothing_passes() -> None:
    output = run(scene(), one_window(pred_iou_thresh=0.99))
    assert output.masks == ()
    assert output.drops == {"low_predicted_iou": 3 * 64}


def test_nothing_survives_with_crops_either() -> None:
    config = FullyAutomaticConfig(points_per_side=4, filters=FilterConfig(pred_iou_thresh=0.99))
    assert run(scene(), config).masks == ()


@pytest.mark.parametrize(
    "size_hw", [(1, 1), (1, 40), (3, 2), (20_000, 200)], ids=lambda size: "x".join(map(str, size))
)
@pytest.mark.parametrize("colours", [True, False], ids=["plain", "unknowing model"])
def test_images_of_any_size_give_valid_masks(size_hw: tuple[int, int], colours: bool) -> None:
    filters = FilterConfig(min_mask_region_area=0) if colours else ANY_MASK
    long = max(size_hw) > 1000
    config = FullyAutomaticConfig(
        points_per_side=2 if long else 4,
        crop_n_layers=0 if long and not colours else 1,
        filters=filters,
    )
    pixels = np.zeros((*size_hw, 3), dtype=np.uint8)
    pixels[: size_hw[0] // 2] = (200, 20, 20)
    output = run(pixels, config, ColourSam() if colours else tiny_sam(image_size=64))
    for mask in output.masks:
        assert mask.segmentation.size == size_hw
        assert mask.area == decode_rle(mask.segmentation).sum() > 0


def test_a_uniform_image_is_one_mask_unless_that_is_too_large() -> None:
    grey = np.full((90, 120, 3), 128, dtype=np.uint8)
    assert run(grey, one_window()).masks == ()
    (mask,) = run(grey, one_window(max_mask_area_fraction=None)).masks
    assert mask.area > 0.95 * 90 * 120


class EverythingDecoder:
    """Answers every prompt with the whole image, surely, and what lies around an object."""

    def read(self, prompts: Prompts, *, multimask_output: bool) -> MaskPrediction:
        everything = torch.full((32, 32), 10.0)
        background = everything.clone()
        background[6:26, 6:26] = -10
        low_res = torch.stack([everything, background, background]).expand(len(prompts), -1, -1, -1)
        said = torch.tensor([0.97, 0.95, 0.5]).expand(len(prompts), -1)
        return MaskPrediction(low_res, said, torch.zeros(len(prompts), 1))

    def masks(self, reading: MaskPrediction, index: torch.Tensor) -> torch.Tensor:
        return reading.low_res_masks[index]


def test_a_mask_of_the_whole_image_makes_no_duplicate_of_the_background(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ColourSam, "prepare", lambda *_: EverythingDecoder())
    output = run(np.zeros((128, 128, 3), dtype=np.uint8), one_window(points_per_side=2))
    (mask,) = output.masks
    assert mask.area == pytest.approx(128**2 - 80**2, rel=0.02)
    assert output.drops == {"low_predicted_iou": 4, "whole_image": 4, "duplicate": 3}


def test_the_same_image_gives_the_same_masks_twice() -> None:
    config = FullyAutomaticConfig(points_per_side=4, crop_n_layers=1, filters=ANY_MASK)
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    assert run(pixels, config, tiny_sam()) == run(pixels, config, tiny_sam())


def test_the_size_of_decoder_batches_does_not_change_the_masks() -> None:
    small = one_window().model_copy(update={"points_per_batch": 5})
    large = one_window().model_copy(update={"points_per_batch": 64})
    assert run(scene(), small) == run(scene(), large)


def test_the_paper_preset_asks_3072_times() -> None:
    paper = FullyAutomaticConfig.preset(Preset.PAPER)
    assert paper == FullyAutomaticConfig()
    assert num_points(paper) == 3072
    assert paper.filters == FilterConfig(
        pred_iou_thresh=0.88,
        stability_score_thresh=0.95,
        stability_score_offset=1.0,
        box_nms_thresh=0.7,
        crop_nms_thresh=0.7,
        crop_edge_tolerance=20,
        max_mask_area_fraction=0.95,
        min_mask_region_area=100,
        drop_small_masks=True,
    )


def test_the_official_preset_asks_1024_times_and_leaves_masks_alone() -> None:
    official = FullyAutomaticConfig.preset(Preset.OFFICIAL)
    assert num_points(official) == 1024
    assert official.crop_n_layers == 0
    assert official.crop_overlap_ratio == 512 / 1500
    assert official.filters.min_mask_region_area == 0
    assert official.filters.max_mask_area_fraction is None
    assert official.filters.pred_iou_thresh == 0.88
    assert official.filters.stability_score_thresh == 0.95


def test_a_misspelt_setting_is_refused() -> None:
    with pytest.raises(ValueError, match="points_per_sides"):
        FullyAutomaticConfig.model_validate({"points_per_sides": 16})


def test_crops_encoded_together_give_the_same_masks() -> None:
    config = FullyAutomaticConfig(points_per_side=4, crop_n_layers=1, filters=ANY_MASK)
    pixels = np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    expected = run(pixels, config, tiny_sam())
    found = run(pixels, config.model_copy(update={"crops_per_batch": 3}), tiny_sam())
    assert found.drops == expected.drops
    for one, other in zip(found.masks, expected.masks, strict=True):
        assert mask_iou(decode_rle(one.segmentation), decode_rle(other.segmentation)) > 0.99


def test_masks_are_those_of_the_plain_way() -> None:
    """Decode plainly, enlarge everything, cut, score, and only then remove duplicates."""
    sam, pixels = load_checkpoint("sa-tiny").sam, scene((240, 320))
    size_hw = (240, 320)
    embedding = embed(sam, pixels)
    predictor = Predictor(sam, size_hw, embedding, stability_offset=0.2)
    points = point_grid(6, size_hw)
    transform = predictor.transform
    question = Prompts(
        point_coords=transform.apply_coords(torch.from_numpy(points))[:, None],
        point_labels=torch.ones(len(points), 1),
    )
    with torch.inference_mode():
        answer = sam.decode(embedding, question, multimask_output=True)
    logits = transform.upscale(answer.low_res_masks.flatten(0, 1)).numpy()
    scores = answer.predicted_iou.flatten().numpy()
    limit, stable = float(np.median(scores)), 0.5
    inner, outer = ((logits > level).sum((1, 2)) for level in (0.2, -0.2))
    kept = (scores > limit) & (inner >= stable * outer) & (logits > 0).any((1, 2))
    masks, scores = logits[kept] > 0, scores[kept]
    boxes = np.asarray([mask_box(mask) for mask in masks], dtype=np.float32)
    expected = [masks[i] for i in box_nms(boxes, scores, 0.7)]
    filters = FilterConfig(
        pred_iou_thresh=limit,
        stability_score_thresh=stable,
        stability_score_offset=0.2,
        min_mask_region_area=0,
        max_mask_area_fraction=None,
    )
    config = FullyAutomaticConfig(points_per_side=6, crop_n_layers=0, filters=filters)
    found = [decode_rle(mask.segmentation) for mask in run(pixels, config, sam).masks]
    assert len(expected) > 3
    assert len(found) == len(expected)
    assert all(mask_iou(one, other) > 0.99 for one, other in zip(found, expected, strict=True))
