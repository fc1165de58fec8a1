"""The `drop` section: which sublayers are left out, and what stands in their place.

Dropping attention, FF or whole layers follows Tyukin et al. (2024); the fills are ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from skimp.errors import PlanError
from skimp.models.anatomy import KINDS, Anatomy, Kind
from skimp.plan import explain


@dataclass(frozen=True)
class FillKind:
    """`zero`, `mean`, or `linear` with a rank (None: no limit)."""

    name: Literal["zero", "mean", "linear"] = "zero"
    rank: int | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `zero`, `mean`, `linear:RANK` or `linear:full`; PlanError otherwise."""
        name, _, rank = text.partition(":")
        if name in ("zero", "mean") and not rank:
            return cls(name)
        if name == "linear" and rank == "full":
            return cls("linear")
        if name == "linear" and rank.isdecimal() and int(rank) > 0:
            return cls("linear", int(rank))
        raise PlanError(
            f"drop.fill: {text!r} is none of zero, mean, linear:RANK (for example linear:16) "
            "or linear:full."
        )

    def __str__(self) -> str:
        return self.name if self.name != "linear" else f"linear:{self.rank or 'full'}"


def parse_repair(text: str | int) -> int | None:
    """Read `none` (0), a rank, or `full` (None); PlanError otherwise."""
    if text == "full":
        return None
    if text == "none":
        return 0
    if str(text).isdecimal():
        return int(text)
    raise PlanError(f"drop.repair: {text!r} is none of none, RANK (for example 64) or full.")


def format_repair(rank: int | None) -> str | int:
    """The inverse of `parse_repair`."""
    return "full" if rank is None else (rank or "none")


@dataclass(frozen=True)
class Drop:
    """Sublayers to leave out, by their layer's index in the dense model, ascending.

    `repair` is the rank of the correction added, in closed form, to the output projection of every
    sublayer behind the first that is left out; 0 for none, None for no limit. It merges into the
    weights, so it costs nothing at run time.
    """

    attention: tuple[int, ...] = ()
    ffn: tuple[int, ...] = ()
    fill: FillKind = FillKind()
    repair: int | None = 0

    def of(self, kind: Kind) -> tuple[int, ...]:
        return self.attention if kind == "attention" else self.ffn

    @property
    def sublayers(self) -> tuple[tuple[int, Kind], ...]:
        """(layer, kind) in running order: in a layer, attention before FF."""
        pairs: list[tuple[int, Kind]] = [(la, kind) for kind in KINDS for la in self.of(kind)]
        return tuple(sorted(pairs, key=lambda pair: (pair[0], KINDS.index(pair[1]))))

    @property
    def repairs(self) -> bool:
        return self.repair != 0

    def to_dict(self) -> dict[str, Any]:
        return {
            "attention": list(self.attention),
            "ffn": list(self.ffn),
            "fill": str(self.fill),
            "repair": format_repair(self.repair),
        }

    def check(self, anatomy: Anatomy) -> None:
        """Raise PlanError, naming the field, unless the section fits the model."""
        count = anatomy.dense_layers
        for kind in KINDS:
            for layer in self.of(kind):
                if layer >= count:
                    raise PlanError(
                        f"drop.{kind}: there is no layer {layer}; the model has layers 0 to "
                        f"{count - 1}."
                    )
        if len(self.attention) == count:
            raise PlanError(
                "drop.attention: at least one attention sublayer must stay, since positions and "
                "masks come from its KV cache."
            )
        if self.repair is not None and self.repair > anatomy.hidden_size:
            raise PlanError(
                f"drop.repair: rank {self.repair} exceeds the hidden size {anatomy.hidden_size}; "
                "use full."
            )
        rank = self.fill.rank
        if rank is not None and rank > anatomy.hidden_size:
            raise PlanError(
                f"drop.fill: rank {rank} exceeds the hidden size {anatomy.hidden_size}; "
                "use linear:full."
            )


class DropFile(BaseModel):
    """The section as it stands in a plan file."""

    model_config = ConfigDict(extra="forbid", strict=True)
    attention: list[int] = Field(default_factory=list, description="layers without attention")
    ffn: list[int] = Field(default_factory=list, description="layers without FF")
    layers: list[int] = Field(default_factory=list, description="layers left out whole")
    fill: str = Field(
        default="zero", description="what stands in their place: zero, mean, linear:RANK"
    )
    repair: str | int = Field(
        default="none", description="repair of kept output projections: none, RANK or full"
    )


def read_section(data: Mapping[str, Any]) -> Drop:
    """Read the section; PlanError names a field that is wrong."""
    try:
        file = DropFile.model_validate(dict(data))
    except ValidationError as error:
        raise PlanError(explain(error, "drop.")) from None
    for name in ("attention", "ffn", "layers"):
        indices = getattr(file, name)
        if any(index < 0 for index in indices):
            raise PlanError(f"drop.{name}: layers are counted from 0, so none may be negative.")
        if len(set(indices)) < len(indices):
            raise PlanError(f"drop.{name}: a layer is named twice.")
    return Drop(
        attention=tuple(sorted({*file.attention, *file.layers})),
        ffn=tuple(sorted({*file.ffn, *file.layers})),
        fill=FillKind.parse(file.fill),
        repair=parse_repair(file.repair),
    )
