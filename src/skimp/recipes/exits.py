"""Exits that a recipe has fitted itself: `exit: {fit: …}` in a plan.

Layers are named by how many probes there are to be, spread evenly, so that a recipe runs on models
of any depth. Nothing here hangs on the clock: the same seed gives the same exits, and a run that
was broken off goes on with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import ConfigDict, Field

from skimp.calibration.replay import Replay, pack
from skimp.methods.exit.section import SECTION, Exit, Rule, read_section
from skimp.methods.exit.values import asked_levels
from skimp.methods.fit import planned_but
from skimp.models.anatomy import Anatomy
from skimp.plan import Plan
from skimp.progress import SILENT, Progress
from skimp.recipes.recipe import STRICT, Sections

if TYPE_CHECKING:
    from skimp.calibration.text import Calibration
    from skimp.methods.exit.fit import Fitter

FIT = "fit"
_TOKENS = 3000  # that rules are trained on, and as many that thresholds are calibrated on


@dataclass(frozen=True, kw_only=True)
class ExitFit:
    """What is to be fitted: `probes`, how many, spread evenly over the layers but the last, or
    `probe`, which layers; the rest is as in a plan's section."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    rule: Rule = "svm"
    translator: str | int = "full"
    probes: Annotated[int, Field(strict=True, ge=1)] = 12
    probe: tuple[int, ...] = ()
    candidates: Annotated[int, Field(strict=True, ge=0)] = 0
    screen: Annotated[int, Field(strict=True, ge=0)] = 0
    agreement: float | None = None
    threshold: float | None = None

    def section(self, anatomy: Anatomy) -> Exit:
        """The section for a model; PlanError for a field that is wrong or does not fit it."""
        data = {name: value for name, value in vars(self).items() if value is not None}
        data.pop("probes")
        data["probe"] = list(self.probe or spread(self.probes, anatomy))
        found = read_section(data)
        found.check(anatomy)
        return found


def spread(count: int, anatomy: Anatomy) -> list[int]:
    """So many layers of the model that are still there, evenly, without the last."""
    sources = [layer.source for layer in anatomy.layers[:-1]]
    steps = {round((number + 1) * (len(sources) + 1) / (count + 1)) - 1 for number in range(count)}
    return sorted({sources[min(max(step, 0), len(sources) - 1)] for step in steps})


def parted(sections: Sections) -> tuple[Sections, Mapping[str, Any] | None]:
    """A plan's sections, and what its exits are to be fitted to (None: they are not)."""
    section = sections.get(SECTION)
    if not isinstance(section, Mapping) or FIT not in section:
        return sections, None
    others = {name: data for name, data in sections.items() if name != SECTION}
    extra = set(section) - {FIT}
    fit = section[FIT]
    return others, {**(fit if isinstance(fit, Mapping) else {FIT: fit}), **dict.fromkeys(extra)}


@dataclass
class ExitFits:
    """Fits the exits of a model's plans; what they have in common is read from the text once."""

    model: Any
    anatomy: Anatomy
    progress: Progress = SILENT
    _fitter: tuple[str, Fitter] | None = field(default=None, init=False)

    def fitted(self, plan: Plan, wanted: ExitFit, text: Calibration, seed: int) -> Plan:
        """The plan with exits; its other sections are fitted already."""
        with planned_but(self.model, plan, SECTION):
            section = wanted.section(Anatomy.of(self.model))
            way = self._on(plan, section, text, seed).way(section, None, asked_levels(section))
        made = plan.with_section(SECTION, way.section.to_dict()).with_values(way.values)
        results = [each.to_dict() for each in way.results]
        return made.with_evidence(**{SECTION: {"levels": results}})

    def _on(self, plan: Plan, section: Exit, calibration: Calibration, seed: int) -> Fitter:
        from skimp.methods.exit.fit import Fitter

        key = repr((dict(plan.sections), section.probe, seed))
        if self._fitter is None or self._fitter[0] != key:
            self._fitter = None  # free before the next takes memory
            replay = Replay(self.model, pack(calibration.documents))
            made = Fitter(replay, section.probe, seed=seed, progress=self.progress)
            # Every probe reads the full head: by all tokens, that would take longer than the tasks.
            text = made.text
            control, promise = text.control.some(_TOKENS, seed), text.promise.some(_TOKENS, seed)
            made.text = replace(text, control=control, promise=promise)
            self._fitter = (key, made)
        return self._fitter[1]
