"""The papers' rules, as plans to set beside the frontier of a search."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from skimp.calibration.text import Calibration
from skimp.finder.choices import thinnable
from skimp.finder.choose import choose
from skimp.methods.exit.fit import can_probe, candidate_layers
from skimp.methods.exit.section import SECTION, Exit
from skimp.models.anatomy import Anatomy
from skimp.plan import Plan


def papers(
    model: nn.Module, tokenizer: Any, text: Calibration, seed: int
) -> list[tuple[str, Callable[[], Plan]]]:
    """Names, and what makes each plan: nothing stands in the gaps, as published.

    AdaInfer probes some layers where it is published for all, and its rule learns from other text.
    """
    anatomy = Anatomy.of(model)

    def drop(rule: str, part: str, share: float) -> Plan:
        counts: dict[str, Any] = {f"drop_{part}": max(1, round(share * anatomy.dense_layers))}
        return choose(
            model,
            tokenizer,
            rule=rule,
            fill="zero",
            repair="none",
            calibration=text,
            seed=seed,
            **counts,
        ).plan

    def experts(keep: float) -> Plan:
        return Plan.empty(anatomy).with_section("experts", {"keep": keep})

    def adainfer() -> Plan:
        # A probe after the last layer with the full head would leave nothing out.
        probes = candidate_layers(anatomy)[:-1]
        section = Exit(tuple(probes), rule="svm", translator="plain", threshold=0.0)
        return Plan.empty(anatomy).with_section(SECTION, section.to_dict())

    found: list[tuple[str, Callable[[], Plan]]] = [
        (f"{rule}, {word} {share:.0%}", partial(drop, rule, part, share))
        for rule, part, word, shares in (
            ("last", "attention", "attention", (0.25, 1 / 3, 0.5)),
            ("last", "ffn", "FF", (0.25,)),
            ("cosine", "attention", "attention", (0.25, 1 / 3, 0.5)),
            ("block-influence", "layers", "layers", (0.1, 0.25)),
        )
        for share in shares
    ]
    if thinnable(model, anatomy):
        found += [(f"GRIFFIN {keep}", partial(experts, keep)) for keep in (0.75, 0.5)]
    if can_probe(model):
        found.append(("AdaInfer", adainfer))
    return found
