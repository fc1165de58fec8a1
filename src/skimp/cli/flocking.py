"""What `skimp eval` says of experts beside their quality: do a prompt's neurons flock?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from skimp.cli.common import Run

if TYPE_CHECKING:
    from torch import Tensor

    from skimp.models.load import Loaded
    from skimp.plan import Plan

_PROMPTS = 8
_LONGEST = 512  # tokens


def flocking_of(
    run: Run, loaded: Loaded, plan: Plan | None, documents: Sequence[Tensor]
) -> dict[str, Any]:
    """`{"flocking": …}` for a plan with experts, with a few of the documents as prompts.

    Empty for any other plan, without a document to read, and where all neurons are kept.
    """
    from skimp.methods.experts.section import by_prompt

    prompts = [document[:_LONGEST].tolist() for document in documents if len(document) > 1]
    section = by_prompt(plan)
    if plan is None or section is None or not prompts:
        return {}
    from skimp.measure.flocking import flocking
    from skimp.methods.apply import apply

    # Spread over the text, since neighbouring documents may be about one thing.
    some = [prompts[n * len(prompts) // _PROMPTS] for n in range(_PROMPTS)]
    some = some if len(prompts) > _PROMPTS else prompts
    others = {name: section for name, section in plan.sections.items() if name != "experts"}
    with apply(loaded.model, replace(plan, sections=others)):
        found = flocking(
            loaded.model,
            section,
            some,
            values=plan.values,
            progress=run.progress,
        )
    return {"flocking": found.to_dict()} if found else {}
