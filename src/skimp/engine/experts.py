"""The neurons that each request's answer keeps: what the prompt showed, what was chosen, when anew.

While a prompt is read every neuron works and its statistic is summed up; at the first decode step
the experts are chosen, and from then on only they are read, until the request reads more or a full
step is due. All of it but the magnitudes of weights belongs to one request (`Carried`).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from skimp import kernels
from skimp.engine.state import State
from skimp.methods.experts.deciding import Chooser
from skimp.methods.experts.modules import NeuronsIn, NeuronsOut, guided
from skimp.methods.experts.section import Experts
from skimp.methods.experts.select import Chosen, ordered, widened
from skimp.methods.experts.statistic import squares, totals

# Where a batch needs so many rows between its sequences, reading all of them in one run is quicker
# (a core reads scattered rows at three quarters of the rate of a run; docs/log.md).
_WIDE = 0.9


@dataclass
class Carried:
    """What a request carries. `sums`: the statistic, [B, F] float32 by layer; `counts`: the tokens
    it was taken over, [B]; `chosen` by layer, empty until the next decode step chooses; `recent`:
    the tokens [B] of the steps since. `totals`: the sum of what neurons were, [B, F] float32 by
    layer, where those left out count as their mean."""

    sums: dict[int, Tensor]
    totals: dict[int, Tensor]
    counts: Tensor
    chosen: dict[int, Chosen] = field(default_factory=dict)
    recent: list[Tensor] = field(default_factory=list)


class Desk:
    """Chooses experts for one engine's requests."""

    def __init__(self, model: nn.Module, section: Experts) -> None:
        self.section = section
        self._chooser = Chooser(model)

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
        with guided(_Reading(carried, real if state.padded else None)):
            yield
        carried.counts += real.sum(1)
        carried.chosen.clear()
        carried.recent.clear()

    @contextmanager
    def decoding(self, state: State, tokens: Tensor) -> Iterator[None]:
        """For a decode step of `tokens` [B]: experts are chosen if need be."""
        carried = self._carried(state)
        if not carried.chosen:
            self._choose(carried)
        with self.answering(state):
            yield
        if self.section.refresh:
            carried.recent.append(tokens.clone())

    @contextmanager
    def answering(self, state: State) -> Iterator[None]:
        """For a pass by the experts that were chosen last."""
        with guided(_Answering(self._carried(state).chosen)):
            yield

    def due(self, state: State) -> Tensor | None:
        """The tokens [B, refresh] that all neurons should read (again) by now, if it is time."""
        recent = self._carried(state).recent
        if not recent or len(recent) < self.section.refresh:
            return None
        return torch.stack(recent, 1)

    def _choose(self, carried: Carried) -> None:
        for layer, sums in carried.sums.items():
            chosen = self._chooser.choose(layer, sums, carried.counts, carried.totals.get(layer))
            width = sums.shape[1]
            wide = chosen.mask is not None and len(chosen.rows) >= _WIDE * width
            carried.chosen[layer] = ordered(widened(chosen, width) if wide else chosen)


@dataclass(frozen=True)
class _Reading:
    """All neurons; their statistic is added to the request's."""

    carried: Carried
    real: Tensor | None

    def enter(self, module: NeuronsIn, x: Tensor) -> Tensor:
        return module.dense(x)

    def leave(self, module: NeuronsOut, h: Tensor) -> Tensor:
        batch = len(self.carried.counts)
        z = h.reshape(batch, -1, module.width)  # OPT's FF works on all tokens in one row
        self.carried.sums[module.layer] += squares(z, self.real)
        if module.layer in self.carried.totals:
            self.carried.totals[module.layer] += totals(z, self.real)
        return module.dense(h)


@dataclass(frozen=True)
class _Answering:
    """The chosen neurons only, read where they are."""

    chosen: Mapping[int, Chosen]

    def enter(self, module: NeuronsIn, x: Tensor) -> Tensor:
        rows = self.chosen[module.layer].rows
        if module.fused:
            rows = torch.cat([rows, rows + module.weight.shape[0] // 2])
        return kernels.linear(x, module.weight, module.bias, rows)

    def leave(self, module: NeuronsOut, h: Tensor) -> Tensor:
        chosen = self.chosen[module.layer]
        lead = h.shape[:-1]  # OPT's FF works on all tokens in one row
        if chosen.mask is not None:
            h = h.reshape(len(chosen.mask), -1, h.shape[-1]) * chosen.mask[:, None]
        out = kernels.neurons(h.contiguous(), module.weight, chosen.rows)
        if chosen.fill is not None:
            out = out.reshape(len(chosen.fill), -1, out.shape[-1]) + chosen.fill[:, None]
        out = out.reshape(*lead, -1)
        return out if module.bias is None else out + module.bias
