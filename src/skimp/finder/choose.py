"""Choose what to drop by a rule, and fit what stands in its place."""

import difflib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

from skimp.calibration.replay import Replay, pack
from skimp.calibration.text import LEAST_TOKENS, Calibration, calibrate
from skimp.errors import PlanError, SkimpError
from skimp.finder.harm import Harm, Measure, Scoring
from skimp.finder.rules import Material, Problem, Rule, Ruling, rules
from skimp.methods.drop.closed_form import Values
from skimp.methods.drop.fit import Place, fit_alone, standing
from skimp.methods.drop.layout import repairable
from skimp.methods.drop.section import Drop, FillKind, parse_repair
from skimp.methods.drop.values import SECTION, gather
from skimp.methods.fit import fit_plan
from skimp.models.anatomy import KINDS, Anatomy, Kind
from skimp.plan import Plan
from skimp.progress import SILENT, Progress

# Tokens of calibration text on which rules try parts out, and at most so many of a document; tokens
# on which fills are fitted for that. The plan's own fills are fitted on all of the text.
SCORED_TOKENS = 3072
SCORED_LENGTH = 112
TRIED_TOKENS = 8192


@dataclass(frozen=True)
class Choice:
    """A fitted plan and how it came about.

    `importance` holds, for "attention", "ffn" and "layer", what is lost without each layer's part
    in the rule's unit (None: not a candidate). `calibration_loss` is the harm of the finished plan
    on the calibration text, in nats per token; None if the rule and fill read no text.
    """

    plan: Plan
    importance: Mapping[str, list[float | None]]
    path: tuple[tuple[str, int, float | None], ...]
    calibration_loss: float | None
    seconds: float
    calibration: Calibration | None


def choose(
    model: nn.Module,
    tokenizer: Any,
    *,
    rule: str = "greedy",
    drop_attention: int = 0,
    drop_ffn: int = 0,
    drop_layers: int = 0,
    fill: str = "linear:16",
    repair: str | int | None = None,
    keep_last: int | None = None,
    harm: Measure = "kl",
    calibration: Calibration | None = None,
    seed: int = 0,
    progress: Progress = SILENT,
) -> Choice:
    """Choose sublayers and layers of a dense model to leave out, and fit their fills.

    Args:
        model, tokenizer: the dense model; the tokenizer may be None if nothing reads text.
        rule: a name in :func:`skimp.finder.rules.rules`.
        drop_attention, drop_ffn, drop_layers: how many of each to leave out.
        fill: zero, mean, linear:RANK or linear:full.
        repair: of kept output projections: none, RANK or full; by default full where the fill is
            linear, none where it is zero or mean, as in the papers.
        keep_last: so many layers at the end are not touched; by default as the rule has it.
        harm: "kl" to the dense model, or "loss" of the calibration text.
        calibration: text; by default the model writes it itself.
        seed: of everything random.
        progress: told about every step.

    Raises:
        PlanError: an unknown rule or fill, or more to leave out than there is.
        CalibrationError: text is needed and cannot be had.
    """
    started = time.monotonic()
    anatomy = Anatomy.of(model)
    ruler, kind, rank = find_rule(rule), FillKind.parse(fill), _repair(repair, fill)
    keep_last = ruler.keep_last(anatomy.dense_layers) if keep_last is None else keep_last
    counts = {"attention": drop_attention, "ffn": drop_ffn, "layer": drop_layers}
    _check(counts, keep_last, anatomy)
    reads = ruler.reads_text or kind.name != "zero" or rank != 0
    if reads and calibration is None:
        calibration = calibrate(model, tokenizer, seed=seed, progress=progress)
    material = None
    if reads and calibration is not None:
        material = _material(model, calibration, counts, kind, harm, seed, ruler.reads_text)
    problem = Problem(anatomy.dense_layers, counts, keep_last, material, progress)
    ruling = ruler.choose(problem)
    section = _section(ruling, kind, rank)
    plan = Plan.empty(anatomy).with_section(SECTION, section.to_dict())
    section.check(anatomy)
    if calibration is not None:
        plan = fit_plan(model, plan, calibration, progress=progress)
    loss = None if material is None else _harm_of(section, plan, material, anatomy)
    return Choice(
        plan=plan,
        importance=_importance(ruling, counts, anatomy.dense_layers),
        path=tuple((part.name, part.layer, value) for part, value in ruling.path),
        calibration_loss=loss,
        seconds=time.monotonic() - started,
        calibration=calibration,
    )


def find_rule(name: str) -> Rule:
    """The rule of that name; PlanError, with a near one, if there is none."""
    known = rules()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(known))}."
        raise PlanError(f"rule: there is no rule {name!r}; {hint}")
    return known[name]


def _repair(wanted: str | int | None, fill: str) -> int | None:
    if wanted is None:
        wanted = "full" if fill.startswith("linear") else "none"
    return parse_repair(wanted)


def _check(counts: Mapping[str, int], keep_last: int, anatomy: Anatomy) -> None:
    free = anatomy.dense_layers - keep_last
    if keep_last < 0 or any(count < 0 for count in counts.values()):
        raise PlanError("drop: the numbers to leave out and to keep may not be negative.")
    for name, count in counts.items():
        wanted = count + (counts["layer"] if name != "layer" else 0)
        if wanted > free:
            raise PlanError(
                f"drop.{name}: {wanted} are to be left out, but only {max(0, free)} of the "
                f"{anatomy.dense_layers} layers may be touched."
            )
    if not any(counts.values()):
        raise SkimpError(
            "plan: nothing is to be left out; give --drop-attention, --drop-ffn or --drop-layers."
        )


def _material(
    model: nn.Module,
    calibration: Calibration,
    counts: Mapping[str, int],
    fill: FillKind,
    measure: Measure,
    seed: int,
    fits: bool,
) -> Material:
    documents = calibration.sample(SCORED_TOKENS, seed, longest=SCORED_LENGTH)
    scored = Replay(model, pack(documents))
    harm = Harm(scored, measure, scoring=Scoring(), seed=seed)
    kinds: list[Kind] = [kind for kind in KINDS if counts[kind] or counts["layer"]]
    places: list[Place] = [(layer, kind) for kind in kinds for layer in range(len(scored.layers))]
    if fits and fill.name != "zero":
        # Fitted on the text that is scored, fills would look better than they are, some more so.
        others = calibration.sample(TRIED_TOKENS, seed, skip=len(documents))
        if sum(map(len, others)) < LEAST_TOKENS:
            others = list(calibration.documents)
        fills = _Late(lambda: fit_alone(Replay(model, pack(others)), places, fill))
    else:
        fills = {place: {} for place in places}
    return Material(scored, harm, fills)


class _Late(Mapping[Place, Values]):
    """Fills that are fitted when the first is asked for: some rules never ask."""

    def __init__(self, fit: Callable[[], Mapping[Place, Values]]) -> None:
        self._fit = fit

    @cached_property
    def _fitted(self) -> Mapping[Place, Values]:
        return self._fit()

    def __getitem__(self, place: Place) -> Values:
        return self._fitted[place]

    def __iter__(self) -> Iterator[Place]:
        return iter(self._fitted)

    def __len__(self) -> int:
        return len(self._fitted)


def _section(ruling: Ruling, fill: FillKind, repair: int | None) -> Drop:
    places = {place for part in ruling.chosen for place in part.places}
    layers = {kind: tuple(sorted(la for la, k in places if k == kind)) for kind in KINDS}
    return Drop(layers["attention"], layers["ffn"], fill, repair)


def _harm_of(section: Drop, plan: Plan, material: Material, anatomy: Anatomy) -> float:
    """Harm of the finished plan, its fills fitted in order."""
    replay = material.replay
    fitted = {place: {} for place in section.sublayers} | gather(plan.values)
    with standing(replay, fitted, repairable(section, anatomy)):
        finals = replay.run_all(replay.entry)
    return material.harm(finals)


def _importance(
    ruling: Ruling, counts: Mapping[str, int], layers: int
) -> dict[str, list[float | None]]:
    found = {}
    for name, count in counts.items():
        if count:
            by_layer = {p.layer: v for p, v in ruling.importance.items() if p.name == name}
            found[name] = [by_layer.get(layer) for layer in range(layers)]
    return found
