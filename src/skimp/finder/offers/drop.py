"""Leave a sublayer out, something fitted in its place (Tyukin et al., 2024)."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from skimp.calibration.replay import Replay
from skimp.finder.choices import Choice
from skimp.methods.drop.fit import fit_alone, make_fitted
from skimp.methods.drop.section import FillKind
from skimp.methods.in_order import Place
from skimp.models.anatomy import Anatomy
from skimp.models.carve import Fill
from skimp.progress import Progress

_RANK = 16  # of the map in a dropped sublayer's place (docs/log.md)


def fill_of(anatomy: Anatomy) -> str:
    """The fill that is offered: the same everywhere, since a plan has one."""
    return f"linear:{min(_RANK, anatomy.hidden_size)}"


class DropOffer:
    """Sublayers left out whole."""

    name = "drop"
    group = "drop"
    acts_on = "output"

    def choices(self, model: nn.Module, anatomy: Anatomy) -> list[Choice]:
        return [
            Choice(layer, sublayer.kind, self.name, fill_of(anatomy))
            for layer, sublayer in anatomy.sublayers()
        ]

    def prepare(
        self, replay: Replay, anatomy: Anatomy, choices: Sequence[Choice], progress: Progress
    ) -> dict[Place, Fill]:
        fitted = fit_alone(
            replay,
            [choice.sublayer for choice in choices],
            FillKind.parse(fill_of(anatomy)),
            progress,
        )
        family = anatomy.family
        outputs = {"attention": family.attention_outputs, "ffn": family.ffn_outputs}
        return {
            place: make_fitted(values, outputs[place[1]], replay.entry[0])
            for place, values in fitted.items()
        }

    def output(
        self, choice: Choice, entered: Tensor, left: Tensor, prepared: Mapping[Place, Fill]
    ) -> Tensor:
        found = prepared[choice.sublayer](entered)
        return found[0] if isinstance(found, tuple) else found

    def sections(self, choices: Sequence[Choice], anatomy: Anatomy) -> dict[str, dict[str, Any]]:
        layers = {
            kind: [choice.layer for choice in choices if choice.kind == kind]
            for kind in ("attention", "ffn")
        }
        return {self.name: {**layers, "fill": fill_of(anatomy), "repair": "full"}}


OFFER = DropOffer()
