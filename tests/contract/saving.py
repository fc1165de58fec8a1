"""Planned models in folders."""

from pathlib import Path

from tests.contract.cases import CASES, plan_for
from torch import nn

import skimp
from skimp.models.anatomy import Anatomy
from skimp.plan import Plan


def save_planned(model: nn.Module, plan: Plan, folder: Path) -> None:
    with skimp.apply(model, plan):
        skimp.save(model, None, plan, folder)


def small_plan(model: nn.Module) -> Plan:
    case = CASES["drop-mean"]
    section = {"attention": [0, 2], "ffn": [1], "layers": [3], "fill": "mean"}
    return plan_for(case, section, Anatomy.of(model))
