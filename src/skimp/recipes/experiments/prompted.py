"""What the kinds that read prompts and answers share."""

from __future__ import annotations

from dataclasses import dataclass

from skimp.recipes.outcome import Cell, Outcome, compare
from skimp.recipes.sources import Items, Place, Texts, check, read_items
from skimp.recipes.stage import Stage


@dataclass(frozen=True)
class Asked:
    """Items of a file for one stage."""

    texts: Texts
    asked: Items
    stage: Stage

    @property
    def digest(self) -> str:
        return self.asked.digest

    @property
    def items(self) -> int:
        return len(self.asked.found)

    @property
    def skipped(self) -> int:
        return self.asked.skipped

    @property
    def words(self) -> str:
        longest = max(len(item.prompt) for item in self.asked.found)
        return f"prompts of up to {longest:,} tokens, answers of up to {self.texts.new_tokens}"


class PromptedKind:
    """A kind whose settings are :class:`Texts`, or more."""

    places = ("file", "prompt", "answer")
    beside_dense = False

    def check(self, settings: Texts, place: Place) -> None:
        """See :class:`skimp.recipes.experiments.base.Kind`."""
        check(settings, place)

    def compare(self, dense: Outcome | None, planned: Outcome, seed: int) -> dict[str, Cell]:
        return compare(dense, planned, seed)


def ask(settings: Texts, place: Place, stage: Stage) -> Items:
    """The items of the settings' file."""
    return read_items(settings, place, stage.tokenizer, stage.anatomy.context_length)
