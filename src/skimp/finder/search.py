"""The search for the best plan at a workload, from text to a measured frontier and a promise."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import nn

from skimp.finder import aim
from skimp.finder.accuracy import Accuracies, Scorer, score_near, would_pass
from skimp.finder.budget import Budget
from skimp.finder.choices import Setting, plan_of
from skimp.finder.clock import Clock, measure_prices
from skimp.finder.entry import (
    Entry,
    Source,
    dense_entry,
    digest,
    entry_of,
    file_of,
    mark_frontier,
    speed_of,
)
from skimp.finder.judge import bare, quality
from skimp.finder.ladder import SPEEDS, Ladder, Rung
from skimp.finder.menu import Menu
from skimp.finder.prices import Bytes
from skimp.finder.select import Selection, affordable, select
from skimp.finder.state import State
from skimp.finder.texts import Texts
from skimp.finder.whole import look, share_read
from skimp.finder.workers import Job, Sums
from skimp.models.anatomy import Anatomy
from skimp.plan import Plan
from skimp.progress import SILENT, Progress
from skimp.workload import Workload

Costs = Literal["measured", "bytes"]

Shown = Callable[[Sequence[tuple[float, float]], Sequence[tuple[str, float, float]]], None]
PROMISED = 0.03  # a speed is timed, before it is promised, until it is known to so much of itself
_LOSS = 0.6  # loss on held-out text, as a share of the joint harm on the choosing text


@dataclass(frozen=True)
class Wanted:
    """What is searched for. `seconds`: a time box, after which no further plan is begun."""

    workload: Workload
    budget: Budget
    costs: Costs = "measured"
    seed: int = 0
    seconds: float | None = None

    @property
    def key(self) -> dict[str, Any]:
        """What tells one search's folder from another's."""
        return {
            "workload": str(self.workload),
            "costs": self.costs,
            "seed": self.seed,
        }


@dataclass(frozen=True)
class Found:
    """What a search came to; `search` as documents hold it."""

    search: dict[str, Any]
    selection: Selection


class Search:
    """One search over one dense model.

    Args:
        texts: parted calibration text.
        state: where steps are remembered.
        do: does jobs in order, here or elsewhere (:mod:`skimp.finder.workers`).
        shown: is given (speed, harm) points of the frontier whenever more is known, and those of
            other plans with their names.
        scorer: scores plans on the tasks of a budget on accuracy.
        began: by the monotonic clock, where the caller has been at work before, writing text say.
    """

    def __init__(
        self,
        model: nn.Module,
        wanted: Wanted,
        texts: Texts,
        state: State,
        do: Callable[[Sequence[Job]], Any],
        *,
        progress: Progress = SILENT,
        shown: Shown = lambda points, others: None,
        scorer: Scorer | None = None,
        began: float | None = None,
    ) -> None:
        self._model, self._wanted, self._texts, self._state = model, wanted, texts, state
        self._do, self._progress, self._shown = do, progress, shown
        self._scorer = scorer
        self._anatomy = Anatomy.of(model)
        self._began = time.monotonic() if began is None else began
        self._first_plot: float | None = None
        self._clock: Clock | None = None
        self._entries: list[Entry] = []
        self._sums: dict[int, Sums] = {}
        self._able: list[Rung] = []
        self._refused: list[dict[str, str]] = []
        self.complete = True

    def run(self, rules: Sequence[tuple[str, Callable[[], Plan]]] = ()) -> Found:
        """Search; `rules` are named plans, made when asked for, to set beside the frontier."""
        self._entries = [dense_entry(self._anatomy, self._wanted.workload)]
        rungs = self._climb()
        self._judge([(bare(plan_of(rung.chosen, self._anatomy)), rung) for rung in rungs])
        self._time()
        self._aim_again()
        self._accuracies()
        self._repair(self._able)
        self._add_rules(rules)
        mark_frontier(self._entries)
        self._entries.sort(key=lambda entry: entry["number"])
        selection = select(
            self._wanted.budget, self._entries, self._sums, self._seconds_of, self._accuracies()
        )
        return Found(self._document(selection), selection)

    def _climb(self) -> list[Rung]:
        """The ladder's rungs, from slow to fast, no two alike."""
        by_bytes = Menu.of(self._model, self._wanted.workload, Bytes())
        ladder = self._ladder = Ladder(
            self._model, by_bytes, self._texts, self._state, self._wanted.seed, self._progress
        )
        with ladder:
            self._shown(ladder.first(), ())
            self._first_plot = time.monotonic() - self._began
        # On the model as it is, without the ladder's hooks.
        menu = self._with_whole(self._priced(by_bytes))
        ladder.price(menu)
        with ladder:
            ladder.correct()
            found: list[list[Rung]] = []
            speeds = self._speeds()
            with self._progress.task("choosing plans", len(speeds)) as step:
                for speed in speeds:
                    rungs = [] if self._late() else ladder.rungs(speed)
                    if rungs:
                        found.append(rungs)
                    step()
            best = _different(min(rungs, key=lambda rung: rung.joint) for rungs in found)
            self._able = _different(min(rungs, key=lambda rung: rung.repaired) for rungs in found)
            self._shown([(menu.speedup(rung.chosen), rung.joint) for rung in best], ())
        self._menu = menu
        return best

    def _priced(self, menu: Menu) -> Menu:
        if self._wanted.costs == "bytes":
            return menu
        thin = any(choice.offer != "drop" for choice in menu.choices)
        prices = measure_prices(
            self._model, self._wanted.workload, thin=thin, progress=self._progress
        )
        return Menu(menu.anatomy, menu.workload, prices, menu.choices)

    def _with_whole(self, menu: Menu) -> Menu:
        """The menu with what is worth choosing for the whole model."""
        work, by_time = self._wanted.workload, self._wanted.costs == "measured"
        setting = Setting(self._texts.fitting, self._texts.choosing, work, by_time)
        gains, self._refused = look(self._model, setting, self._state, self._progress)
        return menu.with_whole(gains)

    def _speeds(self) -> list[float]:
        asked = [
            aim.first(limit.value)
            for limit in self._wanted.budget.cost
            if limit.about_speed and limit.value > 1
        ]
        return sorted({*SPEEDS, *asked})

    def _aim_again(self) -> None:
        """Judge and time another plan for a speed that is asked for and that none runs at."""
        asked = self._wanted.budget.get("speedup")
        if asked is None or self._wanted.costs == "bytes":
            return
        for _ in range(aim.ROUNDS):
            ran = [
                (entry["foretold"], entry["speedup"])
                for entry in self._entries
                if entry["foretold"] and entry["speedup"]
            ]
            speed = aim.again(asked.value, ran)
            if speed is None or self._late():
                return
            with self._ladder as ladder:
                rungs = ladder.rungs(speed)
            known = {entry["file"] for entry in self._entries}
            plans = [(bare(plan_of(rung.chosen, self._anatomy)), rung) for rung in rungs]
            new = [each for each in plans if file_of(each[0]) not in known]
            if not new:
                return
            self._able = _different([*self._able, *(rung for _, rung in new)])
            self._judge([min(new, key=lambda each: each[1].joint)])
            self._time()

    def _judge(self, plans: Sequence[tuple[Plan, Rung]], name: str = "finder") -> None:
        """Fit plans, and judge them."""
        jobs: list[Job] = []
        entries: list[Entry] = []
        for plan, rung in plans:
            entries.append(self._entry(plan, "finder", name, rung))
            jobs.append(self._job(plan, entries[-1]))
            self._entries.append(entries[-1])
        self._run_jobs(jobs, entries)

    def _repair(self, rungs: Sequence[Rung]) -> None:
        """Judge the plans that the budget is about once more, their output maps refitted.

        That takes all of the text and minutes a plan, so it is done for one or two. Which ones is
        not told from the judging text, of which the promise is made.
        """
        plans = {id(rung): plan_of(rung.chosen, self._anatomy) for rung in rungs}
        able = [rung for rung in rungs if plans[id(rung)] != bare(plans[id(rung)])]
        wanted = self._near(able)
        repaired = [(plans[id(rung)], replace(rung, joint=rung.repaired)) for rung in wanted]
        self._judge(repaired, "finder, repaired")
        self._time()

    def _near(self, rungs: Sequence[Rung]) -> list[Rung]:
        """The rungs at the edge of the budget, repairs reckoned in."""
        budget = self._wanted.budget
        if not budget.limits or self._late():
            return []
        ordered = sorted(rungs, key=lambda rung: rung.repaired)
        if budget.quality:
            most = min(limit.value for limit in budget.quality) / _LOSS
            return _edge(ordered, most)
        if self._scorer is not None:
            held = [e["joint"] for e in self._entries if would_pass(e)]
            return _edge(ordered, max(held, default=0.0))
        timed = {entry["file"]: entry["speedup"] for entry in self._entries}
        for rung in ordered:
            plan = plan_of(rung.chosen, self._anatomy)
            entry = self._entry(plan, "finder", "", rung)
            if affordable(budget, entry | {"speedup": timed.get(file_of(bare(plan)))}):
                return [rung]
        return []

    def _accuracies(self) -> Accuracies | None:
        """The plans near a budget on accuracy, scored; each only once."""
        if self._scorer is None:
            return None
        able = [
            entry
            for entry in self._entries
            if entry["source"] == "finder"
            and entry["number"] in self._sums
            and affordable(self._wanted.budget, entry)
        ]
        return score_near(able, self._scorer, self._late)

    def _run_jobs(self, jobs: Sequence[Job], entries: Sequence[Entry]) -> None:
        waiting = [
            (job, entry) for job, entry in zip(jobs, entries, strict=True) if not self._known(job)
        ]
        with self._progress.task("fitting and judging plans", len(jobs)) as step:
            for _ in range(len(jobs) - len(waiting)):
                step()
            results = iter(self._do([job for job, _ in waiting]))
            for job, _ in waiting:
                if self._late():
                    break
                sums = next(results)
                self._state.remember(f"judged-{job.fitted.stem}", lambda sums=sums: sums)
                step()
        for job, entry in zip(jobs, entries, strict=True):
            if self._known(job):
                sums = self._state.remember(f"judged-{job.fitted.stem}", list)
                self._sums[entry["number"]] = sums
                entry.update(quality(sums))
                entry["byte_bound"] /= share_read(
                    entry["sections"], self._anatomy, self._wanted.workload, entry["left"]
                )
            else:
                self._entries.remove(entry)

    def _known(self, job: Job) -> bool:
        return (self._state.folder / f"judged-{job.fitted.stem}.json").exists()

    def _job(self, plan: Plan, entry: Entry) -> Job:
        asked = self._state.plan(f"asked-{entry['file']}")
        plan.write(asked)
        return Job(asked, self._state.plan(entry["file"]))

    def _time(self) -> None:
        """Time every judged plan that was not timed yet."""
        untimed = [entry for entry in self._entries if entry["number"] and not entry["speedup"]]
        with self._progress.task("timing plans beside dense", len(untimed)) as step:
            for entry in untimed:
                if self._wanted.costs == "measured" and not self._late():
                    self._time_one(entry)
                step()
        self._show()

    def _time_one(self, entry: Entry) -> None:
        name = entry["file"]
        found = self._state.remember(f"timed-{name}", lambda: self._timed(name))
        entry["speedup"], entry["speedup_interval"] = found["estimate"], found["interval"]

    def _timed(self, name: str, within: float | None = None) -> dict[str, Any]:
        if self._clock is None:
            text = self._texts.choosing.ids.flatten()
            self._clock = Clock(self._model, self._wanted.workload, self._wanted.seed, text)
        found = self._clock.speedup(Plan.read(self._state.plan(name)), within=within)
        return {"estimate": found.estimate, "interval": list(found.pair)}

    def _seconds_of(self, number: int) -> tuple[float, tuple[float, float]]:
        """A second, longer timing, of a plan that is about to be handed out."""
        name = next(entry["file"] for entry in self._entries if entry["number"] == number)
        found = self._state.remember(f"timed-again-{name}", lambda: self._timed(name, PROMISED))
        return found["estimate"], (found["interval"][0], found["interval"][1])

    def _add_rules(self, rules: Sequence[tuple[str, Callable[[], Plan]]]) -> None:
        entries, jobs = [], []
        with self._progress.task("plans by the papers' rules", len(rules)) as step:
            for name, make in rules:
                if not self._late():
                    asked = self._state.fitted(f"rule-{digest(name)}", make)
                    entry = self._entry(asked, "rule", name, None)
                    entries.append(entry)
                    self._entries.append(entry)
                    jobs.append(self._job(asked, entry))
                step()
        self._run_jobs(jobs, entries)
        self._time()

    def _entry(self, plan: Plan, source: Source, name: str, rung: Rung | None) -> Entry:
        made = entry_of(plan, self._anatomy, self._wanted.workload, source, name)
        numbers = (each["number"] for each in self._entries)
        made["number"] = 1 + max(numbers, default=-1)
        if rung is not None:
            made["joint"] = rung.joint
            if self._wanted.costs == "measured":
                made["foretold"] = self._menu.speedup(rung.chosen)
        return made

    def _late(self) -> bool:
        box = self._wanted.seconds
        if box is not None and time.monotonic() - self._began > box:
            self.complete = False
        return not self.complete

    def _show(self) -> None:
        judged = [entry for entry in self._entries if entry["number"] in self._sums]
        self._shown(
            [(speed_of(e), e["loss_difference"]) for e in judged if e["source"] == "finder"],
            [
                (e["name"], speed_of(e), e["loss_difference"])
                for e in judged
                if e["source"] == "rule"
            ],
        )

    def _document(self, selection: Selection) -> dict[str, Any]:
        return {
            "workload": str(self._wanted.workload),
            "budget": str(self._wanted.budget) or None,
            "costs": self._wanted.costs,
            "seconds": time.monotonic() - self._began,
            "first_plot": self._first_plot,
            "complete": self.complete,
            "plans": self._entries,
            "chosen": selection.number,
            "promise": selection.promise,
            "withheld": list(selection.withheld),
            "not_offered": self._refused,
        }


def _edge(ordered: Sequence[Rung], most: float) -> list[Rung]:
    """The last rung of no more harm once it is repaired, and the next."""
    within = [rung for rung in ordered if rung.repaired <= most]
    return [*within[-1:], *ordered[len(within) : len(within) + 1]]


def _different(rungs: Iterable[Rung]) -> list[Rung]:
    """Rungs without those that choose what an earlier one chose."""
    return list({frozenset(rung.chosen.values()): rung for rung in rungs}.values())
