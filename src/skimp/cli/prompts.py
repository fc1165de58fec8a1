"""Text as it is generated: a plain decode loop, and tokens turned into text without tearing it."""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from skimp.errors import SkimpError, WorkloadError

_TORN = "\ufffd"  # what a decoder shows for the first bytes of a character


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn. Temperature 0 takes the likeliest; `top_k` 0 and `top_p` 1 keep all."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0


@dataclass
class Timing:
    """What one answer took: seconds of the prefill and of each decode step, and why it stopped."""

    prefill_s: float = 0.0
    steps: list[float] = field(default_factory=list)
    stopped: str = "length"

    @property
    def tokens_per_s(self) -> float | None:
        """Decode steps per second; None if there was none."""
        return len(self.steps) / sum(self.steps) if self.steps else None


def encode(tokenizer: Any, prompt: str, *, chat: bool | None) -> list[int]:
    """The token ids of a prompt; `chat` None wraps it if the tokenizer has a chat template.

    Raises:
        SkimpError: the prompt is empty, or there is no chat template where one is asked for.
    """
    if not prompt.strip():
        raise SkimpError("PROMPT: it is empty; give some text to continue.")
    template = getattr(tokenizer, "chat_template", None)
    if chat and not template:
        raise SkimpError("--chat: this model's tokenizer has no chat template; use --no-chat.")
    if chat or (chat is None and template):
        messages = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    else:
        ids = tokenizer(prompt)["input_ids"]
    if not ids:
        raise SkimpError("PROMPT: the tokenizer makes no token of it; give other text.")
    return list(ids)


@torch.inference_mode()
def generate(
    model: Any, ids: Sequence[int], *, new: int, sampling: Sampling, timing: Timing
) -> Iterator[int]:
    """Yield up to `new` token ids that continue `ids`, filling `timing` on the way.

    Stops after an end-of-text token, which is not yielded, or where the model's context ends.

    Raises:
        WorkloadError: the prompt leaves no room in the model's context.
    """
    context = getattr(model.config, "max_position_embeddings", None)
    if context is not None and len(ids) >= context:
        raise WorkloadError(
            f"PROMPT: its {len(ids)} tokens fill the model's context of {context}; shorten it."
        )
    room = new if context is None else min(new, context - len(ids))
    ends, device = _end_tokens(model), next(model.parameters()).device
    draws = torch.Generator(device=device).manual_seed(sampling.seed)
    # Logits of the whole prompt would take as much memory as it has tokens times the vocabulary.
    keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
    last = {"logits_to_keep": 1} if keeps else {}
    tokens, cache = torch.tensor([list(ids)], device=device), None
    for index in range(room):
        start = time.perf_counter()
        output = model(input_ids=tokens, past_key_values=cache, use_cache=True, **last)
        cache = output.past_key_values
        token = int(_draw(output.logits[0, -1], sampling, draws))
        passed = time.perf_counter() - start
        if index == 0:
            timing.prefill_s = passed
        else:
            timing.steps.append(passed)
        if token in ends:
            timing.stopped = "end"
            return
        yield token
        tokens = torch.tensor([[token]], device=device)
    timing.stopped = "length" if room == new else "context"


def _draw(logits: Tensor, sampling: Sampling, draws: torch.Generator) -> Tensor:
    if sampling.temperature == 0:
        return logits.argmax()
    scaled = logits.float() / sampling.temperature
    if 0 < sampling.top_k < len(scaled):
        least = scaled.topk(sampling.top_k).values[-1]
        scaled = scaled.masked_fill(scaled < least, -torch.inf)
    if sampling.top_p < 1:
        ordered, places = scaled.softmax(-1).sort(descending=True)
        # Keep the shortest head that reaches top_p: a token goes if those before it reach it.
        gone = places[ordered.cumsum(-1) - ordered >= sampling.top_p]
        scaled[gone] = -torch.inf
    return torch.multinomial(scaled.softmax(-1), 1, generator=draws)


def _end_tokens(model: Any) -> set[int]:
    found: set[int] = set()
    for config in (getattr(model, "generation_config", None), model.config):
        ends = getattr(config, "eos_token_id", None)
        if ends is not None:
            found.update([ends] if isinstance(ends, int) else ends)
    return found


class Pieces:
    """Turns token ids into pieces of text that join to the text of the whole.

    A tokenizer's decoder looks at neighbours (spaces, bytes of one character), so a token is
    decoded together with those before it, and what is new is given out once it is whole.
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
        """What was held back, at the end of the text."""
        before, now = self._texts()
        return now[len(before) :]

    def _texts(self) -> tuple[str, str]:
        return self._decode(self._ids[self._start : self._given]), self._decode(
            self._ids[self._start :]
        )

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True) if ids else ""
