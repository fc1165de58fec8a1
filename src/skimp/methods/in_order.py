"""Fit what several methods change, in one walk through the layers in running order.

Nothing is trained by gradient: every fit is a closed form. Each is made with everything before it
in place, whatever method that came from, so it also makes good what was lost before it.
"""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor, nn

from skimp.calibration.replay import Replay
from skimp.methods.walk import Walk
from skimp.models.anatomy import KINDS, Kind
from skimp.models.surgery import Surgery
from skimp.progress import SILENT, Progress

Place = tuple[int, Kind]


class Task(Protocol):
    """What a method does to one sublayer, and fits for it."""

    @property
    def corrects(self) -> bool:
        """Whether it only corrects the sublayer's output, and so gives way to what changes it."""
        ...

    def fit(self, walk: Walk, layer: nn.Module, surgery: Surgery) -> dict[str, Tensor]:
        """Fit, put it in place in the walk's layer, and go on behind the sublayer."""
        ...


def fit_in_order(
    replay: Replay, tasks: Mapping[Place, Task], progress: Progress = SILENT
) -> dict[Place, dict[str, Tensor]]:
    """Carry the tasks out, in running order; what each fitted.

    Every target is what brings the residual stream back to the dense one behind the branch: the
    dense state there minus the planned state before it. So each fit also makes good what was lost
    before it, from what this branch knows; an attention sublayer can take over recall that a
    dropped neighbour did. The model is restored afterwards.
    """
    fitted: dict[Place, dict[str, Tensor]] = {}
    if not tasks:
        return fitted
    first, last = min(layer for layer, _ in tasks), max(layer for layer, _ in tasks)
    surgery = Surgery()
    dense = planned = list(replay.entry)
    apart = replay.additive(0, replay.entry[0], 0)
    try:
        with progress.task("fitting in order", last + 1) as step:
            for index in range(last + 1):
                if index < first:
                    # Before the first change the planned states are the dense ones.
                    dense = planned = [replay.layer(index, s, b) for b, s in enumerate(dense)]
                    step()
                    continue
                seen = [replay.watch(index, KINDS, s, b) for b, s in enumerate(dense)]
                walk = Walk(replay, index, planned, seen, apart)
                for kind in KINDS:
                    task = tasks.get((index, kind))
                    if task is None:
                        walk.pass_branch(kind)
                    else:
                        fitted[index, kind] = task.fit(walk, replay.layers[index], surgery)
                planned = walk.finish()
                dense = [after for _, after in seen]
                step()
    finally:
        surgery.undo()
    return fitted


def join(*parts: Mapping[Place, Task]) -> dict[Place, Task]:
    """All tasks, one a sublayer: of two the earlier, unless it only corrects."""
    found: dict[Place, Task] = {}
    for part in parts:
        for place, task in part.items():
            if place not in found or found[place].corrects:
                found[place] = task
    return found
