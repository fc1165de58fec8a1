"""Whether a plan keeps a limit on quality, on text that nothing was chosen on, at 95% confidence.

Plans are tested one after the other, from the mildest on, and the first that fails ends it. So as
many may be looked at as one likes: that any plan is wrongly passed is as unlikely as that the first
wrong one is (fixed sequence testing; Angelopoulos et al., "Learn then test", 2021, section 3).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from skimp.finder.budget import Limit
from skimp.measure.statistics import clustered_mean

LEVEL = 0.95
# Columns of the sums that a judge gives (skimp.measure.fidelity).
_TOKENS, _DENSE, _PLANNED, _KL = range(4)


@dataclass(frozen=True)
class Verdict:
    """A plan beside a limit: what was seen, and the bound that holds at 95% (one-sided).

    `lacking`: about how many more tokens could show that it holds, were what was seen the truth;
    None if none could.
    """

    holds: bool
    seen: float
    bound: float
    tokens: int
    documents: int
    lacking: int | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def judge(limit: Limit, sums: Sequence[Sequence[float]]) -> Verdict:
    """Judge a plan by its sums, a document a row."""
    table = np.array(sums, dtype=float)
    counts = table[:, _TOKENS]
    totals = table[:, _KL] if limit.name == "kl" else table[:, _PLANNED] - table[:, _DENSE]
    found = clustered_mean(totals, counts, 2 * LEVEL - 1)
    holds = found.high <= limit.value
    room, half = limit.value - found.estimate, found.high - found.estimate
    lacking = None
    if not holds and room > 0 and np.isfinite(half):
        lacking = int(np.ceil(counts.sum() * ((half / room) ** 2 - 1)))
    return Verdict(holds, found.estimate, found.high, int(counts.sum()), len(table), lacking)


@dataclass(frozen=True)
class Passed:
    """What testing in order came to: the last plan that passed (None: none did); the first that
    failed, why, and which limit; how many were looked at."""

    last: int | None
    failed: int | None
    why: Verdict | None
    limit: Limit | None
    looked_at: int


Judged = tuple[Limit, Verdict]


def pass_in_order(
    limits: Sequence[Limit],
    every: Sequence[Sequence[Sequence[float]]],
    others: Sequence[Sequence[Judged]] = (),
) -> Passed:
    """Test plans, the mildest first, by their sums, until one fails one of the limits.

    `others`: of each plan, what else must hold and was judged elsewhere.
    """
    for number, sums in enumerate(every):
        found: list[Judged] = [(limit, judge(limit, sums)) for limit in limits]
        for limit, verdict in [*found, *(others[number] if others else ())]:
            if not verdict.holds:
                return Passed(number - 1 if number else None, number, verdict, limit, number + 1)
    return Passed(len(every) - 1 if every else None, None, None, None, len(every))
