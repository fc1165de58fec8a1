"""What speed to plan for, so that the clock shows the one that is wanted.

Prices are off by some percent, the same way for plans that lie close together. So once plans have
run, the next one is planned for the wanted speed times what the nearest of them fell short by.
"""

from collections.abc import Sequence

ROUNDS = 2  # of aiming again, at most: each fits and times one more plan
_SPARE = 1.02  # the clock's own error: a plan is meant to be so much faster than is wanted
_NEAR = 1.03  # no more than so much faster than is wanted: nothing to gain by aiming again


def first(wanted: float) -> float:
    """The speed to plan for, before anything has run."""
    return wanted * _SPARE


def again(wanted: float, timed: Sequence[tuple[float, float]]) -> float | None:
    """The speed to plan for, given the (foretold, measured) speeds of plans that have run.

    None if one of them is as fast as is wanted and hardly faster, or nothing has run.
    """
    if not timed or any(wanted <= ran <= wanted * _NEAR for _, ran in timed):
        return None
    foretold, ran = min(timed, key=lambda each: abs(each[1] - wanted))
    return wanted * _SPARE * foretold / ran
