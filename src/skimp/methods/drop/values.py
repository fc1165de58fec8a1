"""The names and shapes of a section's fitted tensors in the plan: `drop.KIND.LAYER.NAME`."""

from collections.abc import Mapping
from typing import cast

from torch import Tensor

from skimp.errors import PlanError
from skimp.methods.drop.closed_form import Values
from skimp.methods.drop.layout import Place, output_part, repairable
from skimp.methods.drop.section import Drop
from skimp.models.anatomy import Anatomy, Kind

SECTION = "drop"


def flatten(fitted: Mapping[Place, Values]) -> Values:
    """Fitted tensors under the names that they have in a plan."""
    return {
        f"{SECTION}.{kind}.{layer}.{name}": value
        for (layer, kind), values in fitted.items()
        for name, value in values.items()
    }


def gather(values: Mapping[str, Tensor]) -> dict[Place, Values]:
    """The inverse of `flatten`; other methods' values are passed over."""
    found: dict[Place, Values] = {}
    for name, value in values.items():
        section, kind, layer, short = name.split(".")
        if section == SECTION:
            found.setdefault((int(layer), cast(Kind, kind)), {})[short] = value
    return found


def shapes(section: Drop, anatomy: Anatomy) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that the section must have before it can be applied."""
    size, rank = anatomy.hidden_size, section.fill.rank
    wanted: dict[str, tuple[int, ...]] = {}
    if section.fill.name == "mean":
        wanted = {"mean": (size,)}
    elif section.fill.name == "linear":
        wanted = {"up": (size, rank or size), "bias": (size,)}
        wanted |= {"down": (rank, size)} if rank else {}
    found = {
        f"{SECTION}.{kind}.{layer}.{name}": shape
        for layer, kind in section.sublayers
        for name, shape in wanted.items()
    }
    for layer, kind in repairable(section, anatomy):
        part = output_part(anatomy.layers[layer].sublayer(kind), anatomy)
        assert part is not None
        inputs = part.shape[0] * part.shape[1] // size
        name, rank = f"{SECTION}.{kind}.{layer}.repair", section.repair
        if rank is None:
            found[name] = (size, inputs)
        else:
            found[f"{name}_up"] = (size, rank)
            found[f"{name}_down"] = (rank, inputs)
    return found


def check(section: Drop, anatomy: Anatomy, values: Mapping[str, Tensor]) -> None:
    """Raise PlanError unless every fitted tensor is there in its shape.

    Sublayers that another method changes are that method's to correct, so single repairs may be
    missing; not all of them.
    """
    wanted = shapes(section, anatomy)
    repairs = {name for name in wanted if ".repair" in name}
    for name, shape in wanted.items():
        if name not in values:
            if name in repairs and repairs & values.keys():
                continue
            raise PlanError(
                f"drop.fill: {section.fill} has not been fitted ({name} is missing); run "
                "`skimp plan MODEL --fit plan.yaml`, or skimp.fit(model, tokenizer, plan)."
            )
        if tuple(values[name].shape) != shape:
            raise PlanError(
                f"{name}: has shape {tuple(values[name].shape)}, but {shape} is needed."
            )
