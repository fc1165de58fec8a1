"""Planned tiny models to export."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from tests.contract.cases import CASES, plan_for
from tests.contract.runs import make_batch, uncached
from tests.families import build
from tests.tiny import byte_tokenizer
from torch import Tensor, nn

import skimp
from skimp.export.target import Product
from skimp.models.anatomy import Anatomy
from skimp.plan import Plan

BATCH = make_batch([9], seed=3)


@cache
def dense(family: str) -> tuple[nn.Module, Anatomy]:
    model = build(family)
    return model, Anatomy.of(model)


@contextmanager
def product(
    family: str, case: str, section: str = "middle", *, tokenizer: bool = False
) -> Iterator[Product]:
    """The family's tiny model with a hard section of a contract case on."""
    model, anatomy = dense(family)
    plan = plan_for(CASES[case], CASES[case].one(anatomy.dense_layers, section), anatomy)
    with of_plan(model, anatomy, plan, tokenizer=tokenizer) as made:
        yield made


@contextmanager
def of_plan(
    model: nn.Module, anatomy: Anatomy, plan: Plan, *, tokenizer: bool = False
) -> Iterator[Product]:
    with skimp.apply(model, plan):
        read: Any = byte_tokenizer() if tokenizer else None
        yield Product(model, read, plan, anatomy, "org/tiny", "tiny-planned")


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return uncached(model, BATCH)
