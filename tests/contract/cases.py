"""What each method brings to the laws: plans to try, and a reference that shares no code with it.

A new method joins by an entry in `CASES`; a test holds that every method has one.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import ref

import torch
from hypothesis import strategies as st
from tests.contract.masking import branches_gone, branches_saved, masked
from tests.contract.thinning import fixed, neurons_gone, neurons_saved, widths
from tests.families import Sample, discovered
from torch import Tensor, nn

from skimp.methods import registry
from skimp.models.anatomy import Anatomy
from skimp.plan import Plan

Section = dict[str, Any]
Reference = Callable[[Sample, nn.Module, Plan], AbstractContextManager[None]]
# Mixtures of experts choose neurons by a router of their own.
ROUTED = {"mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "gpt_oss", "deepseek_v3"}

# What their FFs' output maps give is changed before it joins the residual stream, or may be.
BEHIND_NORMS = {"gemma2", "gemma3_text", "olmo2", "opt-post-norm", *discovered()}


@dataclass(frozen=True)
class Case:
    """One way of using a method.

    `hard` gives the sections every family must survive, from the number of layers; `sections` draws
    any other; `neutral` are sections that ask for nothing. `values` makes up what `skimp.fit` would
    have fitted. `reference` makes the dense model compute what the planned model should. `gone`
    refers to what must leave memory, `saved` counts the FLOPs left out over some tokens, from those
    of each dense (kind, layer). `refused` are families that the method must refuse.
    """

    method: str
    hard: Callable[[int], dict[str, Section]]
    sections: Callable[[int], st.SearchStrategy[Section]]
    neutral: tuple[Section, ...]
    values: Callable[[Section, Anatomy, int], Mapping[str, Tensor]]
    reference: Reference
    gone: Callable[[Sample, nn.Module, Plan], Iterator[ref[Any]]]
    saved: Callable[[Sample, nn.Module, Plan, Mapping[tuple[str, int], int], int], int]
    refused: frozenset[str] = frozenset()

    def fits(self, sample: Sample) -> bool:
        return sample.name not in self.refused

    def one(self, layers: int, name: str) -> Section:
        """The hard section of that name, or the first where the case has none."""
        hard = self.hard(layers)
        return hard.get(name, next(iter(hard.values())))


def shared_out(case: Case, layers: int) -> dict[str, Section]:
    """The hard sections that fall to this case when each is tried with one case only.

    For laws that hang on which sublayers are gone, but not on what stands in their place.
    """
    siblings = [each for each in CASES.values() if each.method == case.method]
    names = list(case.hard(layers))[siblings.index(case) :: len(siblings)]
    return {name: case.hard(layers)[name] for name in names}


def plan_for(case: Case, section: Section, anatomy: Anatomy, seed: int = 0) -> Plan:
    """A fitted plan with one section."""
    plan = Plan.empty(anatomy).with_section(case.method, section)
    return plan.with_values(case.values(section, anatomy, seed))


# --- drop ---------------------------------------------------------------------------------------


def _drop_hard(fill: str) -> Callable[[int], dict[str, Section]]:
    def sections(count: int) -> dict[str, Section]:
        last = count - 1
        every = list(range(count))
        return {
            "first attention": {"attention": [0], "fill": fill},
            "first layer": {"layers": [0], "fill": fill},
            "last layer": {"layers": [last], "fill": fill},
            "middle": {"attention": [1], "ffn": [1, 2], "fill": fill},
            "first ffn": {"ffn": [0], "fill": fill},
            "one attention kept": {"attention": every[:2] + every[3:], "fill": fill},
            "only the last attention kept": {
                "attention": every[:-1],
                "ffn": [0, 2, last],
                "fill": fill,
            },
            "only attention, only in the first layer": {
                "attention": every[1:],
                "ffn": every,
                "fill": fill,
            },
        }

    return sections


def _drop_sections(fill: str) -> Callable[[int], st.SearchStrategy[Section]]:
    def sections(count: int) -> st.SearchStrategy[Section]:
        layer = st.integers(0, count - 1)
        subset = st.lists(layer, unique=True, max_size=count)
        drawn = st.fixed_dictionaries(
            {"attention": subset, "ffn": subset, "fill": st.just(fill)},
            optional={"layers": st.lists(layer, unique=True, max_size=2)},
        )
        return drawn.filter(
            lambda s: len({*s["attention"], *s.get("layers", ())}) < count  # one must stay
        )

    return sections


def _drop_values(section: Section, anatomy: Anatomy, seed: int) -> dict[str, Tensor]:
    from skimp.methods.drop.section import read_section
    from skimp.methods.drop.values import shapes

    random = torch.Generator().manual_seed(seed)
    values = {}
    for name, shape in shapes(read_section(section), anatomy).items():
        value = torch.randn(shape, generator=random)
        values[name] = value * 0.5 if len(shape) == 1 else value / shape[-1] ** 0.5
    return values


def _drop(fill: str, repair: str | int = "none") -> Case:
    hard, sections = _drop_hard(fill), _drop_sections(fill)
    extra = {} if repair == "none" else {"repair": repair}
    return Case(
        method="drop",
        hard=lambda count: {name: {**each, **extra} for name, each in hard(count).items()},
        sections=lambda count: sections(count).map(lambda each: {**each, **extra}),
        neutral=({}, {"attention": [], "ffn": [], "fill": fill}, {"layers": []}),
        values=_drop_values,
        reference=masked,
        gone=branches_gone,
        saved=branches_saved,
    )


# --- experts, calibrated ------------------------------------------------------------------------


def _experts_hard(count: int) -> dict[str, Section]:
    shares = [1.0, 0.01, 0.7, 0.4]
    found: dict[str, Section] = {
        "half": {"keep": 0.5},
        "layer by layer": {"keep": [shares[i % 4] for i in range(count)]},
        "blocks": {"keep": 0.75, "block": 16},
    }
    return {name: {**section, "scope": "calibrated"} for name, section in found.items()}


def _experts_sections(count: int) -> st.SearchStrategy[Section]:
    share = st.floats(0, 1, exclude_min=True)
    return st.fixed_dictionaries(
        {
            "scope": st.just("calibrated"),
            "keep": share | st.lists(share, min_size=count, max_size=count),
        },
        optional={
            "select": st.sampled_from(["topk", "sample", "topk_sample", "random", "magnitude"]),
            "block": st.sampled_from([1, 16, 32]),
            "seed": st.integers(0, 9),
        },
    )


def _experts_values(section: Section, anatomy: Anatomy, seed: int) -> dict[str, Tensor]:
    """Any neurons at all, as many as the section keeps."""
    from skimp.methods.experts.section import read_section

    read, random = read_section(section), torch.Generator().manual_seed(seed)
    values = {}
    for layer, width in enumerate(widths(anatomy)):
        if not read.dense(layer):
            rows = torch.randperm(width, generator=random)[: read.count(layer, width)]
            values[f"experts.ffn.{layer}.kept"] = rows.sort().values.int()
            if read.repairs and len(rows) < width:
                change = torch.randn(anatomy.hidden_size, len(rows), generator=random)
                values[f"experts.ffn.{layer}.repair"] = (change / len(rows) ** 0.5).bfloat16()
    return values


def _experts(repair: str, refused: set[str]) -> Case:
    extra = {} if repair == "none" else {"repair": repair}
    return Case(
        method="experts",
        hard=lambda count: {name: {**s, **extra} for name, s in _experts_hard(count).items()},
        sections=lambda count: _experts_sections(count).map(lambda s: {**s, **extra}),
        neutral=({"keep": 1.0, "scope": "calibrated", **extra},),
        values=_experts_values,
        reference=fixed,
        gone=neurons_gone,
        saved=neurons_saved,
        refused=frozenset(refused),
    )


CASES: dict[str, Case] = {
    "drop-zero": _drop("zero"),
    "drop-mean": _drop("mean"),
    "drop-linear:4": _drop("linear:4"),
    "drop-linear:full": _drop("linear:full"),
    "drop-linear:4-repair:3": _drop("linear:4", 3),
    "drop-zero-repair:full": _drop("zero", "full"),
    "experts-calibrated": _experts("none", ROUTED),
    "experts-calibrated-repair": _experts("full", ROUTED | BEHIND_NORMS),
}


# Methods whose part of the model can depend on the request, so that only the engine can leave it
# out: the laws on that stand in a file of their own.
BY_REQUEST = {"experts": "test_experts.py", "exit": "test_exits.py"}


def missing_methods() -> set[str]:
    """Methods that skimp has and the laws do not cover."""
    there = {name for name, file in BY_REQUEST.items() if (Path(__file__).parent / file).is_file()}
    return set(registry.methods()) - {case.method for case in CASES.values()} - there
