"""The rules that turn what a probe sees into one score; a token leaves where it is high enough.

Torch runs them; how they are trained is in :mod:`.train`. A score is the log-odds that the probe's
likeliest token is the full model's, or, of the bare threshold rule, the gap.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from skimp.methods.exit.features import FEATURES
from skimp.methods.exit.section import Exit
from skimp.methods.exit.values import rule_name

_GAP = FEATURES.index("gap")


class Controller(Protocol):
    """Scores a decode step's probes in turn."""

    def score(self, index: int, seen: Tensor, before: Tensor | None) -> Tensor:
        """Score [B] of probe `index` from its features [B, F].

        `before`: the score [B] that the probe before got in this step, None at the first.
        """
        ...


class Threshold:
    """The published rule without a classifier: the gap is the score."""

    def score(self, index: int, seen: Tensor, before: Tensor | None) -> Tensor:
        del index, before
        return seen[:, _GAP]


class Linear:
    """A linear SVM for each probe, its values stretched to log-odds (Platt, 1999)."""

    def __init__(self, weights: Sequence[Tensor], biases: Sequence[float]) -> None:
        self.weights, self.biases = list(weights), list(biases)

    def score(self, index: int, seen: Tensor, before: Tensor | None) -> Tensor:
        del before
        return torch.mv(seen, self.weights[index]).add_(self.biases[index])


class Chain(Linear):
    """A linear-chain conditional random field over depth (Lafferty et al., 2001).

    Labels are whether a probe's likeliest token is the full model's. The score is the filtered
    marginal's log-odds: what the probes seen so far say. `transitions[i]` [2, 2] holds the
    log-potentials from the label of probe i - 1 (row) to that of probe i (column); nothing at 0.
    """

    def __init__(
        self,
        weights: Sequence[Tensor],
        biases: Sequence[float],
        transitions: Sequence[Sequence[Sequence[float]]],
    ) -> None:
        super().__init__(weights, biases)
        self.transitions = list(transitions)

    def score(self, index: int, seen: Tensor, before: Tensor | None) -> Tensor:
        emitted = super().score(index, seen, None)
        if before is None:
            return emitted
        (no_no, no_yes), (yes_no, yes_yes) = self.transitions[index]
        # From the log-odds of the label before; the potential of "no" there is 0.
        to_yes = torch.logaddexp(before + yes_yes, torch.full_like(before, no_yes))
        to_no = torch.logaddexp(before + yes_no, torch.full_like(before, no_no))
        return emitted + (to_yes - to_no)


def controller(section: Exit, values: Mapping[str, Tensor], device: torch.device) -> Controller:
    """The section's rule with its fitted values."""
    if section.rule == "threshold":
        return Threshold()
    weights = [values[rule_name(la, "weight")].float().to(device) for la in section.probe]
    biases = [float(values[rule_name(la, "bias")]) for la in section.probe]
    if section.rule == "svm":
        return Linear(weights, biases)
    steps = [
        values[rule_name(la, "transition")].tolist() if number else [[0.0, 0.0], [0.0, 0.0]]
        for number, la in enumerate(section.probe)
    ]
    return Chain(weights, biases, steps)
