"""The best choices if harms and savings added up: a multiple-choice knapsack, solved exactly.

HiGHS through scipy is the solver: it is kept alive, and seconds are plenty for hundreds of layers.
"""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np

from skimp.errors import NEEDS_SCIPY, SkimpError
from skimp.finder.choices import Choice, Place

Values = Mapping[Place, Mapping[Choice | None, float]]
_GAP = 1e-4  # of the optimum, that is not looked for further


def pick(harms: Values, savings: Values, wanted: float) -> dict[Place, Choice] | None:
    """The choices of least harm that save `wanted` in all; None if nothing saves so much.

    Args:
        harms, savings: by place and choice, None being the sublayer as it is; what both do not
            name cannot be chosen.

    Raises:
        SkimpError: scipy is not installed.
    """
    try:
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_array
    except ImportError:
        raise SkimpError(NEEDS_SCIPY) from None
    options = [
        (place, choice)
        for place, each in harms.items()
        for choice in each
        if choice in savings[place]
    ]
    if not options:
        return None
    number = {place: row for row, place in enumerate(harms)}
    harm = np.array([harms[place][choice] for place, choice in options])
    saved = np.array([savings[place][choice] for place, choice in options])
    rows = [number[place] for place, _ in options]
    ones = csr_array((np.ones(len(options)), (rows, range(len(options)))))
    scale = float(np.abs(saved).max()) or 1.0
    rules = [
        LinearConstraint(ones, 1, 1),
        LinearConstraint(saved[None] / scale, wanted / scale, np.inf),
    ]
    with _silent():
        solved = milp(
            harm / (float(np.abs(harm).max()) or 1.0),
            integrality=np.ones(len(options)),
            bounds=Bounds(0, 1),
            constraints=rules,
            options={"mip_rel_gap": _GAP, "time_limit": 20},
        )
    if solved.x is None:
        return None
    found = (option for option, share in zip(options, solved.x, strict=True) if share > 0.5)
    return {place: choice for place, choice in found if choice is not None}


@contextmanager
def _silent() -> Iterator[None]:
    """Keep what HiGHS prints from C off standard output, which may be a document."""
    sys.stdout.flush()
    kept = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
