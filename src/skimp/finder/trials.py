"""Try what leaving a part out would cost, reusing every activation before the change."""

from collections.abc import Callable, Mapping
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
        self._states = [[entry] for entry in replay.entry]
        self._extend()

    def harm_without(self, part: Part) -> float:
        """Harm if `part` too were left out."""
        return self._on_trial(part, lambda: self._harm(self._finish(part.layer)))

    def leave_out(self, part: Part) -> None:
        """Leave `part` out for good."""
        self._put(part, self._gone)
        for states in self._states:
            del states[part.layer + 1 :]
        self._extend()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._gone.undo()

    def _on_trial(self, part: Part, measure: Callable[[], float]) -> float:
        surgery = Surgery()
        try:
            self._put(part, surgery)
            return measure()
        finally:
            surgery.undo()

    def _put(self, part: Part, surgery: Surgery) -> None:
        for place in part.places:
            put(self._replay, place, self._fills[place], surgery)

    def _finish(self, layer: int) -> list[Tensor]:
        return [
            self._replay.run(states[layer], batch, start=layer)
            for batch, states in enumerate(self._states)
        ]

    def _extend(self) -> None:
        """Bring the kept hidden states up to the last layer."""
        for batch, states in enumerate(self._states):
            for index in range(len(states) - 1, len(self._replay.layers) - 1):
                states.append(self._replay.layer(index, states[index], batch))
