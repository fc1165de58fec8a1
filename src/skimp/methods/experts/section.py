"""The `experts` section: which share of the FF neurons is kept, and how they are chosen.

The prompt picks the neurons that the answer needs, after GRIFFIN (Dong et al., 2024); joining its
ranks with those of a prior that is the same for all prompts follows GLASS (2025). Or calibration
text picks, by the same statistic, one set for good.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import floor
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from skimp.errors import PlanError
from skimp.models.anatomy import Anatomy
from skimp.plan import Plan, explain

Scope = Literal["prompt", "calibrated"]
Repair = Literal["none", "full"]
Select = Literal["topk", "sample", "topk_sample", "random", "magnitude"]
Batch = Literal["sequence", "shared"]
Fill = Literal["zero", "mean"]
# These do not look at the prompt, so a prior has no ranks to join.
BLIND: tuple[Select, ...] = ("random", "magnitude")
# What has a meaning only where prompts choose.
BY_PROMPT = ("refresh", "batch", "prior", "fill")


@dataclass(frozen=True)
class Experts:
    """How much of every FF is kept, and which.

    `scope` says by what, and for how long, neurons are chosen: by each prompt for its answer, or by
    calibration text for good, which makes the FFs narrower; `refresh`, `batch`, `prior` and `fill`
    have no meaning then. There, `repair` corrects the output maps of the FFs, in closed form, for
    what the text shows to be missing; it merges into the weights.

    `keep` is the share of neurons in (0, 1], one for all layers or one for each layer of the dense
    model. After every `refresh` answer tokens (0: never) the next step reads those again with the
    full FF: their statistic joins the prompt's, experts are chosen anew, and the cache entries that
    thinned FFs had left are made good. `batch` gives each sequence its own experts or all the same.
    `prior` is the weight in [0, 1] of a fitted prior. Whole blocks of `block` neighbouring neurons
    are kept. `fill` is what neurons that were left out count as: nothing, or the mean that they had
    over the prompt, whose part in the FF's output is worked out once and then added.
    """

    keep: float | tuple[float, ...] = 0.5
    select: Select = "topk"
    refresh: int = 0
    batch: Batch = "sequence"
    prior: float = 0.0
    block: int = 1
    fill: Fill = "zero"
    seed: int = 0
    scope: Scope = "prompt"
    repair: Repair = "none"

    @property
    def repairs(self) -> bool:
        return self.repair != "none"

    @property
    def calibrated(self) -> bool:
        """Whether one set of neurons is kept for good."""
        return self.scope == "calibrated"

    @property
    def needs_prior(self) -> bool:
        """Whether a fitted prior takes part in the choice."""
        return self.prior > 0 and self.select not in BLIND

    def keep_of(self, layer: int) -> float:
        """The share of neurons that a layer of the dense model keeps."""
        return self.keep[layer] if isinstance(self.keep, tuple) else self.keep

    def dense(self, layer: int) -> bool:
        """Whether the layer keeps all of its neurons."""
        return self.keep_of(layer) == 1

    def count(self, layer: int, width: int) -> int:
        """Neurons that the layer keeps of `width`: whole blocks, at least one.

        All of them where the width is no multiple of the block.
        """
        if self.dense(layer) or width % self.block:
            return width
        # 0.29 × 100 is 28.999… in binary, yet 29 neurons were asked for.
        wanted = floor(self.keep_of(layer) * width + 1e-6)
        return min(width, max(self.block, wanted // self.block * self.block))

    def decode_share(self, layer: int, width: int) -> float:
        """Share of the layer's neurons that a decode step reads, full steps counted in."""
        share = self.count(layer, width) / width
        return (self.refresh * share + 1) / (self.refresh + 1) if self.refresh else share

    def apart(self) -> "Experts":
        """The same with experts of its own for each sequence."""
        return replace(self, batch="sequence")

    def to_dict(self) -> dict[str, Any]:
        return {
            **vars(self),
            "keep": list(self.keep) if isinstance(self.keep, tuple) else self.keep,
        }

    def check(self, anatomy: Anatomy) -> None:
        """Raise PlanError, naming the field, unless the section fits the model."""
        if isinstance(self.keep, tuple) and len(self.keep) != anatomy.dense_layers:
            raise PlanError(
                f"experts.keep: lists {len(self.keep)} shares, but the model has "
                f"{anatomy.dense_layers} layers; give one for each layer, or one for all."
            )


class ExpertsFile(BaseModel):
    """The section as it stands in a plan file."""

    model_config = ConfigDict(extra="forbid", strict=True)
    scope: Scope = Field(
        default="prompt",
        description="prompt: each answer keeps what its prompt needed; calibrated: all keep one "
        "set, fitted on calibration text, and the rest is removed",
    )
    keep: float | list[float] = Field(
        default=0.5,
        description="share of FF neurons that are kept, above 0 and up to 1; or one a layer",
    )
    select: Select = Field(default="topk", description="how a layer's neurons are chosen")
    refresh: int = Field(
        default=0,
        ge=0,
        description="answer tokens between two full steps that choose anew; 0: none",
    )
    batch: Batch = Field(
        default="sequence", description="experts of each sequence's own, or one set for the batch"
    )
    prior: float = Field(
        default=0.0, ge=0, description="weight, up to 1, of a prior that all prompts share"
    )
    block: Literal[1, 16, 32, 64] = Field(
        default=1, description="neighbouring neurons that are kept or left out together"
    )
    fill: Fill = Field(
        default="zero", description="what left-out neurons count as: nothing, or the prompt's mean"
    )
    seed: int = Field(default=0, ge=0, description="of the random choices")
    repair: Repair = Field(
        default="none",
        description="of FF output maps, where the scope is calibrated: none or full",
    )


def read_section(data: Mapping[str, Any]) -> Experts:
    """Read the section; PlanError names a field that is wrong."""
    try:
        file = ExpertsFile.model_validate(dict(data))
    except ValidationError as error:
        if error.errors()[0]["loc"][:1] == ("keep",):
            raise _bad_keep(data["keep"]) from None
        raise PlanError(explain(error, "experts.")) from None
    shares = file.keep if isinstance(file.keep, list) else [file.keep]
    for share in shares:
        if not 0 < share <= 1:
            raise _bad_keep(share)
    if not file.prior <= 1:
        raise PlanError(f"experts.prior: {file.prior} is no weight from 0 to 1.")
    if file.scope == "calibrated":
        for name in BY_PROMPT:
            if getattr(file, name) != ExpertsFile.model_fields[name].default:
                raise PlanError(
                    f"experts.{name}: it has no meaning where the scope is calibrated, since no "
                    "prompt chooses; leave it out, or the scope."
                )
    elif file.repair != "none":
        raise PlanError(
            "experts.repair: it needs one set of neurons; leave it out, or write "
            "`scope: calibrated`."
        )
    fields = file.model_dump()
    fields["keep"] = tuple(shares) if isinstance(file.keep, list) else file.keep
    return Experts(**fields)


def by_prompt(plan: Plan | None) -> Experts | None:
    """The plan's section, if prompts are to choose by it."""
    data = None if plan is None else plan.sections.get("experts")
    section = None if data is None else read_section(data)
    return None if section is None or section.calibrated else section


def _bad_keep(value: Any) -> PlanError:
    return PlanError(
        f"experts.keep: {value!r} is no share above 0 and up to 1, nor a list of one a layer."
    )
