"""The surgery of the `experts` method: FFs whose neurons can be left out, prompt by prompt."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from skimp.calibration.replay import Replay
from skimp.errors import PlanError
from skimp.methods.base import Applying
from skimp.methods.drop.layout import planned_block
from skimp.methods.experts import calibrated
from skimp.methods.experts.fit import calibrated_scores
from skimp.methods.experts.modules import NeuronsIn, NeuronsOut, by_neuron
from skimp.methods.experts.repair import check_repairable, tasks_of
from skimp.methods.experts.section import Experts, ExpertsFile, read_section
from skimp.methods.in_order import Place, Task
from skimp.models.anatomy import Anatomy, Layer
from skimp.models.carve import KEEP
from skimp.models.feed_forward import FeedForward, feed_forwards
from skimp.progress import Progress

SECTION = "experts"
# Of calibration text that the statistic is taken over: more of it changes little (docs/log.md).
TOKENS = 8192


def prior_name(layer: int) -> str:
    """What the prior [F] of a layer of the dense model is called among a plan's values."""
    return f"{SECTION}.ffn.{layer}.prior"


class ExpertsMethod:
    """Keep the FF neurons that a prompt needs for its answer (GRIFFIN, Dong et al., 2024).

    Or those that calibration text needs, for good (:mod:`.calibrated`).
    """

    name = SECTION
    schema = ExpertsFile

    def read(self, data: Mapping[str, Any]) -> Experts:
        return read_section(data)

    def check(self, section: Experts, anatomy: Anatomy) -> None:
        section.check(anatomy)
        if section.repairs:
            check_repairable(anatomy)

    def needs_values(self, section: Experts) -> bool:
        return section.needs_prior or calibrated.needs_rows(section)

    def tokens(self, section: Experts) -> int | None:
        return None if section.repairs else TOKENS

    def fit(
        self, section: Experts, anatomy: Anatomy, replay: Replay, progress: Progress
    ) -> dict[str, Tensor]:
        scores = calibrated_scores(replay, progress)
        return {prior_name(layer): values for layer, values in scores.items()}

    def in_order(self, section: Experts) -> bool:
        return section.calibrated

    def tasks(
        self, section: Experts, anatomy: Anatomy, replay: Replay, progress: Progress
    ) -> dict[Place, Task]:
        return tasks_of(section, replay, progress)

    def values(
        self, section: Experts, fitted: Mapping[Place, dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        return calibrated.flatten(fitted)

    def apply(self, section: Experts, work: Applying) -> None:
        if all(map(section.dense, range(work.anatomy.dense_layers))):
            return
        if section.calibrated:
            calibrated.cut(section, work)
            return
        _check_values(section, work)
        found = feed_forwards(work.model, Anatomy.of(work.model))
        for layer, ffn in found.items():
            if not section.dense(layer):
                _thin(work, section, layer, ffn)
        block = planned_block(work)
        shares = {
            layer: section.decode_share(layer, ffn.width)
            for layer, ffn in found.items()
            if not section.dense(layer)
        }
        config: Any = work.model.config
        told = {"shares": shares, "refresh": section.refresh if shares else 0}
        work.surgery.set(config, "skimp", {**block, "experts": told})

    def reduce(self, section: Experts, anatomy: Anatomy) -> Anatomy:
        layers = tuple(_reduced(la, section, anatomy.hidden_size) for la in anatomy.layers)
        thinned = any(layer.ffn.decode_share < 1 for layer in layers)
        return replace(anatomy, layers=layers, refresh=section.refresh if thinned else 0)


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
    for place, path in enumerate(ffn.inputs):
        linear: Any = work.model.get_submodule(path)
        weight = by_neuron(linear)
        module = NeuronsIn(layer, weight, linear.bias, fused=ffn.fused, place=place)
        _put(work, path, module)
    linear = work.model.get_submodule(ffn.output)
    weight = by_neuron(linear, inputs=True)
    prior = work.values.get(prior_name(layer))
    _put(work, ffn.output, NeuronsOut(layer, weight, linear.bias, section, prior))


def _put(work: Applying, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    work.surgery.set(work.model.get_submodule(parent), name, module)


def _reduced(layer: Layer, section: Experts, hidden_size: int) -> Layer:
    ffn = layer.ffn
    if ffn.state != KEEP or section.dense(layer.source):
        return layer
    if section.calibrated:
        return replace(layer, ffn=calibrated.narrowed(layer, section, hidden_size))
    share = section.decode_share(layer.source, calibrated.width_of(ffn, hidden_size))
    return replace(layer, ffn=replace(ffn, decode_share=share))
