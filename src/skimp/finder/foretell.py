"""What every choice would do to the predictions, all foretold from one pass forward and back.

With c the change of a sublayer's output and g the gradient of what is said at the scored positions,
KL to the dense model rises by about E[g·c] + E[(h·c)²] / 2: g of that KL itself (zero where nothing
is changed yet), h of the log-probability of tokens that the model would say, whose square is the
Fisher information. From a planned model on this says what the next change does given all others,
one that takes something back included. Positions are taken to add up; so are choices, which they
only do while they are few. So harms of whole plans are measured, not foretold.
"""

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from skimp.finder.choices import Choice, Place
from skimp.finder.stage import Seen, Stage, by_place
from skimp.progress import SILENT, Progress

Foretold = dict[Place, dict[Choice | None, float]]
"""Rise of harm, in nats per token, by place and choice; None: the sublayer as it is in the dense
model. What is in place already is 0."""


def foretell(
    stage: Stage, choices: Sequence[Choice], *, seed: int = 0, progress: Progress = SILENT
) -> Foretold:
    """The rise of harm that each choice brings, given those in place."""
    found: Foretold = {}
    places = by_place(choices)
    generator = torch.Generator().manual_seed(seed)
    backward = stage.harm.gradients(stage.finals, generator)
    scored = sum(len(each) for each in stage.harm.positions)
    layers = len(stage.replay.layers)
    with progress.task("foretelling harm", layers) as step, torch.enable_grad():
        for layer in reversed(range(layers)):
            sums: dict[Place, Tensor] = {}
            for batch in range(len(backward)):
                entered = stage.state(layer, batch).detach().requires_grad_()
                out, seen = stage.watch(layer, entered, batch)
                asked = [(place, each) for place, each in seen.items() if place in places]
                ends = [entered, *(tensor for _, each in asked for tensor in _probes(each))]
                taken = [
                    torch.autograd.grad(
                        out, ends, slope, retain_graph=number == 0, allow_unused=True
                    )
                    for number, slope in enumerate(backward[batch])
                ]
                backward[batch] = [each[0] for each in taken]
                at = 1
                for place, each in asked:
                    width = len(_probes(each))
                    slopes = [grads[at : at + width] for grads in taken]
                    at += width
                    part = _rises(stage, places[place], each, slopes)
                    sums[place] = sums.get(place, 0) + part.cpu()
            for place, total in sums.items():
                rises = (total / scored).tolist()
                found[place] = dict(zip([None, *places[place]], rises, strict=True))
            step()
    return found


def _probes(seen: Seen) -> list[Tensor]:
    return [seen.at_end] if seen.at_map is None else [seen.at_end, seen.at_map]


@torch.no_grad()
def _rises(
    stage: Stage, choices: Sequence[Choice], seen: Seen, slopes: Sequence[Sequence[Tensor | None]]
) -> Tensor:
    """Σ over positions of g·c + (h·c)² / 2, float64 [1 + choices], the dense sublayer first."""
    now = stage.chosen.get(choices[0].place)
    known = [*choices] if now is None or now in choices else [*choices, now]
    first, second = (_moved(stage, known, seen, each) for each in slopes)
    column = None if now is None else known.index(now)
    rises = []
    for number in [None, *range(len(choices))]:
        linear, square = (_column(each, number) - _column(each, column) for each in (first, second))
        rises.append(linear.sum(dtype=torch.float64) + square.square().sum(dtype=torch.float64) / 2)
    return torch.stack(rises)


def _moved(
    stage: Stage, choices: Sequence[Choice], seen: Seen, slopes: Sequence[Tensor | None]
) -> Tensor:
    """g·c [B, S, choices], c being the change from the dense sublayer."""
    end = slopes[0]
    assert end is not None
    at_map = slopes[1] if len(slopes) > 1 and slopes[1] is not None else end
    shape = seen.entered.shape
    neural = torch.empty(0)
    if seen.neurons is not None:
        neural = at_map.float().reshape(shape) @ stage.output_map(choices[0].layer).float().T
    parts = [
        stage.base(list(group), seen, end.float().reshape(shape), neural)
        for _, group in groupby(choices, key=lambda each: each.offer)
    ]
    return torch.cat(parts, -1)


def _column(values: Tensor, number: int | None) -> Tensor:
    return torch.zeros_like(values[..., 0]) if number is None else values[..., number]
