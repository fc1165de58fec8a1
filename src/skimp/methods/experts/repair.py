"""Correct FFs that were made narrower: refit their output maps on what is left, in closed form.

The walk is the one that fits dropped sublayers too (:mod:`skimp.methods.in_order`): layer by layer,
with everything before in place, so that each correction also makes good what was lost before it.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from skimp.calibration.replay import Replay
from skimp.errors import PlanError
from skimp.methods.drop.closed_form import solve_repair
from skimp.methods.drop.fit import repair
from skimp.methods.drop.layout import output_part
from skimp.methods.experts.calibrated import describe, fit_rows, narrow_to
from skimp.methods.experts.section import Experts
from skimp.methods.in_order import Place, Task
from skimp.methods.walk import Walk
from skimp.models.anatomy import Anatomy
from skimp.models.feed_forward import FeedForward, feed_forwards
from skimp.models.surgery import Surgery
from skimp.progress import Progress


def check_repairable(anatomy: Anatomy) -> None:
    """Raise PlanError unless FFs are added to the residual stream as their output maps give them.

    No linear map can make good what a norm behind it will change. Of families without a row this
    is not known.
    """
    if not all(output_part(layer.ffn, anatomy) for layer in anatomy.layers):
        raise PlanError(
            f"experts.repair: the FFs of a {anatomy.model_type} model are not known to be added to "
            "the residual stream as they are; leave `repair` out of the plan."
        )


@dataclass(frozen=True)
class FitNarrow:
    """Leave an FF its neurons `kept`, and refit its output map on them if `repairs`.

    A task of :mod:`skimp.methods.in_order`; `path` is that of the layer in the dense model.
    """

    ffn: FeedForward
    path: str
    kept: Tensor
    repairs: bool
    corrects: bool = False

    def fit(self, walk: Walk, layer: nn.Module, surgery: Surgery) -> dict[str, Tensor]:
        values = {"kept": self.kept}
        if len(self.kept) == self.ffn.width:
            walk.pass_branch("ffn")
            return values
        neurons = describe(self.ffn, self.path, len(self.kept))
        narrow_to(layer, neurons, self.kept, surgery)
        if not self.repairs:
            walk.pass_branch("ffn")
            return values
        output = neurons["output"]
        found = solve_repair(walk.repair_moments("ffn", output), None)
        repair(layer, output, found, surgery)
        walk.pass_repaired("ffn", output)
        return values | {"repair": found["repair"].cpu()}


def tasks_of(section: Experts, replay: Replay, progress: Progress) -> dict[Place, Task]:
    """The FFs to be made narrower, the neurons that they keep chosen.

    Raises:
        PlanError: a layer whose FF is no plain or gated one.
    """
    kept = fit_rows(section, replay, progress)
    wiring = feed_forwards(replay.model, Anatomy.of(replay.model))
    layers = replay.family.layers
    tasks: dict[Place, Task] = {
        (layer, "ffn"): FitNarrow(wiring[layer], f"{layers}.{layer}", rows, section.repairs)
        for layer, rows in kept.items()
    }
    return tasks
