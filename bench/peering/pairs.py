"""Two models that decoded in turns: what the second wins, beside what its bytes promise."""

from collections.abc import Sequence
from statistics import median
from typing import Any

from skimp.cli import output
from skimp.measure.speed import Collected
from skimp.measure.statistics import median_interval


def row(dense: Sequence[float], planned: Sequence[float], bound: float) -> dict[str, Any]:
    """What came of turns of so many s a step, neighbours compared; `bound`: the bytes' speedup."""
    found = median_interval([d / p for d, p in zip(dense, planned, strict=True)])
    collected = Collected.of(found.estimate, bound)
    return {
        "dense_tpot_s": median(dense),
        "planned_tpot_s": median(planned),
        "decode": found.estimate,
        "decode_interval": found.pair,
        "bound": bound,
        "share": collected.share,
        "gain": collected.gain,
    }


def table(title: str, rows: Sequence[dict[str, Any]], varied: str) -> Any:
    """Rows of models, plans and one thing more that was `varied`."""
    head = ("model", "plan", varied, ">dense ms", ">speedup (95%)", ">bound", ">share")
    made = output.table(title, *head)
    for each in rows:
        low, high = each["decode_interval"]
        made.add_row(
            each["model"],
            each["plan"],
            str(each[varied.removeprefix(">")]),
            f"{each['dense_tpot_s'] * 1e3:.1f}",
            f"{each['decode']:.2f}× ({low:.2f}–{high:.2f})",
            f"{each['bound']:.2f}×",
            f"{each['share']:.0%}",
        )
    return made
