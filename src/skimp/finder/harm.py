"""How much worse a model gets on calibration text: the harm that rules compare.

Only a sample of positions is scored, since the head is a large share of a small model's work: half
of them drawn evenly, half where far context helps the dense model most to foresee the token that
comes. What a model loses first without attention is recall over distance, and evenly drawn
positions hardly ask for it. Documents are averaged in the quadratic mean: a part that one kind of
text cannot do without is not to look cheap because the others can.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from skimp.calibration.replay import Batch, Replay, pack

Measure = Literal["kl", "loss"]
_CHUNK = 256


@dataclass(frozen=True)
class Scoring:
    """How many positions are scored, and how far the near context reaches (tokens)."""

    even: int = 300
    far: int = 300
    block: int = 24
    skip: int = 4


class Harm:
    """KL to the dense model, or loss, in nats per token at the scored positions.

    KL is averaged over a document's positions, then over documents in the quadratic mean; loss is
    averaged plainly.

    Args:
        replay: of the dense model.
        measure: "kl" (dense to planned, over the whole vocabulary) or "loss" (of the text itself).
        scoring: how positions are chosen.
        seed: of the evenly drawn positions.
    """

    def __init__(
        self, replay: Replay, measure: Measure = "kl", *, scoring: Scoring, seed: int = 0
    ) -> None:
        self.measure = measure
        self._replay = replay
        finals = replay.run_all(replay.entry)
        self.positions = choose_positions(replay, finals, scoring, seed)
        self._targets = _next_tokens(replay, self.positions)
        self._documents = _owners(replay, self.positions)
        self._wanted = self._probabilities(finals) if measure == "kl" else None
        # No guess comes closer to the dense model's than that one's entropy.
        self._least: Tensor | float = self._cross_entropies(finals) if measure == "kl" else 0.0
        self.dense = self(finals)

    def __call__(self, finals: Sequence[Tensor]) -> float:
        """Harm of a model whose hidden states after the last layer are `finals`, a batch each."""
        harms = self._cross_entropies(finals) - self._least
        if self._wanted is None:
            return float(harms.mean())
        return float(_means(harms, self._documents).square().mean().sqrt())

    def gradients(self, finals: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
        """Gradients by the finals [B, S, d], a batch each, summed over scored positions: of
        -log-probability of tokens drawn from the model that `finals` are of."""
        rows = _gather(finals, self.positions)
        slopes: list[Tensor] = []
        for start in range(0, len(rows), _CHUNK):
            entered = rows[start : start + _CHUNK].detach().requires_grad_()
            with torch.enable_grad():
                logits = self._replay.differentiable_logits(entered)
            guessed = logits.detach().float().softmax(-1)
            drawn = torch.multinomial(guessed.cpu(), 1, generator=generator).to(guessed.device)
            said = guessed.scatter_add(1, drawn, torch.full_like(drawn, -1, dtype=guessed.dtype))
            slopes += torch.autograd.grad(logits, entered, said.to(logits.dtype))
        return _scatter(torch.cat(slopes), finals, self.positions)

    def _cross_entropies(self, finals: Sequence[Tensor]) -> Tensor:
        """Nats at each scored position [n], of the dense model's guess or of the text itself."""
        parts = []
        for part, logits in self._logits(finals):
            if self._wanted is None:
                expected = logits.gather(1, self._targets[part, None])[:, 0]
            else:
                expected = torch.linalg.vecdot(self._wanted[part], logits)
            parts.append(logits.logsumexp(-1) - expected)
        return torch.cat(parts)

    def _probabilities(self, finals: Sequence[Tensor]) -> Tensor:
        return torch.cat([logits.softmax(-1) for _, logits in self._logits(finals)])

    def _logits(self, finals: Sequence[Tensor]) -> Iterator[tuple[slice, Tensor]]:
        rows = _gather(finals, self.positions)
        for start in range(0, len(rows), _CHUNK):
            part = slice(start, start + _CHUNK)
            yield part, self._replay.logits(rows[part]).float()


def choose_positions(
    replay: Replay, finals: Sequence[Tensor], scoring: Scoring, seed: int
) -> list[Tensor]:
    """Flat positions (row x width + column) to score in each batch; the next token must be real."""
    eligible = [_eligible(batch.real, scoring.skip) for batch in replay.batches]
    sizes = [len(each) for each in eligible]
    owner = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    flat = torch.cat(eligible)
    generator = torch.Generator().manual_seed(seed)
    even = torch.randperm(len(flat), generator=generator)[: scoring.even]
    if not scoring.far:
        return [flat[even[owner[even] == batch]] for batch in range(len(sizes))]
    gains = context_gain(replay, finals, scoring.block)
    gain = torch.cat([g.cpu().reshape(-1)[e] for g, e in zip(gains, eligible, strict=True)])
    far = gain.topk(min(scoring.far, len(gain))).indices
    # A position may be drawn both ways and then counts twice, as its weight.
    chosen = torch.cat([even, far])
    return [flat[chosen[owner[chosen] == batch]] for batch in range(len(sizes))]


def context_gain(replay: Replay, finals: Sequence[Tensor], block: int) -> list[Tensor]:
    """How far the next token's log-probability [B, S] falls with `block` to 2 `block` tokens left.

    Positions whose whole context is that short gain nothing.
    """
    gains = [torch.zeros(batch.ids.shape) for batch in replay.batches]
    packed: list[Batch] = []
    places: list[tuple[int, int, int]] = []
    for number, batch in enumerate(replay.batches):
        pieces, starts = _pieces(batch, block)
        # `pack` takes them by length, so their places go the same way.
        order = sorted(range(len(pieces)), key=lambda index: len(pieces[index]))
        places += [(number, *starts[index]) for index in order]
        packed += pack(pieces)
    short = Replay(replay.model, packed)
    place = iter(places)
    # All at once through the layers: weights that are read from a file are read a single time.
    for batch, after in zip(short.batches, short.run_all(short.entry), strict=True):
        for row, real in enumerate(batch.real):
            number, where, start = next(place)
            count = int(real.sum()) - block
            target = replay.batches[number].ids[where, start + 1 : start + 1 + count, None]
            near = short.logits(after[row, block : block + count]).float().log_softmax(-1)
            full = finals[number][where, start : start + count]
            full = replay.logits(full).float().log_softmax(-1)
            rise = (full.gather(1, target) - near.gather(1, target))[:, 0]
            gains[number][where, start : start + count] = rise.cpu()
    return gains


def _pieces(batch: Batch, block: int) -> tuple[list[Tensor], list[tuple[int, int]]]:
    """Token ids of at most 2 `block` each that overlap by half; the row and column of each half."""
    pieces, starts = [], []
    for row in range(len(batch.ids)):
        length = int(batch.real[row].sum())
        for start in range(2 * block, length - 1, block):
            pieces.append(batch.ids[row, start - block : min(start + block, length - 1)].cpu())
            starts.append((row, start))
    return pieces, starts


def _eligible(real: Tensor, skip: int) -> Tensor:
    scored = real.clone()
    scored[:, :skip] = False
    scored[:, :-1] &= real[:, 1:]
    scored[:, -1] = False
    return scored.reshape(-1).nonzero()[:, 0].cpu()


def _gather(finals: Sequence[Tensor], positions: Sequence[Tensor]) -> Tensor:
    return torch.cat(
        [f.reshape(-1, f.shape[-1])[p.to(f.device)] for f, p in zip(finals, positions, strict=True)]
    )


def _scatter(rows: Tensor, finals: Sequence[Tensor], positions: Sequence[Tensor]) -> list[Tensor]:
    """The inverse of `_gather`; rows of one position add up."""
    parts = rows.split([len(each) for each in positions])
    return [
        torch.zeros_like(final)
        .reshape(-1, final.shape[-1])
        .index_add(0, places.to(final.device), part)
        .view_as(final)
        for final, places, part in zip(finals, positions, parts, strict=True)
    ]


def _owners(replay: Replay, positions: Sequence[Tensor]) -> Tensor:
    """Which document each scored position is in, counted over all batches."""
    owners, before = [], 0
    for batch, where in zip(replay.batches, positions, strict=True):
        owners.append(before + where // batch.ids.shape[1])
        before += len(batch.ids)
    return torch.cat(owners).to(replay.device)


def _means(values: Tensor, owners: Tensor) -> Tensor:
    """Mean of `values` [n] for each owner that has any."""
    sums = torch.zeros(int(owners.max()) + 1, device=values.device).index_add_(0, owners, values)
    counts = torch.bincount(owners)
    return sums[counts > 0] / counts[counts > 0]


def _next_tokens(replay: Replay, positions: Sequence[Tensor]) -> Tensor:
    pairs = [(b.ids.reshape(-1), p) for b, p in zip(replay.batches, positions, strict=True)]
    return torch.cat([ids[where.to(ids.device) + 1] for ids, where in pairs])
