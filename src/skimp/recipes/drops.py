"""Drops that a rule chooses: `choose` in a plan's section `drop`, where layers would be listed.

    drop: {choose: {rule: last, part: attention, share: 0.25, keep_last: 1}, fill: zero}

A share of the layers, so that a recipe runs on models of any depth.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from skimp.errors import PlanError
from skimp.finder.choose import choose, find_rule
from skimp.finder.harm import Measure
from skimp.methods.drop.section import read_section
from skimp.methods.drop.values import SECTION
from skimp.models.anatomy import Anatomy
from skimp.plan import Plan
from skimp.progress import SILENT, Progress
from skimp.recipes.recipe import STRICT, Sections

if TYPE_CHECKING:
    from skimp.calibration.text import Calibration

CHOOSE = "choose"
_LISTED = ("attention", "ffn", "layers")


@dataclass(frozen=True, kw_only=True)
class DropChoice:
    """What is to be chosen: a `share` of the layers, to leave out their `part`, by `rule`.

    `keep_last`: so many layers at the end stay; None as the rule has it. `harm`: by what rules that
    read text judge.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    part: Literal["attention", "ffn", "layer"]
    share: Annotated[float, Field(strict=True, gt=0, le=1)]
    rule: str = "last"
    keep_last: Annotated[int, Field(strict=True, ge=0)] | None = None
    harm: Measure = "kl"

    def count(self, layers: int) -> int:
        """The share of so many layers, to the nearest whole number, halves upwards.

        Raises:
            PlanError: it comes to none, or to more than may be touched.
        """
        # Shares are decimals: without the rounding 0.29 * 50 would be short of 14.5.
        count = math.floor(round(self.share * layers, 6) + 0.5)
        where = f"{SECTION}.{CHOOSE}"
        if count == 0:
            raise PlanError(
                f"{where}.share: {self.share} of {layers} layers is none; give at least "
                f"{math.ceil(50 / layers) / 100}."
            )
        kept = self.kept(layers)
        if count > layers - kept:
            raise PlanError(
                f"{where}.share: {self.share} of {layers} layers is {count}, but with the last "
                f"{kept} kept only {max(0, layers - kept)} may be left out; lower share or "
                "keep_last."
            )
        if count == layers and self.part != "ffn":
            raise PlanError(
                f"{where}.share: at least one attention sublayer must stay; give less than "
                f"{self.share}."
            )
        return count

    def kept(self, layers: int) -> int:
        """Layers at the end that stay."""
        if self.keep_last is not None:
            return self.keep_last
        return find_rule(self.rule).keep_last(layers)

    def reads_text(self, plan: Plan) -> bool:
        """Whether choosing the plan's drops, or fitting what stands in their place, takes text."""
        section = read_section(plan.sections[SECTION])
        fitted = section.fill.name != "zero" or section.repairs
        return fitted or find_rule(self.rule).reads_text

    def chosen(
        self,
        model: Any,
        plan: Plan,
        text: Calibration | None,
        seed: int,
        progress: Progress = SILENT,
    ) -> Plan:
        """The plan with its drops chosen and fitted, as `skimp plan` does for the dense model."""
        wanted = plan.sections[SECTION]
        count = self.count(Anatomy.of(model).dense_layers)
        found = choose(
            model,
            None,
            rule=self.rule,
            drop_attention=count if self.part == "attention" else 0,
            drop_ffn=count if self.part == "ffn" else 0,
            drop_layers=count if self.part == "layer" else 0,
            fill=wanted.get("fill", "zero"),
            repair=wanted.get("repair", "none"),
            keep_last=self.keep_last,
            harm=self.harm,
            calibration=text,
            seed=seed,
            progress=progress,
        ).plan
        made = plan.with_section(SECTION, found.sections[SECTION]).with_values(found.values)
        return made.with_evidence(**found.evidence)


def parted(sections: Sections) -> tuple[Sections, Mapping[str, Any] | None]:
    """A plan's sections, and how its drops are to be chosen (None: they are listed).

    Raises:
        PlanError: layers are listed as well.
    """
    section = sections.get(SECTION)
    if not isinstance(section, Mapping) or CHOOSE not in section:
        return sections, None
    listed = [name for name in _LISTED if name in section]
    if listed:
        raise PlanError(
            f"{SECTION}.{CHOOSE}: a rule chooses the layers, but {listed[0]} lists them too; "
            "leave one of the two out."
        )
    choice = section[CHOOSE]
    if not isinstance(choice, Mapping):
        raise PlanError(
            f"{SECTION}.{CHOOSE}: must have named settings, such as "
            "{rule: last, part: attention, share: 0.25}."
        )
    others = {name: value for name, value in section.items() if name != CHOOSE}
    return {**sections, SECTION: others}, choice
