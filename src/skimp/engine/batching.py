"""A batch whose sequences come and go while it is decoded.

The weights of a step are read once for all of its sequences, so many answers at a time cost little
more than one. Here each keeps its place in the cache from the step it joins at to the one it leaves
at, and nothing is copied for those who stay.

That rests on two things. Columns are aligned at the end: a sequence of n tokens has n columns
before the batch's present one and padding before those, and its positions are column - pad as ever,
so keys that were rotated when they were stored stay right wherever the sequence is put. And every
slot is a ring, as those of sliding windows are: an entry makes way for the column that comes a
slot's size later. No sequence is longer than the slots, so what makes way is padding to all of
them, the batch may go on for as long as it likes, and one that joins finds room before the present
column, however long it is.

Places that nobody has are decoded along, as idle ones. So batches come in few sizes, and few native
steps have to be made (engine/native.py).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from skimp.engine import limits
from skimp.engine.engine import Engine
from skimp.engine.experts import Carried
from skimp.engine.runners import PlainRunner
from skimp.engine.state import State
from skimp.errors import RequestError
from skimp.kernels.native import MOST_ROWS
from skimp.methods.experts.section import BLIND

_STEP = 128
"""Slots of a batch are multiples of this, so that not every longer sequence lays it out anew."""
_PATIENCE = 16
"""Steps that a batch is larger than it need be before it is laid out anew."""
_ROWS = 8
"""Batches too large for native steps, which torch decodes, are multiples of this."""


def rows_for(sequences: int) -> int:
    """The size of the batch that so many sequences are decoded in."""
    if sequences > MOST_ROWS:
        return _up(sequences, _ROWS)
    return 1 << (sequences - 1).bit_length()


def can_join(engine: Engine) -> str | None:
    """Why sequences that were begun apart cannot be decoded together by `engine`; None if they can.

    Such an engine serves one prompt after the other.
    """
    section = engine.experts
    if section is not None and section.batch == "shared" and section.select not in BLIND:
        return "the plan keeps the same neurons for a whole batch (experts.batch: shared)"
    if not isinstance(engine.runner, PlainRunner):
        return None
    layers = getattr(engine.runner.new_cache(1, 1), "layers", [])
    if not layers or any(getattr(layer, "is_sliding", True) for layer in layers):
        return f"its cache is transformers' own and lets go of tokens, because of {engine.plain}"
    return None


@dataclass(eq=False)
class Seat:
    """A sequence in a batch.

    `place`: its row in the cache. `count`: its tokens there. `most`: as many as it may come to.
    `experts`: what it was read with, where its prompt chooses neurons. `depth`: layers after which
    its last token was decided, where tokens may leave early.
    """

    place: int
    count: int
    most: int
    experts: Carried | None = None
    depth: int | None = None


class Batch:
    """Sequences of one engine that are decoded together, each as if alone.

    Where :func:`can_join` says why not, one request has the batch to itself until it leaves.

    Attributes:
        seats: the sequences, in the order in which they joined.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.seats: list[Seat] = []
        self.apart = can_join(engine)
        self._runner = engine.runner
        self._tails = isinstance(engine.runner, PlainRunner)  # its cache grows column by column
        self._state: State | None = None
        self._vacant: Tensor | None = None
        self._loose = 0

    @property
    def rows(self) -> int:
        """Sequences that a step is taken for, idle ones included."""
        return 0 if self._state is None else self._state.batch

    @property
    def columns(self) -> int:
        """Columns of cache that are held, over all rows."""
        state = self._state
        return 0 if state is None else state.batch * state.capacity

    def columns_with(self, tokens: int) -> int:
        """The columns that would be held if a sequence of at most `tokens` joined."""
        rows, size = self._wanted(1, tokens)
        return rows * size

    def fits(self, tokens: int) -> bool:
        """Whether a sequence that may come to `tokens` could join, by the memory that is free."""
        if self.apart is not None and self.seats:
            return False
        rows, size = self._wanted(1, tokens)
        if self._state is not None and rows <= self.rows and size <= self._state.capacity:
            return True
        try:
            limits.check_memory(self._runner, rows, size, self.engine.device)
        except RequestError:
            return False
        return True

    @torch.inference_mode()
    def join(self, state: State, room: int) -> list[Seat]:
        """Take in the sequences of a request that has read its prompts, as many seats.

        What it holds is copied; the request itself may go on or be forgotten. (Where `apart` says
        why not, nothing is copied: then the request goes on here, and needs the room itself.)

        Args:
            room: tokens that may follow in each sequence.

        Raises:
            RequestError: there is not the memory for it, or others are there who must be alone.
        """
        self.engine.settle(state)
        if self.apart is not None and self.seats:
            raise RequestError(f"batch: nobody can join, since {self.apart}; wait for its end.")
        counts = state.lengths.tolist()
        seats = [Seat(row, count, count + room) for row, count in enumerate(counts)]
        if self.apart is not None:
            self._state, self.seats = state, seats
            return seats
        self._settle()
        if state.experts is not None:
            for row, seat in enumerate(seats):
                seat.experts = state.experts.part(row)
        rows, size = self._wanted(len(seats), max(counts) + room)
        if self._tails:
            size = max(counts + [seat.count for seat in self.seats])
        held = self._state
        if held is None or self._tails or rows > held.batch or size > held.capacity:
            self._lay_out(rows, size, state)
            held = self._state
        assert held is not None
        taken = {seat.place for seat in self.seats}
        free = (place for place in range(held.batch) if place not in taken)
        for row, (seat, place) in enumerate(zip(seats, free, strict=False)):
            _copy(state, row, held, place, seat.count)
            seat.place = place
        self.seats += seats
        self._bind()
        return seats

    @torch.inference_mode()
    def leave(self, *seats: Seat, spoilt: bool = False) -> None:
        """Let sequences go; `spoilt`: what they hold may be no numbers, so that nobody else may
        come upon it."""
        self.seats = [seat for seat in self.seats if seat not in seats]
        if not self.seats:
            self._state = self._vacant = None
            return
        self._settle()
        assert self._state is not None
        if self._tails:
            self._lay_out(len(self.seats), max(seat.count for seat in self.seats), self._state)
        elif spoilt:
            for tensor in _tensors(self._state.cache):
                for seat in seats:
                    tensor[seat.place] = 0
        self._bind()

    @torch.inference_mode()
    def take(self, seat: Seat, room: int) -> State:
        """A request of its own that goes on where a sequence is now, with room for more tokens."""
        assert self._state is not None
        self._settle()
        state = self._empty(1, seat.count + room, seat.count, self._state)
        _copy(self._state, seat.place, state, 0, seat.count)
        state.experts = None if seat.experts is None else seat.experts.part(0)
        return state

    @torch.inference_mode()
    def decode(self, tokens: Sequence[int]) -> Tensor:
        """Logits [n, V] after one more token of each sequence, in the order of `seats`."""
        if len(tokens) != len(self.seats) or not tokens:
            raise RequestError(
                f"tokens: {len(tokens)} for a batch of {len(self.seats)}; give each sequence one."
            )
        self._tidy()
        state = self._state
        assert state is not None
        row = torch.zeros(state.batch, dtype=torch.long)
        for seat, token in zip(self.seats, tokens, strict=True):
            row[seat.place] = token
        row = row.to(state.pads.device)
        if self.apart is not None:
            logits = self.engine.decode(state, row)
            self._note(state, self.seats)
            return logits
        full = [seat for seat in self.seats if self._due(seat)]
        read = {id(seat): self._read_full(seat, row) for seat in full}
        rest = [seat for seat in self.seats if id(seat) not in read]
        if rest or self._tails:
            logits = self._step(state, row, rest)
        else:
            logits, state.length = None, state.length + 1
        if full:
            self._settle()
            for seat in full:
                self._put_back(seat, read[id(seat)][1])
            self._bind()
        if logits is not None and not full and len(self.seats) == state.batch:
            places = [seat.place for seat in self.seats]
            return logits if places == list(range(state.batch)) else logits[places]
        found = [
            read[id(seat)][0] if id(seat) in read else _row(logits, seat.place)
            for seat in self.seats
        ]
        return torch.cat(found)

    def _step(self, state: State, row: Tensor, live: list[Seat]) -> Tensor:
        """A step for the sequences that go on as they are; the others' places are idle."""
        if self._vacant is not None:
            waiting = 0 if state.exits is None else state.exits.waiting
            state.pads[self._vacant] = state.length - waiting  # a token at the first position
        idle = state.idle
        if len(live) < len(self.seats):
            busy = torch.tensor([seat.place for seat in live], dtype=torch.long, device=row.device)
            state.idle = torch.ones(state.batch, dtype=torch.bool, device=row.device)
            state.idle[busy] = False
        logits = self.engine.decode(state, row)
        state.idle = idle
        self._note(state, live)
        section = self.engine.experts
        if section is not None:
            state.experts.recent.clear()  # each sequence counts its own
            if section.refresh:
                for seat in live:
                    assert seat.experts is not None
                    seat.experts.recent.append(row[seat.place : seat.place + 1].clone())
        return logits

    def _note(self, state: State, live: list[Seat]) -> None:
        for seat in live:
            seat.count += 1
            if state.exits is not None:
                seat.depth = state.exits.depths[seat.place]

    def _due(self, seat: Seat) -> bool:
        """Whether all neurons should read a sequence's last tokens again."""
        section = self.engine.experts
        if section is None or not section.refresh or seat.experts is None:
            return False
        return len(seat.experts.recent) >= section.refresh

    def _read_full(self, seat: Seat, row: Tensor) -> tuple[Tensor, State]:
        """Logits [1, V] of a sequence whose last tokens are read again, and how it is then."""
        state = self.take(seat, 1)
        return self.engine.decode(state, row[seat.place : seat.place + 1]), state

    def _put_back(self, seat: Seat, state: State) -> None:
        assert self._state is not None
        seat.count += 1
        seat.experts = state.experts
        if self.engine.exits is not None:
            seat.depth = self.engine.exits.layers
        _copy(state, 0, self._state, seat.place, seat.count)

    def _settle(self) -> None:
        """Do what exits have put off; it is not known by sequence, so before any comes or goes."""
        if self._state is not None:
            self.engine.settle(self._state)

    def _tidy(self) -> None:
        """Lay the batch out anew where it has been too large for a while."""
        state = self._state
        if state is None or self._tails or self.apart is not None:
            return
        self._loose = self._loose + 1 if rows_for(len(self.seats)) < state.batch else 0
        if self._loose >= _PATIENCE:
            self._settle()
            size = _up(max(seat.most for seat in self.seats), _STEP)
            self._lay_out(rows_for(len(self.seats)), size, state)
            self._bind()

    def _wanted(self, more: int, tokens: int) -> tuple[int, int]:
        """Rows and columns that `more` sequences of at most `tokens` would make the batch have."""
        count = len(self.seats) + more
        if self.apart is not None or self._tails:
            return count, max(tokens, *(seat.most for seat in self.seats), 0)
        held = 0 if self._state is None else self._state.capacity
        return max(rows_for(count), self.rows), max(_up(tokens, _STEP), held)

    def _lay_out(self, rows: int, size: int, like: State) -> None:
        """Room for `rows` sequences of `size` columns, with those who are here in the first."""
        old, new = self._state, self._empty(rows, size, size, like)
        for place, seat in enumerate(self.seats):
            assert old is not None
            _copy(old, seat.place, new, place, seat.count)
            seat.place = place
        self._state, self._loose = new, 0

    def _empty(self, rows: int, size: int, length: int, like: State) -> State:
        """A state of `rows` sequences with `length` columns of whatever, and a cache for `size`."""
        cache = self._runner.new_cache(rows, size)
        if self._tails:
            for index, layer in enumerate(like.cache.layers):
                if layer.keys is not None:
                    held = (layer.keys, layer.values)
                    shapes = [(rows, each.shape[1], length, each.shape[3]) for each in held]
                    cache.update(*(layer.keys.new_zeros(shape) for shape in shapes), index)
        pads = torch.zeros(rows, dtype=torch.long, device=like.pads.device)
        return State(cache, pads, padded=rows > 1, capacity=size, length=length)

    def _bind(self) -> None:
        """Make the state say who is here."""
        state = self._state
        assert state is not None
        device, live = state.pads.device, {seat.place: seat for seat in self.seats}
        counts = [live[place].count if place in live else 0 for place in range(state.batch)]
        state.pads = (state.length - torch.tensor(counts)).to(device)
        state.padded = True
        state.base = state.length - max(counts)
        vacant = [place for place in range(state.batch) if place not in live]
        self._vacant = torch.tensor(vacant, device=device) if vacant else None
        state.idle = (torch.tensor(counts) == 0).to(device) if vacant else None
        state.exits = None
        if self._tails:  # its capacity is what its sequences may come to
            state.capacity = max(seat.most for seat in self.seats)
        parts = [live.get(place, self.seats[0]).experts for place in range(state.batch)]
        known = [part for part in parts if part is not None]
        state.experts = self.engine.together(known) if known else None


def _tensors(cache: Any) -> Iterator[Tensor]:
    """Keys and values [B, heads, size, width] of each attention; column c is entry c % size."""
    for layer in cache.values() if isinstance(cache, dict) else cache.layers:
        if layer.keys is not None:
            yield from (layer.keys, layer.values)


def _copy(source: State, row: int, target: State, place: int, count: int) -> None:
    """Copy the last `count` columns of a sequence, as far as they are there, to their places."""
    for held, to in zip(_tensors(source.cache), _tensors(target.cache), strict=True):
        sizes = held.shape[2], to.shape[2]
        left = min(count, *sizes)
        first = source.length - left, target.length - left
        while left:
            start, at = first[0] % sizes[0], first[1] % sizes[1]
            run = min(left, sizes[0] - start, sizes[1] - at)
            to[place, :, at : at + run] = held[row, :, start : start + run]
            first, left = (first[0] + run, first[1] + run), left - run


def _row(logits: Tensor | None, place: int) -> Tensor:
    assert logits is not None
    return logits[place : place + 1]


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
