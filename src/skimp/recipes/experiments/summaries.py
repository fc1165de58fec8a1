"""`summaries`: continue each prompt and compare what is written with a reference, by ROUGE.

ROUGE-1, -2 and -L (Lin, 2004) are F-measures between 0 and 1 of stemmed words, computed by
Google's rouge_score. The experts of a plan are chosen while a prompt is read, as in use.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from skimp.engine.sampling import Sampling
from skimp.errors import RecipeError
from skimp.measure.metrics import Metric
from skimp.recipes.experiments.prompted import Asked, PromptedKind, ask
from skimp.recipes.outcome import Outcome
from skimp.recipes.sources import LINES, Place, Texts
from skimp.recipes.stage import Stage

_ROUGES = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}


@dataclass(frozen=True, kw_only=True)
class Summaries(Texts):
    """`stop`: strings that end an answer. `temperature`: of the draws; 0 takes the likeliest."""

    stop: tuple[str, ...] = ()
    temperature: Annotated[float, Field(ge=0)] = 0.0


@dataclass(frozen=True)
class Written(Asked):
    """Prompts to be continued, one at a time: in a batch bf16 rounds otherwise, and an answer can
    take another turn."""

    texts: Summaries

    def measure(self, plan: str) -> Outcome:
        """ROUGE of every answer, and the answers themselves."""
        scorer = _scorer()
        engine, tokenizer = self.stage.engine(plan), self.stage.tokenizer
        scores: dict[str, list[float]] = {name: [] for name in _ROUGES}
        answers: list[dict[str, Any]] = []
        with self.stage.progress.task("Writing answers", self.items) as step:
            for item in self.asked.found:
                (answer,) = engine.generate(
                    [item.prompt],
                    self.texts.new_tokens,
                    sampling=Sampling(
                        temperature=self.texts.temperature, seed=self.stage.seed + item.number
                    ),
                    stop=self.texts.stop,
                    tokenizer=tokenizer,
                )
                text = (answer.text or "").strip()
                found = scorer.score(item.reference, text)
                for name in _ROUGES:
                    scores[name].append(float(found[name].fmeasure))
                answers.append({"line": item.number, "text": text, "ended": answer.ended})
                step()
        ones = (1.0,) * self.items
        metrics = {name: Metric("mean", True, tuple(s), ones) for name, s in scores.items()}
        return Outcome(metrics, details={"answers": answers})


class SummariesKind(PromptedKind):
    """See the module."""

    name = "summaries"
    settings = Summaries
    titles = _ROUGES

    def check(self, settings: Summaries, place: Place) -> None:
        """See :class:`skimp.recipes.experiments.base.Kind`."""
        if not settings.lines:
            raise RecipeError(
                f"{place.where}.file: {settings.file} must hold JSON lines ({LINES}), for every "
                "prompt needs a reference."
            )
        super().check(settings, place)
        _scorer()

    def prepare(self, settings: Summaries, place: Place, stage: Stage) -> Written:
        """See :class:`skimp.recipes.experiments.base.Kind`."""
        return Written(settings, ask(settings, place, stage), stage)


def _scorer() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise RecipeError(
            "rouge_score is not installed, and summaries are compared with it; install it with: "
            'pip install "skimp[eval]".'
        ) from None
    return RougeScorer(list(_ROUGES), use_stemmer=True)


KIND = SummariesKind()
