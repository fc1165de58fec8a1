"""The neurons that each request's answer keeps: what the prompt showed, what was chosen, when anew.

While a prompt is read every neuron works and its statistic is summed up; at the first decode step
the experts are chosen, and from then on only they are read, until the request reads more or a full
step is due. All of it but the magnitudes of weights belongs to one request (`Carried`).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from skimp.engine.gathered import Copies, bytes_of
from skimp.engine.guides import Gathered, InPlace, Masked, Reading
from skimp.engine.runners import Runner
from skimp.engine.state import State
from skimp.engine.ways import Asked, Way, expected, measure
from skimp.methods.experts.deciding import Chooser
from skimp.methods.experts.modules import Guide, guided
from skimp.methods.experts.section import BLIND, Experts
from skimp.methods.experts.select import Chosen, joined, kept_by, ordered, widened
from skimp.models.placement import available_bytes

# Where a batch needs so many rows between its sequences, reading all of them in one run is quicker
# (a core reads scattered rows at three quarters of the rate of a run; docs/log.md).
_WIDE = 0.9


@dataclass
class Carried:
    """What a request carries. `sums`: the statistic, [B, F] float32 by layer; `counts`: the tokens
    it was taken over, [B]; `chosen` by layer, empty until the next decode step chooses; `recent`:
    the tokens [B] of the steps since. `totals`: the sum of what neurons were, [B, F] float32 by
    layer, where those left out count as their mean. `mark` tells one choice from all others;
    `in_place` and `masked` answer with it."""

    sums: dict[int, Tensor]
    totals: dict[int, Tensor]
    counts: Tensor
    chosen: dict[int, Chosen] = field(default_factory=dict)
    recent: list[Tensor] = field(default_factory=list)
    mark: object | None = None
    in_place: InPlace | None = None
    masked: Masked | None = None

    def part(self, row: int) -> "Carried":
        """What one sequence brings along where it goes on without, or with other, company."""
        own = slice(row, row + 1)
        sums, totals = (
            {layer: seen[own].clone() for layer, seen in each.items()}
            for each in (self.sums, self.totals)
        )
        recent = [tokens[own].clone() for tokens in self.recent]
        return Carried(sums, totals, self.counts[own].clone(), recent=recent)


class Desk:
    """Chooses experts for one engine's requests, and how their weights are read.

    Attributes:
        asked: how they are to be read.
        ways: how they are, by batch, as far as that was decided.
    """

    def __init__(self, model: nn.Module, section: Experts, asked: Asked = "auto") -> None:
        self.section = section
        self.ways: dict[int, Way] = {}
        self.asked = asked
        self._chooser = Chooser(model)
        self._copies: Copies | None = None

    def _carried(self, state: State) -> Carried:
        """What the request carries; new for one that has seen nothing."""
        if state.experts is None:
            batch, device = state.batch, state.pads.device
            sums = {
                layer: torch.zeros(batch, width, device=device)
                for layer, width in self._chooser.widths.items()
            }
            totals = {la: z.clone() for la, z in sums.items() if self._chooser.fills(la)}
            counts = torch.zeros(batch, dtype=torch.long, device=device)
            state.experts = Carried(sums, totals, counts)
        return state.experts

    @contextmanager
    def reading(self, state: State, columns: int) -> Iterator[None]:
        """For a pass over `columns` tokens of a prompt: all neurons work and are watched."""
        carried = self._carried(state)
        at = torch.arange(state.length, state.length + columns, device=state.pads.device)
        real = at >= state.pads[:, None]
        with guided(Reading(carried.sums, carried.totals, real if state.padded else None)):
            yield
        carried.counts += real.sum(1)
        carried.chosen.clear()
        carried.in_place = carried.masked = None
        carried.recent.clear()

    @contextmanager
    def decoding(self, state: State, tokens: Tensor, runner: Runner) -> Iterator[None]:
        """For a decode step of `tokens` [B] by `runner`: experts are chosen if need be."""
        carried = self._carried(state)
        if not carried.chosen:
            self._choose(carried)
        with self.answering(state, runner):
            yield
        if self.section.refresh:
            carried.recent.append(tokens.clone())

    @contextmanager
    def answering(self, state: State, runner: Runner) -> Iterator[None]:
        """For a pass by the experts that were chosen last."""
        with self._guide(state, self._carried(state), runner) as guide, guided(guide):
            yield

    def together(self, parts: Sequence[Carried]) -> Carried:
        """What a batch answers with whose sequences were read apart: each by its own experts.

        The statistic stays with `parts`, one a sequence, in which the choices are kept as well.
        """
        for part in parts:
            if not part.chosen:
                self._choose(part)
        whole = Carried({}, {}, torch.cat([part.counts for part in parts]))
        for layer, width in self._chooser.widths.items():
            each = [part.chosen[layer] for part in parts]
            whole.chosen[layer] = self._ready(joined(each, width), width)
        self._hand_out(whole)
        return whole

    def due(self, state: State) -> Tensor | None:
        """The tokens [B, refresh] that all neurons should read (again) by now, if it is time."""
        recent = self._carried(state).recent
        if not recent or len(recent) < self.section.refresh:
            return None
        return torch.stack(recent, 1)

    @contextmanager
    def _guide(self, state: State, carried: Carried, runner: Runner) -> Iterator[Guide]:
        assert carried.in_place is not None
        if not self._gathers(state, carried, runner):
            apart = runner.fixed and not self._together(state)
            yield self._masked(carried) if apart else carried.in_place
            return
        if self._copies is None:
            self._copies = Copies(self._chooser)
        with self._copies.lock:
            self._copies.take(carried.mark, carried.in_place)
            yield Gathered(self._copies.layers, _fills(carried))

    def _choose(self, carried: Carried) -> None:
        for layer, sums in carried.sums.items():
            chosen = self._chooser.choose(layer, sums, carried.counts, carried.totals.get(layer))
            carried.chosen[layer] = self._ready(chosen, sums.shape[1])
        self._hand_out(carried)

    def _ready(self, chosen: Chosen, width: int) -> Chosen:
        """A choice as it is read best."""
        wide = chosen.mask is not None and len(chosen.rows) >= _WIDE * width
        return ordered(widened(chosen, width) if wide else chosen)

    def _hand_out(self, carried: Carried) -> None:
        carried.mark = object()
        carried.in_place = InPlace(
            carried.chosen,
            {layer: self._entering(layer, chosen) for layer, chosen in carried.chosen.items()},
        )

    def _entering(self, layer: int, chosen: Chosen) -> Tensor:
        """The rows of chosen neurons in the maps into them."""
        if not any(module.fused for module in self._chooser.inputs[layer]):
            return chosen.rows
        return torch.cat([chosen.rows, chosen.rows + self._chooser.widths[layer]])

    def _masked(self, carried: Carried) -> Masked:
        if carried.masked is None:
            masks = {}
            for layer, width in self._chooser.widths.items():
                kept = kept_by(carried.chosen[layer], width)
                masks[layer] = kept.expand(len(carried.counts), width).contiguous()
            carried.masked = Masked(masks, _fills(carried))
        return carried.masked

    def _together(self, state: State) -> bool:
        """Whether all sequences keep the same neurons, so many as the plan says."""
        return state.batch == 1 or self.section.batch == "shared" or self.section.select in BLIND

    def _gathers(self, state: State, carried: Carried, runner: Runner) -> bool:
        """Whether the request's experts are read from copies.

        A batch's own experts never are: copies for each sequence would be more to read than the
        rows that any of them needs, and how many those are differs from prompt to prompt.
        """
        layers = self._chooser.widths
        if not (layers and runner.gathers and self._together(state)):
            return False
        if any(len(carried.chosen[layer].rows) != self._chooser.count(layer) for layer in layers):
            return False  # a prompt that showed nothing keeps all
        if state.batch not in self.ways:
            self.ways[state.batch] = self._decide(state, carried, runner)
        return self.ways[state.batch].name == "gathered"

    def _decide(self, state: State, carried: Carried, runner: Runner) -> Way:
        chooser, device = self._chooser, state.pads.device
        if self.asked == "in place":
            return Way("in place")
        wanted = bytes_of(chooser)
        if self.asked == "gathered":
            return Way("gathered", wanted)
        if self._copies is None and wanted > available_bytes(device):
            return Way("in place")
        assert carried.in_place is not None
        tokens = expected(state.room, self.section.refresh)
        found = measure(chooser, carried.in_place, state.batch, recorded=runner.records)
        return found.way(tokens, wanted)


def _fills(carried: Carried) -> dict[int, Tensor | None]:
    return {layer: chosen.fill for layer, chosen in carried.chosen.items()}
