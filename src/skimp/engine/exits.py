"""Tokens that leave the model early, and what becomes of the layers that they leave out.

A step runs from one probe to the next. Where the probe finds every sequence of the batch decided,
the step ends, after AdaInfer (Fan et al., 2024). Those that are decided before ride along: their
answers stand, and what the others read for them costs the same bytes.

With `kv: exact` the columns of such a step are *pending*: they wait where they left, and the next
step that comes by takes them along through the layers it runs, one pass over the weights for all of
them. So later tokens find the keys and values that the dense model would have, and which token
leaves where does not hang on the batch, nor on how many may wait. With `kv: propagate` the layers
that are left out store keys and values of the state that left.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from skimp.engine.gates import Projection, Stretch
from skimp.engine.quiet import alone
from skimp.engine.runners import Runner
from skimp.engine.state import State
from skimp.methods.exit.probe import Probes
from skimp.methods.exit.section import Exit
from skimp.models.anatomy import Anatomy
from skimp.models.carve import KEEP
from skimp.models.head import Head

Script = Callable[[int, int], Tensor]
"""Which sequences [B] leave at a column and place, in the controller's stead."""


@dataclass
class Pending:
    """Columns that wait at a place (i: before layer i); `hidden` [B, n, d] is their state there."""

    place: int
    hidden: Tensor


@dataclass
class Carried:
    """What a request carries.

    `pending`: the last columns, in order; those before have come further, so places fall. `depths`:
    after how many layers each sequence's last token was decided, all of them where none was left
    out. `ran`: how many the step ran; `head`: whether it read the full head behind them.
    """

    pending: list[Pending] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    ran: int = 0
    head: bool = True

    @property
    def waiting(self) -> int:
        """How many columns are pending."""
        return sum(each.hidden.shape[1] for each in self.pending)


class Exits:
    """Runs the steps of one engine's requests, and ends them early.

    Attributes:
        looks: the probe by the place where it looks (place i: before layer i), in order.
        places: where steps may be entered and left.
        script: decides instead of the controller, for measurements; every probe is still paid for.
    """

    def __init__(
        self, model: nn.Module, anatomy: Anatomy, section: Exit, values: Mapping[str, Tensor]
    ) -> None:
        self.section = section
        self.layers = len(anatomy.layers)
        self.script: Script | None = None
        norm = model.get_submodule(anatomy.family.final_norm)
        head = Head.read(model)
        self.vocabulary = len(head.weight)
        self.probes = Probes(section, values, norm, head)
        self.looks = section.places(anatomy)
        every = range(self.layers + 1)
        self.places = frozenset({0, *self.looks, self.layers} if self.exact else every)
        self.attentive = frozenset(
            at for at, layer in enumerate(anatomy.layers) if layer.attention.state == KEEP
        )

    @property
    def exact(self) -> bool:
        """Whether later tokens find the keys and values of the dense model."""
        return self.section.kv == "exact"

    def decode(self, runner: Runner, state: State, tokens: Tensor) -> Tensor:
        """Logits [B, V] after `tokens` [B]; where a sequence left, of its candidates alone."""
        carried = _carried(state)
        flight = _Flight(runner, state, self.layers, state.length + 1, tokens[:, None])
        decided = torch.zeros(state.batch, dtype=torch.bool, device=tokens.device)
        if state.idle is not None:
            decided |= state.idle
        deep = self.exact and carried.waiting >= self.section.max_pending
        depths = torch.full_like(decided, self.layers, dtype=torch.long)
        trace, found = self.probes.begin(state.batch), None
        for place, index in self.looks.items():
            self._go(flight, place, carried, decided)
            if not decided.all():
                with self._aside(tokens.device):
                    look = self.probes.look(index, flight.last, trace)
                    leaves = self._leaving(look.score, state.length, place) & ~decided
                    if leaves.any():
                        found = _put(found, leaves, look.full(self.vocabulary))
                        depths[leaves] = place
                        decided |= leaves
            if decided.all() and not deep:
                break
        if not decided.all():
            self._go(flight, self.layers, carried, decided, head=not self._frozen(decided))
            with self._aside(tokens.device):
                found = _put(found, ~decided, flight.logits())
        elif deep:
            self._go(flight, self.layers, carried, decided)
        self._leave(flight, carried)
        carried.depths, carried.ran = depths.tolist(), flight.at
        carried.head = flight.found is not None
        if found is None:  # every sequence had ended
            found = flight.last.new_zeros(state.batch, self.vocabulary)
        return found

    def _aside(self, device: torch.device) -> AbstractContextManager[None]:
        """For what torch does between stretches of a step: in one thread, unless a probe reads the
        whole head, which takes as long as layers do."""
        return alone(device) if self.section.screen else nullcontext()

    def _leaving(self, score: Tensor, column: int, place: int) -> Tensor:
        """Which sequences [B] leave at a place, by what the probe there scored."""
        script = self.script
        if script is not None:
            return script(column, place).to(score.device)
        return score >= self.probes.threshold

    def settle(self, runner: Runner, state: State) -> None:
        """Run what is pending through the layers that it has yet to see."""
        carried = _carried(state)
        if not carried.pending:
            return
        first = carried.pending.pop()
        flight = _Flight(runner, state, self.layers, state.length, None, first.place, first.hidden)
        for place in sorted(self.places):
            if place > first.place:
                flight.to(place)
                flight.take(carried, place)

    def read_whole(self, state: State) -> None:
        """Note that the last tokens were read by all layers, as a prompt is."""
        if state.exits is not None:
            state.exits.depths = [self.layers] * state.batch
            state.exits.ran, state.exits.head = self.layers, True

    def _frozen(self, decided: Tensor) -> bool:
        """Whether some sequences' states stay as they are while others go on."""
        return not self.exact and bool(decided.any())

    def _go(
        self,
        flight: "_Flight",
        place: int,
        carried: Carried,
        decided: Tensor,
        *,
        head: bool = False,
    ) -> None:
        """Run the flight on to a place, and take along what waits there."""
        if head:
            flight.head()
        elif self._frozen(decided):
            # What left keeps its state, whose keys and values the layers behind shall have.
            while flight.at < place:
                kept = flight.hidden
                flight.to(flight.at + 1)
                assert flight.hidden is not None
                if kept is not None:
                    flight.hidden = torch.where(decided[:, None, None], kept, flight.hidden)
        else:
            flight.to(place)
        flight.take(carried, place)

    def _leave(self, flight: "_Flight", carried: Carried) -> None:
        """What is to be done about the layers that a step has not run."""
        if flight.at == self.layers:
            return
        assert flight.hidden is not None
        if self.exact:
            carried.pending.append(Pending(flight.at, flight.hidden))
            return
        what = Projection(flight.at, self.layers, flight.hidden, self.attentive)
        flight.runner.project(flight.state, what, flight.end)


@dataclass
class _Flight:
    """The columns up to `end` on their way through the layers; `at` is the place they are at.

    `hidden` [B, n, d] is their state, None before the first layer, where `tokens` [B, 1] enter.
    """

    runner: Runner
    state: State
    layers: int
    end: int
    tokens: Tensor | None
    at: int = 0
    hidden: Tensor | None = None
    found: Tensor | None = None

    @property
    def last(self) -> Tensor:
        """The state [B, d] of the last column."""
        assert self.hidden is not None
        return self.hidden[:, -1]

    def to(self, place: int) -> None:
        """Run on to a place."""
        if place > self.at:
            self.hidden = self._walk(place)
            self.at = place

    def head(self) -> None:
        """Run on to the logits."""
        self.found = self._walk(self.layers, head=True)
        self.at = self.layers

    def logits(self) -> Tensor:
        """Logits [B, V] of the last column."""
        if self.found is None:
            self.head()
        assert self.found is not None
        return self.found

    def take(self, carried: Carried, place: int) -> None:
        """Take along what waits at a place."""
        if carried.pending and carried.pending[-1].place == place:
            assert self.hidden is not None
            self.hidden = torch.cat([carried.pending.pop().hidden, self.hidden], 1)

    def _walk(self, place: int, *, head: bool = False) -> Tensor:
        tokens = self.tokens
        if self.hidden is not None:
            shape = self.hidden.shape[:2]
            tokens = torch.zeros(shape, dtype=torch.long, device=self.hidden.device)
        assert tokens is not None
        stretch = Stretch(self.at, place, self.layers, self.hidden, head)
        return self.runner.walk(self.state, stretch, tokens, self.end)


def _carried(state: State) -> Carried:
    if state.exits is None:
        state.exits = Carried()
    return state.exits


def _put(found: Tensor | None, rows: Tensor, logits: Tensor) -> Tensor:
    """Logits [B, V] with those of some rows [B] put in."""
    if found is None:
        return logits
    return torch.where(rows[:, None], logits.to(found.dtype), found)
