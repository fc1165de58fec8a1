"""Calibration text: the user's own, or text that the dense model writes itself.

By default these are a bundled, varied set of prompts and passages (written for skimp), the short
ones continued by the model, so that no data set is needed and no single kind of text is favoured.
Sampling is seeded and takes the model's distribution as it is: text cut to the likely tokens never
surprises, and hides what is lost when a model can no longer follow an unusual text (docs/log.md).
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from skimp.errors import CalibrationError
from skimp.models.some_logits import last_only
from skimp.progress import SILENT, Progress

WINDOW = 256
LEAST_TOKENS = 512


@dataclass(frozen=True)
class Prompt:
    """A bundled prompt; `kind` "chat" is put into the model's chat template where it has one."""

    kind: str
    text: str


@dataclass(frozen=True)
class Sampling:
    """How self-written text is sampled: prompts of at most `longest` tokens are continued."""

    new_tokens: int = 48
    longest: int = 64
    temperature: float = 1.0
    batch: int = 128


@dataclass(frozen=True)
class Calibration:
    """Token documents (each [S], int64), their kinds, where they come from, and their seed."""

    documents: tuple[Tensor, ...]
    kinds: tuple[str, ...]
    source: str
    seed: int = 0

    @property
    def tokens(self) -> int:
        return sum(len(document) for document in self.documents)

    def sample(
        self, tokens: int, seed: int, *, longest: int | None = None, skip: int = 0
    ) -> list[Tensor]:
        """About `tokens` tokens: documents, or their first `longest`, of every kind in turn.

        The order depends on the seed alone; `skip` leaves out the first so many of it.
        """
        shelves: dict[str, list[Tensor]] = {}
        for kind, document in zip(self.kinds, self.documents, strict=True):
            shelves.setdefault(kind, []).append(document)
        shuffle = random.Random(seed)
        for shelf in shelves.values():
            shuffle.shuffle(shelf)
        taken: list[Tensor] = []
        while any(shelves.values()):
            for shelf in filter(None, shelves.values()):
                if sum(map(len, taken[skip:])) >= tokens:
                    return taken[skip:]
                taken.append(shelf.pop()[:longest])
        return taken[skip:]

    def to_dict(self) -> dict[str, Any]:
        return {
            "documents": len(self.documents),
            "tokens": self.tokens,
            "source": self.source,
            "seed": self.seed,
        }


@cache
def bundled_prompts() -> tuple[Prompt, ...]:
    """The prompts that come with skimp."""
    text = files("skimp.calibration").joinpath("prompts.jsonl").read_text(encoding="utf-8")
    return tuple(Prompt(**json.loads(line)) for line in text.splitlines())


def bundled_tokens(tokenizer: Any) -> Tensor:
    """The prompts one after the other as tokens [N], as a model of this tokenizer reads them."""
    return torch.cat(bundled_documents(tokenizer))


def bundled_documents(tokenizer: Any) -> list[Tensor]:
    """The prompts as tokens, each [S], as a model of this tokenizer reads them."""
    return [_encode(prompt, tokenizer) for prompt in bundled_prompts()]


def calibrate(
    model: nn.Module,
    tokenizer: Any,
    *,
    text: str | Path | None = None,
    seed: int = 0,
    sampling: Sampling | None = None,
    progress: Progress = SILENT,
) -> Calibration:
    """Calibration text for `model`: the file `text`, or text that the model writes itself.

    Args:
        model: the dense causal language model.
        tokenizer: its tokenizer.
        text: a UTF-8 text file; cut into windows of 256 tokens.
        seed: of the sampling.
        sampling: how self-written text is sampled.
        progress: told about every batch written.

    Raises:
        CalibrationError: no tokenizer, or a file that is missing, unreadable or too short.
    """
    if tokenizer is None:
        raise CalibrationError(
            "calibration: this model has no tokenizer, so it can neither read nor write text; "
            "use the rule `last` with --fill zero, which need none."
        )
    if text is not None:
        return _from_file(Path(text), tokenizer, seed)
    return _self_written(model, tokenizer, seed, sampling or Sampling(), progress)


def _from_file(path: Path, tokenizer: Any, seed: int) -> Calibration:
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CalibrationError(f"{path}: cannot be read as UTF-8 text ({error}).") from None
    ids = tokenizer(content, return_tensors="pt", verbose=False).input_ids[0]
    if len(ids) < LEAST_TOKENS:
        raise CalibrationError(
            f"{path}: holds {len(ids)} tokens, but calibration needs at least {LEAST_TOKENS}."
        )
    windows = tuple(ids.split(WINDOW))
    return Calibration(windows, (path.name,) * len(windows), path.name, seed)


def _self_written(
    model: nn.Module, tokenizer: Any, seed: int, sampling: Sampling, progress: Progress
) -> Calibration:
    prompts = bundled_documents(tokenizer)
    documents = dict(enumerate(prompts))
    short = [index for index, prompt in documents.items() if len(prompt) <= sampling.longest]
    short.sort(key=lambda index: len(prompts[index]))
    groups = [short[i : i + sampling.batch] for i in range(0, len(short), sampling.batch)]
    device = next(model.parameters()).device
    devices = [device] if device.type == "cuda" else []
    with (
        progress.task("writing calibration text", len(groups)) as step,
        torch.random.fork_rng(devices=devices),
    ):
        torch.manual_seed(seed)
        for group in groups:
            written = _continue(model, tokenizer, [prompts[i] for i in group], sampling)
            documents.update(zip(group, written, strict=True))
            step()
    ordered = tuple(documents[index] for index in range(len(prompts)))
    kinds = tuple(prompt.kind for prompt in bundled_prompts())
    source = f"self-written after {len(prompts)} bundled prompts"
    return Calibration(ordered, kinds, source, seed)


def _encode(prompt: Prompt, tokenizer: Any) -> Tensor:
    text = prompt.text
    if prompt.kind == "chat" and getattr(tokenizer, "chat_template", None):
        turns = [{"role": "user", "content": text}]
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids[0]
    return tokenizer(text, return_tensors="pt").input_ids[0]


@torch.no_grad()
def _continue(
    model: Any, tokenizer: Any, prompts: Sequence[Tensor], sampling: Sampling
) -> list[Tensor]:
    """Prompts with their continuations; what follows an end-of-text token is cut."""
    width = max(len(prompt) for prompt in prompts)
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = prompt
        mask[row, width - len(prompt) :] = 1
    device = next(model.parameters()).device
    ends = _end_tokens(model, tokenizer)
    output = model.generate(
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        max_new_tokens=sampling.new_tokens,
        do_sample=True,
        temperature=sampling.temperature,
        top_p=1.0,
        top_k=0,
        eos_token_id=ends or None,
        pad_token_id=ends[0] if ends else 0,
        **last_only(model, 0, device),
    ).cpu()
    return [
        torch.cat([prompt, _until_end(row[width:], ends)])
        for prompt, row in zip(prompts, output, strict=True)
    ]


def _end_tokens(model: Any, tokenizer: Any) -> list[int]:
    found = getattr(model.generation_config, "eos_token_id", None)
    found = tokenizer.eos_token_id if found is None else found
    return [] if found is None else ([found] if isinstance(found, int) else list(found))


def _until_end(tokens: Tensor, ends: Sequence[int]) -> Tensor:
    hits = torch.isin(tokens, torch.tensor(ends, dtype=torch.long)).nonzero()
    return tokens[: int(hits[0])] if len(hits) else tokens
