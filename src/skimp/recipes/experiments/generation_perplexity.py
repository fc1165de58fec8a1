"""`generation_perplexity`: how well a plan foresees given answers, token by token, as it decodes.

The prompt is read in one pass, which is where experts are chosen; the answer is fed one token at a
time through the cache. An answer's first token is left out, for the prompt alone predicts it.
"""

from __future__ import annotations

from dataclasses import dataclass

from skimp.measure.answers import losses
from skimp.measure.metrics import Metric
from skimp.recipes.experiments.prompted import Asked, PromptedKind, ask
from skimp.recipes.outcome import Outcome
from skimp.recipes.sources import Place, Texts
from skimp.recipes.stage import Stage


@dataclass(frozen=True)
class Foreseen(Asked):
    """Answers to be foreseen."""

    def measure(self, plan: str) -> Outcome:
        """Perplexity over all answers; a score is one answer's log-likelihood in nats."""
        pairs = [(item.prompt, item.answer) for item in self.asked.found]
        found = losses(self.stage.engine(plan), pairs, progress=self.stage.progress)
        weights = tuple(float(len(answer) - 1) for _, answer in pairs)
        scores = tuple(-loss for loss in found)
        return Outcome({"perplexity": Metric("weighted_perplexity", False, scores, weights)})


class GenerationPerplexityKind(PromptedKind):
    """See the module."""

    name = "generation_perplexity"
    settings = Texts
    titles = {"perplexity": "perplexity"}

    def prepare(self, settings: Texts, place: Place, stage: Stage) -> Foreseen:
        """See :class:`skimp.recipes.experiments.base.Kind`."""
        return Foreseen(settings, ask(settings, place, stage), stage)


KIND = GenerationPerplexityKind()
