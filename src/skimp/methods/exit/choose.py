"""Where probes pay: after which layers, and with how many candidates.

A greedy search over the `control` documents. Each layer is first scored alone, for every number of
candidates; then, one at a time, that probe joins which makes an expected decode step shortest at
the agreement asked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from skimp.methods.exit.controllers import controller
from skimp.methods.exit.costs import Costs
from skimp.methods.exit.gather import States, position
from skimp.methods.exit.probe import Probes
from skimp.methods.exit.promise import grid, outcome
from skimp.methods.exit.section import Exit
from skimp.methods.exit.train import train
from skimp.models.anatomy import Anatomy
from skimp.models.head import Head
from skimp.progress import Progress

MOST = 4  # probes
# Of the tolerated disagreement: the rest is what the promise's confidence will want.
_SLACK = 0.7
_THRESHOLDS = 60
_TOKENS = 6000
_AT_ONCE = 2**25  # logits
# A step must get shorter by this share for one more probe.
_WORTH = 0.002

Values = dict[str, Tensor]


@dataclass(frozen=True)
class Seen:
    """What an option's probes saw of tokens: features [n, F] and whether they were right [n]."""

    features: list[Tensor]
    right: list[Tensor]


@dataclass(frozen=True)
class Choice:
    """Probes, their candidates, and the expected step at the agreement as a share of a full one."""

    probe: tuple[int, ...]
    candidates: int
    share: float


@torch.no_grad()
def watch(section: Exit, values: Values, states: States, norm: nn.Module, head: Head) -> Seen:
    """Run the section's probes, as an engine would, over states."""
    probes = Probes(replace(section, rule="threshold"), values, norm, head, bar=float("inf"))
    features: list[list[Tensor]] = [[] for _ in section.probe]
    right: list[list[Tensor]] = [[] for _ in section.probe]
    # Screened states share copies of the head's rows, the more of them there are at once.
    size = max(64, min(4096, _AT_ONCE // (section.candidates or len(head.weight))))
    for start in range(0, len(states), size):
        rows = slice(start, start + size)
        trace = probes.begin(size)
        for index, layer in enumerate(section.probe):
            seen, look = probes.see(index, states.after[layer][rows], trace)
            features[index].append(seen.cpu())
            right[index].append(look.token.cpu() == states.token[rows])
    return Seen([torch.cat(each) for each in features], [torch.cat(each) for each in right])


def scores(section: Exit, values: Values, seen: Seen) -> Tensor:
    """Scores [probes, n] of a trained section."""
    rule, found = controller(section, values, torch.device("cpu")), list[Tensor]()
    for index, features in enumerate(seen.features):
        found.append(rule.score(index, features, found[-1] if found else None))
    return torch.stack(found)


def choose(
    section: Exit,
    values: Values,
    control: States,
    layers: Sequence[int],
    costs: Costs,
    agreement: float,
    anatomy: Anatomy,
    norm: nn.Module,
    head: Head,
    progress: Progress,
    given: tuple[int, ...] | None = None,
) -> Choice:
    """The best probes among `layers` with the section's candidates; none if none pays.

    `given`: these probes, whether they pay or not.
    """
    states, count = control.some(_TOKENS), section.candidates
    alone: dict[int, tuple[Tensor, Tensor]] = {}
    with progress.task("looking for layers to probe", len(layers)) as step:
        for layer in layers:
            alone[layer] = _alone(section, layer, values, states, norm, head)
            step()
    if given is not None:
        return Choice(given, count, _share(given, alone, count, costs, agreement, anatomy))
    return _greedy(alone, count, costs, agreement, anatomy)


def _order(choice: Choice) -> float:
    return choice.share


def _alone(
    section: Exit,
    layer: int,
    values: Values,
    states: States,
    norm: nn.Module,
    head: Head,
) -> tuple[Tensor, Tensor]:
    """Scores [n] of a probe by itself, and whether it is wrong [n]."""
    rule = "threshold" if section.rule == "threshold" else "svm"
    one = replace(section, probe=(layer,), rule=rule)
    seen = watch(one, values, states, norm, head)
    trained = {**values, **train(one, seen.features, seen.right)}
    return scores(one, trained, seen)[0], ~seen.right[0]


def _greedy(
    alone: dict[int, tuple[Tensor, Tensor]],
    count: int,
    costs: Costs,
    agreement: float,
    anatomy: Anatomy,
) -> Choice:
    best = Choice((), count, 1.0)
    while len(best.probe) < MOST:
        trials = [
            Choice(probe, count, _share(probe, alone, count, costs, agreement, anatomy))
            for layer in alone
            if layer not in best.probe
            for probe in [tuple(sorted((*best.probe, layer)))]
        ]
        found = min(trials, key=_order, default=best)
        if found.share > best.share - _WORTH:
            return best
        best = found
    return best


def _share(
    probe: tuple[int, ...],
    alone: dict[int, tuple[Tensor, Tensor]],
    count: int,
    costs: Costs,
    agreement: float,
    anatomy: Anatomy,
) -> float:
    table = torch.stack([alone[layer][0] for layer in probe])
    wrong = torch.stack([alone[layer][1] for layer in probe])
    allowed = (1 - agreement) * _SLACK
    left = [0.0] * len(probe)
    for threshold in grid(table, _THRESHOLDS):
        found = outcome(table, wrong, threshold)
        if float(found.wrong.float().mean()) > allowed:
            break
        left = leaving(found.left_at, len(probe))
    places = [position(layer, anatomy) for layer in probe]
    return costs.with_probes(places, left, count) / costs.step


def leaving(left_at: Tensor, probes: int) -> list[float]:
    """Shares of tokens that leave at each probe."""
    counts = torch.bincount(left_at, minlength=probes + 1)[:probes]
    return (counts / max(1, len(left_at))).tolist()
