"""Let each prompt pick the FF neurons that its answer keeps (GRIFFIN, Dong et al., 2024)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from skimp.calibration.replay import Replay
from skimp.finder.choices import Choice, Thinning
from skimp.finder.offers.narrow import at_shares, keep_of
from skimp.methods.experts.fit import calibrated_scores
from skimp.methods.experts.section import Experts
from skimp.methods.experts.select import choose, left_out
from skimp.methods.experts.statistic import squares, totals
from skimp.models.anatomy import Anatomy
from skimp.progress import Progress

PRIOR = 0.5  # docs/log.md


class ExpertsOffer:
    """FFs whose answers keep the neurons that their prompts needed most."""

    name = "experts"
    group = "prompt"
    acts_on = "neurons"

    def choices(self, model: nn.Module, anatomy: Anatomy) -> list[Choice]:
        return at_shares(self.name, model, anatomy)

    def prepare(
        self, replay: Replay, anatomy: Anatomy, choices: Sequence[Choice], progress: Progress
    ) -> dict[int, Tensor]:
        return calibrated_scores(replay, progress)

    def thinning(
        self, choices: Sequence[Choice], z: Tensor, prompt: int, prepared: Mapping[int, Tensor]
    ) -> Thinning:
        batch, _, width = z.shape
        said = z[:, :prompt]
        sums, counts = squares(said), torch.full((batch,), prompt, device=z.device)
        layer = choices[0].layer
        gone = []
        for choice in choices:
            section = Experts(keep=float(choice.level), prior=PRIOR)
            kept = choose(
                sums, counts, section.count(layer, width), section, layer, prior=prepared[layer]
            )
            gone.append(left_out(kept, torch.ones_like(sums)).bool())
        return Thinning(torch.stack(gone, 2), totals(said) / prompt, prompt)

    def sections(self, choices: Sequence[Choice], anatomy: Anatomy) -> dict[str, dict[str, Any]]:
        return {
            "experts": {"keep": keep_of(choices, anatomy), "prior": PRIOR, "fill": "mean"},
        }


OFFER = ExpertsOffer()
