"""The table of a search to pick a plan from, and its sentences."""

from dataclasses import dataclass

from skimp.report import numbers, words
from skimp.report.facts import Estimate
from skimp.report.frontier_facts import Candidate, Search

_TONE = {"faster": "good", "not faster": "bad"}
_COSTS = {
    "measured": "the search went by times measured on this machine",
    "bytes": "the search went by bytes, without timing",
}


@dataclass(frozen=True)
class FrontierRow:
    """One plan; `remark` says what it is besides its numbers."""

    number: int
    name: str
    remark: str
    chosen: bool
    frontier: bool
    speedup: str
    interval: str
    tone: str
    foretold: str
    bound: str
    loss: str
    loss_interval: str
    kl: str
    kl_interval: str
    agreement: str
    attention: str
    ffn: str
    keep: str


@dataclass(frozen=True)
class PromiseWords:
    """What is promised, whether it holds, and what it rests on."""

    text: str
    state: str
    basis: str


def frontier_rows(search: Search | None) -> list[FrontierRow]:
    """One row a plan: the frontier from slow to fast, then the plans that others beat."""
    return [_row(plan, search) for plan in search.ordered] if search else []


def _row(plan: Candidate, search: Search) -> FrontierRow:
    dense, left = plan.source == "dense", plan.left_out
    state = "" if dense else words.state_of(plan.speedup)
    return FrontierRow(
        number=plan.number,
        name=plan.name,
        remark=_remark(plan, search),
        chosen=plan.number == search.chosen,
        frontier=plan.frontier,
        speedup=numbers.times(plan.speedup.value),
        interval=_beside(words.between(plan.speedup), state),
        tone=_TONE.get(state, ""),
        foretold=numbers.times(plan.foretold),
        bound=numbers.times(plan.bound),
        loss=numbers.plus(plan.loss.value),
        loss_interval=words.between(plan.loss, "plain"),
        kl=numbers.significant(plan.kl.value),
        kl_interval=_range(plan.kl),
        agreement=numbers.share(plan.agreement),
        attention=str(len(left.attention)),
        ffn=str(len(left.ffn)),
        keep=numbers.share(left.mean_keep),
    )


def _beside(spread: str, state: str) -> str:
    """The interval; a plan that is not shown to be faster is called so."""
    said = {
        "not faster": "not faster",
        "unproven": "no interval",
        "not measured": "not timed",
    }.get(state, "")
    return ", ".join(filter(None, [spread, said]))


def _range(estimate: Estimate) -> str:
    """An interval of what cannot be below nothing, so without signs."""
    if not estimate.has_interval:
        return ""
    return f"{numbers.significant(estimate.low)} to {numbers.significant(estimate.high)}"


def _remark(plan: Candidate, search: Search) -> str:
    held = any(item.number == plan.number for item in search.withheld)
    parts = [
        "chosen" if plan.number == search.chosen else "",
        "withheld" if held else "",
        "rule" if plan.source == "rule" else "",
        "with early exits" if plan.left_out.exits else "",
        "" if plan.frontier else "beaten by another",
    ]
    return ", ".join(filter(None, parts))


def summary(search: Search | None) -> str:
    """How many plans were measured, at what, and whether the search came to its end."""
    if search is None:
        return ""
    plans = [plan for plan in search.plans if plan.source != "dense"]
    best = sum(plan.frontier for plan in plans)
    at = f" at {search.workload}" if search.workload else ""
    of = f"{numbers.count(best)} of them {'is' if best == 1 else 'are'} on the frontier: "
    text = f"{_counted(len(plans), 'plan')} beside dense{at}; {of}"
    text += "none of the others is both as fast and as close to dense."
    timed = sum(plan.timed for plan in plans)
    if timed < len(plans):
        text += f" Of these plans {numbers.count(timed) if timed else 'none'} " + (
            "was timed." if timed in (0, 1) else "were timed."
        )
    return f"{text} {_effort(search)}".strip()


def _counted(number: int, noun: str) -> str:
    return f"{numbers.count(number)} {noun}{'' if number == 1 else 's'}"


def _effort(search: Search) -> str:
    took = f"took {numbers.seconds(search.seconds)}" if search.seconds is not None else ""
    if not search.complete:
        took = f"was cut off after {numbers.seconds(search.seconds)}" if took else "was cut off"
        took += ", so better plans may exist"
    costs = _COSTS.get(search.costs or "", "")
    if took:
        return f"The search {took}; {costs}." if costs else f"The search {took}."
    return f"{costs[0].upper()}{costs[1:]}." if costs else ""


def chosen_sentence(search: Search | None) -> str:
    """Which plan was chosen, and what it does; or that none was."""
    if search is None:
        return ""
    under = f" under the budget {search.budget}" if search.budget else ""
    plan = search.choice
    if plan is None:
        return f"No plan was chosen{under}."
    if plan.source == "dense":
        return f"The dense model was chosen{under}: no plan is worth taking."
    if plan.speedup.value is None:
        speed = "was not timed"
        if plan.bound is not None:
            speed += f"; bytes would allow at most {numbers.times(plan.bound)}"
    else:
        spread = words.between(plan.speedup)
        inside = f" (95% interval {spread})" if spread else ", without an interval"
        slow = words.state_of(plan.speedup) == "not faster"
        speed = f"{'is not faster: decode' if slow else 'decodes'} at "
        speed += f"{numbers.times(plan.speedup.value)}{inside} the dense speed"
    return f"Plan {plan.number} was chosen{under}. It {speed}."


def promise_words(search: Search | None) -> PromiseWords | None:
    """The promise as it was given, or made of its numbers; None where nothing is promised."""
    promise = search.promise if search else None
    if promise is None:
        return None
    text = promise.words
    if text is None:
        budget = promise.budget or "The budget"
        text = f"{budget} {'holds' if promise.holds else 'is not shown to hold'}."
    seen = [
        f"{numbers.count(promise.tokens)} tokens" if promise.tokens is not None else "",
        f"{numbers.count(promise.documents)} documents" if promise.documents is not None else "",
    ]
    pieces = [
        f"bound {numbers.setting(promise.bound)}" if promise.bound is not None else "",
        f"confidence {numbers.setting(100 * promise.level)}%" if promise.level is not None else "",
        " of ".join(filter(None, seen)),
    ]
    if promise.looked_at is not None:
        pieces.append(f"plans looked at: {numbers.count(promise.looked_at)}")
    basis = "; ".join(filter(None, pieces))
    basis = f"{basis[0].upper()}{basis[1:]}." if basis else ""
    return PromiseWords(text, "faster" if promise.holds else "not-faster", basis)
