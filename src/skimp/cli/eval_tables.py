"""The tables that `skimp eval` prints."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from skimp.cli import figures as numbers
from skimp.cli import output

if TYPE_CHECKING:
    from skimp.cli.eval import Text
    from skimp.cli.measuring import Measured
    from skimp.measure.fidelity import Fidelity


def tasks_table(part: Measured) -> Any:
    """The planned model's scores beside the dense model's, or those alone."""
    assert part.dense is not None
    if not part.comparisons:
        made = output.table("Tasks", "task", "metric", ">items", ">dense")
        for name, scores in part.dense.tasks.items():
            value = numbers.significant(scores.value, 4)
            made.add_row(name, scores.metric, numbers.count(len(scores.items)), value)
        return made
    columns = ("task", "metric", ">items", ">dense", ">planned", ">difference", ">95% interval")
    title = "Tasks, in simulated generation mode" if part.simulated else "Tasks"
    made = output.table(title, *columns)
    rows = dict(part.comparisons)
    if part.mean is not None and len(rows) > 1:
        rows["mean"] = part.mean
    for name, one in rows.items():
        share = one.kind == "mean" and 0 <= one.dense <= 1 and 0 <= one.planned <= 1
        value = numbers.share if share else numbers.significant
        step = numbers.points if share else numbers.plus
        low, high = one.interval
        made.add_row(
            name,
            one.metric,
            numbers.count(one.items),
            value(one.dense),
            value(one.planned),
            step(one.difference),
            f"{step(low)} to {step(high)}",
        )
    return made


def fidelity_table(found: Fidelity, text: Text, *, planned: bool) -> Any:
    """What was found on `text`; without a plan, of the dense model alone."""
    made = output.table(f"{numbers.count(found.tokens)} tokens of {text.source}", "", ">value")
    made.add_row("perplexity, dense", numbers.significant(found.perplexity_dense, 4))
    if planned:
        low, high = found.kl_interval
        spread = f"{numbers.significant(low)} to {numbers.significant(high)}"
        made.add_row("perplexity, planned", numbers.significant(found.perplexity_planned, 4))
        if not math.isnan(found.kl):
            made.add_row("KL from dense, nats/token", f"{numbers.significant(found.kl)} ({spread})")
        made.add_row("same likeliest token", numbers.share(found.top1_agreement))
    return made
