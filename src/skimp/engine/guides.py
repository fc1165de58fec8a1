"""What the FFs of a pass do with their neurons: watch them all, or answer with those chosen."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from skimp import kernels
from skimp.methods.experts.modules import NeuronsIn, NeuronsOut
from skimp.methods.experts.select import Chosen
from skimp.methods.experts.statistic import squares, totals


@dataclass(frozen=True)
class Reading:
    """All neurons; their statistic is added to a request's: `sums` and `totals` as `Carried`'s,
    `real` [B, S] which tokens count."""

    sums: Mapping[int, Tensor]
    totals: Mapping[int, Tensor]
    real: Tensor | None

    def enter(self, module: NeuronsIn, x: Tensor) -> Tensor:
        return module.dense(x)

    def leave(self, module: NeuronsOut, h: Tensor) -> Tensor:
        sums = self.sums[module.layer]
        z = h.reshape(len(sums), -1, module.width)  # OPT's FF works on all tokens in one row
        sums += squares(z, self.real)
        if module.layer in self.totals:
            total = self.totals[module.layer]
            total += totals(z, self.real)
        return module.dense(h)


@dataclass(frozen=True)
class InPlace:
    """The chosen neurons only, read where they are. `entering` int32, by layer: the rows that they
    have in the maps into them, which gate and up in one map have twice."""

    chosen: Mapping[int, Chosen]
    entering: Mapping[int, Tensor]

    def enter(self, module: NeuronsIn, x: Tensor) -> Tensor:
        return kernels.linear(x, module.weight, module.bias, self.entering[module.layer])

    def leave(self, module: NeuronsOut, h: Tensor) -> Tensor:
        chosen = self.chosen[module.layer]
        h = h if chosen.mask is None else _masked(h, chosen.mask)
        return _ended(module, kernels.neurons(h, module.weight, chosen.rows), chosen.fill)


@dataclass(frozen=True)
class Masked:
    """All neurons are read, and what a sequence does not keep becomes zero: a step of the same
    shapes whatever sequences chose. `masks` bool [B, F] and `fills` by layer."""

    masks: Mapping[int, Tensor]
    fills: Mapping[int, Tensor | None]

    def enter(self, module: NeuronsIn, x: Tensor) -> Tensor:
        return module.dense(x)

    def leave(self, module: NeuronsOut, h: Tensor) -> Tensor:
        out = _masked(h, self.masks[module.layer]) @ module.weight
        return _ended(module, out, self.fills[module.layer])


@dataclass(frozen=True)
class Copy:
    """An FF's kept neurons: the weight [k, d] ([2k, d] where gate and up are one map) and bias of
    each map into them, and the weight [k, d] of the map out of them."""

    inputs: tuple[tuple[Tensor, Tensor | None], ...]
    output: Tensor


@dataclass(frozen=True)
class Gathered:
    """The chosen neurons only, read from copies that lie together; `copies`, `fills` by layer."""

    copies: Mapping[int, Copy]
    fills: Mapping[int, Tensor | None]

    def enter(self, module: NeuronsIn, x: Tensor) -> Tensor:
        weight, bias = self.copies[module.layer].inputs[module.place]
        if x.is_cpu:
            return kernels.linear(x, weight, bias)
        return functional.linear(x, weight, bias)  # which a compiler can see into

    def leave(self, module: NeuronsOut, h: Tensor) -> Tensor:
        weight = self.copies[module.layer].output
        out = kernels.neurons(h, weight) if h.is_cpu else h @ weight
        return _ended(module, out, self.fills[module.layer])


def _masked(h: Tensor, mask: Tensor) -> Tensor:
    """`h`, [B, Q, k] or [B Q, k], with what `mask` [B, k] leaves out as zero."""
    return (h.reshape(mask.shape[0], -1, mask.shape[1]) * mask[:, None]).view(h.shape)


def _ended(module: NeuronsOut, out: Tensor, fill: Tensor | None) -> Tensor:
    if fill is not None:
        out = (out.reshape(fill.shape[0], -1, fill.shape[1]) + fill[:, None]).view(out.shape)
    return out if module.bias is None else out + module.bias
