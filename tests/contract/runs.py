"""Ways to run a model that must all give the same logits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tests.families import VOCABULARY
from torch import Tensor, nn
from transformers import StaticCache

PAD = 0


@dataclass(frozen=True)
class Batch:
    """Left-padded sequences, with masks and positions as `generate` makes them."""

    ids: Tensor
    mask: Tensor
    positions: Tensor

    @property
    def length(self) -> int:
        return self.ids.shape[1]

    def real(self, logits: Tensor) -> Tensor:
        """The logits [tokens, V] of the tokens that are no padding."""
        return logits[self.mask.bool()]

    def part(self, start: int, stop: int) -> dict[str, Tensor]:
        return {
            "input_ids": self.ids[:, start:stop],
            "attention_mask": self.mask[:, :stop],
            "position_ids": self.positions[:, start:stop],
        }

    def longer(self, token: Tensor) -> "Batch":
        """With one more token [B] each."""
        return _batch(
            torch.cat([self.ids, token[:, None]], 1),
            torch.cat([self.mask, torch.ones_like(token)[:, None]], 1),
        )


def make_batch(lengths: Sequence[int], seed: int = 0) -> Batch:
    """Random sequences of these lengths, padded on the left to the longest."""
    random = torch.Generator().manual_seed(seed)
    total = max(lengths)
    ids = torch.randint(3, VOCABULARY, (len(lengths), total), generator=random)
    mask = torch.stack([torch.arange(total) >= total - length for length in lengths]).long()
    return _batch(ids.masked_fill(mask == 0, PAD), mask)


def _batch(ids: Tensor, mask: Tensor) -> Batch:
    return Batch(ids, mask, (mask.cumsum(-1) - 1).masked_fill(mask == 0, 0))


@torch.no_grad()
def uncached(model: nn.Module, batch: Batch) -> Tensor:
    """Logits [tokens, V] of one pass without a cache."""
    return batch.real(model(**batch.part(0, batch.length), use_cache=False).logits)


@torch.no_grad()
def cached(model: nn.Module, batch: Batch, chunks: Sequence[int], cache: Any = None) -> Tensor:
    """Logits [tokens, V] of one pass a chunk; tokens beyond the chunks are decoded singly."""
    sizes = [*chunks, *[1] * (batch.length - sum(chunks))]
    found, start = [], 0
    for size in sizes:
        output = model(**batch.part(start, start + size), past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        found.append(output.logits)
        start += size
    return batch.real(torch.cat(found, 1))


def static_cache(model: nn.Module, batch: Batch) -> StaticCache:
    return StaticCache(config=model.config, max_cache_len=batch.length)


@torch.no_grad()
def greedy_uncached(model: nn.Module, batch: Batch, new: int) -> Tensor:
    """Greedy tokens [B, new] of a loop that recomputes everything at each step."""
    start = batch.length
    for _ in range(new):
        logits = model(**batch.part(0, batch.length), use_cache=False).logits
        batch = batch.longer(logits[:, -1].argmax(-1))
    return batch.ids[:, start:]


@torch.no_grad()
def greedy_generate(model: nn.Module, batch: Batch, new: int, **options: Any) -> Tensor:
    """Greedy tokens [B, new] of transformers' own loop."""
    found = model.generate(
        batch.ids, attention_mask=batch.mask, max_new_tokens=new, do_sample=False, **options
    )
    return found[:, batch.length :]


def assert_close(
    found: Tensor, wanted: Tensor, tolerance: float = 1e-5, name: str = "the logits"
) -> None:
    """Equal up to float32 rounding at the logits' own scale."""
    scale = max(1.0, wanted.abs().max().item())
    difference = (found - wanted).abs().max().item()
    assert difference <= tolerance * scale, f"{name}: {difference:.2e} apart at scale {scale:.1f}"
