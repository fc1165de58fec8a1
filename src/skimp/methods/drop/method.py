"""The surgery of the `drop` method: real removal, in place, reversible."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

import skimp
from skimp.calibration.replay import Replay
from skimp.methods.base import Applying
from skimp.methods.drop import values as fitted_values
from skimp.methods.drop.fit import repair, tasks_of
from skimp.methods.drop.layout import (
    make_layout,
    mean_folds,
    output_part,
    reduce,
    repairable,
)
from skimp.methods.drop.section import Drop, DropFile, read_section
from skimp.methods.in_order import Place, Task
from skimp.models.anatomy import Anatomy, Kind
from skimp.models.carve import Constant, Linear, carve
from skimp.progress import Progress


class DropMethod:
    """Leave out attention sublayers, FF sublayers or whole layers (Tyukin et al., 2024)."""

    name = fitted_values.SECTION
    schema = DropFile

    def read(self, data: Mapping[str, Any]) -> Drop:
        return read_section(data)

    def check(self, section: Drop, anatomy: Anatomy) -> None:
        section.check(anatomy)

    def needs_values(self, section: Drop) -> bool:
        return bool(section.sublayers) and (section.fill.name != "zero" or section.repairs)

    def tokens(self, section: Drop) -> int | None:
        return None

    def in_order(self, section: Drop) -> bool:
        return True

    def tasks(
        self, section: Drop, anatomy: Anatomy, replay: Replay, progress: Progress
    ) -> dict[Place, Task]:
        return tasks_of(section, repairable(section, anatomy))

    def values(self, section: Drop, fitted: Mapping[Place, dict[str, Tensor]]) -> dict[str, Tensor]:
        return fitted_values.flatten(fitted)

    def apply(self, section: Drop, work: Applying) -> None:
        if not section.sublayers:
            return
        fitted_values.check(section, work.anatomy, work.values)
        found = fitted_values.gather(work.values)
        values = {place: found.get(place, {}) for place in section.sublayers}
        layout = make_layout(section, work.anatomy, work.model)
        folds = mean_folds(section, work.anatomy)
        biases = _folded_biases(folds, values, work)
        config: Any = work.model.config
        # After carving, paths are renumbered; the layer objects are not, so reach through them.
        blocks: list[nn.Module] = list(work.model.get_submodule(work.anatomy.family.layers))
        for place, path in repairable(section, work.anatomy).items():
            if place in found:
                repair(blocks[place[0]], path, found[place], work.surgery)
        carve(work.model, layout, work.surgery.set)
        for path, bias in biases.items():
            parameter = nn.Parameter(bias, requires_grad=False)
            work.surgery.set(_in_block(blocks, path, work.anatomy), "bias", parameter)
        for place in values.keys() - folds.keys():
            _fill_in(blocks[place[0]], place[1], values[place], work.anatomy)
        work.surgery.set(config, "skimp", {"version": skimp.__version__, "layout": layout})

    def reduce(self, section: Drop, anatomy: Anatomy) -> Anatomy:
        return reduce(section, anatomy)


METHOD = DropMethod()


def _folded_biases(
    folds: dict[tuple[int, Kind], tuple[int, Kind]],
    values: dict[tuple[int, Kind], dict[str, Tensor]],
    work: Applying,
) -> dict[str, Tensor]:
    """New biases by dense path: the old bias plus the means folded into it, summed in float32."""
    sums: dict[str, Tensor] = {}
    for place, (source, kind) in folds.items():
        part = output_part(work.anatomy.layers[source].sublayer(kind), work.anatomy)
        assert part is not None
        module = work.model.get_submodule(part.path)
        if part.path not in sums:
            start = torch.zeros(work.anatomy.hidden_size) if module.bias is None else module.bias
            sums[part.path] = start.detach().float().clone()
        sums[part.path] += values[place]["mean"].float().to(sums[part.path].device)
    like = next(work.model.parameters())
    return {path: total.to(like.device, like.dtype) for path, total in sums.items()}


def _in_block(blocks: list[nn.Module], path: str, anatomy: Anatomy) -> nn.Module:
    index, _, rest = path.removeprefix(f"{anatomy.family.layers}.").partition(".")
    return blocks[int(index)].get_submodule(rest)


@torch.no_grad()
def _fill_in(block: nn.Module, kind: Kind, values: dict[str, Tensor], anatomy: Anatomy) -> None:
    branch = anatomy.family.attention if kind == "attention" else anatomy.family.ffn
    fill = block.get_submodule(branch.modules[-1])
    if isinstance(fill, Constant):
        fill.value.copy_(values["mean"])
    elif isinstance(fill, Linear):
        fill.up.weight.copy_(values["up"])
        fill.up.bias.copy_(values["bias"])
        if "down" in values:
            assert isinstance(fill.down, nn.Linear)
            fill.down.weight.copy_(values["down"])
