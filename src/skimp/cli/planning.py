"""From what was asked for to a fitted plan, its document and its tables."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from skimp.cli import output
from skimp.cli.common import (
    Run,
    dropped_of,
    layer_words,
    neuron_words,
    require_tokenizer,
    with_experts,
)
from skimp.cli.figures import count, seconds, significant, times

if TYPE_CHECKING:
    from skimp.calibration.text import Calibration
    from skimp.models.anatomy import Anatomy
    from skimp.models.load import Loaded
    from skimp.plan import Plan
    from skimp.workload import Workload

DEFAULT_FILL = "linear:16"
PRIOR = 0.5  # what tuned experts give the prior (docs/log.md)


@dataclass(frozen=True)
class Wanted:
    """What the command line asks a rule for."""

    rule: str
    drop_attention: int
    drop_ffn: int
    drop_layers: int
    keep_last: int | None = None
    harm: str = "kl"
    fill: str = DEFAULT_FILL
    repair: str | None = None
    experts: float | None = None
    scope: str = "prompt"
    tune: bool = False
    refresh: int = 0


def choose(
    run: Run, loaded: Loaded, wanted: Wanted, calibration: Path | Calibration | None
) -> tuple[Plan, dict[str, Any]]:
    """Let a rule choose; returns the fitted plan and the document's keys about the choice."""
    from skimp.finder.choose import choose as find
    from skimp.methods.fit import fit
    from skimp.models.anatomy import Anatomy

    start = time.perf_counter()
    if loaded.streamed and calibration is None:
        run.progress.note(
            "Text that the model writes itself takes all of its weights for every token: give text "
            "of your own with --calibration if that is too slow."
        )
    always = wanted.tune or wanted.scope == "calibrated"
    text = _calibrate(run, loaded, calibration, always=always)
    choice = find(
        loaded.model,
        loaded.tokenizer,
        rule=wanted.rule,
        drop_attention=wanted.drop_attention,
        drop_ffn=wanted.drop_ffn,
        drop_layers=wanted.drop_layers,
        fill=wanted.fill,
        repair=wanted.repair,
        keep_last=wanted.keep_last,
        harm=cast("Any", wanted.harm),
        calibration=text,
        seed=run.seed,
        progress=run.progress,
    )
    anatomy = Anatomy.of(loaded.model)
    plan = fit(
        loaded.model,
        loaded.tokenizer,
        thinned(choice.plan, wanted, anatomy),
        calibration=text,
        seed=run.seed,
        progress=run.progress,
    )
    plan, shares = _tuned(run, loaded, plan, text) if wanted.tune else (plan, None)
    path = [{"kind": kind, "layer": layer, "harm": harm} for kind, layer, harm in choice.path]
    return plan, {
        "rule": wanted.rule,
        "harm": wanted.harm,
        "calibration_loss": choice.calibration_loss,
        "seconds": time.perf_counter() - start,
        "path": path,
        "importance": {wanted.rule: choice.importance} if choice.importance else {},
        "calibration": choice.calibration.to_dict() if choice.calibration is not None else None,
        "spread": shares,
    }


def thinned(plan: Plan, wanted: Wanted, anatomy: Anatomy) -> Plan:
    """The plan with the experts that the command line asks for, if any, not yet fitted."""
    more: dict[str, Any] = {"prior": PRIOR, "fill": "mean"} if wanted.tune else {}
    if wanted.refresh:
        more["refresh"] = wanted.refresh
    return with_experts(plan, wanted.experts, anatomy, wanted.scope, wanted.repair, more=more)


def _tuned(
    run: Run, loaded: Loaded, plan: Plan, text: Calibration | None
) -> tuple[Plan, dict[str, Any]]:
    """The plan with its experts' share spread over the layers, and what that rests on."""
    from skimp.finder.spread import LEVELS, TOKENS, spread

    assert text is not None
    documents = text.sample(TOKENS, run.seed)
    found = spread(loaded.model, plan, documents, progress=run.progress)
    return found.onto(plan), {
        "harms": {
            str(share): each for share, each in zip(LEVELS, found.harms.T.tolist(), strict=True)
        },
        "joint": [{"way": way, "kl": kl} for way, kl in found.tried.items()],
    }


def fit_plan(
    run: Run, loaded: Loaded, plan: Plan, calibration: Path | None, *, tune: bool = False
) -> tuple[Plan, dict[str, Any]]:
    """Fit a plan written by hand; returns it and the document's keys."""
    from skimp.methods.registry import check, methods
    from skimp.models.anatomy import Anatomy

    start = time.perf_counter()
    plan = replace(plan, values={})  # old values may be those of other layers
    found = check(plan, Anatomy.of(loaded.model))
    text, shares = None, None
    if any(methods()[name].needs_values(section) for name, section in found.items()):
        from skimp.methods.fit import fit

        tokenizer = require_tokenizer(loaded, "fitting a plan")
        text = _calibrate(run, loaded, calibration, always=True)
        plan = fit(
            loaded.model,
            tokenizer,
            plan,
            calibration=text,
            seed=run.seed,
            progress=run.progress,
        )
    if tune:
        plan, shares = _tuned(run, loaded, plan, text)
    return plan, {
        "rule": None,
        "harm": None,
        "calibration_loss": None,
        "seconds": time.perf_counter() - start,
        "path": [],
        "importance": {},
        "calibration": text.to_dict() if text is not None else None,
        "spread": shares,
    }


def describe(
    run: Run, loaded: Loaded, plan: Plan, facts: dict[str, Any], work: Workload
) -> dict[str, Any]:
    """The verb's document."""
    from skimp.measure.cost import byte_bound
    from skimp.methods.registry import reduce, sections
    from skimp.models.anatomy import Anatomy

    anatomy = Anatomy.of(loaded.model)
    found = sections(plan)
    section, experts = found.get("drop"), found.get("experts")
    return {
        **run.loaded_header(loaded, anatomy, plan),
        "dropped": dropped_of(plan),
        "fill": str(section.fill) if section is not None else None,
        "repair": section.to_dict().get("repair") if section is not None else None,
        "experts": experts.to_dict() if experts is not None else None,
        **facts,
        "workload": str(work),
        "byte_bound": {"decode": byte_bound(anatomy, reduce(plan, anatomy), work)},
    }


def show(run: Run, document: Mapping[str, Any], target: Path) -> None:
    """Print what was chosen and how."""
    console = run.console
    if document["path"]:
        made = output.table(f"What {document['rule']} left out", ">step", "kind", ">layer", ">harm")
        for number, step in enumerate(document["path"], 1):
            made.add_row(
                str(number), str(step["kind"]), str(step["layer"]), significant(step["harm"], 4)
            )
        console.print(made)
    made = output.table("Plan", "", "")
    for kind, layers in document["dropped"].items():
        made.add_row(f"{kind} left out", f"{len(layers)}: layers {layer_words(layers)}")
    if document["fill"] is not None:
        made.add_row("fill", str(document["fill"]))
    if document["experts"] is not None:
        made.add_row("FF neurons kept", neuron_words(**document["experts"]))
    if document["repair"] not in (None, "none"):
        made.add_row("repair", str(document["repair"]))
    if document["calibration_loss"] is not None:
        made.add_row("calibration loss", significant(document["calibration_loss"], 4))
    text = document["calibration"]
    if text is not None:
        made.add_row("calibration", f"{text.get('source')}, {count(text.get('tokens'))} tokens")
    made.add_row("found in", seconds(document["seconds"]))
    bound = times(document["byte_bound"]["decode"])
    made.add_row("decode byte bound", f"{bound} at workload {document['workload']}")
    console.print(made)
    console.print(f"The plan is in {target}.")


def by_hand(loaded: Loaded, layers: Mapping[str, list[int]], wanted: Wanted) -> Plan:
    """A plan, not yet fitted, that leaves out the sublayers listed and whole `layers`."""
    from skimp.models.anatomy import Anatomy
    from skimp.plan import Plan

    section: dict[str, Any] = {name: indices for name, indices in layers.items() if indices}
    repair = wanted.repair or ("full" if wanted.fill.startswith("linear") else "none")
    empty = Plan.empty(Anatomy.of(loaded.model))
    if not section:
        return empty
    section |= {"fill": wanted.fill, "repair": int(repair) if repair.isdecimal() else repair}
    return empty.with_section("drop", section)


def _calibrate(
    run: Run, loaded: Loaded, text: Path | Calibration | None, *, always: bool = False
) -> Calibration | None:
    """Calibration text from a file; without one None, or self-written text if `always`."""
    from skimp.calibration.text import calibrate

    if not isinstance(text, Path | None) or (text is None and not always):
        return text
    tokenizer = require_tokenizer(loaded, "calibration")
    return calibrate(loaded.model, tokenizer, text=text, seed=run.seed, progress=run.progress)
