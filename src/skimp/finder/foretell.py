"""What every choice would do to the predictions, all foretold from one pass forward and back.

With c the change of a sublayer's output and h the gradient, by that output, of the log-probability
of a token that the dense model would say, KL to the dense model rises by about E[(h·c)²] / 2: the
Fisher information, KL itself having no slope where nothing is changed yet. Positions are taken to
add up; so are choices, which they only do while they are few. So harms of whole plans are measured,
not foretold.
"""

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from skimp.finder.choices import Choice, Place
from skimp.finder.stage import Seen, Stage, by_place
from skimp.progress import SILENT, Progress

Foretold = dict[Place, dict[Choice | None, float]]
"""Rise of harm, in nats per token, by place and choice; None, the sublayer as it is: 0."""


def foretell(
    stage: Stage, choices: Sequence[Choice], *, seed: int = 0, progress: Progress = SILENT
) -> Foretold:
    """The rise of harm that each choice brings to the dense model."""
    found: Foretold = {}
    places = by_place(choices)
    generator = torch.Generator().manual_seed(seed)
    backward = stage.harm.gradients(stage.finals, generator)
    scored = sum(len(each) for each in stage.harm.positions)
    layers = len(stage.replay.layers)
    with progress.task("foretelling harm", layers) as step, torch.enable_grad():
        for layer in reversed(range(layers)):
            sums: dict[Place, Tensor] = {}
            for batch, slope in enumerate(backward):
                entered = stage.state(layer, batch).detach().requires_grad_()
                out, seen = stage.watch(layer, entered, batch)
                asked = [(place, each) for place, each in seen.items() if place in places]
                ends = [entered, *(tensor for _, each in asked for tensor in _probes(each))]
                taken = iter(torch.autograd.grad(out, ends, slope, allow_unused=True))
                backward[batch] = next(taken)
                for place, each in asked:
                    slopes = [next(taken) for _ in _probes(each)]
                    part = _rises(stage, places[place], each, slopes)
                    sums[place] = sums.get(place, 0) + part.cpu()
            for place, total in sums.items():
                rises = (total / scored).tolist()
                found[place] = {None: 0.0, **dict(zip(places[place], rises, strict=True))}
            step()
    return found


def _probes(seen: Seen) -> list[Tensor]:
    return [seen.at_end] if seen.at_map is None else [seen.at_end, seen.at_map]


@torch.no_grad()
def _rises(
    stage: Stage, choices: Sequence[Choice], seen: Seen, slopes: Sequence[Tensor | None]
) -> Tensor:
    """Σ over positions of (h·c)² / 2, float64 [choices]."""
    end = slopes[0]
    assert end is not None
    at_map = slopes[1] if len(slopes) > 1 and slopes[1] is not None else end
    shape = seen.entered.shape
    neural = torch.empty(0)
    if seen.neurons is not None:
        neural = at_map.float().reshape(shape) @ stage.output_map(choices[0].layer).float().T
    moved = [
        stage.base(list(group), seen, end.float().reshape(shape), neural)
        for _, group in groupby(choices, key=lambda each: each.offer)
    ]
    return torch.cat(moved, -1).square().sum((0, 1), dtype=torch.float64) / 2
