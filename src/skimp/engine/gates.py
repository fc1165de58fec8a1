"""Layers that ask the pass under way whether they run, and on what.

A model's own forward walks all of its layers and ends in the head. For early exits a pass runs a
stretch of the layers, starts from a given hidden state, or ends before the head. So each layer of
an engine's model is given a class of its own that hands the decision to the pass's guide; the
family's code around and inside of the layers stays as it is, and no weight changes its name.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

from torch import Tensor, nn

from skimp.models.anatomy import Anatomy

Run = Callable[[Tensor], Tensor]


class Guide(Protocol):
    """What a pass does with each layer."""

    def layer(self, index: int, run: Run, hidden: Tensor) -> Tensor:
        """The hidden state [B, Q, d] behind a layer; `run` is what the layer does to one."""
        ...


GUIDE: ContextVar[Guide | None] = ContextVar("gates", default=None)
"""The guide of the pass under way in this thread; without one every layer runs."""


class Left(Exception):
    """Ends a pass before the model's code does; `hidden` [B, Q, d] is as far as it came."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__("the pass ended early")
        self.hidden = hidden


class Stored(Exception):
    """Keys and values stand in the cache, and no more was wanted of the attention."""


@contextmanager
def guided(guide: Guide) -> Iterator[None]:
    """Let `guide` say what the layers of a pass do."""
    token = GUIDE.set(guide)
    try:
        yield
    finally:
        GUIDE.reset(token)


def put_gates(model: nn.Module, anatomy: Anatomy) -> None:
    """Give every layer of an engine's model its gate."""
    family = anatomy.family
    for index, layer in enumerate(model.get_submodule(family.layers).children()):
        layer.__class__ = _gated(type(layer))
        layer.gate = (index, family.layer_outputs)  # type: ignore[assignment]


@cache
def _gated(kind: type[nn.Module]) -> type[nn.Module]:
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        def run(hidden: Tensor) -> Any:
            if "hidden_states" in kwargs:
                return kind.forward(self, *args, **{**kwargs, "hidden_states": hidden})
            return kind.forward(self, hidden, *args[1:], **kwargs)

        def bare(hidden: Tensor) -> Tensor:
            output = run(hidden)
            return output[0] if isinstance(output, tuple) else output

        hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        guide = GUIDE.get()
        if guide is None:
            return run(hidden)
        index, outputs = self.gate
        found = guide.layer(index, bare, hidden)
        return found if outputs == 1 else (found, *[None] * (outputs - 1))

    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})


@dataclass(frozen=True)
class Stretch:
    """Runs layers `first` to `last` (exclusive) of `layers`; `hidden` is what enters the first.

    Without `hidden` the model's own embedding enters. With `head` the pass goes on to the logits;
    otherwise it ends in :class:`Left`.
    """

    first: int
    last: int
    layers: int
    hidden: Tensor | None = None
    head: bool = False

    def layer(self, index: int, run: Run, hidden: Tensor) -> Tensor:
        if index >= self.first:
            hidden = run(hidden)
        elif index + 1 == self.first and self.hidden is not None:
            hidden = self.hidden
        if index + 1 == self.last and not self.head:
            raise Left(hidden)
        return hidden


@dataclass(frozen=True)
class Projection:
    """Has layers from `first` on store the keys and values of one hidden state, and no more.

    `attentive`: the layers that have an attention. The pass ends in :class:`Left`.
    """

    first: int
    layers: int
    hidden: Tensor
    attentive: frozenset[int]

    def layer(self, index: int, run: Run, hidden: Tensor) -> Tensor:
        if index >= self.first and index in self.attentive:
            with suppress(Stored):
                run(self.hidden)
        if index + 1 == self.layers:
            raise Left(self.hidden)
        return self.hidden
