"""What a decode step's parts cost, so that probes are put where they pay.

By time, a layer's is its bytes at the pace at which the head's bytes are read here; probes, whose
many small operations cost more than their bytes, are timed as they run. Or all of it is bytes.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from skimp.methods.exit.probe import Probes
from skimp.methods.exit.section import Exit
from skimp.methods.exit.values import REACH, TOKENS, shapes
from skimp.models.anatomy import Anatomy, Layer
from skimp.models.head import Head
from skimp.workload import Workload

_TIMED, _WARM = 30, 3


@dataclass(frozen=True)
class Costs:
    """Seconds (or bytes) of one decode step of the workload's batch: `layers` of the planned model
    in order, the full `head`, and a `probe` by the number of its candidates."""

    layers: tuple[float, ...]
    head: float
    probe: dict[int, float]
    batch: int = 1

    @property
    def step(self) -> float:
        """A step without probes."""
        return sum(self.layers) + self.head

    def with_probes(
        self, places: Sequence[int], left_at: Sequence[float], candidates: int
    ) -> float:
        """A step with probes after the layers at `places`; `left_at` are the shares of tokens that
        leave at each of them. A part is run while any sequence of the batch is still there: a step
        is as deep as the deepest of them, if they leave independently of each other."""
        here = 1.0
        total, done = 0.0, 0
        for place, share in zip(places, left_at, strict=True):
            total += self._still(here) * (sum(self.layers[done : place + 1]))
            total += self._still(here) * self.probe[candidates]
            done, here = place + 1, here - share
        return total + self._still(here) * (sum(self.layers[done:]) + self.head)

    def _still(self, share: float) -> float:
        return 1 - (1 - min(1.0, max(0.0, share))) ** self.batch


def measure(
    section: Exit,
    anatomy: Anatomy,
    norm: nn.Module,
    head: Head,
    workload: Workload,
    options: Sequence[int],
) -> Costs:
    """Costs for the workload, probes timed for every number of candidates in `options`."""
    return priced(anatomy, workload, *timed(section, anatomy, norm, head, workload.batch, options))


def priced(anatomy: Anatomy, workload: Workload, whole: float, probe: Mapping[int, float]) -> Costs:
    """Costs where the full head takes `whole` seconds, and probes what `probe` says."""
    pace = whole / max(1, anatomy.head.bytes)
    layers = tuple(pace * _bytes(la, anatomy, workload) for la in anatomy.layers)
    return Costs(layers, whole, dict(probe), workload.batch)


def by_bytes(section: Exit, anatomy: Anatomy, workload: Workload, options: Sequence[int]) -> Costs:
    """Costs in bytes: a probe reads its translator, the screen and its rows of the head."""
    row = anatomy.head.bytes / anatomy.vocabulary
    kind = section.translator
    ranks = 2 * kind if isinstance(kind, int) else anatomy.hidden_size * (kind == "full")
    probe = {
        count: row * (ranks + (section.screen + count if count else anatomy.vocabulary))
        for count in options
    }
    layers = tuple(_bytes(la, anatomy, workload) for la in anatomy.layers)
    return Costs(layers, float(anatomy.head.bytes), probe, workload.batch)


def timed(
    section: Exit,
    anatomy: Anatomy,
    norm: nn.Module,
    head: Head,
    batch: int,
    options: Sequence[int],
) -> tuple[float, dict[int, float]]:
    """Seconds of the full head, and of a probe by the number of its candidates."""
    state = torch.randn(batch, anatomy.hidden_size).to(head.weight)
    whole = _seconds(lambda: head.logits(state))
    probe = {}
    for count in options:
        one = Exit(
            (0,),
            "svm",
            section.translator,
            count,
            section.screen if count else 0,
            threshold=float("inf"),
        )
        probes = Probes(one, _made_up(one, anatomy), norm, head)
        probe[count] = _seconds(lambda p=probes: p.look(0, state, p.begin(batch)).score.tolist())
    return whole, probe


def _bytes(layer: Layer, anatomy: Anatomy, workload: Workload) -> float:
    branches = (layer.attention, layer.ffn)
    weights = sum(branch.active_bytes * branch.decode_share for branch in branches)
    weights += sum(part.bytes for part in layer.shared)
    cached = workload.mean_context
    if layer.attention.window is not None:
        cached = min(cached, layer.attention.window)
    numbers = layer.attention.kv_elements * cached * workload.batch
    return weights + numbers * anatomy.element_bytes


def _made_up(section: Exit, anatomy: Anatomy) -> dict[str, Tensor]:
    values = {name: torch.randn(shape) for name, shape in shapes(section, anatomy).items()}
    if TOKENS in values:
        some = torch.rand(section.screen, anatomy.vocabulary).argsort(-1)[:, : section.candidates]
        values[TOKENS] = some.sort(-1).values.int()
        values[REACH] = torch.zeros(section.screen)
    return values


@torch.no_grad()
def _seconds(work: Callable[[], object]) -> float:
    found = []
    for _ in range(_TIMED + _WARM):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return min(found[_WARM:])  # what else the machine does only ever adds to it
