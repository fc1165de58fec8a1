"""`fidelity`: how far a plan moves predictions while the dense model's own answers are decoded.

The dense model continues every prompt greedily; then both predict those answers token by token, but
for the first token of each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from skimp.errors import RecipeError
from skimp.measure.answers import on_answers
from skimp.measure.fidelity import Fidelity
from skimp.recipes.experiments.prompted import Asked, PromptedKind, ask
from skimp.recipes.outcome import Figure, Outcome
from skimp.recipes.recipe import DENSE
from skimp.recipes.sources import Place, Texts
from skimp.recipes.stage import Stage


@dataclass(frozen=True)
class Followed(Asked):
    """Prompts, and the dense model's answers once they are written."""

    place: Place
    pairs: list[tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)

    def measure(self, plan: str) -> Outcome:
        """KL, agreement and perplexity against dense, with intervals over answers."""
        dense, progress = self.stage.engine(DENSE), self.stage.progress
        if not self.pairs:
            self._answer()
        engines = {plan: self.stage.engine(plan)}
        found = on_answers(dense, engines, self.pairs, progress=progress)[plan]
        return Outcome(figures=_figures(found), details={"fidelity": found.to_dict()})

    def _answer(self) -> None:
        dense = self.stage.engine(DENSE)
        with self.stage.progress.task("The dense model's answers", self.items) as step:
            found = []
            for item in self.asked.found:
                (answer,) = dense.generate([item.prompt], self.texts.new_tokens)
                found.append((item.prompt, tuple(answer.tokens)))
                step()
        self.pairs.extend(pair for pair in found if len(pair[1]) > 1)
        if not self.pairs:
            raise RecipeError(f"{self.place.where}: the model ends every answer at once.")


def _figures(found: Fidelity) -> dict[str, Figure]:
    low, high = found.loss_interval
    ratio = (_exp(low), _exp(high))
    return {
        "kl": Figure(found.kl, found.kl_interval, False),
        "top1_agreement": Figure(found.top1_agreement, None, True),
        "perplexity_ratio": Figure(_exp(found.loss_difference), ratio, False),
    }


def _exp(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf


class FidelityKind(PromptedKind):
    """See the module."""

    name = "fidelity"
    settings = Texts
    titles = {
        "kl": "KL from dense, nats/token",
        "top1_agreement": "same likeliest token",
        "perplexity_ratio": "perplexity / dense's",
    }
    beside_dense = True

    def prepare(self, settings: Texts, place: Place, stage: Stage) -> Followed:
        """See :class:`skimp.recipes.experiments.base.Kind`."""
        return Followed(settings, ask(settings, place, stage), stage, place)


KIND = FidelityKind()
