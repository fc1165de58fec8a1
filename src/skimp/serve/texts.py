"""Between text and tokens: prompts on their way in, single tokens on their way out."""

from __future__ import annotations

import asyncio
import copy
import re
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

from skimp.serve.faults import bad
from skimp.serve.messages import chat_text
from skimp.serve.protocol import Ask

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "▁"  # how SentencePiece writes one
_TORN = "\ufffd"


class Texts:
    """Turns requests into token ids, and token ids into what `logprobs` shows of them.

    It has a tokenizer and a thread of its own: long prompts must not keep other answers waiting,
    and a fast tokenizer that two threads change the settings of fails.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = copy.deepcopy(tokenizer)
        self._thread = ThreadPoolExecutor(1, "skimp-texts")

    @property
    def chat(self) -> bool:
        """Whether the model has a chat template."""
        return bool(getattr(self._tokenizer, "chat_template", None))

    async def prompts(self, ask: Ask) -> list[tuple[int, ...]]:
        """The token ids of each of a request's prompts; Fault if one has none."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._prompts, ask)

    def _prompts(self, ask: Ask) -> list[tuple[int, ...]]:
        if ask.chat:
            text = chat_text(self._tokenizer, ask.messages)
            # The template has written the special tokens already.
            return [self._ids(text, "messages", add_special_tokens=False)]
        return [
            self._ids(prompt, "prompt") if isinstance(prompt, str) else prompt
            for prompt in ask.prompts
        ]

    def _ids(self, text: str, name: str, **options: Any) -> tuple[int, ...]:
        ids = tuple(self._tokenizer(text, **options)["input_ids"])
        if not ids:
            raise bad(name, "the tokenizer makes no token of it; give other text.")
        return ids

    def text(self, ids: tuple[int, ...]) -> str:
        """The text of a prompt that was given as token ids."""
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def bytes_of(self, token: int) -> bytes:
        """What one token stands for; several of them may make up one character."""
        raw = self._tokenizer.convert_ids_to_tokens(token)
        if raw is None:  # the model has more tokens than the tokenizer
            return b""
        found = _BYTE.fullmatch(raw)
        if found:
            return bytes([int(found[1], 16)])
        if self._byte_level and token not in self._special:
            letters = [self._letters.get(letter) for letter in raw]
            if None not in letters:
                return bytes(letter for letter in letters if letter is not None)
        if _SPACE in raw:
            return raw.replace(_SPACE, " ").encode()
        return self._tokenizer.decode([token], skip_special_tokens=False).encode()

    def shown(self, token: int) -> str:
        """A token as text, for people; part of a character shows as a replacement character."""
        return self.bytes_of(token).decode("utf-8", "replace")

    def named(self, token: int) -> str:
        """As `shown`, but no two tokens share a name: part of a character is its bytes."""
        text = self.shown(token)
        if _TORN not in text:
            return text
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in self.bytes_of(token))

    @cached_property
    def _special(self) -> frozenset[int]:
        return frozenset(self._tokenizer.all_special_ids)

    @cached_property
    def _byte_level(self) -> bool:
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        return backend is not None and "ByteLevel" in str(backend.decoder)

    @cached_property
    def _letters(self) -> dict[str, int]:
        """The byte behind each letter of a byte-level vocabulary (Radford et al. 2019, GPT-2).

        Printable bytes of Latin-1 stand for themselves; the others follow from U+0100 on.
        """
        own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        others = [byte for byte in range(256) if byte not in own]
        return {chr(byte): byte for byte in own} | {
            chr(0x100 + index): byte for index, byte in enumerate(others)
        }

    def close(self) -> None:
        """Let the thread go."""
        self._thread.shutdown(wait=False, cancel_futures=True)
