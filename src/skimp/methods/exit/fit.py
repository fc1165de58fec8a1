"""From text to a fitted `exit` section: gather, fit, choose, train, promise."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from skimp.calibration.replay import Replay, pack
from skimp.calibration.text import Calibration
from skimp.errors import PlanError
from skimp.methods.exit.choose import Alone, Choice, Seen, leaving, look_alone, scores, watch
from skimp.methods.exit.costs import Costs, measure
from skimp.methods.exit.gather import Gathered, gather, position
from skimp.methods.exit.promise import Level, calibrate, grid, outcome
from skimp.methods.exit.screen import fit_screen
from skimp.methods.exit.section import SECTION, Exit
from skimp.methods.exit.train import train
from skimp.methods.exit.translate import solve
from skimp.methods.exit.values import AGREEMENTS, LEVELS, THRESHOLDS, asked_levels
from skimp.methods.fit import planned_but
from skimp.models.anatomy import Anatomy
from skimp.models.head import Head, final_norm
from skimp.plan import Plan
from skimp.progress import SILENT, Progress
from skimp.workload import Workload

MOST_LAYERS = 12  # whose states are kept while probes are chosen
OPTIONS = (0, 1024, 2048, 4096, 8192)
_DEAR = 0.15  # a probe that takes this share of a step has never paid: it is not looked at
Values = dict[str, Tensor]


@dataclass(frozen=True)
class Result:
    """What a calibrated level comes to on the promise's text.

    `left_out` is the share of layers that tokens do not run, `speedup` the expected time of a full
    decode step over one with probes, `exits` the share of tokens that leave at each probe.
    """

    level: Level
    left_out: float
    exits: tuple[float, ...]
    speedup: float

    def to_dict(self) -> dict[str, Any]:
        threshold = self.level.threshold
        return {
            "agreement": self.level.agreement,
            "threshold": threshold if isfinite(threshold) else None,
            "seen": self.level.seen,
            "at_least": self.level.at_least,
            "exits": list(self.exits),
            "left_out": self.left_out,
            "speedup": self.speedup,
        }


@dataclass(frozen=True)
class Way:
    """A section with its values and its result at every level."""

    section: Exit
    values: Values
    results: tuple[Result, ...]

    def at(self, agreement: float) -> Result:
        return min(self.results, key=lambda each: abs(each.level.agreement - agreement))


@dataclass(frozen=True)
class Found:
    """What a search came to: the way chosen, the published one beside it, and why.

    `chosen.section.probe` is empty where no probe pays; `reason` then says why.
    """

    chosen: Way
    plain: Way | None
    costs: Costs
    documents: dict[str, int]
    tokens: dict[str, int]
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Plain data, without fitted values: what a plan gives as evidence."""
        return {
            "documents": self.documents,
            "tokens": self.tokens,
            "levels": [each.to_dict() for each in self.chosen.results],
            "plain": [each.to_dict() for each in self.plain.results] if self.plain else [],
            "costs": {
                "step_s": self.costs.step,
                "head_s": self.costs.head,
                "probe_s": {str(count): cost for count, cost in self.costs.probe.items()},
            },
            "reason": self.reason or None,
        }


class Fitter:
    """Fits exits of one planned model on one text."""

    def __init__(
        self,
        replay: Replay,
        layers: Sequence[int],
        *,
        workload: Workload | None = None,
        seed: int = 0,
        progress: Progress = SILENT,
    ) -> None:
        model: Any = replay.model
        self.anatomy = Anatomy.of(model)
        self.norm: nn.Module = final_norm(model)
        self.head = Head.of(model)
        self.layers, self.seed, self.progress = tuple(layers), seed, progress
        self.workload = workload or Workload(512, 128)
        self.text: Gathered = gather(replay, layers, progress, seed=seed)
        self._basis: dict[Any, Values] = {}
        self._seen: dict[Any, Seen] = {}
        self._alone: dict[Any, Alone] = {}

    def basis(self, section: Exit) -> Values:
        """Translators of all layers gathered, and the screen: what rules are trained upon."""
        found: Values = {}
        last = self.anatomy.dense_layers - 1
        for layer, moments in self.text.moments.items():
            key = (layer, section.translator)
            if layer < last and key not in self._basis:
                self._basis[key] = solve(moments, section.translator, layer)
            found |= self._basis.get(key, {})
        if section.screen:
            key = (section.screen, section.candidates)
            if key not in self._basis:
                self._basis[key] = fit_screen(
                    self.text.likely, *key, self.anatomy.vocabulary, self.seed
                )
            found |= self._basis[key]
        return found

    def way(self, section: Exit, costs: Costs | None, agreements: Sequence[float]) -> Way:
        """Train the section's rule and calibrate its thresholds."""
        basis = self.basis(section)
        control = self._watch(section, basis, "control")
        promise = self._watch(section, basis, "promise")
        values = {**basis, **train(section, control.features, control.right)}
        steps = grid(scores(section, values, control))
        table, wrong = scores(section, values, promise), ~torch.stack(promise.right)
        document = self.text.promise.document
        levels = calibrate(table, wrong, document, steps, agreements)
        results = tuple(self._result(section, each, table, wrong, costs) for each in levels)
        values[AGREEMENTS] = torch.tensor([each.agreement for each in levels])
        values[THRESHOLDS] = torch.tensor([each.threshold for each in levels])
        return Way(section, self._wanted(section, values), results)

    def find(
        self,
        section: Exit,
        *,
        probe: Sequence[int] | None = None,
        candidates: int | None = None,
        agreements: Sequence[float] = LEVELS,
        costs: Costs | None = None,
        published: bool = True,
    ) -> Found:
        """The best probes and candidates, or those given, and what they come to.

        `section` says all the rest; its agreement (0.99 if it names none) is what is paid for, at
        `costs` (None: timed here). `published`: fit the published way beside it.
        """
        asked = section.promised or agreements[0]
        kinds = section.screen
        section = replace(section, threshold=None, agreement=asked)
        options = [candidates] if candidates is not None else options_of(self.anatomy, kinds)
        costs = costs or measure(
            section, self.anatomy, self.norm, self.head, self.workload, options
        )
        if probe is not None and candidates is not None:
            choice = Choice(tuple(probe), candidates, 0.0)
        else:
            choice = self._choose(section, probe, options, costs, asked)
        count = choice.candidates
        section = replace(
            section, probe=choice.probe, candidates=count, screen=kinds if count else 0
        )
        text = self.text
        if not choice.probe:
            way = Way(replace(section, candidates=0, screen=0), {}, ())
            return Found(way, None, costs, *_counts(text), reason=_no_probe(asked, costs))
        way = self.way(section, costs, agreements)
        costs = replace(costs, probe={0: costs.probe.get(0, costs.head), **costs.probe})
        plain = self.way(section.plain(), costs, agreements) if published else None
        result = way.at(asked)
        if probe is None and result.speedup <= 1:
            reason = (
                f"the probes found leave out {result.left_out:.1%} of layers at agreement "
                f"{asked:g}, which does not make good what they cost"
            )
            way = Way(replace(section, probe=(), candidates=0, screen=0), {}, way.results)
            return Found(way, plain, costs, *_counts(text), reason=reason)
        return Found(way, plain, costs, *_counts(text), reason="")

    def _choose(
        self,
        section: Exit,
        probe: Sequence[int] | None,
        options: Sequence[int],
        costs: Costs,
        agreement: float,
    ) -> Choice:
        best: Choice | None = None
        for count in options:
            if len(options) > 1 and costs.probe[count] > _DEAR * costs.step:
                continue
            alone = self._look_alone(section, count)
            if probe is None:
                found = alone.best(costs, agreement)
            else:
                found = alone.together(tuple(probe), costs, agreement)
            best = found if best is None or found.share < best.share else best
        return best or Choice((), 0, 1.0)

    def _look_alone(self, section: Exit, count: int) -> Alone:
        """What probes see hangs on no agreement, so all that are asked for share it."""
        one = replace(section, candidates=count, screen=section.screen if count else 0)
        key = (one.rule, one.translator, one.candidates, one.screen)
        if key not in self._alone:
            ends = self.anatomy, self.norm, self.head
            basis, control = self.basis(one), self.text.control
            self._alone[key] = look_alone(one, basis, control, self.layers, ends, self.progress)
        return self._alone[key]

    def _watch(self, section: Exit, basis: Values, part: str) -> Seen:
        """What probes see there hangs on everything but the rule, so rules share it."""
        states = getattr(self.text, part)
        key = (section.probe, section.translator, section.candidates, section.screen, part)
        if key not in self._seen:
            with self.progress.task(f"probing, {part}"):
                self._seen[key] = watch(section, basis, states, self.norm, self.head)
        return self._seen[key]

    def _result(
        self, section: Exit, level: Level, table: Tensor, wrong: Tensor, costs: Costs | None
    ) -> Result:
        found = outcome(table, wrong, level.threshold)
        exits = leaving(found.left_at, len(section.probe))
        places = [position(layer, self.anatomy) for layer in section.probe]
        count = len(self.anatomy.layers)
        left = sum(s * (count - 1 - p) for s, p in zip(exits, places, strict=True)) / count
        speedup = 1.0
        if costs is not None:
            speedup = costs.step / costs.with_probes(places, exits, section.candidates)
        return Result(level, left, tuple(exits), speedup)

    def _wanted(self, section: Exit, values: Values) -> Values:
        """Only what belongs to the section's own probes, in the dtype it is used in."""
        wanted = {str(layer) for layer in section.probe}
        kept = {}
        for name, value in values.items():
            _, kind, place, _ = name.split(".")
            if kind in ("translator", "rule") and place not in wanted:
                continue
            if kind == "translator" or name.endswith("centres"):
                value = value.to(self.head.weight.dtype)
            kept[name] = value.contiguous()
        return kept


def options_of(anatomy: Anatomy, kinds: int) -> list[int]:
    """Numbers of candidates that are tried, 0 being the full head, with so many kinds of states."""
    return [count for count in OPTIONS if count < anatomy.vocabulary] if kinds else [0]


def candidate_layers(anatomy: Anatomy, most: int = MOST_LAYERS) -> list[int]:
    """Layers of the second half of the planned model, evenly, the last always among them."""
    sources = [layer.source for layer in anatomy.layers]
    half = sources[len(sources) // 2 :]
    count = min(most, len(half))
    steps = torch.linspace(0, len(half) - 1, count).round().long().tolist()
    return sorted({half[step] for step in steps} | {sources[-1]})


def can_probe(model: nn.Module) -> bool:
    """Whether states can be taken through the final norm and the head apart from the model."""
    try:
        Head.of(model)
        final_norm(model)
    except PlanError:
        return False
    return True


def fit_values(section: Exit, replay: Replay, progress: Progress, seed: int = 0) -> Values:
    """The values of a section whose probes and candidates are settled.

    Args:
        replay: the planned model over the text, a document a row.
    """
    fitter = Fitter(replay, section.probe, seed=seed, progress=progress)
    return fitter.way(section, None, asked_levels(section)).values


def _counts(text: Gathered) -> tuple[dict[str, int], dict[str, int]]:
    return dict(text.documents), dict(text.tokens)


def _no_probe(agreement: float, costs: Costs) -> str:
    cheapest = min(costs.probe.values())
    return (
        f"no probe pays at agreement {agreement:g}: one costs at least "
        f"{cheapest / costs.step:.1%} of a decode step, more than leaving early saves"
    )


def fit_exit(
    model: nn.Module,
    plan: Plan,
    calibration: Calibration,
    section: Exit,
    *,
    probe: Sequence[int] | None = None,
    candidates: int | None = None,
    workload: Workload | None = None,
    progress: Progress = SILENT,
) -> tuple[Plan, Found]:
    """The plan with a fitted `exit` section, and how it was found.

    Args:
        model: dense, in eval mode; left as it was.
        plan: what else is left out, fitted; an old `exit` section of it is replaced.
        calibration: the text, split by document.
        section: rule, translator, screen and agreement; the rest is searched for unless given.
        probe: layers of the dense model to probe; None: those that pay best.
        candidates: rows of the head that probes read; None: as many as pays best.
        workload: what it is to pay for; 512+128x1 by default.

    Raises:
        PlanError: the plan or the section does not fit the model.
        CalibrationError: too little text to hold documents out.
    """
    dense = Anatomy.of(model)
    given = tuple(probe or ())
    replace(section, probe=given, candidates=candidates or 0).check(dense)
    with planned_but(model, plan, SECTION):
        replay = Replay(model, pack(calibration.documents))
        layers = given or tuple(candidate_layers(Anatomy.of(model)))
        fitter = Fitter(replay, layers, workload=workload, seed=calibration.seed, progress=progress)
        found = fitter.find(
            section,
            probe=given or None,
            candidates=candidates,
            agreements=asked_levels(section),
        )
    made = plan.with_section(SECTION, found.chosen.section.to_dict())
    made = made.with_values(found.chosen.values)
    evidence = {"calibration": calibration.to_dict(), **found.to_dict()}
    return made.with_evidence(**{SECTION: evidence}), found
