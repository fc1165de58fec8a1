"""What calibration text says about the neurons of a model: the part that all prompts share."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from skimp.calibration.replay import Replay
from skimp.methods.experts.statistic import score, squares
from skimp.models.anatomy import Anatomy
from skimp.models.feed_forward import FeedForward, feed_forwards
from skimp.progress import SILENT, Progress


@torch.no_grad()
def calibrated_scores(replay: Replay, progress: Progress = SILENT) -> dict[int, Tensor]:
    """GRIFFIN's statistic over all of the calibration text: float32 [F] by layer.

    It serves as the prior of GLASS (2025), and as the evidence for one fixed set of experts.

    Raises:
        PlanError: a layer whose FF is no plain or gated one.
    """
    found: dict[int, Tensor] = {}
    wiring = feed_forwards(replay.model, Anatomy.of(replay.model))
    hidden = list(replay.entry)
    with progress.task("watching neurons", len(replay.layers)) as step:
        for index in range(len(replay.layers)):
            ffn = wiring[index]
            total = torch.zeros(ffn.width, device=replay.device)
            for batch, state in enumerate(hidden):
                with _watching(replay.model, ffn) as seen:
                    hidden[batch] = replay.layer(index, state, batch)
                real = replay.batches[batch].real
                z = seen[0].reshape(*real.shape, ffn.width)  # OPT's FF takes tokens in one row
                total += squares(z, real).sum(0)
            found[index] = score(total)
            step()
    return found


@contextmanager
def _watching(model: nn.Module, ffn: FeedForward) -> Iterator[list[Tensor]]:
    """The neurons' values, as the output map of an FF is given them."""
    seen: list[Tensor] = []
    output = model.get_submodule(ffn.output)
    handle = output.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        yield seen
    finally:
        handle.remove()
