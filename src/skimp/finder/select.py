"""Which plan of a measured frontier a budget asks for, and what may be promised of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from skimp.finder.accuracy import Accuracies
from skimp.finder.budget import Budget, Limit
from skimp.finder.clock import precise
from skimp.finder.entry import speed_of
from skimp.finder.proof import LEVEL, Judged, Passed, Verdict, judge, pass_in_order
from skimp.finder.workers import Sums

Entry = Mapping[str, Any]
Again = Callable[[int], tuple[float, tuple[float, float]]]
_FIELDS = {
    "bytes": "byte_bound",
    "memory": "memory",
    "kv": "kv",
    "loss": "loss_difference",
    "kl": "kl",
}
_KNOWN = 0.05  # a speed that is asked for must be known to within so much of itself
_SLOWER = 0.95  # of what was promised: a plan that is slower when timed again is not handed out


@dataclass(frozen=True)
class Selection:
    """The plan chosen (None: none keeps the budget), the promise made of it, the plans that could
    have been chosen but are not handed out, and the plan nearest to the budget."""

    number: int | None
    promise: dict[str, Any] | None
    withheld: tuple[dict[str, Any], ...] = ()
    nearest: int | None = None
    words: str = ""


def select(
    budget: Budget,
    entries: Sequence[Entry],
    sums: Mapping[int, Sums],
    again: Again,
    accuracies: Accuracies | None = None,
) -> Selection:
    """The fastest plan that keeps a budget on quality; without one the best that keeps the others.

    Args:
        again: times a plan once more: (speedup, its 95% interval).
        accuracies: of the plans near a budget on accuracy; no other can be handed out then.
    """
    found = [entry for entry in entries if entry["source"] == "finder" and entry["number"] in sums]
    if not budget.limits:
        return Selection(None, None, words="No budget was given: pick a plan by its number.")
    if not found:
        return Selection(None, None, words="No plan was measured; give the search more time.")
    if accuracies is not None:
        return _fastest(budget, found, sums, again, accuracies)
    if not budget.quality:
        return _best(budget, found, again)
    return _fastest(budget, found, sums, again)


def _best(budget: Budget, found: Sequence[Entry], again: Again) -> Selection:
    """The plan of least loss among those that keep the limits on cost."""
    ranked = sorted(found, key=lambda entry: (entry["loss_difference"], entry["number"]))
    entry, withheld = _first(budget, ranked, again)
    if entry is None:
        return _none(budget, found, withheld)
    return Selection(entry["number"], _promise(budget, entry), withheld, words=_speeds(entry))


def _fastest(
    budget: Budget,
    found: Sequence[Entry],
    sums: Mapping[int, Sums],
    again: Again,
    accuracies: Accuracies | None = None,
) -> Selection:
    """The fastest plan of those that pass, tested from the mildest on."""
    # The order is that of the choosing text: the judging text has no say in what is tested when.
    order = sorted(found, key=lambda entry: (entry["joint"], entry["number"]))
    others: dict[int, list[Judged]] = {}
    if accuracies is not None:
        order = [entry for entry in order if entry["number"] in accuracies.order]
        limit, scored = accuracies.limit, accuracies.scored
        others = {number: [(limit, scored[number].proving)] for number in accuracies.order}
        found = [entry for entry in found if entry["number"] in scored]
        if not found:
            return Selection(None, None, words="No plan was scored; give the search more time.")
    passed = pass_in_order(
        budget.quality,
        [sums[entry["number"]] for entry in order],
        [others.get(entry["number"], []) for entry in order],
    )
    good = order[: passed.last + 1] if passed.last is not None else []
    ranked = sorted(good, key=lambda entry: (-speed_of(entry), entry["number"]))
    entry, withheld = _first(budget, ranked, again)
    if entry is None:
        return _none(budget, found, withheld, passed, order)
    verdicts = [(limit, judge(limit, sums[entry["number"]])) for limit in budget.quality]
    verdicts += others.get(entry["number"], [])
    promise = _promise(budget, entry, verdicts, len(good), passed.looked_at)
    return Selection(entry["number"], promise, withheld, words=promise["words"])


def _first(
    budget: Budget, ranked: Sequence[Entry], again: Again
) -> tuple[Entry | None, tuple[dict[str, Any], ...]]:
    """The first that keeps the limits on cost and the clock does not refute; those it does."""
    withheld: list[dict[str, Any]] = []
    for entry in ranked:
        if not affordable(budget, entry):
            continue
        known, reason = _timed_again(budget, entry, again)
        if reason is None:
            return known, tuple(withheld)
        withheld.append({"number": entry["number"], "reason": reason})
    return None, tuple(withheld)


def affordable(budget: Budget, entry: Entry) -> bool:
    """Whether an entry keeps the limits on speed and memory."""
    return all(limit.holds(_value(limit, entry)) for limit in budget.cost)


def _value(limit: Limit, entry: Entry) -> float:
    if limit.name == "accuracy":
        return entry["accuracy"]["proving"]["difference"]
    if limit.name == "speedup":
        return speed_of(entry)
    return entry[_FIELDS[limit.name]]


def _timed_again(budget: Budget, entry: Entry, again: Again) -> tuple[Entry, str | None]:
    """The entry with the speed that may be promised, and why it is not handed out though it keeps
    the budget; None if it may be.

    A plan that is chosen for its speed was lucky when it was timed; a second timing has no luck.
    """
    if entry["speedup"] is None:
        return entry, None
    before, bound = entry["speedup"], entry["byte_bound"]
    speed, (low, high) = again(entry["number"])
    known = {**entry, "speedup": speed, "speedup_interval": [low, high]}
    shown = f"It ran at {before:.3g}x, and at {speed:.3g}x ({low:.3g} to {high:.3g}) when timed "
    if high < before * _SLOWER:
        return known, f"{shown}again; by its bytes it could be {bound:.3g}x."
    if high <= 1:
        reason = f"It reads 1/{bound:.3g} of the bytes, but ran at {speed:.3g}x: it is not faster."
        return known, reason
    if not affordable(budget, known):
        return known, f"{shown}again: less than asked for."
    if budget.get("speedup") and not precise(speed, (low, high), _KNOWN):
        reason = f"{shown}again: not known to within {_KNOWN:.0%}. Is something else running here?"
        return known, reason
    return known, None


def _promise(
    budget: Budget,
    entry: Entry,
    verdicts: Sequence[Judged] = (),
    passed: int = 0,
    looked_at: int = 0,
) -> dict[str, Any]:
    promise = {
        "budget": str(budget),
        "holds": True,
        "bound": None,
        "level": LEVEL,
        "tokens": entry["tokens"],
        "documents": None,
        "looked_at": looked_at,
        "speedup": entry["speedup"],
        "speedup_interval": entry["speedup_interval"],
        "words": _speeds(entry),
    }
    if not verdicts:
        return promise
    first = verdicts[0][1]
    parts = [_shown(limit, verdict) for limit, verdict in verdicts]
    grounds = [
        f"{verdict.tokens} items of {', '.join(limit.tasks)}"
        if limit.tasks
        else f"{verdict.tokens} tokens of {verdict.documents} documents"
        for limit, verdict in verdicts
    ]
    words = (
        f"At {LEVEL:.0%} confidence {' and '.join(parts)}, on "
        f"{' and '.join(dict.fromkeys(grounds))} that nothing was chosen on; {passed} plans passed "
        f"in order, mildest first, and this is the fastest of them. {_speeds(entry)}"
    )
    return promise | {
        "bound": first.bound,
        "documents": first.documents,
        "tokens": first.tokens,
        "words": words,
    }


def _shown(limit: Limit, verdict: Verdict) -> str:
    bound, seen = limit.shown(verdict.bound), limit.shown(verdict.seen)
    if limit.tasks:
        return f"mean accuracy changes by at least {bound} (seen {seen})"
    return f"{limit.name} is at most {bound} (seen {seen})"


def _speeds(entry: Entry) -> str:
    if entry["speedup"] is None:
        return f"Its byte bound is {entry['byte_bound']:.3g}x; it was not timed."
    low, high = entry["speedup_interval"]
    return f"It decodes at {entry['speedup']:.3g}x ({low:.3g} to {high:.3g}) of the dense model."


def _none(
    budget: Budget,
    found: Sequence[Entry],
    withheld: tuple[dict[str, Any], ...],
    passed: Passed | None = None,
    order: Sequence[Entry] = (),
) -> Selection:
    """No plan: the nearest one, and how far it is."""
    gaps = [(sum(_gap(limit, entry) for limit in budget.limits), entry) for entry in found]
    _, nearest = min(gaps, key=lambda pair: (pair[0], pair[1]["number"]))
    parts = [
        f"{limit.text} (it has {limit.shown(_value(limit, nearest))})" for limit in budget.limits
    ]
    words = (
        f"No plan keeps {budget}; the nearest is number {nearest['number']}: {', '.join(parts)}."
    )
    if passed is not None and passed.why is not None and passed.limit is not None:
        why, limit = passed.why, passed.limit
        number = order[passed.failed or 0]["number"]
        where = "items held out" if limit.tasks else "held-out text"
        words += (
            f" Plan {number}, {limit.shown(why.seen)} on {where}, could not be shown to keep "
            f"{limit.text}: the bound at {LEVEL:.0%} confidence is {limit.shown(why.bound)}."
        )
        if why.lacking:
            what = "items, half of them to choose by" if limit.tasks else "held-out tokens"
            more = _rounded(2 * why.lacking if limit.tasks else why.lacking)
            words += f" To show it needs about {more:,} more {what}."
    return Selection(None, None, withheld, nearest["number"], words)


def _gap(limit: Limit, entry: Entry) -> float:
    """How far an entry is from a limit, as a share of it; 0 if it keeps it."""
    value = _value(limit, entry)
    return 0.0 if limit.holds(value) else abs(value - limit.value) / abs(limit.value)


def _rounded(tokens: int) -> int:
    size = 10 ** max(0, len(str(tokens)) - 2)
    return -(-tokens // size) * size
