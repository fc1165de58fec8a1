"""Make an FF narrower for good: the neurons that calibration text needs (`scope: calibrated`)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from skimp.calibration.replay import Replay
from skimp.errors import PlanError
from skimp.finder.choices import Choice, Thinning, thinnable
from skimp.methods.experts.fit import calibrated_scores
from skimp.methods.experts.repair import check_repairable
from skimp.methods.experts.section import Experts
from skimp.models.anatomy import Anatomy
from skimp.progress import Progress

SHARES = (0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.375, 0.25)


def at_shares(name: str, model: nn.Module, anatomy: Anatomy) -> list[Choice]:
    """Choices of the offer `name`: every FF whose neurons can be told apart, at every share."""
    return [
        Choice(layer, "ffn", name, str(share))
        for layer in thinnable(model, anatomy)
        for share in SHARES
    ]


def keep_of(choices: Sequence[Choice], anatomy: Anatomy) -> list[float]:
    """The share kept of every layer of the dense model."""
    shares = {choice.layer: float(choice.level) for choice in choices}
    return [shares.get(layer, 1.0) for layer in range(anatomy.dense_layers)]


class NarrowOffer:
    """FFs with fewer neurons, the same for all prompts, their output maps refitted."""

    name = "narrow"
    group = "calibrated"
    acts_on = "neurons"

    def choices(self, model: nn.Module, anatomy: Anatomy) -> list[Choice]:
        return at_shares(self.name, model, anatomy)

    def prepare(
        self, replay: Replay, anatomy: Anatomy, choices: Sequence[Choice], progress: Progress
    ) -> dict[int, Tensor]:
        """Each layer's neurons [F], the least needed first."""
        scores = calibrated_scores(replay, progress)
        return {layer: score.argsort() for layer, score in scores.items()}

    def thinning(
        self, choices: Sequence[Choice], z: Tensor, prompt: int, prepared: Mapping[int, Tensor]
    ) -> Thinning:
        order = prepared[choices[0].layer]
        width = len(order)
        rank = torch.empty_like(order)
        rank[order] = torch.arange(width, device=order.device)
        lost = [
            width - Experts(keep=float(choice.level)).count(choice.layer, width)
            for choice in choices
        ]
        gone = rank[:, None] < torch.tensor(lost, device=order.device)
        return Thinning(gone[None])

    def sections(self, choices: Sequence[Choice], anatomy: Anatomy) -> dict[str, dict[str, Any]]:
        section: dict[str, Any] = {"keep": keep_of(choices, anatomy), "scope": "calibrated"}
        try:
            check_repairable(anatomy)
            section["repair"] = "full"
        except PlanError:
            pass
        return {"experts": section}


OFFER = NarrowOffer()
