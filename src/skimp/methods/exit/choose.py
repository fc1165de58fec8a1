"""Where probes pay: after which layers, and with how many candidates.

A greedy search over the `control` documents. Each layer is first scored alone, for every number of
candidates; then, one at a time, that probe joins which makes an expected decode step shortest at
the agreement asked for.
"""

from collections.abc import Mapping, Sequence
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


@dataclass(frozen=True)
class Alone:
    """Probes with so many candidates after each of some layers, each by itself.

    `seen`: by layer, the scores [n] of tokens and whether what it took them for is wrong [n].
    """

    candidates: int
    anatomy: Anatomy
    seen: Mapping[int, tuple[Tensor, Tensor]]

    def best(self, costs: Costs, agreement: float) -> Choice:
        """The best of these probes together; none if none pays."""
        best = Choice((), self.candidates, 1.0)
        while len(best.probe) < MOST:
            trials = [
                self.together(tuple(sorted((*best.probe, layer))), costs, agreement)
                for layer in self.seen
                if layer not in best.probe
            ]
            found = min(trials, key=_order, default=best)
            if found.share > best.share - _WORTH:
                return best
            best = found
        return best

    def together(self, probe: tuple[int, ...], costs: Costs, agreement: float) -> Choice:
        """These probes, whether they pay or not."""
        table = torch.stack([self.seen[layer][0] for layer in probe])
        wrong = torch.stack([self.seen[layer][1] for layer in probe])
        allowed = (1 - agreement) * _SLACK
        left = [0.0] * len(probe)
        for threshold in grid(table, _THRESHOLDS):
            found = outcome(table, wrong, threshold)
            if float(found.wrong.float().mean()) > allowed:
                break
            left = leaving(found.left_at, len(probe))
        places = [position(layer, self.anatomy) for layer in probe]
        share = costs.with_probes(places, left, self.candidates) / costs.step
        return Choice(probe, self.candidates, share)


def look_alone(
    section: Exit,
    values: Values,
    control: States,
    layers: Sequence[int],
    ends: tuple[Anatomy, nn.Module, Head],
    progress: Progress,
) -> Alone:
    """Probe after each of `layers` alone, with the section's candidates.

    `ends`: the planned model's anatomy, final norm and head.
    """
    anatomy, norm, head = ends
    states = control.some(_TOKENS)
    rule = "threshold" if section.rule == "threshold" else "svm"
    found: dict[int, tuple[Tensor, Tensor]] = {}
    with progress.task("looking for layers to probe", len(layers)) as step:
        for layer in layers:
            one = replace(section, probe=(layer,), rule=rule)
            seen = watch(one, values, states, norm, head)
            trained = {**values, **train(one, seen.features, seen.right)}
            found[layer] = scores(one, trained, seen)[0], ~seen.right[0]
            step()
    return Alone(section.candidates, anatomy, found)


def _order(choice: Choice) -> float:
    return choice.share


def leaving(left_at: Tensor, probes: int) -> list[float]:
    """Shares of tokens that leave at each probe."""
    counts = torch.bincount(left_at, minlength=probes + 1)[:probes]
    return (counts / max(1, len(left_at))).tolist()
