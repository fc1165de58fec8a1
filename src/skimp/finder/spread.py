"""Spread the neurons that answers keep over the layers, by the harm that each layer's loss does.

Calibration text is cut into prompts and answers. What leaving neurons out of one layer does to the
predictions of an answer is foretold to second order: with c the change of the FF's output and g the
gradient of the loss of tokens that the model itself would say, KL ≈ E[(g·c)²] / 2 (the Fisher
information). One pass forward and back gives that for all layers and shares at once, and a greedy
choice along the convex hulls gives the best shares if harms simply added up. They do not: layers
make up for each other, and small shares hurt more than the second order tells. So the way from
equal shares to those is only a direction; how far to go is measured, all layers together.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from skimp.errors import CalibrationError, PlanError
from skimp.finder.texts import pieces
from skimp.methods.apply import apply
from skimp.methods.experts.deciding import Chooser
from skimp.methods.experts.modules import NeuronsIn, NeuronsOut, guided
from skimp.methods.experts.section import Experts, by_prompt
from skimp.methods.experts.select import left_out
from skimp.methods.experts.statistic import squares, totals
from skimp.plan import Plan
from skimp.progress import SILENT, Progress

LEVELS = tuple(level / 16 for level in range(1, 17))
STEPS = (0.0, 0.25, 0.5, 0.75, 1.0)
WINDOW, LEAST, PROMPT = 128, 16, 5 / 8  # tokens of a window, at least; the prompt's share of it
FORETOLD, MEASURED, TOGETHER = 48, 24, 8  # windows
TOKENS = 2 * (FORETOLD + MEASURED) * WINDOW
"""Of text that is enough."""
_PLACES = 4  # a share is written with so many


@dataclass(frozen=True)
class Windows:
    """Token ids [B, S]: the first `prompt` columns are prompts, the others their answers."""

    ids: Tensor
    prompt: int


@dataclass(frozen=True)
class Spread:
    """`keep`: the shares found, by layer. `harms` [layers, LEVELS]: nats that each layer's loss
    alone was foretold to do. `tried`: joint KL measured, by the part of the way gone."""

    keep: tuple[float, ...]
    harms: Tensor
    tried: Mapping[float, float]

    def onto(self, plan: Plan) -> Plan:
        """The plan with these shares; what was fitted stays."""
        section = {**plan.sections["experts"], "keep": list(self.keep)}
        return plan.with_section("experts", section).with_values(plan.values)


def spread(
    model: nn.Module, plan: Plan, documents: Sequence[Tensor], *, progress: Progress = SILENT
) -> Spread:
    """Find shares for the layers of a dense model that keep as much as the plan's one share.

    Args:
        plan: with an `experts` section whose `keep` is one share below 1, and its prior if any.
        documents: token ids, a document each.

    Raises:
        PlanError: the plan's `experts.keep` is not one share below 1.
        CalibrationError: fewer than two documents reach 16 tokens each.
    """
    section = _section(plan)
    assert isinstance(section.keep, float)
    windows = cut(documents, FORETOLD + MEASURED)
    held = max(1, len(windows) * MEASURED // (FORETOLD + MEASURED))
    with apply(model, plan):
        widths = Chooser(model).widths
        harms = foretell(model, windows[held:] or windows, progress)
    layers = sorted(widths)
    best = allocate(harms, [widths[layer] for layer in layers], section.keep)
    tried: dict[float, float] = {}
    ways = {step: _between(section.keep, best, step) for step in STEPS}
    with progress.task("measuring joint harm", len(STEPS)) as step_done:
        for step, keep in ways.items():
            way = Spread(_every(plan, layers, keep), harms, {}).onto(plan)
            tried[step] = joint_harm(model, way, windows[:held])
            step_done()
    nearest = min(tried, key=lambda step: (tried[step], step))
    every = _every(plan, layers, ways[nearest])
    return Spread(every, harms, tried)


def cut(documents: Sequence[Tensor], count: int) -> list[Windows]:
    """At most `count` windows of one length, some in a batch: of each document one, then more.

    Raises:
        CalibrationError: fewer than two documents are long enough.
    """
    lengths = sorted((len(each) for each in documents if len(each) >= LEAST), reverse=True)
    if len(lengths) < 2:
        raise CalibrationError(
            f"calibration: spreading experts takes two documents of {LEAST} tokens or more; give "
            "longer text."
        )
    length = min(WINDOW, lengths[min(count, len(lengths)) - 1])
    parts = [piece for piece, _ in pieces(documents, length)][:count]
    groups = [parts[start : start + TOGETHER] for start in range(0, len(parts), TOGETHER)]
    return [Windows(torch.stack(group), ceil(length * PROMPT)) for group in groups]


def foretell(model: nn.Module, windows: Sequence[Windows], progress: Progress = SILENT) -> Tensor:
    """Harm [layers, LEVELS] in nats per answer token, to second order, of each layer's loss alone.

    `model` carries a plan with experts; their rule chooses, at every level.
    """
    chooser = Chooser(model)
    sums = torch.zeros(len(chooser.widths), len(LEVELS), dtype=torch.float64)
    tokens = 0
    generator = torch.Generator().manual_seed(0)
    grown = progress.task("foretelling harm", len(windows))
    with grown as step, torch.enable_grad(), _frozen(model):
        for each in windows:
            watch = _Watch(len(each.ids))
            with guided(watch):
                logits = _answers(model, each).float()
            said = torch.multinomial(
                logits.detach().softmax(-1).flatten(0, 1).cpu(), 1, generator=generator
            ).to(logits.device)
            loss = -logits.log_softmax(-1).flatten(0, 1).gather(1, said).sum()
            layers = sorted(watch.outputs)
            gradients = torch.autograd.grad(loss, [watch.outputs[layer] for layer in layers])
            for row, (layer, gradient) in enumerate(zip(layers, gradients, strict=True)):
                sums[row] += _foretold(chooser, watch, layer, gradient, each.prompt)
            tokens += each.ids[:, each.prompt :].numel()
            step()
    return (sums / tokens).float()


@torch.no_grad()
def joint_harm(model: nn.Module, plan: Plan, windows: Sequence[Windows]) -> float:
    """KL to the dense model, nats per answer token, of the plan's experts in all layers."""
    total, tokens = 0.0, 0
    wanted = [_answers(model, each).float().log_softmax(-1) for each in windows]
    with apply(model, plan):
        chooser = Chooser(model)
        for each, dense in zip(windows, wanted, strict=True):
            with guided(Thin(chooser, len(each.ids), each.prompt)):
                found = _answers(model, each).float().log_softmax(-1)
            total += float((dense.exp() * (dense - found)).sum())
            tokens += dense.shape[0] * dense.shape[1]
    return total / tokens


def allocate(harms: Tensor, widths: Sequence[int], keep: float) -> list[float]:
    """The shares, by layer, of least added-up harm that keep `keep` of all neurons.

    `harms` [layers, LEVELS]. Shares lie on the lower convex hull of each layer's harms; the last
    step is taken in part, so that the neurons come out even.
    """
    steps: list[tuple[float, int, float]] = []  # harm saved a neuron, layer, share gained
    shares = []
    for layer, (row, width) in enumerate(zip(harms.tolist(), widths, strict=True)):
        hull = _hull(list(zip(LEVELS, row, strict=True)))
        shares.append(hull[0][0])
        for (low, worse), (high, better) in pairwise(hull):
            steps.append(((worse - better) / ((high - low) * width), layer, high - low))
    room = keep * sum(widths) - sum(s * w for s, w in zip(shares, widths, strict=True))
    if room < 0:
        return [keep] * len(widths)
    # A layer's own steps save less and less, so this takes them in their order.
    for _, layer, gain in sorted(steps, key=lambda step: -step[0]):
        part = min(gain, room / widths[layer])
        shares[layer] += part
        room -= part * widths[layer]
    return shares


def _hull(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The lower convex hull of points ordered by their first value, from the least one on."""
    hull: list[tuple[float, float]] = []
    for x, y in points:
        while len(hull) > 1:
            (x0, y0), (x1, y1) = hull[-2:]
            if (y1 - y0) * (x - x0) < (y - y0) * (x1 - x0):
                break
            hull.pop()
        hull.append((x, y))
    return hull


class _Watch:
    """All neurons; what they are and what comes of them is kept, for the gradient."""

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.neurons: dict[int, Tensor] = {}
        self.outputs: dict[int, Tensor] = {}
        self.modules: dict[int, NeuronsOut] = {}

    def enter(self, module: NeuronsIn, x: Tensor) -> Tensor:
        return module.dense(x)

    def leave(self, module: NeuronsOut, h: Tensor) -> Tensor:
        out = module.dense(h)
        if not out.requires_grad:
            out.requires_grad_()
        self.neurons[module.layer] = h.detach().reshape(self.batch, -1, module.width)
        self.outputs[module.layer], self.modules[module.layer] = out, module
        return out.clone()  # some families add to it in place


class Thin:
    """Answers of `batch` texts have the experts that their first `prompt` columns choose; all is
    computed in full, then set aside."""

    def __init__(self, chooser: Chooser, batch: int, prompt: int) -> None:
        self._chooser, self._batch, self._prompt = chooser, batch, prompt

    def enter(self, module: NeuronsIn, x: Tensor) -> Tensor:
        return module.dense(x)

    def leave(self, module: NeuronsOut, h: Tensor) -> Tensor:
        prompt = self._prompt
        z = h.reshape(self._batch, -1, module.width).clone()
        evidence = _Evidence(self._chooser, module, z[:, :prompt])
        gone, means = evidence.left_out(), evidence.means
        z[:, prompt:] = torch.where(gone[:, None], means[:, None].to(z.dtype), z[:, prompt:])
        return module.dense(z.view(h.shape))


class _Evidence:
    """What prompts say of a layer, by its neurons z [B, S, F]; `means` [B, F]: what neurons left
    out count as."""

    def __init__(self, chooser: Chooser, module: NeuronsOut, z: Tensor) -> None:
        self._chooser, self._module = chooser, module
        batch, length, _ = z.shape
        self._counts = torch.full((batch,), length, device=z.device)
        self._sums = squares(z)
        fills = chooser.fills(module.layer)
        self.means = totals(z) / length if fills else torch.zeros_like(self._sums)

    def left_out(self, keep: float | None = None) -> Tensor:
        """Which neurons go, bool [B, F], at the section's share or another."""
        layer = self._module.layer
        chosen = self._chooser.choose(layer, self._sums, self._counts, apart=True, keep=keep)
        return left_out(chosen, torch.ones_like(self._sums)).bool()


@torch.no_grad()
def _foretold(chooser: Chooser, watch: _Watch, layer: int, gradient: Tensor, prompt: int) -> Tensor:
    """Σ over answer tokens of (g·c)² / 2 at each of LEVELS, float64."""
    module, z = watch.modules[layer], watch.neurons[layer]
    slopes = gradient.reshape(watch.batch, -1, gradient.shape[-1])[:, prompt:] @ module.weight.t()
    evidence = _Evidence(chooser, module, z[:, :prompt])
    changes = (z[:, prompt:].float() - evidence.means[:, None]) * slopes.float()
    gone = torch.stack([evidence.left_out(level) for level in LEVELS], 2).float()  # [B, F, levels]
    return (changes @ gone).square().sum((0, 1)).double().cpu() / 2


def _answers(model: Any, windows: Windows) -> Tensor:
    """Logits [B, answer, V] at the answers' columns."""
    ids = windows.ids.to(next(model.parameters()).device)
    return model(input_ids=ids, use_cache=False).logits[:, windows.prompt :]


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """No gradients of weights meanwhile: they would take memory and are not wanted."""
    wanted = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in wanted:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in wanted:
            weight.requires_grad_(True)


def _section(plan: Plan) -> Experts:
    section = by_prompt(plan)
    if section is None or not isinstance(section.keep, float) or section.keep >= 1:
        raise PlanError(
            "experts.keep: to be spread over the layers it must be one share below 1, of neurons "
            "that prompts choose."
        )
    return section


def _between(keep: float, best: Sequence[float], step: float) -> list[float]:
    return [round(keep + step * (share - keep), _PLACES) for share in best]


def _every(plan: Plan, layers: Sequence[int], keep: Sequence[float]) -> tuple[float, ...]:
    """Shares of all layers of the dense model; those without an FF keep what there is."""
    found = dict(zip(layers, keep, strict=True))
    return tuple(found.get(layer, 1.0) for layer in range(plan.model.layers))
