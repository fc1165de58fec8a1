"""Fit a plan, and say how far it is from the dense model on text that nothing was chosen on.

This is the unit of work that several processes share: it takes a plan by its file and gives plain
numbers, so it runs the same here, in a worker, or on another machine.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from skimp.calibration.text import Calibration
from skimp.finder.spread import Thin
from skimp.finder.texts import EXITS, FITTING, Windows
from skimp.measure.depths import Leaving, leaving_of
from skimp.measure.fidelity import document_sums
from skimp.methods.apply import apply
from skimp.methods.exit.section import SECTION
from skimp.methods.experts.deciding import Chooser
from skimp.methods.experts.modules import guided
from skimp.methods.fit import fit_plan
from skimp.models.some_logits import logits_at
from skimp.plan import Plan
from skimp.progress import SILENT, Progress

SUMS = 7  # columns of what skimp.measure.fidelity sums up
_TOGETHER = 8  # windows of a pass


def bare(plan: Plan) -> Plan:
    """The plan without repairs: refitting output maps takes far more text than fills do."""
    for name in ("drop", "experts"):
        section = plan.sections.get(name)
        if section is not None and section.get("repair", "none") != "none":
            plan = plan.with_section(name, {**section, "repair": "none"})
    return plan


def fit(
    model: nn.Module, plan: Plan, calibration: Calibration, *, progress: Progress = SILENT
) -> Plan:
    """The plan fitted: on all of the text if it repairs, else on about FITTING tokens.

    On a few thousand tokens repairs do more harm than good (docs/log.md). Exits come last, on what
    the rest has become, and on EXITS tokens.
    """
    if plan != bare(plan):
        return fit_plan(model, plan, calibration, progress=progress)
    few = part(calibration, FITTING)
    if SECTION not in plan.sections:
        return fit_plan(model, plan, few, progress=progress)
    others = {name: section for name, section in plan.sections.items() if name != SECTION}
    fitted = fit_plan(model, replace(plan, sections=others), few, progress=progress)
    fitted = fitted.with_section(SECTION, plan.sections[SECTION])
    return fit_plan(model, fitted, part(calibration, EXITS), progress=progress)


def part(calibration: Calibration, tokens: int) -> Calibration:
    """About so many tokens of calibration text, in whole documents."""
    if calibration.tokens <= tokens:
        return calibration
    documents = calibration.sample(tokens, calibration.seed)
    kinds = calibration.kinds[: len(documents)]
    return Calibration(tuple(documents), kinds, calibration.source, calibration.seed)


class Judge:
    """The dense model's predictions of the windows' answers, kept, and plans beside them.

    Where tokens leave early, what the full head says of the state that left is judged. As an engine
    emits the likeliest of a few candidates there, what that token is less likely by than the one
    that the plan would emit at full depth is added to loss and KL, in nats.
    """

    def __init__(self, model: nn.Module, windows: Windows) -> None:
        self._model = model
        groups = windows.ids.split(_TOGETHER)
        self._groups = [Windows(ids, windows.owners, windows.prompt) for ids in groups]
        self._owners = windows.owners
        self._dense = [self._logits(group) for group in self._groups]

    def __call__(self, plan: Plan | None) -> Tensor:
        """Sums over each document's answer tokens, as :mod:`skimp.measure.fidelity` has them.

        float64 [documents, sums], and behind them the tokens that left at each probe. None: the
        dense model beside itself.
        """
        rows: list[Tensor] = []
        with apply(self._model, plan) if plan is not None else nullcontext():
            leaving = leaving_of(self._model, plan)
            for group, dense in zip(self._groups, self._dense, strict=True):
                if leaving is not None:
                    rows += self._left(group, dense, leaving)
                    continue
                found = self._logits(group)
                targets = group.ids[:, group.prompt :]
                rows += [
                    document_sums(dense[row], found[row], targets[row])
                    for row in range(len(group.ids))
                ]
        sums = torch.stack(rows)
        owners, places = self._owners.unique(return_inverse=True)
        total = torch.zeros(len(owners), sums.shape[1], dtype=sums.dtype)
        return total.index_add(0, places, sums)

    def _left(self, group: Windows, dense: Tensor, leaving: Leaving) -> list[Tensor]:
        """Sums [sums + probes] of each window, tokens leaving early."""
        count, length = group.ids.shape
        answer = torch.arange(group.prompt - 1, length - 1)
        position = (torch.arange(count)[:, None] * length + answer).flatten()
        with leaving.watching(position) as states:
            full = self._logits(group)
        flat = full.flatten(0, 1)
        left = leaving.leave(states, flat)
        taken = left.tokens.to(flat.device)
        behind = (flat.amax(-1) - flat.gather(1, taken[:, None])[:, 0]).double().cpu()
        left_early = left.place < len(leaving.looks)
        behind = torch.where(left_early, behind, 0).view(count, -1).sum(1)
        same = (taken == dense.flatten(0, 1).argmax(-1)).double().cpu().view(count, -1).sum(1)
        found, place = left.logits.view_as(full), left.place.view(count, -1)
        rows = []
        for row in range(count):
            sums = document_sums(dense[row], found[row], group.ids[row, group.prompt :])
            sums[2] += behind[row]
            sums[3] += behind[row]
            sums[4] = same[row]
            exits = torch.bincount(place[row], minlength=len(leaving.looks) + 1)
            rows.append(torch.cat([sums, exits[: len(leaving.looks)].double()]))
        return rows

    @torch.inference_mode()
    def _logits(self, group: Windows) -> Tensor:
        """Logits [n, answer, V] that predict the answers, experts chosen by the prompts."""
        ids = group.ids.to(next(self._model.parameters()).device)
        chooser = Chooser(self._model)
        thin = guided(Thin(chooser, len(ids), group.prompt)) if chooser.widths else nullcontext()
        with thin:
            return logits_at(self._model, ids, range(group.prompt - 1, ids.shape[1] - 1))


def quality(sums: Sequence[Sequence[float]]) -> dict[str, Any]:
    """The figures of a plan that a document of a search holds, of its sums."""
    from skimp.measure.fidelity import summary

    table = torch.tensor(sums, dtype=torch.float64)
    found = summary(table[:, :SUMS])
    return {
        "kl": found.kl,
        "kl_interval": list(found.kl_interval),
        "loss_difference": found.loss_difference,
        "loss_interval": list(found.loss_interval),
        "agreement": found.top1_agreement,
        "tokens": found.tokens,
        "left": (table[:, SUMS:].sum(0) / found.tokens).tolist(),
    }
