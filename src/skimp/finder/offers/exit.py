"""Let tokens leave early once they are decided (AdaInfer, Fan et al., 2024): a choice of the whole
model.

How early that is hangs on what is said, so an agreement is chosen, and probes where they pay for
the dense model; translators, rules and thresholds are fitted to the plan that it becomes part of.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from math import sqrt
from typing import Any

import torch
from torch import nn

from skimp.calibration.replay import Replay, pack
from skimp.errors import CalibrationError
from skimp.finder.choices import WHOLE, Choice, Gain, Setting
from skimp.finder.clock import Clock, kept
from skimp.finder.judge import Judge, part
from skimp.finder.texts import EXITS
from skimp.methods.exit.costs import Costs, by_bytes, priced, timed
from skimp.methods.exit.fit import OPTIONS, Fitter, can_probe, candidate_layers, options_of
from skimp.methods.exit.screen import KINDS
from skimp.methods.exit.section import SECTION, Exit, read_section
from skimp.models.anatomy import Anatomy
from skimp.plan import Plan
from skimp.progress import Progress
from skimp.workload import Workload

AGREEMENTS = (0.99, 0.95, 0.9, 0.8)
_SECTION = Exit(rule="svm", translator="full", screen=KINDS)


class ExitOffer:
    """Agreements with the full model at which tokens may leave."""

    name = "exit"
    group = "exit"
    acts_on = "model"

    def choices(self, model: nn.Module, anatomy: Anatomy) -> list[Choice]:
        """Every agreement, with one probe after the last layer; `look` finds better ones."""
        if not can_probe(model):
            return []
        rows = OPTIONS[1] if OPTIONS[1] < anatomy.vocabulary else 0
        last = anatomy.layers[-1].source
        return [_choice(agreement, (last,), rows) for agreement in AGREEMENTS]

    def look(
        self, model: nn.Module, setting: Setting, progress: Progress
    ) -> tuple[list[Gain], str]:
        anatomy = Anatomy.of(model)
        if not self.choices(model, anatomy):
            return [], "between this model's last layer and its head there is nothing to probe"
        text = part(setting.text, EXITS)
        replay = Replay(model, pack(text.documents))
        layers = candidate_layers(anatomy)
        try:
            fitter = Fitter(
                replay, layers, workload=setting.workload, seed=text.seed, progress=progress
            )
        except CalibrationError as error:
            return [], str(error).rstrip(".")
        costs = _costs(model, fitter, setting)
        judge, gains, reason = Judge(model, setting.windows), list[Gain](), ""
        speedup = _speedup(model, setting)
        for agreement in AGREEMENTS:
            section = replace(_SECTION, agreement=agreement)
            found = fitter.find(section, agreements=(agreement,), costs=costs, published=False)
            reason = found.reason
            if reason:
                continue
            way = found.chosen
            data = way.section.to_dict()
            plan = Plan.empty(anatomy).with_section(SECTION, data).with_values(way.values)
            faster = speedup(plan) if setting.by_time else way.at(agreement).speedup
            if faster <= 1:
                reason = f"by the clock exits at {agreement:g} make decoding no faster"
                continue
            choice = _choice(agreement, way.section.probe, way.section.candidates)
            gains.append(Gain(choice, 1 - 1 / faster, _harm(judge(plan))))
        return gains, "" if gains else reason

    def sections(self, choices: Sequence[Choice], anatomy: Anatomy) -> dict[str, dict[str, Any]]:
        agreement, _, rest = choices[0].level.partition("@")
        probes, _, rows = rest.partition("/")
        section = replace(
            _SECTION,
            agreement=float(agreement),
            probe=tuple(map(int, probes.split("+"))),
            candidates=int(rows),
            screen=KINDS if int(rows) else 0,
        )
        return {self.name: section.to_dict()}

    def share_read(
        self,
        section: Mapping[str, Any],
        planned: Anatomy,
        workload: Workload,
        left: Sequence[float],
    ) -> float:
        exits = read_section(section)
        places = [place - 1 for place in exits.places(planned)]
        costs = by_bytes(exits, planned, workload, [exits.candidates])
        return costs.with_probes(places, left, exits.candidates) / costs.step


OFFER = ExitOffer()


def _choice(agreement: float, probes: Sequence[int], candidates: int) -> Choice:
    level = f"{agreement:g}@{'+'.join(map(str, probes))}/{candidates}"
    return Choice(WHOLE[0], "model", ExitOffer.name, level)


def _costs(model: nn.Module, fitter: Fitter, setting: Setting) -> Costs:
    options = options_of(fitter.anatomy, KINDS)
    if not setting.by_time:
        return by_bytes(_SECTION, fitter.anatomy, setting.workload, options)

    def probed() -> dict[str, Any]:
        batch = setting.workload.batch
        section = replace(_SECTION, probe=(0,))
        head, found = timed(section, fitter.anatomy, fitter.norm, fitter.head, batch, options)
        return {"probes": {str(count): seconds for count, seconds in found.items()}, "head": head}

    found = kept("probes", model, setting.workload, probed)
    probes = {int(count): seconds for count, seconds in found["probes"].items()}
    return priced(fitter.anatomy, setting.workload, found["head"], probes)


def _speedup(model: nn.Module, setting: Setting) -> Callable[[Plan], float]:
    """How much faster a plan decodes than the dense model by the clock, on the choosing text.

    What is foretold of exits leaves out what a step's stretches cost beside probes and bytes.
    """
    clock = cache(lambda: Clock(model, setting.workload, text=setting.windows.ids.flatten()))

    def found(plan: Plan) -> float:
        name = f"exits-{plan.digest()}"

        def timed() -> dict[str, float]:
            return {name: clock().speedup(plan).estimate}

        return kept(name, model, setting.workload, timed)[name]

    return found


def _harm(sums: torch.Tensor) -> float:
    """KL in the quadratic mean over documents, as the harm of sublayers is taken."""
    return sqrt(float((sums[:, 3] / sums[:, 0]).square().mean()))
