"""The linear maps of an FF that can do with some of its neurons, as the pass under way says.

Both hold their weight by neuron, [F, d], so that a neuron is one contiguous row wherever it is
read. The family's own code runs between them, on as many neurons as there are.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

from torch import Tensor, nn
from torch.nn import functional

from skimp.methods.experts.section import Experts
from skimp.models.carve import neuron_axis


class Guide(Protocol):
    """What a pass does with FFs; it belongs to a request, so nothing of one stays in the model."""

    def enter(self, module: "NeuronsIn", x: Tensor) -> Tensor:
        """The activations before the nonlinearity [..., k], of x [..., d]."""
        ...

    def leave(self, module: "NeuronsOut", h: Tensor) -> Tensor:
        """The FF's output [..., d], of the neurons' activations h [..., k]."""
        ...


GUIDE: ContextVar[Guide | None] = ContextVar("experts", default=None)
"""The guide of the pass under way in this thread; without one every neuron counts."""


@contextmanager
def guided(guide: Guide) -> Iterator[None]:
    """Let `guide` say what the FFs of a pass do."""
    token = GUIDE.set(guide)
    try:
        yield
    finally:
        GUIDE.reset(token)


class NeuronsIn(nn.Module):
    """A map into neurons: `weight` [F, d] ([2F, d] where gate and up are one map), `bias`.

    `place`: which it is of its FF's maps into neurons.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        layer: int,
        weight: nn.Parameter,
        bias: nn.Parameter | None,
        *,
        fused: bool,
        place: int = 0,
    ) -> None:
        super().__init__()
        self.layer, self.fused, self.place = layer, fused, place
        self.weight = weight
        self.register_parameter("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        guide = GUIDE.get()
        return self.dense(x) if guide is None else guide.enter(self, x)

    def dense(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)


class NeuronsOut(nn.Module):
    """The map out of them: `weight` [F, d], `bias` [d].

    `section` and `prior` [F] say by what rule the layer's neurons are chosen.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        layer: int,
        weight: nn.Parameter,
        bias: nn.Parameter | None,
        section: Experts,
        prior: Tensor | None,
    ) -> None:
        super().__init__()
        self.layer, self.section, self.prior = layer, section, prior
        self.weight = weight
        self.register_parameter("bias", bias)

    @property
    def width(self) -> int:
        return self.weight.shape[0]

    def forward(self, h: Tensor) -> Tensor:
        guide = GUIDE.get()
        return self.dense(h) if guide is None else guide.leave(self, h)

    def dense(self, h: Tensor) -> Tensor:
        out = h @ self.weight
        return out if self.bias is None else out + self.bias


def by_neuron(linear: Any, *, inputs: bool = False) -> nn.Parameter:
    """The weight of a map with one contiguous row for each of its outputs, or else inputs.

    A copy only where it lies the other way.
    """
    weight = linear.weight
    if neuron_axis(linear, inputs=inputs) == 0:
        return weight
    return nn.Parameter(weight.detach().t().contiguous(), requires_grad=weight.requires_grad)
