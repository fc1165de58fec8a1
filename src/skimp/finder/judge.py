"""Fit a plan, and say how far it is from the dense model on text that nothing was chosen on.

This is the unit of work that several processes share: it takes a plan by its file and gives plain
numbers, so it runs the same here, in a worker, or on another machine.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from skimp.calibration.text import Calibration
from skimp.finder.spread import Thin
from skimp.finder.texts import FITTING, Windows
from skimp.measure.fidelity import document_sums
from skimp.methods.apply import apply
from skimp.methods.experts.deciding import Chooser
from skimp.methods.experts.modules import guided
from skimp.methods.fit import fit_plan
from skimp.plan import Plan
from skimp.progress import SILENT, Progress

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

    On a few thousand tokens repairs do more harm than good (docs/log.md).
    """
    if plan == bare(plan) and calibration.tokens > FITTING:
        documents = calibration.sample(FITTING, calibration.seed)
        kinds = calibration.kinds[: len(documents)]
        calibration = Calibration(tuple(documents), kinds, calibration.source, calibration.seed)
    return fit_plan(model, plan, calibration, progress=progress)


class Judge:
    """The dense model's predictions of the windows' answers, kept, and plans beside them."""

    def __init__(self, model: nn.Module, windows: Windows) -> None:
        self._model = model
        groups = windows.ids.split(_TOGETHER)
        self._groups = [Windows(ids, windows.owners, windows.prompt) for ids in groups]
        self._owners = windows.owners
        self._dense = [self._logits(group) for group in self._groups]

    def __call__(self, plan: Plan | None) -> Tensor:
        """Sums over each document's answer tokens, as :mod:`skimp.measure.fidelity` has them.

        float64 [documents, sums]. None: the dense model beside itself.
        """
        rows: list[Tensor] = []
        with apply(self._model, plan) if plan is not None else nullcontext():
            for group, dense in zip(self._groups, self._dense, strict=True):
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

    @torch.inference_mode()
    def _logits(self, group: Windows) -> Tensor:
        """Logits [n, answer, V] that predict the answers, experts chosen by the prompts."""
        runner: Any = self._model
        ids = group.ids.to(next(self._model.parameters()).device)
        chooser = Chooser(self._model)
        thin = guided(Thin(chooser, len(ids), group.prompt)) if chooser.widths else nullcontext()
        with thin:
            logits = runner(input_ids=ids, use_cache=False).logits
        return logits[:, group.prompt - 1 : -1].clone()


def quality(sums: Sequence[Sequence[float]]) -> dict[str, Any]:
    """The figures of a plan that a document of a search holds, of its sums."""
    from skimp.measure.fidelity import summary

    found = summary(torch.tensor(sums, dtype=torch.float64))
    return {
        "kl": found.kl,
        "kl_interval": list(found.kl_interval),
        "loss_difference": found.loss_difference,
        "loss_interval": list(found.loss_interval),
        "agreement": found.top1_agreement,
        "tokens": found.tokens,
    }
