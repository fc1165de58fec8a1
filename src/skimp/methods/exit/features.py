"""What a probe sees in a token's logits, in float32 whatever the model computes in.

The gap p1 - p2 and the probability p1 of the likeliest token are AdaInfer's (Fan et al., 2024).
Beside them stand the gap and the height of the logits themselves, which still tell apart what
probabilities near 1 no longer do, whether the probe before saw the same likeliest token, and how
likely the full model's token is among the candidates at all. docs/log.md says what each adds.
"""

import torch
from torch import Tensor

FEATURES = ("gap", "top_prob", "logit_gap", "logit", "same", "reach")
# Logits are about this large: it only keeps the fitted weights of one order.
_LOGIT = 10.0


def likeliest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The two largest of logits [B, K] in float32 [B, 2], and where the first stands [B].

    Of equal ones the first counts, as when the full model's token is taken: half-precision logits
    are equal often enough to break any promise otherwise, and `topk` gives them in any order.
    """
    return logits.topk(2, dim=-1).values.float(), logits.argmax(-1)


def features(logits: Tensor, values: Tensor, same: Tensor, reach: Tensor) -> Tensor:
    """Features float32 [B, F] of logits [B, K].

    Args:
        values: the two largest logits [B, 2], of :func:`likeliest`.
        same: float32 [B], 1 where the likeliest token was that of the probe before as well.
        reach: float32 [B], log-odds that the full model's token is a candidate; 0 where all are.
    """
    shares = (values - logits.float().logsumexp(-1, keepdim=True)).exp()
    first, second = shares.unbind(-1)
    high, low = (values / _LOGIT).unbind(-1)
    return torch.stack((first - second, first, high - low, high, same, reach), -1)
