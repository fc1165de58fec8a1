"""Measuring plans for `skimp eval`: tasks, text and early exits beside the dense model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skimp.cli import leaving
from skimp.cli.common import Run

if TYPE_CHECKING:
    from skimp.cli.eval import Text
    from skimp.cli.leaving import Leaves, Once
    from skimp.measure.depths import Decide
    from skimp.measure.fidelity import Fidelity
    from skimp.measure.quality import Evaluation, TaskComparison
    from skimp.measure.shelf import Shelf
    from skimp.models.load import Loaded
    from skimp.plan import Plan


@dataclass(frozen=True)
class Measured:
    """What was found for one plan, or for the dense model alone (no comparisons then).

    `simulated`: the planned model was scored on tasks in simulated generation mode. `exits`: of a
    plan that lets tokens leave early.
    """

    dense: Evaluation | None
    comparisons: Mapping[str, TaskComparison]
    mean: TaskComparison | None
    fidelity: Fidelity | None
    simulated: bool
    exits: Leaves | None = None

    def to_dict(self, planned: bool) -> dict[str, Any]:
        """The `tasks`, `mean`, `simulated`, `fidelity` and `exits` of a document."""
        return {
            "tasks": self._tasks(),
            "mean": self.mean.to_dict() if self.mean is not None else None,
            "simulated": self.simulated if self.comparisons else None,
            "fidelity": self._fidelity(planned),
            "exits": self.exits.to_dict() if self.exits is not None else None,
        }

    def _tasks(self) -> dict[str, Any]:
        if self.comparisons or self.dense is None:
            return {name: one.to_dict() for name, one in self.comparisons.items()}
        gap = {"planned": None, "difference": None, "interval": None}
        return {
            name: {
                "metric": scores.metric,
                "dense": scores.value,
                **gap,
                "items": len(scores.items),
            }
            for name, scores in self.dense.tasks.items()
        }

    def _fidelity(self, planned: bool) -> dict[str, Any] | None:
        if self.fidelity is None:
            return None
        found = self.fidelity.to_dict()
        if planned:
            return found
        own = ("perplexity_dense", "loss_dense", "tokens", "documents")
        return {name: value if name in own else None for name, value in found.items()}


@dataclass(frozen=True)
class Scoring:
    """The tasks of a run, and where those that are finished are kept: each model's apart, under all
    that its scores hang on."""

    run: Run
    loaded: Loaded
    tasks: list[str]
    limit: int | None
    shelf: Shelf[Evaluation]
    model: Mapping[str, str]

    @classmethod
    def of(
        cls, run: Run, loaded: Loaded, tasks: list[str], limit: int | None, state: Path, fresh: bool
    ) -> Scoring:
        """Of a model as it was loaded, with `state` the folder to keep finished tasks in."""
        from skimp.measure.quality import Evaluation
        from skimp.measure.shelf import Shelf, identity

        shelf = Shelf(state, Evaluation.from_dict, fresh=fresh)
        return cls(run, loaded, tasks, limit, shelf, identity(loaded.model))

    def score(
        self, name: str, plan: Plan | None = None, decide: Decide = "token"
    ) -> Evaluation | None:
        """Score the model, which carries the plan; None if there are no tasks."""
        from skimp.measure.depths import leaving_of
        from skimp.measure.quality import Keep, evaluate
        from skimp.measure.shelf import surroundings

        if not self.tasks:
            return None
        once = ", one decision an input" if decide == "input" else ""
        self.run.progress.note(f"Scoring tasks: {name}{once}.")
        key = {
            "surroundings": surroundings(),
            "model": self.model,
            "plan": None if plan is None else plan.digest(),
            "decide": decide,
        }
        return evaluate(
            self.loaded.model,
            self.loaded.tokenizer,
            self.tasks,
            limit=self.limit,
            seed=self.run.seed,
            leaving=leaving_of(self.loaded.model, plan, decide),
            keep=Keep(self.shelf, key),
            progress=self.run.progress,
        )


def measure(scoring: Scoring, plans: Mapping[str, Plan], text: Text | None) -> dict[str, Measured]:
    """Score the dense model once and each plan beside it; `{"": …}` without a plan."""
    from skimp.measure.fidelity import fidelity
    from skimp.methods.apply import apply
    from skimp.methods.registry import check
    from skimp.models.anatomy import Anatomy

    run, loaded, tasks = scoring.run, scoring.loaded, scoring.tasks
    model, anatomy = loaded.model, Anatomy.of(loaded.model)
    for each in plans.values():
        check(each, anatomy)

    def switch(plan: Plan | None) -> Any:
        return nullcontext() if plan is None else apply(model, plan, anatomy=anatomy)

    leaving.refuse(list(plans.values()), tasks, text is not None, run.seed)
    if tasks:
        _refuse_tasks(loaded, plans, tasks, run.seed, switch)
    dense = scoring.score("dense")
    if plans:
        return {
            name: _beside(scoring, name, each, dense, text, switch) for name, each in plans.items()
        }
    near = None
    if text is not None:
        near = fidelity(model, nullcontext, text.documents, progress=run.progress)
    return {"": Measured(dense, {}, None, near, False)}


def _beside(
    scoring: Scoring,
    name: str,
    plan: Plan,
    dense: Evaluation | None,
    text: Text | None,
    switch: Callable[[Plan], Any],
) -> Measured:
    """One plan beside the dense model's scores."""
    from skimp.measure.fidelity import fidelity
    from skimp.measure.quality import compare, overall
    from skimp.methods.exit.section import by_exit
    from skimp.methods.experts.section import by_prompt

    run, loaded = scoring.run, scoring.loaded
    comparisons: dict[str, TaskComparison] = {}
    scores = once = near = None
    if dense is not None:
        with switch(plan):
            scores = scoring.score(name, plan)
        assert scores is not None
        comparisons = compare(dense, scores, seed=run.seed)
        if by_exit(plan):
            once = _once(scoring, name, plan, dense, switch)
    documents = None if text is None else text.documents
    exits = leaving.leaves_of(run, loaded, plan, scores, once, documents)
    if exits is not None:
        near = exits.text.fidelity if exits.text else None
    elif text is not None and by_prompt(plan):
        near = _answering(run, loaded.model, plan, text)
    elif text is not None:
        near = fidelity(loaded.model, lambda: switch(plan), text.documents, progress=run.progress)
    simulated = scores is not None and scores.simulated
    return Measured(dense, comparisons, overall(comparisons), near, simulated, exits)


def _once(
    scoring: Scoring, name: str, plan: Plan, dense: Evaluation, switch: Callable[[Plan], Any]
) -> Once:
    """The tasks again, with one decision for each input."""
    from skimp.cli.leaving import Once
    from skimp.measure.quality import compare, overall

    with switch(plan):
        scores = scoring.score(name, plan, "input")
    assert scores is not None
    found = compare(dense, scores, seed=scoring.run.seed)
    return Once(found, overall(found), scores.depths)


def _refuse_tasks(
    loaded: Loaded,
    plans: Mapping[str, Plan],
    tasks: list[str],
    seed: int,
    switch: Callable[[Plan], Any],
) -> None:
    """Refuse what a plan's experts cannot be scored on, before the dense model is scored."""
    from skimp.measure.simulated import refuse_unsimulated
    from skimp.measure.tasks import load_tasks

    for each in plans.values():
        if "experts" in each.sections:
            with switch(each):
                refuse_unsimulated(loaded.model, load_tasks(tasks, seed))


def _answering(run: Run, model: Any, plan: Plan, text: Text) -> Fidelity:
    """As the engine predicts the second half of each document, having read the first."""
    from skimp.engine import Engine
    from skimp.measure.answers import on_answers

    pairs = []
    for document in text.documents:
        tokens = document.tolist()
        half = len(tokens) // 2
        if half > 1:
            pairs.append((tokens[:half], tokens[half:]))
    engines = {"planned": Engine(model, plan)}
    return on_answers(Engine(model), engines, pairs, progress=run.progress)["planned"]
