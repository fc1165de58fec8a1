"""Try what leaving a part out would cost, reusing every activation before the change."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from torch import Tensor

from skimp.calibration.replay import Replay
from skimp.finder.harm import Harm
from skimp.methods.drop.fit import Place, put
from skimp.models.anatomy import KINDS, Kind
from skimp.models.surgery import Surgery


@dataclass(frozen=True, order=True)
class Part:
    """What a rule may leave out at once: one sublayer, or a whole layer (both of them)."""

    layer: int
    kinds: tuple[Kind, ...]

    @property
    def places(self) -> tuple[Place, ...]:
        return tuple((self.layer, kind) for kind in self.kinds)

    @property
    def name(self) -> str:
        return self.kinds[0] if len(self.kinds) == 1 else "layer"


def part_of(name: str, layer: int) -> Part:
    """The part called "attention", "ffn" or "layer" of a layer."""
    kinds: list[Kind] = [kind for kind in KINDS if name in ("layer", kind)]
    return Part(layer, tuple(kinds))


class Trials:
    """A replayed model from which parts are left out, for trial or for good; a context manager.

    Fills are those fitted beforehand, each as if its sublayer alone were left out. Leaving the
    context restores the model.
    """

    def __init__(
        self, replay: Replay, harm: Harm, fills: Mapping[Place, Mapping[str, Tensor]]
    ) -> None:
        self._replay = replay
        self._harm = harm
        self._fills = fills
        self._gone = Surgery()
        self._states: list[list[Tensor]] = [[entry] for entry in replay.entry]
        self._follow(self._run(0))
        self._latest: tuple[Part, list[list[Tensor]]] | None = None

    def harm_without(self, part: Part) -> float:
        """Harm if `part` too were left out."""
        surgery = Surgery()
        try:
            self._put(part, surgery)
            states = self._run(part.layer)
        finally:
            surgery.undo()
        self._latest = (part, states)
        return self._harm([each[-1] for each in states])

    def leave_out(self, part: Part) -> None:
        """Leave `part` out for good."""
        self._put(part, self._gone)
        if self._latest is not None and self._latest[0] == part:
            states = self._latest[1]
        else:
            states = self._run(part.layer)
        self._latest = None
        for kept in self._states:
            del kept[part.layer + 1 :]
        self._follow(states)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._gone.undo()

    def _put(self, part: Part, surgery: Surgery) -> None:
        for place in part.places:
            put(self._replay, place, self._fills[place], surgery)

    def _run(self, start: int) -> list[list[Tensor]]:
        """Hidden states behind each layer from `start` on, for every batch."""
        found: list[list[Tensor]] = [[] for _ in self._states]
        states = [kept[start] for kept in self._states]
        for index in range(start, len(self._replay.layers)):
            states = self._replay.run_all(states, index, index + 1)
            for after, hidden in zip(found, states, strict=True):
                after.append(hidden)
        return found

    def _follow(self, states: list[list[Tensor]]) -> None:
        for kept, after in zip(self._states, states, strict=True):
            kept += after
