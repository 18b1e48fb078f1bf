"""A helper of pretraining: the IoU token must know what it is asked about, its own answer.

From random weights the token that predicts the IoU never learns to look: how well a mask meets a
truth that is often ambiguous is a faint signal. The size of the answer and how steady its edge is
are known exactly, and a token that can tell them has read the mask. The head is thrown away.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MIN_AREA = 8.0
"""Grid cells added to every area, so that tiny ones do not rule its logarithm."""


class SelfReport(nn.Module):
    def __init__(self, embed_dim: int, num_mask_tokens: int) -> None:
        super().__init__()
        self.num_mask_tokens = num_mask_tokens
        self.linear = nn.Linear(embed_dim, 2 * num_mask_tokens)

    def loss(self, iou_token: Tensor, logits: Tensor, valid: Tensor) -> Tensor:
        """Scalar, from tokens (P, C) and the answers (P, M, h, w) that they speak of.

        Args:
            valid: (P, h, w) bool; False on padding.
        """
        said = self.linear(iou_token.float()).unflatten(1, (self.num_mask_tokens, 2))
        said = said[:, 1:] if logits.shape[1] > 1 else said[:, :1]
        return F.smooth_l1_loss(said, _facts(logits.detach(), valid), beta=0.1)


def _facts(logits: Tensor, valid: Tensor) -> Tensor:
    """(P, M, 2): log of the area, about 0 to 1, and stability between logits of 1 and -1."""
    seen = valid[:, None]
    inner, area, outer = (((logits > at) & seen).sum((-2, -1)) for at in (1.0, 0.0, -1.0))
    cells = float(logits.shape[-2] * logits.shape[-1])
    size = torch.log((area + MIN_AREA) / MIN_AREA) / torch.log(torch.tensor(cells / MIN_AREA))
    return torch.stack([size, inner / outer.clamp(min=1)], dim=2)
