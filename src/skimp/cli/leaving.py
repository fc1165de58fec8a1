"""What `skimp eval` says of early exits: where tokens leave, and what that does to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from skimp.cli import figures as numbers
from skimp.cli import output
from skimp.cli.common import Run

if TYPE_CHECKING:
    from torch import Tensor

    from skimp.measure.divergence import Divergence
    from skimp.measure.exit_text import AlongText
    from skimp.measure.quality import Evaluation, TaskComparison
    from skimp.measure.task_depths import TaskDepths
    from skimp.models.load import Loaded
    from skimp.plan import Plan

_PROMPTS = 8
_LONGEST = 128  # tokens of a prompt
_NEW = 32


@dataclass(frozen=True)
class Once:
    """Tasks with one decision for each input, as AdaInfer's, beside the dense model."""

    comparisons: Mapping[str, TaskComparison]
    mean: TaskComparison | None
    depths: Mapping[str, TaskDepths]

    def to_dict(self) -> dict[str, Any]:
        return {
            "tasks": {name: one.to_dict() for name, one in self.comparisons.items()},
            "mean": self.mean.to_dict() if self.mean is not None else None,
            "depths": {name: one.to_dict() for name, one in self.depths.items()},
        }


@dataclass(frozen=True)
class Leaves:
    """What was found of one plan's exits; `depths` of each task when every token decides."""

    layers: int
    probe: tuple[int, ...]
    depths: Mapping[str, TaskDepths]
    once: Once | None
    text: AlongText | None
    free: Divergence | None
    tokenizer: Any

    def to_dict(self) -> dict[str, Any]:
        """The `exits` of a document."""
        return {
            "layers": self.layers,
            "probe": list(self.probe),
            "tasks": {name: one.to_dict() for name, one in self.depths.items()},
            "by_input": self.once.to_dict() if self.once else None,
            "text": self.text.to_dict(self.tokenizer) if self.text else None,
            "free": self.free.to_dict() if self.free else None,
        }


def refuse(plans: Sequence[Plan], tasks: list[str], text: bool, seed: int) -> None:
    """Refuse plans whose exits cannot be measured, before anything long begins."""
    from skimp.errors import EvaluationError
    from skimp.measure.depths import refuse_propagated
    from skimp.measure.task_depths import refuse_generated
    from skimp.measure.tasks import load_tasks
    from skimp.methods.exit.section import by_exit
    from skimp.methods.experts.section import by_prompt

    for plan in plans:
        section = by_exit(plan)
        if section is None:
            continue
        refuse_propagated(section)
        if text and by_prompt(plan) is not None:
            raise EvaluationError(
                "--tokens: text is read in one pass, in which experts that a prompt chooses have "
                "no part; measure exits with experts on tasks alone, with --tokens 0."
            )
        if tasks:
            refuse_generated(load_tasks(tasks, seed))


def leaves_of(
    run: Run,
    loaded: Loaded,
    plan: Plan,
    scores: Evaluation | None,
    once: Once | None,
    documents: Sequence[Tensor] | None,
) -> Leaves | None:
    """What there is to say of the plan's exits; None if it has none.

    Args:
        scores: the planned model's, every token at a depth of its own.
        once: those with one decision an input.
    """
    from skimp.methods.exit.section import by_exit
    from skimp.models.anatomy import Anatomy

    section = by_exit(plan)
    if section is None:
        return None
    text = free = None
    if documents is not None:
        from skimp.measure.exit_text import along_text

        text = along_text(loaded.model, plan, documents, progress=run.progress)
        free = _freely(run, loaded, plan, documents)
    found = next(iter(scores.depths.values()), None) if scores else None
    layers = (
        text.layers if text else found.layers if found else len(Anatomy.of(loaded.model).layers)
    )
    depths = scores.depths if scores else {}
    return Leaves(layers, section.probe, depths, once, text, free, loaded.tokenizer)


def _freely(run: Run, loaded: Loaded, plan: Plan, documents: Sequence[Tensor]) -> Divergence | None:
    from skimp.engine import Engine
    from skimp.measure.divergence import diverge

    prompts = [document[: min(_LONGEST, len(document) // 2)].tolist() for document in documents]
    prompts = [prompt for prompt in prompts if prompt]
    # Spread over the text, since neighbouring documents may be about one thing.
    if len(prompts) > _PROMPTS:
        prompts = [prompts[n * len(prompts) // _PROMPTS] for n in range(_PROMPTS)]
    dense, planned = Engine(loaded.model), Engine(loaded.model, plan)
    room = dense.anatomy.context_length
    new = _NEW if room is None else min(_NEW, room - max(map(len, prompts), default=0))
    if not prompts or new < 1:
        return None
    return diverge(dense, planned, prompts, new, progress=run.progress)


def show(run: Run, found: Leaves) -> None:
    """Print where tokens leave, on tasks, along text and in free running."""
    if found.depths:
        run.console.print(_tasks(found))
    rows = list(_rows(found))
    if rows:
        made = output.table("Early exits", "", ">value")
        for name, value in rows:
            made.add_row(name, value)
        run.console.print(made)


def _tasks(found: Leaves) -> Any:
    columns = ["task", ">exits", ">layers left out"]
    if found.once is not None:
        columns += [">left out, one decision an input", ">metric then", ">difference"]
    made = output.table("Where scored tokens leave", *columns)
    for name, depths in found.depths.items():
        row = [name, numbers.share(depths.exits), numbers.share(depths.left_out)]
        if found.once is not None:
            one = found.once.comparisons[name]
            share = one.kind == "mean" and 0 <= one.dense <= 1 and 0 <= one.planned <= 1
            value = numbers.share if share else numbers.significant
            step = numbers.points if share else numbers.plus
            row.append(numbers.share(found.once.depths[name].left_out))
            row += [value(one.planned), step(one.difference)]
        made.add_row(*row)
    return made


def _rows(found: Leaves) -> list[tuple[str, str]]:
    rows = []
    if (text := found.text) is not None:
        rows += [
            ("text: tokens that leave early", numbers.share(text.exits)),
            ("text: layers left out", numbers.share(text.left_out)),
            ("text: tokens that are the full model's", numbers.share(text.agreement)),
        ]
    if (free := found.free) is not None:
        answers = f"{numbers.count(free.prompts)} answers of {free.new} tokens"
        rows += [
            (f"{answers}: written before the first difference", numbers.share(free.until_first)),
            ("without any difference", numbers.share(free.same)),
            ("same token at the same place", numbers.share(free.agreement)),
            ("layers left out", numbers.share(free.left_out)),
        ]
    return rows
