"""Simulated generation: what experts do to continuations that are scored in one pass.

Experts are chosen from a prompt and used while its answer is decoded, so a pass over context and
continuation together would leave nothing out. GRIFFIN's simulated generation mode (Dong et al.,
2024) judges classification nonetheless: the statistic is taken over all tokens of the input but the
last, and at the last the neurons that were not chosen are set to zero. Here it is extended to
continuations of any length:

- the statistic is taken over the tokens of the context but its last, which all neurons read;
- at the last token of the context and at every token of the continuation that predicts another,
  only the chosen neurons count.

That gives the log-likelihoods of an engine that reads the context without its last token as the
prompt and decodes from there. (When serving, all neurons read that last token too, and the first
token of an answer loses nothing; a choice of one token would then show nothing at all.)

It simulates quality and saves nothing: everything is computed, then set to zero. Of the section,
`refresh` is passed over, and every context has experts of its own, whatever `batch` says. A context
of one token leaves nothing to take a statistic from; it keeps all neurons, as a prompt without
tokens does, unless the rule does not look at prompts or has a prior.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from skimp.errors import EvaluationError
from skimp.measure.packing import Layout, Row
from skimp.methods.experts.deciding import Chooser
from skimp.methods.experts.modules import NeuronsIn, NeuronsOut
from skimp.methods.experts.statistic import squares

SIMULATED = ("multiple_choice", "loglikelihood")  # a harness task's kinds of output


def chooser_of(model: nn.Module) -> Chooser | None:
    """What chooses the experts of `model`; None if its plan leaves none to the prompt."""
    chooser = Chooser(model)
    return chooser if chooser.widths else None


def refuse_unsimulated(model: nn.Module, tasks: Mapping[str, Any]) -> bool:
    """Whether scoring `model` on the harness's `tasks` is simulated; EvaluationError if it cannot.

    Generated text and rolling log-likelihoods would come from all neurons, and show no loss.
    """
    if chooser_of(model) is None:
        return False
    for name, task in tasks.items():
        if task.OUTPUT_TYPE not in SIMULATED:
            raise EvaluationError(
                f"task {name}: with experts tasks are scored in simulated generation mode, which "
                f"has no part in {task.OUTPUT_TYPE}; leave the task out."
            )
    return True


class Simulated:
    """The guide of one pass over a layout of `rows`.

    Their sequences must have been laid `apart` (see :class:`skimp.measure.packing.Scored`), so that
    each scored entry belongs to one context.
    """

    def __init__(self, chooser: Chooser, rows: Sequence[Row], layout: Layout) -> None:
        self._chooser = chooser
        width = layout.tokens.shape[1]
        contexts: dict[tuple[int, int], int] = {}  # (row, entry before the thinned ones): number
        owners: dict[int, int] = {}  # flat entry: the number of its context
        for number, row in enumerate(rows):
            for _, entries in row.wanted:
                context = (number, row.parents[entries[0]])
                owner = contexts.setdefault(context, len(contexts))
                owners.update((number * width + entry, owner) for entry in entries)
        lines = [
            [number * width + entry for entry in rows[number].line(end)] for number, end in contexts
        ]
        columns = {entry: column for column, entry in enumerate(dict.fromkeys(chain(*lines)))}
        member = torch.zeros(len(lines), len(columns))
        for owner, line in enumerate(lines):
            member[owner, [columns[entry] for entry in line]] = 1
        self._member = member  # [contexts, entries read]
        self._counts = member.sum(1).long()
        self._read = torch.tensor(list(columns), dtype=torch.long)
        self._thinned = torch.tensor(list(owners))
        self._owner = torch.tensor(list(owners.values()))

    def enter(self, module: NeuronsIn, x: Tensor) -> Tensor:
        return module.dense(x)

    def leave(self, module: NeuronsOut, h: Tensor) -> Tensor:
        flat = h.reshape(-1, module.width)  # OPT's FF is given all rows as one, in the same order
        read, thinned = self._read.to(h.device), self._thinned.to(h.device)
        sums = self._member.to(h.device) @ squares(flat[read].unsqueeze(1))
        chosen = self._chooser.choose(module.layer, sums, self._counts, apart=True)
        gone = torch.ones(sums.shape, dtype=torch.bool, device=h.device)
        gone[:, chosen.rows.long()] = False if chosen.mask is None else ~chosen.mask
        kept = flat.clone()
        kept[thinned] = flat[thinned].masked_fill(gone[self._owner.to(h.device)], 0)
        return module.dense(kept.view(h.shape))
