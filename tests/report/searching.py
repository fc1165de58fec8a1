"""Made-up searches: what `skimp plan MODEL --budget …` writes under `search`."""

import math
import random
from typing import Any

from tests.report import documents
from tests.report.documents import INJECTION

Document = dict[str, Any]
LAYERS = 30
RULES = (
    "greedy, attention 17%",
    "greedy, attention 33%",
    "last, attention 33%",
    "block-influence, layers 10%",
    "block-influence, layers 20%",
    "experts 0.5 (GRIFFIN)",
    "experts 0.75 (GRIFFIN)",
    "exits at 99% (AdaInfer)",
)


def entry(number: int, source: str, name: str, **changes: Any) -> Document:
    """One plan that leaves out nothing and was timed as dense is, but for `changes`."""
    made: Document = {
        "number": number,
        "source": source,
        "name": name,
        "frontier": True,
        "sections": {},
        "left_out": {"attention": [], "ffn": [], "keep": [1.0] * LAYERS},
        "byte_bound": 1.0,
        "foretold": 1.0,
        "speedup": 1.0,
        "speedup_interval": [1.0, 1.0],
        "kl": 0.0,
        "kl_interval": [0.0, 0.0],
        "loss_difference": 0.0,
        "loss_interval": [0.0, 0.0],
        "agreement": 1.0,
    }
    return {**made, **changes}


def plan(
    number: int, source: str, name: str, bound: float, loss: float, **changes: Any
) -> Document:
    """One plan that collects 85% of what its bytes allow, at a harm of `loss`."""
    speed = 1 + 0.85 * (bound - 1)
    drawn = random.Random(number)
    attention = sorted(drawn.sample(range(1, LAYERS), min(LAYERS - 1, round(20 * (bound - 1)))))
    keep = [round(min(1.0, 1.3 - 0.5 * bound + 0.3 * drawn.random()), 2) for _ in range(LAYERS)]
    made = entry(
        number,
        source,
        name,
        sections={"drop": {"attention": attention, "fill": "linear:16"}},
        left_out={"attention": attention, "ffn": attention[:1], "keep": keep},
        byte_bound=bound,
        foretold=speed + 0.01,
        speedup=speed,
        speedup_interval=[speed - 0.02, speed + 0.02],
        kl=1.6 * loss,
        kl_interval=[1.4 * loss, 1.8 * loss],
        loss_difference=loss,
        loss_interval=[0.75 * loss - 0.004, 1.25 * loss + 0.004],
        agreement=math.exp(-2 * loss),
    )
    return {**made, **changes}


def search(finder: int = 16, rules: int = 8) -> Document:
    """Dense, a frontier of the finder's plans, and rules that it beats."""
    plans = [entry(0, "dense", "dense", foretold=None, agreement=1.0)]
    for step in range(1, finder + 1):
        share = step / finder
        plans.append(plan(step, "finder", "finder", 1 + 0.9 * share, 0.35 * share**2.2))
    for step, name in enumerate(RULES[:rules], 1):
        share = step / len(RULES)
        number = finder + step
        loss = 0.08 + 0.4 * share**1.5
        plans.append(plan(number, "rule", name, 1.1 + 0.6 * share, loss, frontier=False))
    return {
        "workload": "512+128x1",
        "budget": "loss<=1%",
        "costs": "measured",
        "seconds": 512.3,
        "complete": True,
        "plans": plans,
        "chosen": min(4, finder) if finder else None,
        "promise": {
            "budget": "loss<=1%",
            "holds": True,
            "bound": 0.008,
            "level": 0.95,
            "tokens": 6144,
            "documents": 40,
            "looked_at": 6,
            "words": "With 95% confidence plan 4 loses at most 0.8% on text like this.",
        },
        "withheld": [{"number": 6, "reason": "its loss exceeds the budget on other documents."}],
    }


def untimed() -> Document:
    """A search by bytes alone."""
    made = search()
    for one in made["plans"]:
        one["speedup"] = one["speedup_interval"] = None
    return {**made, "costs": "bytes", "budget": None, "promise": None, "chosen": None}


def hostile() -> Document:
    """Every text an injection, every number a trap; some of it can be shown."""
    bad: list[Any] = [
        3,
        {"number": -1, "source": "finder"},
        {"number": 1, "source": INJECTION},
        plan(90, "rule", INJECTION, 1.2, 0.1, speedup=-1, byte_bound=0, agreement=7),
        plan(91, "finder", INJECTION, 1.2, 0.1, loss_difference=math.inf, kl=INJECTION),
        plan(92, "finder", "x", 1.2, 0.1, loss_interval=[0, 1, 2], frontier=INJECTION),
        plan(93, "finder", "x", 1.2, 0.1, left_out={"keep": [2], "ffn": [10**9], "attention": 3}),
        plan(93, "finder", "the same number", 1.2, 0.1),
        plan(94, "finder", "x", 1.2, 0.1, sections={"exit": {"probe": ["x", 2, 999]}}, left_out=7),
    ]
    made = search(3, 2)
    return {
        "workload": INJECTION,
        "budget": INJECTION,
        "costs": INJECTION,
        "seconds": math.nan,
        "complete": INJECTION,
        "plans": [*made["plans"], *bad],
        "chosen": 90,
        "promise": {"words": INJECTION, "holds": INJECTION, "bound": math.inf, "level": 7},
        "withheld": [7, {"number": INJECTION}, {"number": 2, "reason": INJECTION}, {"number": 3}],
    }


def document(found: Any = None, **changes: Any) -> Document:
    """A whole `plan` document with a search; what is at its top is of the plan that was chosen."""
    made = search() if found is None else found
    common = documents.plan(LAYERS)
    plans = [one for one in made["plans"] if isinstance(one, dict)]
    chosen = next((one for one in plans if one["number"] == made["chosen"]), None)
    if chosen is not None:
        left = chosen["left_out"]
        common["dropped"] = {"attention": left["attention"], "ffn": left["ffn"]}
        common["plan"] = {**common["plan"], **chosen["sections"]}
    return {
        **common,
        "command": "skimp plan demo --workload 512+128x1 --budget 'loss<=1%' --out best.yaml",
        "search": made,
        **changes,
    }
