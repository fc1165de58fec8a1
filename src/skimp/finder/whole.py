"""Choices of the whole model: what offers of them find, and what plans that have them read."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, cast

from torch import nn

from skimp.finder.choices import Choice, Gain, Setting, WholeOffer, offers
from skimp.finder.state import State
from skimp.methods.registry import reduce
from skimp.models.anatomy import Anatomy
from skimp.plan import Plan
from skimp.progress import SILENT, Progress
from skimp.workload import Workload


def whole_offers() -> Mapping[str, WholeOffer]:
    """Those offers that are about the whole model, by name."""
    every = offers().items()
    return {name: cast("WholeOffer", each) for name, each in every if each.acts_on == "model"}


def look(
    model: nn.Module,
    setting: Setting,
    state: State,
    progress: Progress = SILENT,
) -> tuple[list[Gain], list[dict[str, str]]]:
    """What is worth choosing, and of each offer that finds nothing its name and the reason."""
    gains: list[Gain] = []
    refused: list[dict[str, str]] = []
    for name, offer in whole_offers().items():

        def found(offer: WholeOffer = offer) -> dict[str, Any]:
            some, reason = offer.look(model, setting, progress)
            return {"gains": [asdict(gain) for gain in some], "reason": reason}

        seen = state.remember(f"whole-{name}", found)
        gains += [Gain(Choice(**each.pop("choice")), **each) for each in seen["gains"]]
        if not seen["gains"]:
            refused.append({"offer": name, "reason": seen["reason"]})
    return gains, refused


def share_read(
    sections: Mapping[str, Mapping[str, Any]],
    dense: Anatomy,
    workload: Workload,
    left: Sequence[float],
) -> float:
    """The share of its bytes that a plan's decode step reads, if these shares of tokens leave at
    the places where it lets them."""
    mine = [offer for name, offer in whole_offers().items() if name in sections]
    if not mine or not left:
        return 1.0
    plan = Plan.empty(dense)
    for name, section in sections.items():
        if name not in whole_offers():
            plan = plan.with_section(name, section)
    planned = reduce(plan, dense)
    share = 1.0
    for offer in mine:
        share *= offer.share_read(sections[offer.name], planned, workload, left)
    return share
