"""Fit what a plan needs before it can be applied, on calibration text."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, cast

from torch import Tensor, nn

from skimp.calibration.replay import Replay, pack
from skimp.calibration.text import Calibration, calibrate
from skimp.methods.apply import Applied, apply
from skimp.methods.base import Fitted, FittedInOrder
from skimp.methods.in_order import fit_in_order, join
from skimp.methods.registry import check, methods
from skimp.models.anatomy import Anatomy
from skimp.plan import Plan
from skimp.progress import SILENT, Progress


def needs_fit(plan: Plan, anatomy: Anatomy) -> bool:
    """Whether the plan has a section that needs values and has none yet."""
    return bool(_wanting(plan, anatomy))


def fit(
    model: nn.Module,
    tokenizer: Any,
    plan: Plan,
    *,
    calibration: Calibration | None = None,
    seed: int = 0,
    progress: Progress = SILENT,
) -> Plan:
    """The plan with its values fitted on calibration text; by default the model writes that itself.

    Raises:
        PlanError: the plan does not fit the model.
        CalibrationError: text is needed and cannot be had.
    """
    if not needs_fit(plan, Anatomy.of(model)):
        return plan
    if calibration is None:
        calibration = calibrate(model, tokenizer, seed=seed, progress=progress)
    return fit_plan(model, plan, calibration, progress=progress)


def fit_plan(
    model: nn.Module, plan: Plan, calibration: Calibration, *, progress: Progress = SILENT
) -> Plan:
    """Fit every section that needs values and has none; the text used is noted as evidence."""
    anatomy = Anatomy.of(model)
    wanting = _wanting(plan, anatomy)
    if not wanting:
        return plan
    together = {name: section for name, section in wanting.items() if _in_order(name, section)}
    if together:
        plan = _fit_together(model, plan, together, calibration, progress)
    # What is fitted on the planned model comes after what makes it.
    for name, section in sorted(wanting.items(), key=lambda item: _on_planned(item[0])):
        if name in together:
            continue
        documents = _documents(calibration, methods()[name].tokens(section))
        with planned_but(model, plan, name) if _on_planned(name) else nullcontext():
            replay = Replay(model, pack(documents))
            method = cast("Fitted", methods()[name])
            plan = plan.with_values(method.fit(section, anatomy, replay, progress))
    return plan.with_evidence(calibration=calibration.to_dict())


def _fit_together(
    model: nn.Module,
    plan: Plan,
    sections: Mapping[str, Any],
    calibration: Calibration,
    progress: Progress,
) -> Plan:
    """Fit what several sections change in one walk, each fit with all before it in place."""
    anatomy = Anatomy.of(model)
    known = {name: cast("FittedInOrder", methods()[name]) for name in sections}
    wanted = [known[name].tokens(section) for name, section in sections.items()]
    counts = [tokens for tokens in wanted if tokens is not None]
    most = max(counts) if len(counts) == len(wanted) else None
    replay = Replay(model, pack(_documents(calibration, most)))
    tasks = {
        name: known[name].tasks(section, anatomy, replay, progress)
        for name, section in sections.items()
    }
    joined = join(*tasks.values())
    fitted = fit_in_order(replay, joined, progress)
    for name, section in sections.items():
        own = {
            place: values
            for place, values in fitted.items()
            if joined[place] is tasks[name].get(place)
        }
        plan = plan.with_values(known[name].values(section, own))
    return plan


def planned_but(model: nn.Module, plan: Plan, name: str) -> Applied:
    """Put all of a plan's sections but one on the model; a context manager that takes them off.

    Raises:
        PlanError: one of them does not fit the model or lacks its values.
    """
    others = {key: section for key, section in plan.sections.items() if key != name}
    return apply(model, replace(plan, sections=others))


def _on_planned(name: str) -> bool:
    return getattr(methods()[name], "on_planned", False)


def _in_order(name: str, section: Any) -> bool:
    asks = getattr(methods()[name], "in_order", None)
    return asks is not None and asks(section)


def _wanting(plan: Plan, anatomy: Anatomy) -> dict[str, Any]:
    return {
        name: section
        for name, section in check(plan, anatomy).items()
        if methods()[name].needs_values(section) and not _has_values(plan, name)
    }


def _documents(calibration: Calibration, tokens: int | None) -> Sequence[Tensor]:
    if tokens is None or tokens >= calibration.tokens:
        return calibration.documents
    return calibration.sample(tokens, calibration.seed)


def _has_values(plan: Plan, name: str) -> bool:
    return any(key.startswith(f"{name}.") for key in plan.values)
