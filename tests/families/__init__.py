"""Tiny random models of many architecture families, the ground that the contract tests stand on.

A family joins by registration alone: decorate a function that returns its config (`with_rows.py`,
`found.py`; what must be refused: `refusing.py`). Where its
branches enter and leave is written down here a second time, on purpose, so that the tests do not
take skimp's own word for it. Weights are large enough that leaving any part out shows in the logits
and norms and biases are random too, so that a bug that forgets one shows as well.
"""

from tests.families import found, refusing, with_rows  # they register themselves
from tests.families.samples import (
    REFUSED,
    SAMPLES,
    VOCABULARY,
    WINDOW,
    Config,
    Sample,
    Site,
    build,
    discovered,
    listed,
    randomise,
)

__all__ = [
    "REFUSED",
    "SAMPLES",
    "VOCABULARY",
    "WINDOW",
    "Config",
    "Sample",
    "Site",
    "build",
    "discovered",
    "found",
    "listed",
    "randomise",
    "refusing",
    "with_rows",
]
