"""How loose a threshold may be, so that an agreement holds with 95% confidence.

Tokens of one document resemble each other, so a document is what is drawn. The share of tokens
that are not the full model's gets the exact binomial bound at the number of independent tokens
that would vary as much (Korn and Graubard, 1998), halved, because the promise is about a new text,
as long as this one, which varies too. Thresholds are tried from strict to loose, and
the first that fails ends the search, so that trying many costs no confidence (fixed-sequence
testing; as in Learn then Test, Angelopoulos et al., 2021).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

CONFIDENCE = 0.95
STEPS = 200
# Below so many wrong tokens, what they say about documents is left to looser thresholds.
_ENOUGH = 10


@dataclass(frozen=True)
class Outcome:
    """What leaving early comes to at a threshold: for each token the probe that it leaves at (the
    number of probes: none), and whether its token then is not the full model's; both [n]."""

    left_at: Tensor
    wrong: Tensor


@dataclass(frozen=True)
class Level:
    """A promised agreement, the threshold that holds it, and what was seen there.

    `seen` is the agreement on the text that the threshold was calibrated on, `at_least` its lower
    confidence bound for a new text as long, `exits` the share of tokens that leave. Where nothing
    holds, `threshold` is infinite.
    """

    agreement: float
    threshold: float
    seen: float
    at_least: float
    exits: float


def outcome(scores: Tensor, wrong: Tensor, threshold: float) -> Outcome:
    """Leave at the first probe whose score reaches the threshold; both inputs [probes, n]."""
    leaves = scores >= threshold
    padded = torch.cat([leaves, torch.ones_like(leaves[:1])])
    left_at = padded.int().argmax(0)
    bad = torch.cat([wrong, torch.zeros_like(wrong[:1])])
    return Outcome(left_at, bad.gather(0, left_at[None])[0])


def grid(scores: Tensor, steps: int = STEPS) -> list[float]:
    """Thresholds from strict to loose: quantiles of the best score that tokens get [probes, n].

    To be taken from other documents than those that they are then tried on.
    """
    best = scores.max(0).values.double()
    shares = 1 - torch.linspace(0, 1, steps + 1, dtype=torch.float64)[1:]
    found = torch.quantile(best, shares)
    return sorted({float(each) for each in found}, reverse=True)


def upper_bound(
    wrong: np.ndarray,
    tokens: np.ndarray,
    *,
    effect: float = 1.0,
    confidence: float = CONFIDENCE,
    new_text: bool = False,
) -> float:
    """Upper confidence bound of the share of wrong tokens.

    Args:
        wrong: of each document [D].
        tokens: of each document [D].
        effect: least design effect: how many tokens vary as little as one independent one.
        new_text: bound the share in another text of this size, whose own luck counts as well,
            instead of that in all texts.
    """
    from scipy.stats import beta, norm, t

    total, documents = float(tokens.sum()), len(tokens)
    if documents < 2 or total == 0:
        return 1.0
    share = float(wrong.sum()) / total
    effect = max(effect, design_effect(wrong, tokens))
    # A variance from few documents is itself unsure.
    student = float(norm.ppf(confidence) / t.ppf(confidence, documents - 1))
    count = total / effect * student**2 / (2 if new_text else 1)
    hits = share * count
    return 1.0 if hits >= count else float(beta.ppf(confidence, hits + 1, count - hits))


def design_effect(wrong: np.ndarray, tokens: np.ndarray) -> float:
    """Variance of the share of wrong tokens, over what independent tokens would give it."""
    total, documents = float(tokens.sum()), len(tokens)
    share = float(wrong.sum()) / total
    if not 0 < share < 1 or documents < 2:
        return 1.0
    apart = float(((wrong - share * tokens) ** 2).sum()) * documents / (documents - 1)
    return apart / total / (share * (1 - share))


def calibrate(
    scores: Tensor,
    wrong: Tensor,
    document: Tensor,
    thresholds: Sequence[float],
    agreements: Sequence[float],
    confidence: float = CONFIDENCE,
) -> list[Level]:
    """For every agreement the loosest threshold that the fixed sequence reaches.

    Args:
        scores: float [probes, n].
        wrong: bool [probes, n]: leaving there gives another token than the full model's.
        document: int [n].
        thresholds: from strict to loose, chosen without these tokens.
    """
    _, numbers = np.unique(document.numpy(), return_inverse=True)
    tokens = np.bincount(numbers).astype(float)
    found = [outcome(scores, wrong, each) for each in thresholds]
    misses = [np.bincount(numbers, each.wrong.numpy().astype(float)) for each in found]
    effects = [design_effect(each, tokens) for each in misses if each.sum() >= _ENOUGH]
    effect = max([1.0, *effects])
    bounds: list[float] = []
    levels = []
    for agreement in agreements:
        reached = -1
        for index in range(len(thresholds)):
            if index == len(bounds):
                bounds.append(
                    upper_bound(
                        misses[index], tokens, effect=effect, confidence=confidence, new_text=True
                    )
                )
            if bounds[index] > 1 - agreement:
                break
            reached = index
        if reached < 0:
            levels.append(Level(agreement, float("inf"), 1.0, 1.0, 0.0))
            continue
        here = found[reached]
        exits = float((here.left_at < len(scores)).float().mean())
        seen = 1 - float(here.wrong.float().mean())
        levels.append(Level(agreement, thresholds[reached], seen, 1 - bounds[reached], exits))
    return levels
