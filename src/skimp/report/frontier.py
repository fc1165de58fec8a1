"""Reading the `search` of a `plan` document: every plan measured, and the one chosen."""

import math
import shlex
from typing import Any

from skimp.report.facts import Estimate, Predicted, Speed
from skimp.report.frontier_facts import (
    SOURCES,
    Candidate,
    LeftOut,
    Promise,
    Search,
    Source,
    Withheld,
)
from skimp.report.leaving import share
from skimp.report.reader import MAX_LAYERS, Reader, clean

_PLANS = 500
PICK = "--pick"


def read_search(document: Reader, layers: int | None) -> Search | None:
    """What can be shown of it; None if that is no plan. `layers`: how many the model has."""
    node = document.child("search")
    if not node:
        if node.value is not None:
            node.is_mapping()
        return None
    plans: dict[int, Candidate] = {}
    for item in node.child("plans").elements():
        found = _read_plan(item, layers) if len(plans) < _PLANS and item.is_mapping() else None
        if found is not None and found.number in plans:
            item.child("number").note("a number of its own")
        elif found is not None:
            plans[found.number] = found
    if not plans:
        return None
    return Search(
        plans=tuple(plans.values()),
        workload=node.text("workload"),
        budget=node.text("budget"),
        costs=node.text("costs"),
        seconds=node.number("seconds"),
        complete=_yes(node.child("complete"), absent=True),
        chosen=_read_chosen(node.child("chosen"), plans),
        promise=_read_promise(node.child("promise")),
        withheld=_read_withheld(node.child("withheld")),
        command=pick_command(document),
    )


def chosen_speed(search: Search | None) -> Speed | None:
    """What the search timed of the plan it chose; None if it timed nothing."""
    choice = search.choice if search else None
    if search is None or choice is None or choice.source == "dense":
        return None
    if choice.speedup.value is None:
        return None
    return Speed(
        workload=search.workload,
        decode=choice.speedup,
        decode_bound=choice.bound,
        predicted=Predicted(decode=choice.foretold),
    )


def pick_command(document: Reader) -> str | None:
    """The command that was run, ending in `--pick N`; None if it is not known."""
    command = document.child("command").value
    if not isinstance(command, str):
        return None
    try:
        words = shlex.split(clean(command))
    except ValueError:
        return None
    if words[:2] != ["skimp", "plan"]:
        return None
    kept: list[str] = []
    for before, word in zip(["", *words], words, strict=False):
        if before != PICK and word != PICK and not word.startswith(f"{PICK}="):
            kept.append(word)
    return f"{shlex.join(kept)} {PICK} N"


def _number(node: Reader) -> int | None:
    value = node.value
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**6:
        return value
    node.note("the number of a plan")
    return None


def _yes(node: Reader, *, absent: bool = False) -> bool:
    if node.value is None:
        return absent
    if not isinstance(node.value, bool):
        node.note("true or false")
        return absent
    return node.value


def _finite(node: Reader) -> float | None:
    """A number that can be drawn."""
    value = node.as_number()
    if value is None or math.isfinite(value):
        return value
    node.note("a finite number")
    return None


def _positive(node: Reader) -> float | None:
    value = _finite(node)
    if value is None or value > 0:
        return value
    node.note("a number above 0")
    return None


def _estimate(node: Reader, name: str, interval: str, read: Any = _finite) -> Estimate:
    value = read(node.child(name))
    return Estimate() if value is None else Estimate(value, *node.interval(interval))


def _read_plan(node: Reader, layers: int | None) -> Candidate | None:
    number = _number(node.child("number"))
    source: Source | None = None
    for name in SOURCES:
        source = name if node.child("source").value == name else source
    if source is None:
        node.child("source").note(f"one of {', '.join(SOURCES)}")
    if number is None or source is None:
        return None
    return Candidate(
        number=number,
        source=source,
        name=node.text("name") or source,
        frontier=_yes(node.child("frontier")),
        left_out=_read_left_out(node, layers or MAX_LAYERS),
        bound=_positive(node.child("byte_bound")),
        foretold=_positive(node.child("foretold")),
        speedup=_estimate(node, "speedup", "speedup_interval", _positive),
        kl=_estimate(node, "kl", "kl_interval"),
        loss=_estimate(node, "loss_difference", "loss_interval"),
        agreement=share(node.child("agreement")),
    )


def _read_left_out(plan: Reader, layers: int) -> LeftOut:
    node, exit_section = plan.child("left_out"), plan.child("sections").child("exit")
    keep = [share(item) for item in node.child("keep").elements()]
    if len(keep) > layers or None in keep:
        node.child("keep").note("a share of neurons for each layer")
        keep = []
    exits = exit_section.layers("probe") if exit_section else ()
    return LeftOut(
        attention=_inside(node, "attention", layers),
        ffn=_inside(node, "ffn", layers),
        keep=tuple(one for one in keep if one is not None),
        exits=tuple(layer for layer in exits if layer < layers),
    )


def _inside(node: Reader, name: str, layers: int) -> tuple[int, ...]:
    found = node.layers(name)
    if any(layer >= layers for layer in found):
        node.child(name).note(f"a list of layers below {layers}")
    return tuple(layer for layer in found if layer < layers)


def _read_chosen(node: Reader, plans: dict[int, Candidate]) -> int | None:
    if node.value is None:
        return None
    number = _number(node)
    if number is not None and number not in plans:
        node.note("the number of a plan that was measured")
        return None
    return number


def _read_promise(node: Reader) -> Promise | None:
    if node.value is None or not node.is_mapping():
        return None
    return Promise(
        words=node.text("words"),
        holds=_yes(node.child("holds")),
        budget=node.text("budget"),
        bound=_finite(node.child("bound")),
        level=share(node.child("level")),
        tokens=node.number("tokens"),
        documents=node.number("documents"),
        looked_at=node.number("looked_at"),
    )


def _read_withheld(node: Reader) -> tuple[Withheld, ...]:
    found: dict[int, Withheld] = {}
    for item in node.elements():
        if item.is_mapping() and (number := _number(item.child("number"))) is not None:
            found[number] = Withheld(number, item.text("reason") or "no reason is recorded.")
    return tuple(found[number] for number in sorted(found))
