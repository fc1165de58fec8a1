"""Copies of the weights that an answer keeps, in buffers that every request's answer shares.

Their shapes follow from the plan alone, so a decode step on them is one function of the same
tensors whatever a prompt chose. They hold one request's experts at a time: an owner's mark says
whose.
"""

import threading
from collections.abc import Iterable

import torch
from torch import Tensor

from skimp.engine.guides import Copy, InPlace
from skimp.methods.experts.deciding import Chooser


class Copies:
    """Buffers for the kept neurons of some layers (None: all), one set an engine.

    A layer that keeps all of its neurons needs none: its own weights stand in for the copies.

    Attributes:
        layers: the buffers.
        owner: the mark of the choice that they hold; None before the first.
        lock: to be held from `take` to the end of the step that reads them.
    """

    def __init__(self, chooser: Chooser, layers: Iterable[int] | None = None) -> None:
        self._chooser = chooser
        wanted = chooser.widths if layers is None else layers
        self.layers: dict[int, Copy] = {layer: _empty(chooser, layer) for layer in wanted}
        self.owner: object | None = None
        self.lock = threading.Lock()

    @property
    def bytes(self) -> int:
        """Memory beside the model's."""
        pairs = [pair for layer in self.layers for pair in self._pairs(layer)]
        return sum(copy.nbytes for weight, copy in pairs if copy is not weight)

    def take(self, mark: object, choice: InPlace) -> None:
        """Hold the experts of `choice`, unless `mark`, which tells it from others, is the owner."""
        if self.owner is mark:
            return
        self.owner = None  # should a copy fail, the buffers hold nobody's
        for layer in self.layers:
            *inputs, (weight, copy) = self._pairs(layer)
            for source, target in inputs:
                _copy(source, choice.entering[layer], target)
            _copy(weight, choice.chosen[layer].rows, copy)
        self.owner = mark

    def _pairs(self, layer: int) -> list[tuple[Tensor, Tensor]]:
        """Each tensor of a layer's maps with its buffer; that of the last map comes last."""
        copy, pairs = self.layers[layer], []
        for module, (weight, bias) in zip(self._chooser.inputs[layer], copy.inputs, strict=True):
            pairs.append((module.weight, weight))
            if module.bias is not None and bias is not None:
                pairs.append((module.bias, bias))
        return [*pairs, (self._chooser.outputs[layer].weight, copy.output)]


def bytes_of(chooser: Chooser) -> int:
    """What buffers for all layers take."""
    total = 0
    for layer, output in chooser.outputs.items():
        count = chooser.count(layer)
        tensors = [t for module in chooser.inputs[layer] for t in (module.weight, module.bias)]
        held = sum(t.nbytes for t in [*tensors, output.weight] if t is not None)
        total += held * count // output.width if count < output.width else 0
    return total


def _empty(chooser: Chooser, layer: int) -> Copy:
    output, count = chooser.outputs[layer], chooser.count(layer)
    inputs = chooser.inputs[layer]
    if count == output.width:
        return Copy(tuple((m.weight, m.bias) for m in inputs), output.weight)
    maps = []
    for module in inputs:
        rows = count * (2 if module.fused else 1)
        bias = None if module.bias is None else _fixed(module.bias, rows)
        maps.append((_fixed(module.weight, rows), bias))
    return Copy(tuple(maps), _fixed(output.weight, count))


def _fixed(like: Tensor, rows: int) -> Tensor:
    made = torch.empty(rows, *like.shape[1:], dtype=like.dtype, device=like.device)
    if made.is_cuda:  # so that a recorded graph reads it where it is
        torch._dynamo.mark_static_address(made)
    return made


def _copy(source: Tensor, rows: Tensor, target: Tensor) -> None:
    if source is not target:
        torch.index_select(source.detach(), 0, rows, out=target)
