"""Lay scored token sequences out so that what they share is computed once.

Sequences of an evaluation repeat themselves: every choice of an item repeats its question, every
item of a task repeats its few-shot examples. Sorted, neighbours share their longest prefixes, so a
greedy pass builds *rows* that are tries: one entry per distinct prefix, each attending to its own
ancestors only. A row without branches is an ordinary causal sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

ROW_TOKENS = 512  # attention is quadratic in the row: wider rows cost more than they batch
SHARED_ROWS = 4  # how many times wider a row may grow while most of each addition is shared


@dataclass(frozen=True)
class Scored:
    """Input `tokens` of request `index`; the last `len(targets)` of them predict `targets`.

    `apart`: the model computes those last ones otherwise than the ones before, by what stands
    before them; so an entry is shared only with sequences that part the same beginning there.
    """

    index: int
    tokens: tuple[int, ...]
    targets: tuple[int, ...]
    apart: bool = False

    @cached_property
    def keys(self) -> tuple[int, ...]:
        """What must agree, from the first to the last, for entries to be shared."""
        if not self.apart:
            return self.tokens
        start = len(self.tokens) - len(self.targets)
        return (*self.tokens[:start], *(~token for token in self.tokens[start:]))


@dataclass
class Row:
    """A trie of sequences, parents before children.

    `parents[i]` is the entry before entry i in its sequence (-1: none), `depths[i]` its position,
    `keys[i]` what a sequence must have there to share it, and `wanted` holds, per request, the
    entries whose logits score its targets.
    """

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    keys: list[int] = field(default_factory=list)
    wanted: list[tuple[Scored, list[int]]] = field(default_factory=list)
    path: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def is_chain(self) -> bool:
        return len(self.path) == len(self.tokens)

    @property
    def depth(self) -> int:
        """Length of the longest sequence."""
        return 1 + max(self.depths)

    @property
    def scored(self) -> int:
        """Number of distinct entries whose logits are needed."""
        return len({entry for _, entries in self.wanted for entry in entries})

    def shared(self, sequence: Scored) -> int:
        """Length of the prefix that `sequence` shares with the one added last."""
        count = 0
        for entry, key in zip(self.path, sequence.keys, strict=False):
            if self.keys[entry] != key:
                break
            count += 1
        return count

    def add(self, sequence: Scored) -> None:
        """Append what `sequence` does not share with the one before it."""
        self.path = self.path[: self.shared(sequence)]
        self.keys.extend(sequence.keys[len(self.path) :])
        for token in sequence.tokens[len(self.path) :]:
            self.parents.append(self.path[-1] if self.path else -1)
            self.depths.append(len(self.path))
            self.path.append(len(self.tokens))
            self.tokens.append(token)
        self.wanted.append((sequence, self.path[-len(sequence.targets) :]))

    def line(self, entry: int) -> list[int]:
        """The entries from `entry` (-1: none) back to the beginning."""
        found = []
        while entry >= 0:
            found.append(entry)
            entry = self.parents[entry]
        return found

    def ancestors(self) -> Tensor:
        """Bool [entries, entries]: may entry i attend to entry j (itself included)."""
        size = len(self.tokens)
        if self.is_chain:
            return torch.ones(size, size, dtype=torch.bool).tril()
        seen = torch.zeros(size, size, dtype=torch.bool)
        for entry, parent in enumerate(self.parents):
            if parent >= 0:
                seen[entry, : parent + 1] = seen[parent, : parent + 1]
            seen[entry, entry] = True
        return seen


Fits = Callable[[Row, int, int], bool]


def packed_rows(sequences: Sequence[Scored], row_tokens: int = ROW_TOKENS) -> list[Row]:
    """Rows of about `row_tokens` entries, branching wherever sequences part."""

    def fits(row: Row, shared: int, extra: int) -> bool:
        mostly_shared = max(SHARED_ROWS * row_tokens, 2 * (shared + extra))
        return len(row) + extra <= (mostly_shared if shared >= extra else row_tokens)

    return _rows(sequences, fits)


def chain_rows(sequences: Sequence[Scored]) -> list[Row]:
    """Unbranched rows: only a sequence that continues the one before it shares its row."""
    return _rows(sequences, lambda row, shared, extra: shared == len(row))


def _rows(sequences: Sequence[Scored], fits: Fits) -> list[Row]:
    rows: list[Row] = []
    for sequence in sorted(sequences, key=lambda sequence: sequence.keys):
        shared = rows[-1].shared(sequence) if rows else 0
        if not rows or not fits(rows[-1], shared, len(sequence.tokens) - shared):
            rows.append(Row())
        rows[-1].add(sequence)
    return rows


def batches(rows: Sequence[Row], batch_tokens: int, batch_scored: int) -> Iterator[list[Row]]:
    """Rows of similar width, widest first, so that padding is small and memory fails at once.

    A batch holds at most `batch_tokens` padded entries and `batch_scored` scored ones, but always
    one row.
    """
    batch: list[Row] = []
    scored = 0
    for row in sorted(rows, key=len, reverse=True):
        full = batch and (
            (len(batch) + 1) * len(batch[0]) > batch_tokens or scored + row.scored > batch_scored
        )
        if full:
            yield batch
            batch, scored = [], 0
        batch.append(row)
        scored += row.scored
    if batch:
        yield batch


@dataclass(frozen=True)
class Layout:
    """A batch of rows as tensors, padded on the right to [rows, width].

    `position` flattens (row, entry) of each distinct scored entry; `slot`, `target` and `owner`
    have one element per scored token: where its logits stand in `position`, what it should be, and
    which sequence it belongs to.
    """

    tokens: Tensor
    depths: Tensor
    real: Tensor
    position: Tensor
    slot: Tensor
    target: Tensor
    owner: list[Scored]

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Layout:
        width = max(len(row) for row in rows)
        tokens = torch.zeros(len(rows), width, dtype=torch.long)
        depths, real = torch.zeros_like(tokens), torch.zeros_like(tokens)
        slots: dict[int, int] = {}
        slot, target, owner = [], [], []
        for number, row in enumerate(rows):
            tokens[number, : len(row)] = torch.tensor(row.tokens)
            depths[number, : len(row)] = torch.tensor(row.depths)
            real[number, : len(row)] = 1
            for sequence, entries in row.wanted:
                owner.append(sequence)
                target.extend(sequence.targets)
                slot.extend(slots.setdefault(number * width + e, len(slots)) for e in entries)
        return cls(
            tokens,
            depths,
            real,
            torch.tensor(list(slots), dtype=torch.long),
            torch.tensor(slot, dtype=torch.long),
            torch.tensor(target, dtype=torch.long),
            owner,
        )

    def by_input(self) -> tuple[Tensor, Tensor, Tensor]:
        """The scored positions told apart by which position their sequence is scored from.

        Returns the positions [m], the one where each one's sequence begins to be scored [m], and
        for each scored token where it stands among them.
        """
        pairs: dict[tuple[int, int], int] = {}
        slots, start = self.slot.tolist(), 0
        found = []
        for sequence in self.owner:
            own = slots[start : start + len(sequence.targets)]
            found += [pairs.setdefault((slot, own[0]), len(pairs)) for slot in own]
            start += len(own)
        position, first = torch.tensor(list(pairs), dtype=torch.long).T
        return position, first, torch.tensor(found, dtype=torch.long)


def attention(rows: Sequence[Row], width: int, window: int | None = None) -> Tensor:
    """Bool [rows, 1, width, width] of who attends to whom; padding attends to itself.

    With a sliding `window`, an ancestor is seen when fewer than `window` positions away.
    """
    seen = torch.eye(width, dtype=torch.bool).repeat(len(rows), 1, 1)
    for number, row in enumerate(rows):
        mask = row.ancestors()
        if window is not None:
            depths = torch.tensor(row.depths)
            mask &= depths[:, None] - depths[None, :] < window
        seen[number, : len(row), : len(row)] = mask
    return seen[:, None]
