"""Answers in OpenAI's shapes: whole, and in chunks of a stream."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from skimp.serve.jobs import Told
from skimp.serve.texts import Texts

_LEAST_LOGPROB = -9999.0  # JSON knows no infinity; OpenAI's clients know this for it


@dataclass
class Choice:
    """What has come so far of one answer. Times are of `time.perf_counter`."""

    index: int
    side: str
    echo: str = ""
    text: list[str] = field(default_factory=list)
    told: list[Told] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    tokens: int = 0
    shown: int = 0
    first: float | None = None
    last: float | None = None
    ended: str | None = None

    @property
    def finish(self) -> str | None:
        """Why it ended, in OpenAI's words."""
        if self.ended is None:
            return None
        return "stop" if self.ended in ("end", "stop") else "length"


class Shape(Protocol):
    """One of OpenAI's ways to write an answer."""

    def opening(self, choice: Choice) -> list[dict[str, Any]]:
        """Chunks before the first token of a choice."""
        ...

    def piece(self, choice: Choice, told: Told) -> dict[str, Any]:
        """The chunk of one event."""
        ...

    def closing(self, choice: Choice) -> dict[str, Any]:
        """The chunk that ends a choice."""
        ...

    def usage(self) -> dict[str, Any]:
        """The chunk without choices, which the usage is put into."""
        ...

    def whole(self, choices: Iterable[Choice]) -> dict[str, Any]:
        """The answer in one piece."""
        ...


class _Shape:
    """What completions and chats share."""

    prefix, whole_name, chunk_name = "", "", ""

    def __init__(self, model: str, texts: Texts, *, logprobs: bool) -> None:
        self._id = f"{self.prefix}-{secrets.token_hex(12)}"
        self._created = int(time.time())
        self._model, self._texts, self._logprobs = model, texts, logprobs

    def _document(self, name: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": name,
            "created": self._created,
            "model": self._model,
            "choices": choices,
        }

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        return self._document(self.chunk_name, [choice])

    def usage(self) -> dict[str, Any]:
        return self._document(self.chunk_name, [])


class CompletionShape(_Shape):
    """`text_completion`."""

    prefix, whole_name, chunk_name = "cmpl", "text_completion", "text_completion"

    def opening(self, choice: Choice) -> list[dict[str, Any]]:
        return [self._chunk(self._choice(choice, choice.echo, None))] if choice.echo else []

    def piece(self, choice: Choice, told: Told) -> dict[str, Any]:
        return self._chunk(self._choice(choice, told.text, None, self._figures(choice, [told])))

    def closing(self, choice: Choice) -> dict[str, Any]:
        return self._chunk(self._choice(choice, "", choice.finish))

    def whole(self, choices: Iterable[Choice]) -> dict[str, Any]:
        found = [
            self._choice(
                choice,
                choice.echo + "".join(choice.text),
                choice.finish,
                self._figures(choice, choice.told),
            )
            for choice in choices
        ]
        return self._document(self.whole_name, found)

    def _choice(
        self, choice: Choice, text: str, finish: str | None, figures: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        return {
            "index": choice.index,
            "text": text,
            "logprobs": figures,
            "finish_reason": finish,
        }

    def _figures(self, choice: Choice, told: list[Told]) -> dict[str, Any] | None:
        """Tokens with their logprobs; offsets are into the text that the tokens make up."""
        if not self._logprobs:
            return None
        told = [one for one in told if one.token is not None]
        found: dict[str, Any] = {
            "tokens": [],
            "token_logprobs": [],
            "top_logprobs": [],
            "text_offset": [],
        }
        for one in told:
            assert one.token is not None
            found["tokens"].append(self._texts.named(one.token))
            found["token_logprobs"].append(_finite(one.logprob))
            # The emitted token is always among them, as OpenAI has it.
            pairs = [*one.top, (one.token, one.logprob)]
            names = {self._texts.named(token): _finite(value) for token, value in pairs}
            found["top_logprobs"].append(names)
            found["text_offset"].append(choice.shown)
            choice.shown += len(self._texts.shown(one.token))
        return found


class ChatShape(_Shape):
    """`chat.completion` and its chunks."""

    prefix, whole_name, chunk_name = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def opening(self, choice: Choice) -> list[dict[str, Any]]:
        return [self._chunk(self._choice(choice, {"role": "assistant", "content": ""}))]

    def piece(self, choice: Choice, told: Told) -> dict[str, Any]:
        figures = self._figures([told])
        return self._chunk(self._choice(choice, {"content": told.text}, None, figures))

    def closing(self, choice: Choice) -> dict[str, Any]:
        return self._chunk(self._choice(choice, {}, choice.finish))

    def whole(self, choices: Iterable[Choice]) -> dict[str, Any]:
        found = [
            {
                "index": choice.index,
                "message": {
                    "role": "assistant",
                    "content": "".join(choice.text),
                    "refusal": None,
                },
                "logprobs": self._figures(choice.told),
                "finish_reason": choice.finish,
            }
            for choice in choices
        ]
        return self._document(self.whole_name, found)

    def _choice(
        self,
        choice: Choice,
        delta: dict[str, Any],
        finish: str | None = None,
        figures: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        return {
            "index": choice.index,
            "delta": delta,
            "logprobs": figures,
            "finish_reason": finish,
        }

    def _figures(self, told: list[Told]) -> dict[str, Any] | None:
        if not self._logprobs:
            return None
        content = [
            {
                **self._entry(one.token, one.logprob),
                "top_logprobs": [self._entry(token, value) for token, value in one.top],
            }
            for one in told
            if one.token is not None
        ]
        return {"content": content, "refusal": None}

    def _entry(self, token: int, logprob: float | None) -> dict[str, Any]:
        return {
            "token": self._texts.shown(token),
            "logprob": _finite(logprob),
            "bytes": list(self._texts.bytes_of(token)),
        }


def _finite(logprob: float | None) -> float:
    if logprob is None or not logprob > _LEAST_LOGPROB:
        return _LEAST_LOGPROB
    return logprob
