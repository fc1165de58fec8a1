"""A sequence's answer as it comes: which tokens belong to it, what ends it, and its text."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from skimp.engine.pieces import Pieces
from skimp.engine.stopping import StopStrings
from skimp.errors import RequestError

Ending = Literal["end", "stop", "length", "context"]


@dataclass
class Answer:
    """What one prompt was continued with.

    `ended`: an end-of-text token ("end", not among the tokens), a stop string ("stop", not in the
    text), as many tokens as were asked for ("length"), or a full context. `text` is None without a
    tokenizer.
    """

    tokens: list[int] = field(default_factory=list)
    text: str | None = None
    ended: Ending = "length"


class Row:
    """One sequence on its way: from tokens to its answer, by what ends it.

    `ends`: tokens that end a text. `stop`: strings that do, which need the tokenizer.

    Raises:
        RequestError: stop strings without a tokenizer, or one that is empty.
    """

    def __init__(self, ends: Collection[int], tokenizer: Any, stop: Sequence[str]) -> None:
        if stop and tokenizer is None:
            raise RequestError("stop: strings can only be found in text; give a tokenizer too.")
        self.answer = Answer()
        self.ended = False
        self._ends = ends
        self._pieces = None if tokenizer is None else Pieces(tokenizer)
        self._stops = StopStrings(stop)
        self._text: list[str] = []

    def add(self, token: int) -> tuple[int | None, str | None]:
        """The token, if it belongs to the answer, and the text that is certain after it."""
        if self.ended:
            return None, None
        if token in self._ends:
            return None, self.close("end")
        self.answer.tokens.append(token)
        if self._pieces is None:
            return token, None
        piece = self._stops.add(self._pieces.add(token))
        self._text.append(piece)
        if self._stops.stopped is not None:
            self.close("stop")
        return token, piece

    def close(self, ending: Ending) -> str | None:
        """End the sequence, if it has not; the text that was held back."""
        if self.ended:
            return None
        self.ended = True
        self.answer.ended = ending
        if self._pieces is None:
            return None
        rest = ""
        if ending != "stop":
            rest = self._stops.add(self._pieces.rest()) + self._stops.rest()
            if self._stops.stopped is not None:
                self.answer.ended = "stop"
        self._text.append(rest)
        self.answer.text = "".join(self._text)
        return rest
