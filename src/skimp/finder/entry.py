"""A plan of a search, as its documents hold it: what it is and costs, and what was measured of it.

Quality and speeds are filled in by the search when they are known; until then they are None or
missing (docs/json.md).
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from skimp.measure import cost
from skimp.methods.registry import reduce
from skimp.models.anatomy import Anatomy
from skimp.plan import Plan
from skimp.workload import Workload

Entry = dict[str, Any]
Source = Literal["dense", "finder", "rule"]


def entry_of(plan: Plan, anatomy: Anatomy, work: Workload, source: Source, name: str) -> Entry:
    """What is known of a plan before anything is measured."""
    planned = reduce(plan, anatomy)
    return {
        "number": 0,
        "source": source,
        "name": name,
        "file": file_of(plan),
        "frontier": False,
        "sections": {key: dict(section) for key, section in plan.sections.items()},
        "left_out": _left_out(plan, anatomy),
        "byte_bound": cost.byte_bound(anatomy, planned, work),
        "foretold": None,
        "speedup": None,
        "speedup_interval": None,
        "left": [],
        "accuracy": None,
        "memory": cost.peak_bytes(planned, work),
        "kv": cost.kv_bytes(planned, work.prompt + work.new, work.batch),
        "joint": None,
    }


def dense_entry(anatomy: Anatomy, work: Workload) -> Entry:
    """The dense model beside itself."""
    zero = {"kl": 0.0, "loss_difference": 0.0, "agreement": 1.0}
    both = {"kl_interval": [0.0, 0.0], "loss_interval": [0.0, 0.0]}
    timed = {"speedup": 1.0, "speedup_interval": [1.0, 1.0]}
    return entry_of(Plan.empty(anatomy), anatomy, work, "dense", "dense") | zero | both | timed


def speed_of(entry: Mapping[str, Any]) -> float:
    """Its measured speedup, or its byte bound where it was not timed."""
    return entry["speedup"] or entry["byte_bound"]


def mark_frontier(entries: Sequence[Entry]) -> None:
    """Mark what no other plan beats in both speed and loss."""
    best = float("inf")
    for entry in sorted(entries, key=lambda e: (-speed_of(e), e["loss_difference"])):
        entry["frontier"] = entry["loss_difference"] < best
        best = min(best, entry["loss_difference"])


def file_of(plan: Plan) -> str:
    """The name of a fitted plan in the search's folder: by what it says, so that it is found again
    whatever else is searched for."""
    return f"plan-{digest(json.dumps(plan.to_dict(), sort_keys=True))}"


def digest(text: str) -> str:
    """A short name for a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _left_out(plan: Plan, anatomy: Anatomy) -> dict[str, Any]:
    drop: Mapping[str, Any] = plan.sections.get("drop", {})
    keep: Any = plan.sections.get("experts", {}).get("keep", 1.0)
    layers = anatomy.dense_layers
    shares = list(keep) if isinstance(keep, list) else [keep] * layers
    gone = {kind: [*drop.get(kind, []), *drop.get("layers", [])] for kind in ("attention", "ffn")}
    return {**gone, "keep": shares}
