"""A replayed model on which choices are tried, all sublayers of the dense one staying at hand.

What a choice does is put in place of a sublayer's output, or of an FF's neurons, while the dense
sublayer still runs. That is slower than leaving it out, but a choice can be taken back or another
one tried at any time, and what each would change is known from one and the same pass.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from skimp.calibration.replay import Replay
from skimp.finder.choices import (
    Choice,
    Chosen,
    NeuronOffer,
    OutputOffer,
    Place,
    Thinning,
    offers,
    thinnable,
)
from skimp.finder.harm import Harm
from skimp.models.anatomy import KINDS, Anatomy
from skimp.models.carve import neuron_axis


@dataclass
class Seen:
    """What a sublayer met in a pass with gradients.

    Its normalised input, dense output and, for an FF, neurons z [B, S, F]; and zeros that were
    added to its output, and to that of the FF's output map, to take gradients by.
    """

    entered: Tensor = field(default_factory=lambda: torch.empty(0))
    left: Tensor = field(default_factory=lambda: torch.empty(0))
    at_end: Tensor = field(default_factory=lambda: torch.empty(0))
    neurons: Tensor | None = None
    at_map: Tensor | None = None


class Stage:
    """The model with choices in place; a context manager that leaves it as it was.

    Args:
        replay: of the dense model, over texts of one length.
        prompt: how many columns of each text are its prompt.
        prepared: what each offer prepared, by its name.
    """

    def __init__(
        self, replay: Replay, harm: Harm, prompt: int, prepared: Mapping[str, Any]
    ) -> None:
        self.replay, self.harm, self.prompt = replay, harm, prompt
        self._prepared = prepared
        self._trial: dict[Place, Choice] = {}
        self._seen: dict[Place, Seen] | None = None
        self._entered: dict[Place, Tensor] = {}
        self._handles: list[Any] = []
        self._texts = 0  # of the batch under way
        self._wiring = thinnable(replay.model, Anatomy.of(replay.model))
        self._states: list[list[Tensor]] = []

    def __enter__(self) -> Self:
        for index, layer in enumerate(self.replay.layers):
            for kind in KINDS:
                self._hook((index, kind), layer)
        self._states = self._run([[entry] for entry in self.replay.entry], 0)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._states = [], []

    def harm_of(self, chosen: Chosen) -> float:
        """The joint harm of these choices, in nats per token."""
        start = min((layer for layer, _ in chosen), default=len(self.replay.layers))
        self._trial = dict(chosen)
        try:
            states = self._run([kept[: start + 1] for kept in self._states], start)
        finally:
            self._trial = {}
        return self.harm([each[-1] for each in states])

    def output_map(self, layer: int) -> Tensor:
        """The weight [F, d] of the output map of an FF."""
        linear: Any = self.replay.model.get_submodule(self._wiring[layer].output)
        weight = linear.weight.detach()
        return weight if neuron_axis(linear, inputs=True) == 0 else weight.T

    def state(self, layer: int, batch: int) -> Tensor:
        """The hidden state [B, S, d] that enters a layer of the dense model."""
        return self._states[batch][layer]

    @property
    def finals(self) -> list[Tensor]:
        """Hidden states after the last layer, a batch each."""
        return [states[-1] for states in self._states]

    def watch(self, layer: int, hidden: Tensor, batch: int) -> tuple[Tensor, dict[Place, Seen]]:
        """Run a layer with gradients, from `hidden` [B, S, d]; what its sublayers met."""
        self._seen, self._texts = {}, len(hidden)
        try:
            out = self.replay.differentiable(layer, hidden, batch)
            return out, self._seen
        finally:
            self._seen = None

    def base(self, choices: Sequence[Choice], seen: Seen, slopes: Tensor, neural: Tensor) -> Tensor:
        """g·c [B, S, choices] of choices of one offer and place: c the change of the output from
        the dense one, g `slopes` [B, S, d]; `neural` [B, S, F] is g by neuron where that counts."""
        offer = offers()[choices[0].offer]
        prepared = self._prepared[offer.name]
        if offer.acts_on == "output":
            output = cast("OutputOffer", offer).output
            changed = [
                output(each, seen.entered, seen.left, prepared).float() - seen.left.float()
                for each in choices
            ]
            return torch.stack([(change * slopes).sum(-1) for change in changed], -1)
        z = seen.neurons
        assert z is not None
        thinning = cast("NeuronOffer", offer).thinning(choices, z, self.prompt, prepared)
        deviation = z.float() if thinning.rest is None else z.float() - thinning.rest[:, None]
        lost = (deviation * neural) @ thinning.gone.float()
        lost[:, : thinning.start] = 0
        return -lost

    def _run(self, states: list[list[Tensor]], start: int) -> list[list[Tensor]]:
        """The states with those behind every layer from `start` on added."""
        for index in range(start, len(self.replay.layers)):
            for batch, kept in enumerate(states):
                self._texts = len(kept[-1])
                kept.append(self.replay.layer(index, kept[-1], batch))
        return states

    def _hook(self, place: Place, layer: nn.Module) -> None:
        branch = getattr(self.replay.family, place[1])
        first = layer.get_submodule(branch.modules[0])
        last = layer.get_submodule((*branch.modules, *branch.after)[-1])

        def enter(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            self._entered[place] = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]

        def leave(_: nn.Module, __: Any, output: Any) -> Any:
            found = self._leave(place, output[0] if isinstance(output, tuple) else output)
            return (found, *output[1:]) if isinstance(output, tuple) else found

        self._handles += [
            first.register_forward_pre_hook(enter, with_kwargs=True),
            last.register_forward_hook(leave),
        ]
        if place[1] == "ffn" and place[0] in self._wiring:
            output = self.replay.model.get_submodule(self._wiring[place[0]].output)
            self._handles += [
                output.register_forward_pre_hook(lambda _, args: (self._thin(place, args[0]),)),
                output.register_forward_hook(lambda _, __, out: self._mapped(place, out)),
            ]

    def _thin(self, place: Place, z: Tensor) -> Tensor:
        shape = z.shape
        z = self._by_text(z)
        if self._seen is not None:
            self._seen.setdefault(place, Seen()).neurons = z.detach()
        choice = self._trial.get(place)
        if choice is None or offers()[choice.offer].acts_on != "neurons":
            return z.reshape(shape)
        offer = cast("NeuronOffer", offers()[choice.offer])
        thinning = offer.thinning([choice], z, self.prompt, self._prepared[offer.name])
        return thinned(z, thinning).reshape(shape)

    def _by_text(self, values: Tensor) -> Tensor:
        """Values [B, S, n]; OPT's FF takes the tokens of all texts in one row."""
        return values.reshape(self._texts, -1, values.shape[-1])

    def _mapped(self, place: Place, output: Tensor) -> Tensor:
        if self._seen is None:
            return output
        probe = torch.zeros_like(output, requires_grad=True)
        self._seen[place].at_map = probe
        return output + probe

    def _leave(self, place: Place, output: Tensor) -> Tensor:
        choice, entered = self._trial.get(place), self._entered.pop(place)
        found = output
        if choice is not None and offers()[choice.offer].acts_on == "output":
            offer = cast("OutputOffer", offers()[choice.offer])
            found = offer.output(choice, entered, output, self._prepared[offer.name])
        if self._seen is None:
            return found
        seen = self._seen.setdefault(place, Seen())
        probe = torch.zeros_like(found, requires_grad=True)
        seen.at_end = probe
        seen.entered, seen.left = self._by_text(entered.detach()), self._by_text(output.detach())
        return found + probe


def thinned(z: Tensor, thinning: Thinning) -> Tensor:
    """Neurons z [B, S, F] as the first choice of a thinning leaves them."""
    rest = 0 if thinning.rest is None else thinning.rest[:, None].to(z.dtype)
    late = torch.arange(z.shape[1], device=z.device)[:, None] >= thinning.start
    return torch.where(thinning.gone[:, None, :, 0] & late, rest, z)


def by_place(choices: Iterable[Choice]) -> dict[Place, list[Choice]]:
    """Choices by the sublayer that they are about, in running order."""
    found: dict[Place, list[Choice]] = {}
    kinds = ("model", *KINDS)
    for choice in sorted(choices, key=lambda each: (each.layer, kinds.index(each.kind))):
        found.setdefault(choice.place, []).append(choice)
    return found
