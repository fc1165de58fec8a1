"""Correct FFs that were made narrower: refit their output maps on what is left, in closed form.

The walk and the ridge regression are those of the repairs of dropped sublayers
(:mod:`skimp.methods.drop.fit`): layer by layer, with everything before in place, so that each
correction also makes good what was lost before it.
"""

from collections.abc import Mapping

from torch import Tensor

from skimp.calibration.replay import Replay
from skimp.errors import PlanError
from skimp.methods.drop.closed_form import solve_repair
from skimp.methods.drop.fit import repair
from skimp.methods.drop.layout import output_part
from skimp.methods.drop.walk import Walk
from skimp.methods.experts.calibrated import describe, narrow_to
from skimp.models.anatomy import KINDS, Anatomy
from skimp.models.feed_forward import feed_forwards
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


def fit_repairs(
    kept: Mapping[int, Tensor], replay: Replay, progress: Progress
) -> dict[int, Tensor]:
    """What to add to the output map of each layer that keeps the neurons `kept`: [hidden, k]."""
    wiring = feed_forwards(replay.model, Anatomy.of(replay.model))
    found: dict[int, Tensor] = {}
    surgery = Surgery()
    dense = planned = list(replay.entry)
    apart = replay.additive(0, replay.entry[0], 0)
    try:
        with progress.task("repairing FFs in order", len(replay.layers)) as step:
            for index, layer in enumerate(replay.layers):
                seen = [replay.watch(index, KINDS, s, b) for b, s in enumerate(dense)]
                walk = Walk(replay, index, planned, seen, apart)
                walk.pass_branch("attention")
                if index in kept and len(kept[index]) < wiring[index].width:
                    path = f"{replay.family.layers}.{index}"
                    neurons = describe(wiring[index], path, len(kept[index]))
                    output = neurons["output"]
                    narrow_to(layer, neurons, kept[index], surgery)
                    values = solve_repair(walk.repair_moments("ffn", output), None)
                    repair(layer, output, values, surgery)
                    walk.pass_repaired("ffn", output)
                    found[index] = values["repair"].cpu()
                else:
                    walk.pass_branch("ffn")
                planned = walk.finish()
                dense = [after for _, after in seen]
                step()
    finally:
        surgery.undo()
    return found
