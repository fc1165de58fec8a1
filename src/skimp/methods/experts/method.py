"""The surgery of the `experts` method: FFs whose neurons can be left out, prompt by prompt."""

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

import skimp
from skimp.calibration.replay import Replay
from skimp.errors import PlanError
from skimp.methods.base import Applying
from skimp.methods.drop.layout import make_layout
from skimp.methods.drop.section import Drop
from skimp.methods.experts.fit import calibrated_scores
from skimp.methods.experts.modules import NeuronsIn, NeuronsOut
from skimp.methods.experts.section import Experts, ExpertsFile, read_section
from skimp.models.anatomy import Anatomy, Layer
from skimp.models.carve import KEEP
from skimp.models.feed_forward import FeedForward, feed_forwards
from skimp.progress import Progress

SECTION = "experts"


def prior_name(layer: int) -> str:
    """What the prior [F] of a layer of the dense model is called among a plan's values."""
    return f"{SECTION}.ffn.{layer}.prior"


class ExpertsMethod:
    """Keep, for an answer, the FF neurons that its prompt needed (GRIFFIN, Dong et al., 2024)."""

    name = SECTION
    schema = ExpertsFile

    def read(self, data: Mapping[str, Any]) -> Experts:
        return read_section(data)

    def check(self, section: Experts, anatomy: Anatomy) -> None:
        section.check(anatomy)

    def needs_values(self, section: Experts) -> bool:
        return section.needs_prior

    def fit(
        self, section: Experts, anatomy: Anatomy, replay: Replay, progress: Progress
    ) -> dict[str, Tensor]:
        scores = calibrated_scores(replay, progress)
        return {prior_name(layer): values for layer, values in scores.items()}

    def apply(self, section: Experts, work: Applying) -> None:
        if all(map(section.dense, range(work.anatomy.dense_layers))):
            return
        _check_values(section, work)
        config: Any = work.model.config
        if getattr(config, "skimp", None) is None:
            layout = make_layout(Drop(), work.anatomy, work.model)
            work.surgery.set(config, "skimp", {"version": skimp.__version__, "layout": layout})
        found = feed_forwards(work.model, Anatomy.of(work.model))
        for layer, ffn in found.items():
            if not section.dense(layer):
                _thin(work, section, layer, ffn)
        shares = {
            layer: section.decode_share(layer, ffn.width)
            for layer, ffn in found.items()
            if not section.dense(layer)
        }
        work.surgery.set(config, "skimp", {**config.skimp, "experts": shares})

    def reduce(self, section: Experts, anatomy: Anatomy) -> Anatomy:
        layers = tuple(_reduced(la, section, anatomy.hidden_size) for la in anatomy.layers)
        return replace(anatomy, layers=layers)


METHOD = ExpertsMethod()


def _check_values(section: Experts, work: Applying) -> None:
    if not section.needs_prior:
        return
    for layer in work.anatomy.layers:
        name = prior_name(layer.source)
        if name not in work.values:
            raise PlanError(
                f"experts.prior: it has not been fitted ({name} is missing); run "
                "`skimp plan MODEL --fit plan.yaml`, or skimp.fit(model, tokenizer, plan)."
            )


def _thin(work: Applying, section: Experts, layer: int, ffn: FeedForward) -> None:
    for path in ffn.inputs:
        linear: Any = work.model.get_submodule(path)
        weight = _by_neuron(linear, neurons_out=True)
        _put(work, path, NeuronsIn(layer, weight, linear.bias, fused=ffn.fused))
    linear = work.model.get_submodule(ffn.output)
    weight = _by_neuron(linear, neurons_out=False)
    prior = work.values.get(prior_name(layer))
    _put(work, ffn.output, NeuronsOut(layer, weight, linear.bias, section, prior))


def _put(work: Applying, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    work.surgery.set(work.model.get_submodule(parent), name, module)


@torch.no_grad()
def _by_neuron(linear: Any, *, neurons_out: bool) -> nn.Parameter:
    """The weight with one contiguous row a neuron; a copy only where it lies the other way."""
    stored_out_first = isinstance(linear, nn.Linear)  # GPT-2's Conv1D is [in, out]
    if stored_out_first == neurons_out:
        return linear.weight
    return nn.Parameter(linear.weight.t().contiguous(), requires_grad=linear.weight.requires_grad)


def _reduced(layer: Layer, section: Experts, hidden_size: int) -> Layer:
    ffn = layer.ffn
    if ffn.state != KEEP or section.dense(layer.source):
        return layer
    *_, out = (part for part in ffn.parts if part.role == "projection")
    width = prod(out.shape) // hidden_size
    share = section.decode_share(layer.source, width)
    return replace(layer, ffn=replace(ffn, decode_share=share))
