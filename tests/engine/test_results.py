import pytest

from engine.results import _kept
from engine.rounds import RoundOutcome
from stages.evaluation import Evaluation


def evaluation(one: float, three: float) -> Evaluation:
    return Evaluation(
        num_images=2,
        num_masks=4,
        miou_1_click=one,
        miou_1_click_oracle=0.9,
        miou_3_clicks=three,
        miou_5_clicks=0.9,
        iou_head_error=0.1,
    )


@pytest.mark.parametrize(
    ("trained", "said"),
    [
        (evaluation(0.4, 0.8), " (kept; trained one at 0.400)"),
        (evaluation(0.61, 0.7), " (kept; trained one at 0.610, less later)"),
        (None, " (kept)"),
    ],
)
def test_a_checkpoint_that_was_not_promoted_is_said_to_be_so(
    trained: Evaluation | None, said: str
) -> None:
    outcome = RoundOutcome(
        checkpoint="checkpoints/sa-tiny",
        trained="checkpoints/round-00",
        evaluation=evaluation(0.6, 0.8),
        trained_evaluation=trained,
    )
    assert _kept(outcome) == said
    promoted = outcome.model_copy(update={"checkpoint": "checkpoints/round-00"})
    assert _kept(promoted) == ""
