"""The `exit` section: after which layers a token may leave the model, and by which rule.

Probing the last token's state and leaving by the gap of its two likeliest tokens follows AdaInfer
(Fan et al., 2024). The translators are those of the tuned lens (Belrose et al., 2023) in closed
form, the screen is that of Chen et al. (2019), and the promise is ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from skimp.errors import PlanError
from skimp.models.anatomy import Anatomy
from skimp.plan import Plan, explain

SECTION = "exit"
Rule = Literal["threshold", "svm", "crf"]
Translator = Literal["plain", "full"] | int
Kv = Literal["exact", "propagate"]
# What the threshold is taken for where neither an agreement nor a threshold is named.
DEFAULT_AGREEMENT = 0.99


@dataclass(frozen=True)
class Exit:
    """After which layers a token may leave, what looks at it there, and how sure that must be.

    `probe` are layers of the dense model, ascending; a probe after the last one leaves out only
    the full head. A probe takes the state through the final norm, its `translator` (none after the
    last layer) and the head, and `rule` scores what comes out. With `candidates` K, K rows of the
    head are read instead of all: those that belong to the nearest of `screen` kinds of states, or,
    where that is 0, the K likeliest tokens of the first probe, which reads the full head.

    A token leaves where its score reaches `threshold`, or else the threshold that was calibrated
    for `agreement`. `kv` says how later tokens get the keys and values that an early exit left
    out: `exact` computes them before anything reads them, at the latest when `max_pending` tokens
    wait; `propagate` makes them from the state that left.
    """

    probe: tuple[int, ...] = ()
    rule: Rule = "svm"
    translator: Translator = "full"
    candidates: int = 0
    screen: int = 0
    agreement: float | None = None
    threshold: float | None = None
    kv: Kv = "exact"
    max_pending: int = 8

    @property
    def promised(self) -> float | None:
        """The agreement whose calibrated threshold is used; None where a threshold is given."""
        if self.threshold is not None:
            return None
        return DEFAULT_AGREEMENT if self.agreement is None else self.agreement

    @property
    def needs_values(self) -> bool:
        """Whether something must be fitted before the section can be applied."""
        fitted = (
            self.rule != "threshold"
            or self.translator != "plain"
            or self.screen > 0
            or self.threshold is None
        )
        return bool(self.probe) and fitted

    def plain(self) -> "Exit":
        """The same as published: no translators, and the full head at every probe."""
        return replace(self, translator="plain", candidates=0, screen=0)

    def places(self, planned: Anatomy) -> dict[int, int]:
        """The number of a probe by the layers of the planned model that come before it, ascending.

        Where whole layers are gone, a probe comes after the last one before it that is there.
        """
        found = {
            sum(layer.source <= source for layer in planned.layers): number
            for number, source in enumerate(self.probe)
        }
        return {place: number for place, number in sorted(found.items()) if place}

    def to_dict(self) -> dict[str, Any]:
        data = {**vars(self), "probe": list(self.probe)}
        return {name: value for name, value in data.items() if value is not None}

    def check(self, anatomy: Anatomy) -> None:
        """Raise PlanError, naming the field, unless the section fits the model."""
        count, size = anatomy.dense_layers, anatomy.hidden_size
        if self.probe and self.probe[-1] >= count:
            raise PlanError(
                f"exit.probe: there is no layer {self.probe[-1]}; the model has layers 0 to "
                f"{count - 1}."
            )
        if isinstance(self.translator, int) and self.translator > size:
            raise PlanError(
                f"exit.translator: rank {self.translator} exceeds the hidden size {size}; use full."
            )
        if self.candidates > anatomy.vocabulary:
            raise PlanError(
                f"exit.candidates: {self.candidates} are more than the {anatomy.vocabulary} tokens "
                "there are; use 0 to read the full head."
            )


class ExitFile(BaseModel):
    """The section as it stands in a plan file."""

    model_config = ConfigDict(extra="forbid", strict=True)
    probe: list[int] = Field(
        default_factory=list, description="layers after which a token may leave; none: it never may"
    )
    rule: Rule = Field(
        default="svm",
        description="what scores a probe: a linear SVM, a linear-chain CRF over the probes so far, "
        "or the bare gap of the two likeliest tokens",
    )
    translator: str | int = Field(
        default="full",
        description="what brings a state closer to the final one: plain (nothing), full or a rank",
    )
    candidates: int = Field(
        default=0, ge=0, description="rows of the head that a probe reads; 0: all of them"
    )
    screen: int = Field(
        default=0,
        ge=0,
        description="kinds of states with candidates of their own; 0: a full head shortlists",
    )
    agreement: float | None = Field(
        default=None, description="promised share of tokens that are the full model's"
    )
    threshold: float | None = Field(
        default=None, description="score to reach, instead of an agreement; .inf is never reached"
    )
    kv: Kv = Field(default="exact", description="how skipped keys and values are made good")
    max_pending: int = Field(default=8, ge=1, description="tokens that may wait for theirs")


def read_section(data: Mapping[str, Any]) -> Exit:
    """Read the section; PlanError names a field that is wrong."""
    try:
        file = ExitFile.model_validate(dict(data))
    except ValidationError as error:
        if error.errors()[0]["loc"][0] == "translator":  # of a union pydantic names the first kind
            parse_translator(data["translator"])
        raise PlanError(explain(error, "exit.")) from None
    if any(layer < 0 for layer in file.probe):
        raise PlanError("exit.probe: layers are counted from 0, so none may be negative.")
    if len(set(file.probe)) < len(file.probe):
        raise PlanError("exit.probe: a layer is named twice.")
    if file.candidates == 1:
        raise PlanError("exit.candidates: a gap needs at least 2 of them; use 0 for all tokens.")
    if file.screen and not file.candidates:
        raise PlanError("exit.screen: it picks candidates, so say how many with `candidates`.")
    if file.agreement is not None and file.threshold is not None:
        raise PlanError("exit.threshold: an agreement picks it; give one or the other.")
    if file.agreement is not None and not 0 < file.agreement < 1:
        raise PlanError(f"exit.agreement: {file.agreement} is no share above 0 and below 1.")
    if file.threshold is not None and file.threshold != file.threshold:
        raise PlanError("exit.threshold: it is not a number; use .inf for one never reached.")
    fields = file.model_dump()
    fields["probe"] = tuple(sorted(file.probe))
    fields["translator"] = parse_translator(file.translator)
    return Exit(**fields)


def parse_translator(text: str | int) -> Translator:
    """Read `plain`, `full` or a rank; PlanError otherwise."""
    if text in ("plain", "full"):
        return text
    if str(text).isdecimal() and int(text) > 0:
        return int(text)
    raise PlanError(f"exit.translator: {text!r} is none of plain, full or RANK (for example 64).")


def by_exit(plan: Plan | None) -> Exit | None:
    """The plan's section, if tokens may leave early by it."""
    data = None if plan is None else plan.sections.get(SECTION)
    section = None if data is None else read_section(data)
    return section if section is not None and section.probe else None
