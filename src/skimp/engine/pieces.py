"""Tokens turned into text as they come, without tearing it."""

from __future__ import annotations

from typing import Any

_TORN = "\ufffd"  # what a decoder shows for the first bytes of a character


class Pieces:
    """Turns token ids into pieces of text that join to the text of the whole.

    A tokenizer's decoder looks at neighbours (spaces, bytes of one character), so a token is
    decoded together with those before it, and what is new is given out once it is whole. Special
    tokens have no text.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._start = 0
        self._given = 0

    def add(self, token: int) -> str:
        """The text that is certain after this token; often the token's own, sometimes empty."""
        self._ids.append(token)
        before, now = self._texts()
        if now.endswith(_TORN) or len(now) <= len(before):
            return ""
        self._start, self._given = self._given, len(self._ids)
        return now[len(before) :]

    def rest(self) -> str:
        """What was held back, at the end of the text; nothing more the second time."""
        before, now = self._texts()
        self._start, self._given = self._given, len(self._ids)
        return now[len(before) :]

    def _texts(self) -> tuple[str, str]:
        return self._decode(self._ids[self._start : self._given]), self._decode(
            self._ids[self._start :]
        )

    def _decode(self, ids: list[int]) -> str:
        if not ids:
            return ""
        # Cleaning up would move spaces in text that is already given out.
        return self._tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
