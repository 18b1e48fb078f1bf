"""The object detector: what it is taught, that it can learn it, and how it is kept."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.detector import (
    DetectorConfig,
    DetectorTrainingConfig,
    ObjectDetector,
    load_detector,
    save_detector,
)
from model.detector_training import DetectorTrainer, detector_targets, generalised_iou

SIDE, DIM = 256, 32
SMALL = DetectorConfig(embed_dim=DIM, hidden_dim=48, dilations=(1, 2))


def small_detector() -> ObjectDetector:
    torch.manual_seed(0)
    return ObjectDetector(SMALL)


def scenes(num: int) -> tuple[Tensor, list[Tensor]]:
    """Embeddings of drawn rectangles, each with a smaller one within it, and their boxes."""
    torch.manual_seed(1)
    project = torch.randn(DIM, 2 * 16 * 16) / 16
    boxes, embeddings = [], []
    for _ in range(num):
        image, found = torch.zeros(2, SIDE, SIDE), []
        for left in (0, SIDE // 2):
            x, y = (torch.randint(4, 40, (2,)) + torch.tensor([left, 40])).tolist()
            w, h = torch.randint(60, 84, (2,)).tolist()
            outer = [x, y, x + w, y + h]
            inner = [x + w // 2 - 9, y + h // 2 - 7, x + w // 2 + 9, y + h // 2 + 7]
            for channel, (x0, y0, x1, y1) in enumerate((outer, inner)):
                image[channel, y0:y1, x0:x1] = 1.0
            found += [outer, inner]
        patches = image.unfold(1, 16, 16).unfold(2, 16, 16).permute(1, 2, 0, 3, 4).flatten(2)
        embeddings.append((patches @ project.T).permute(2, 0, 1))
        boxes.append(torch.tensor(found, dtype=torch.float32))
    return torch.stack(embeddings), boxes


def recall(detector: ObjectDetector, embeddings: Tensor, boxes: list[Tensor], top: int) -> float:
    found = 0
    for detections, truth in zip(detector.predict(embeddings), boxes, strict=True):
        iou = generalised_iou(truth[:, None], detections.boxes[None, :top])
        found += int((iou.max(dim=1).values > 0.5).sum())  # IoU is never below generalised IoU
    return found / sum(map(len, boxes))


def test_it_learns_to_find_every_object_even_one_within_another() -> None:
    embeddings, boxes = scenes(4)
    trainer = DetectorTrainer(
        small_detector(), DetectorTrainingConfig(steps=120, warmup_steps=10, learning_rate=5e-3)
    )
    assert recall(trainer.detector, embeddings, boxes, top=10) < 1.0
    metrics = [trainer.step(embeddings, boxes) for _ in range(120)]
    assert metrics[-1]["score_loss"] < 0.2 * metrics[0]["score_loss"]
    assert recall(trainer.detector.eval(), embeddings, boxes, top=10) == 1.0


def test_nested_objects_with_one_centre_are_both_targets() -> None:
    boxes = torch.tensor([[100.0, 100, 116, 116], [60, 60, 156, 156], [88, 88, 128, 128]])
    targets = detector_targets(small_detector(), boxes, (16, 16))
    peaks = (targets.heat == 1).nonzero().tolist()
    assert peaks == [[0, 6, 6], [1, 6, 6], [2, 6, 6]]
    assert targets.boxes[0, 6, 6].tolist() == boxes[0].tolist()
    assert targets.boxes[1, 6, 6].tolist() == boxes[2].tolist()
    assert targets.boxes[2, 6, 6].tolist() == boxes[1].tolist()


def test_an_image_without_objects_teaches_that_there_are_none() -> None:
    trainer = DetectorTrainer(small_detector(), DetectorTrainingConfig())
    metrics = trainer.step(torch.randn(2, DIM, 8, 8), [torch.zeros(0, 4), torch.zeros(0, 4)])
    assert metrics["box_loss"] == 0
    assert metrics["score_loss"] > 0


def test_boxes_at_the_border_and_of_no_size_have_targets() -> None:
    boxes = torch.tensor([[0.0, 0, 0, 0], [SIDE, SIDE, SIDE, SIDE], [0, 0, SIDE, SIDE]])
    targets = detector_targets(small_detector(), boxes, (16, 16))
    assert (targets.heat == 1).sum() == 3
    trainer = DetectorTrainer(small_detector(), DetectorTrainingConfig())
    metrics = trainer.step(torch.randn(1, DIM, 16, 16), [boxes])
    assert all(torch.tensor(list(metrics.values())).isfinite())


def test_predictions_are_boxes_within_the_input_best_first() -> None:
    detector = small_detector()
    torch.nn.init.normal_(detector.box_head.weight)
    for detections in detector.predict(torch.randn(2, DIM, 12, 12)):
        assert detections.boxes.shape == (300, 4)
        assert (detections.scores.diff() <= 0).all()
        assert (detections.boxes >= 0).all()
        assert (detections.boxes <= 12 * 16).all()
        assert (detections.boxes[:, 2:] >= detections.boxes[:, :2]).all()


def test_training_interrupted_and_restored_goes_on_exactly() -> None:
    embeddings, boxes = scenes(2)
    config = DetectorTrainingConfig(steps=8, warmup_steps=2)
    straight = DetectorTrainer(small_detector(), config)
    expected = [straight.step(embeddings, boxes) for _ in range(4)]
    first = DetectorTrainer(small_detector(), config)
    for _ in range(2):
        first.step(embeddings, boxes)
    second = DetectorTrainer(ObjectDetector(SMALL), config)
    second.load_state_dict(first.state_dict())
    assert [second.step(embeddings, boxes) for _ in range(2)] == expected[2:]


def test_a_saved_detector_says_the_same(tmp_path: Path) -> None:
    detector = small_detector().eval()
    save_detector(detector, tmp_path / "detector")
    loaded = load_detector(str(tmp_path / "detector"))
    embeddings = torch.randn(1, DIM, 8, 8)
    (again,), (before,) = loaded.predict(embeddings), detector.predict(embeddings)
    assert torch.equal(again.boxes, before.boxes)
    assert torch.equal(again.scores, before.scores)
    assert loaded.config == SMALL
    with pytest.raises(ValueError, match="exists already"):
        save_detector(detector, tmp_path / "detector")


def test_what_is_no_detector_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no detector at"):
        load_detector(tmp_path / "nothing")
    save_detector(small_detector(), tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ValueError, match="damaged or cut off"):
        load_detector(tmp_path / "cut")
