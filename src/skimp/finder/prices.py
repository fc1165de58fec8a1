"""What a decode step costs: its bytes, or the time that this machine was found to take for it.

Time is a share of the dense model's. It is put together from what a step reads, by kind, and from
how many sublayers and fills it runs, each at a price. Bytes alone would not do: neurons that lie
apart are read more slowly than weights in one run, and a small sublayer takes longer than its bytes
say. The prices are solved for from timings of a few made-up plans.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from skimp.errors import NEEDS_SCIPY, SkimpError
from skimp.measure import cost
from skimp.models.anatomy import Anatomy
from skimp.models.carve import KEEP
from skimp.plan import Plan
from skimp.workload import Workload

_PULL = 0.03  # towards bytes, beside timings whose relative errors count 1 each
_COUNTED = ("sublayers", "thinned", "fills")


class Prices(Protocol):
    """A way to tell the cost of a mean decode step."""

    def step(self, anatomy: Anatomy, workload: Workload) -> float:
        """The cost of a mean decode step of a model, dense or planned."""
        ...


@dataclass(frozen=True)
class Bytes:
    """Bytes read: the byte bound, on no machine in particular."""

    def step(self, anatomy: Anatomy, workload: Workload) -> float:
        return cost.decode_cost(anatomy, workload).bytes


@dataclass(frozen=True)
class Measured:
    """Prices of one machine for one dense model: by name of what is counted, in dense steps."""

    dense: Anatomy = field(repr=False)
    prices: Mapping[str, float]

    def step(self, anatomy: Anatomy, workload: Workload) -> float:
        counted = features(anatomy, self.dense, workload)
        return sum(self.prices[name] * value for name, value in counted.items())

    @classmethod
    def solve(
        cls, dense: Anatomy, workload: Workload, timings: Sequence[tuple[Anatomy, float]]
    ) -> "Measured":
        """Prices, none below 0, that explain the times of plans (as shares of the dense step's)."""
        try:
            from scipy.optimize import nnls
        except ImportError:
            raise SkimpError(NEEDS_SCIPY) from None
        known = [(dense, 1.0), *timings]
        rows = [features(anatomy, dense, workload) for anatomy, _ in known]
        names = list(rows[0])
        took = np.array([share for _, share in known])
        matrix = np.array([[row[name] for name in names] for row in rows]) / took[:, None]
        assumed = np.array([0.0 if name in _COUNTED else 1.0 for name in names])
        solved, _ = nnls(
            np.vstack([matrix, _PULL * np.eye(len(names))]),
            np.concatenate([np.ones(len(known)), _PULL * assumed]),
        )
        whole = float(np.array(list(rows[0].values())) @ solved)
        return cls(dense, {n: float(p) / whole for n, p in zip(names, solved, strict=True)})


def features(anatomy: Anatomy, dense: Anatomy, workload: Workload) -> dict[str, float]:
    """What a decode step reads, by kind, as shares of the dense step's bytes; and what it runs, as
    shares of the dense model's sublayers."""
    spent = cost.decode_cost(anatomy, workload)
    whole = cost.decode_cost(dense, workload).bytes
    every = [sublayer for layer in anatomy.layers for sublayer in (layer.attention, layer.ffn)]
    thinned = [each for each in every if each.kind == "ffn" and each.decode_share < 1]
    apart = sum(each.decode_share * cost.touched_bytes(each, workload.batch) for each in thinned)
    places = 2 * dense.dense_layers
    return {
        "outside": (spent.head.bytes + spent.embedding.bytes + spent.other.bytes) / whole,
        "attention": (spent.attention.bytes + spent.kv.bytes) / whole,
        "ffn": (spent.ffn.bytes - apart) / whole,
        "apart": apart / whole,
        "sublayers": sum(each.state == KEEP for each in every) / places,
        "thinned": len(thinned) / places,
        "fills": sum(each.state != KEEP and bool(each.parts) for each in every) / places,
    }


def references(anatomy: Anatomy, thin: bool) -> list[Plan]:
    """Plans that differ in what a step reads and runs; their weights mean nothing."""
    even, odd = (list(range(start, anatomy.dense_layers, 2)) for start in (0, 1))
    fill = f"linear:{min(16, anatomy.hidden_size)}"
    attention = {"attention": even, "fill": fill}
    found: list[dict[str, dict[str, Any]]] = [
        {"drop": attention},
        {"drop": {"ffn": even, "fill": fill}},
    ]
    for keep in (0.8, 0.5) if thin else ():
        found.append({"experts": {"keep": keep, "scope": "calibrated"}})
        found.append({"experts": {"keep": keep}})
    # Both at once, as in what is chosen: there the prices have to hold.
    if thin:
        found.append({"drop": attention, "experts": {"keep": 0.65, "scope": "calibrated"}})
    else:
        found.append({"drop": {**attention, "ffn": odd}})
    return [made_up(_of(sections, anatomy), anatomy) for sections in found]


def _of(sections: Mapping[str, Mapping[str, Any]], anatomy: Anatomy) -> Plan:
    plan = Plan.empty(anatomy)
    for name, section in sections.items():
        plan = plan.with_section(name, section)
    return plan


def made_up(plan: Plan, anatomy: Anatomy) -> Plan:
    """A plan of the search, bare and without exits, with values that mean nothing.

    It takes the time that it would take with fitted ones, its fills being linear of some rank.
    """
    from skimp.methods.drop import section as drops
    from skimp.methods.experts import section as experts
    from skimp.methods.experts.calibrated import kept_name, width_of

    size, values = anatomy.hidden_size, dict[str, torch.Tensor]()
    if "drop" in plan.sections:
        drop = drops.read_section(plan.sections["drop"])
        rank = drop.fill.rank or size
        for layer, kind in drop.sublayers:
            name = f"drop.{kind}.{layer}"
            values[f"{name}.down"] = torch.zeros(rank, size)
            values[f"{name}.up"] = torch.zeros(size, rank)
            values[f"{name}.bias"] = torch.zeros(size)
    if "experts" in plan.sections:
        thin = experts.read_section(plan.sections["experts"])
        for layer, ffn in anatomy.sublayers("ffn") if thin.calibrated else ():
            if not thin.dense(layer):
                count = thin.count(layer, width_of(ffn, size))
                values[kept_name(layer)] = torch.arange(count, dtype=torch.int32)
    return plan.with_values(values)
