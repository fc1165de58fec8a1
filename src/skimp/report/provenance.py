"""How the numbers were measured: conditions, versions, commands, and what to keep in mind."""

import re
from collections.abc import Iterable, Mapping, Sequence

from skimp.report import numbers
from skimp.report.documents import dropped_in
from skimp.report.facts import Fact, Provenance, Quality, Selection, Speed
from skimp.report.reader import Reader, clean

_TOP_LEVEL = ("skimp", "dtype", "device", "threads", "seed")
_UNITS = {
    "memory": numbers.size,
    "bandwidth": lambda value: f"{numbers.size(value)}/s",
    "matmul": numbers.flops,
    "launch": numbers.seconds,
    "parameters": numbers.count,
}
_LABELS = {
    "bandwidth": "bandwidth, measured",
    "matmul": "matmul rate, measured",
    "launch": "launch overhead, measured",
    "rounds": "rounds timed",
    "limit": "items a task, at most",
}
_ROLE = {"plan": "search", "eval": "evaluation", "bench": "timing"}


def model_name(document: Reader) -> str | None:
    """The model a document is about: its source, or its type and number of layers."""
    model = document.child("model")
    if not isinstance(model.value, Mapping):
        return model.as_text() or None
    named = model.text("source") or model.text("name")
    if named:
        return named
    kind, layers = model.text("type"), model.text("layers")
    return f"{kind or 'model'} of {layers} layers" if layers else kind


def _measure(name: str, node: Reader) -> str | None:
    """One condition as text, in the unit that its key names."""
    value = node.value
    if isinstance(value, int | float) and not isinstance(value, bool):
        number = node.as_number()
        if name in _UNITS:
            return _UNITS[name](number)
        if "bytes_per_s" in name:
            return f"{numbers.size(number)}/s"
        if name.endswith("bytes"):
            return numbers.size(number)
        if name.endswith(("_s", "seconds")):
            return numbers.seconds(number)
    return node.as_text()


def _conditions(documents: Mapping[str, Reader]) -> dict[str, dict[str, str]]:
    """{condition: {role: text}} in the order in which conditions are first met."""
    table: dict[str, dict[str, str]] = {}
    for role, document in documents.items():
        named = [(name, document.child(name)) for name in _TOP_LEVEL]
        model = document.child("model")
        if isinstance(model.value, Mapping):
            named += [(name, model.child(name)) for name in ("dtype", "parameters")]
        named += list(document.child("machine").items())
        measured = document.child("measured")
        named += [(name, measured.child(name)) for name in ("bandwidth", "matmul", "launch")]
        named += [(name, document.child(name)) for name in ("rounds", "limit")]
        for name, node in named:
            if text := _measure(name, node):
                table.setdefault(name, {})[role] = text
    return table


def _joined(values: Mapping[str, str]) -> str:
    """One text if all documents agree; otherwise each value with the step that it belongs to."""
    if len(set(values.values())) == 1:
        return next(iter(values.values()))
    return "; ".join(f"{text} ({_ROLE[role]})" for role, text in values.items())


def _label(name: str) -> str:
    """A key in words, without the unit that its value now carries."""
    if name in _LABELS:
        return _LABELS[name]
    for unit in ("_bytes_per_second", "_bytes_per_s", "_bytes", "_seconds", "_s"):
        name = name.removesuffix(unit)
    return name.replace("_", " ")


def _calibration_facts(selection: Selection) -> list[Fact]:
    facts: list[Fact] = []
    calibration = selection.calibration
    if calibration:
        parts = [
            f"{numbers.count(calibration.documents)} documents" if calibration.documents else None,
            f"{numbers.count(calibration.tokens)} tokens" if calibration.tokens else None,
            f"from {calibration.source}" if calibration.source else None,
            f"seed {calibration.seed}" if calibration.seed else None,
        ]
        if text := ", ".join(part for part in parts if part):
            facts.append(Fact("calibration", text))
    if selection.rule:
        facts.append(Fact("chosen by rule", selection.rule))
    if selection.calibration_loss is not None:
        facts.append(Fact("calibration loss", numbers.significant(selection.calibration_loss, 4)))
    if selection.seconds is not None:
        facts.append(Fact("time to find the plan", numbers.seconds(selection.seconds)))
    return facts


def _disagreements(documents: Mapping[str, Reader]) -> list[str]:
    """Sentences on documents that are not about the same model or the same plan."""
    found: list[str] = []
    names = {role: name for role, item in documents.items() if (name := model_name(item))}
    if len(set(names.values())) > 1:
        listed = ", ".join(f"{name} ({_ROLE[role]})" for role, name in names.items())
        found.append(f"The documents are not about the same model: {listed}.")
    plans = {role: plan for role, item in documents.items() if (plan := dropped_in(item))}
    if len(set(plans.values())) > 1:
        roles = ", ".join(_ROLE[role] for role in plans)
        found.append(f"The documents are not about the same plan: {roles} name different parts.")
    return found


def _choice_caveat(selection: Selection, quality: Quality | None) -> str | None:
    """What the plan was chosen on, beside what it is judged on."""
    source = selection.calibration.source if selection.calibration else None
    held_out = quality.held_out if quality else None
    if quality is None:
        return None
    if selection.read_no_text:
        return "skimp read no text to choose this plan."
    if not source:
        return "The data that the plan was chosen on is not named, so overlap cannot be ruled out."
    if not held_out:
        return (
            f"The plan was chosen on {source}; the evaluation does not name its data beyond the "
            "tasks listed, so overlap cannot be ruled out from this file alone."
        )
    if held_out == source:
        return (
            f"The plan was chosen and judged on data of the same name ({source}); quality counts "
            "as held out only if the two parts do not overlap."
        )
    return (
        f"The plan was chosen on {source}; it is judged on {held_out}, which the evaluation names "
        "as its held-out data."
    )


def caveats(
    selection: Selection, qualities: Sequence[Quality], speed: Speed | None
) -> Iterable[str]:
    """What a careful reader should know before quoting a number of this report."""
    quality = qualities[0] if qualities else None
    if text := _choice_caveat(selection, quality):
        yield text
    if quality and any(not task.difference.has_interval for task in quality.tasks):
        yield "Differences without an interval are single measurements and prove nothing alone."
    if quality and quality.tasks:
        yield (
            "Intervals are 95% for one task at a time; among many tasks, a few will miss the true "
            "difference by chance."
        )
    for other in qualities[1:]:
        pairs = ((quality.task(task.name), task) for task in other.tasks) if quality else ()
        if any(own and own.items != task.items for own, task in pairs):
            yield f"{other.name} was not judged on the same number of items as the plan."
    if speed and not speed.decode.has_interval:
        yield "The decode speedup has no interval, so its spread is unknown."
    decoders = (speed.decoders.dense, speed.decoders.planned) if speed else ()
    paths = list(dict.fromkeys(side.path for side in decoders if side.path))
    if len(paths) > 1:
        yield (
            f"The two sides were decoded in different ways ({' and '.join(paths)}), so "
            "the decode speedup is not due to the plan alone."
        )
    shares = (speed.dense.roofline_share, speed.planned.roofline_share) if speed else ()
    if any(share is not None and share > 1.05 for share in shares):
        yield (
            "A share of roofline above 100% means that the bandwidth of this machine was measured "
            "while it was busy; do not rely on that share."
        )
    if speed:
        yield (
            "Speed was measured on one machine and one workload; the byte bound is the speedup "
            "if time were proportional to the bytes read."
        )


def read_provenance(
    documents: Mapping[str, Reader],
    *,
    commands: Sequence[str],
    versions: Mapping[str, object],
    date: str | None,
    plan_yaml: str | None,
) -> Provenance:
    """Conditions of every document, merged where they agree; `caveats` are added by the caller."""
    facts = [Fact(_label(name), _joined(by)) for name, by in _conditions(documents).items()]
    merged: dict[str, dict[str, str]] = {}
    for role, document in documents.items():
        for name, node in document.child("versions").items():
            if text := node.as_text():
                merged.setdefault(name, {})[role] = text
    known = {name: _joined(by) for name, by in merged.items()}
    known.update({clean(str(name)): clean(str(text)) for name, text in versions.items()})
    dates = {role: text for role, item in documents.items() if (text := item.text("date"))}
    if dates:
        facts.append(Fact("measured", _joined(dates)))
    found = [command for document in documents.values() for command in _commands(document)]
    found += [clean(command) for command in commands]
    return Provenance(
        facts=tuple(facts),
        versions=tuple(Fact(name, text) for name, text in known.items()),
        commands=tuple(dict.fromkeys(found)),
        plan_yaml=clean(plan_yaml) if plan_yaml else _plan_yaml(documents),
        date=clean(date) if date else max(map(_day, dates.values()), default=None),
        caveats=tuple(_disagreements(documents)),
    )


def with_calibration(provenance: Provenance, selection: Selection) -> tuple[Fact, ...]:
    """The conditions with those of the search after them."""
    return (*provenance.facts, *_calibration_facts(selection))


def _day(date: str) -> str:
    """The day of an ISO timestamp; anything else as it is."""
    return date[:10] if re.match(r"\d{4}-\d\d-\d\dT", date) else date


def _commands(document: Reader) -> Iterable[str]:
    for name in ("command", "commands"):
        node = document.child(name)
        if isinstance(node.value, str):
            yield clean(node.value)
        elif node.value is not None:
            yield from (text for item in node.elements() if (text := item.as_text()))


def _plan_yaml(documents: Mapping[str, Reader]) -> str | None:
    """The plan as YAML: as a document quotes it, or written from its mapping."""
    import yaml

    for document in documents.values():
        plan = document.child("plan").value
        if isinstance(plan, str) and "\n" in plan:
            return clean(plan)
        if isinstance(plan, Mapping) and plan:
            try:
                # Lists of numbers on one line, as plans are written by hand.
                text = yaml.safe_dump(
                    plan, sort_keys=False, allow_unicode=True, default_flow_style=None, width=88
                )
            except yaml.YAMLError:
                document.child("plan").note("plain data")
                continue
            return clean(text)
    return None
