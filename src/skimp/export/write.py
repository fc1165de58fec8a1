"""Write a planned model for an engine, or say why not and what the nearest plan is."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from skimp.errors import ExportError
from skimp.export import card
from skimp.export.target import Obstacle, Product, Target, dynamic
from skimp.models.quiet import quiet
from skimp.plan import PLAN_FILE, Plan
from skimp.progress import SILENT, Progress
from skimp.whole import whole_folder

# Engines take every safetensors file beside a config for weights, the plan's values too.
PLAN_FOLDER = "plan"


@dataclass(frozen=True)
class Written:
    """A model on disk: `path` is what its engine loads, in `folder` (or that itself)."""

    target: str
    form: str
    folder: Path
    path: Path
    bytes: int


class Refused(ExportError):
    """The target cannot hold the model.

    `nearest` is a plan that it can hold as far as the obstacles know, or None; where its fills are
    yet to be fitted, `unfitted` says so.
    """

    def __init__(self, product: Product, target: Target, obstacles: Sequence[Obstacle]) -> None:
        self.obstacles = tuple(obstacles)
        self.nearest = nearest(product.plan, obstacles)
        hint = " --nearest FILE writes the nearest plan that it can hold." if self.nearest else ""
        reasons = " ".join(str(each) for each in obstacles)
        self.reasons = f"--to {target.name}: it cannot hold this model. {reasons}"
        super().__init__(self.reasons + hint)

    @property
    def unfitted(self) -> bool:
        from skimp.methods.registry import methods, sections

        if self.nearest is None:
            return False
        return any(
            methods()[name].needs_values(section)
            and not any(key.startswith(f"{name}.") for key in self.nearest.values)
            for name, section in sections(self.nearest).items()
        )


def obstacles(product: Product, target: Target, form: str) -> list[Obstacle]:
    """Everything that stands in the way; nothing if the model can be written.

    Raises:
        ExportError: the target has no such number format.
    """
    if form not in target.formats:
        raise ExportError(
            f"--format: {target.name} has no {form!r}; known are {', '.join(target.formats)}."
        )
    # What no file can hold hides nothing of the target's own obstacles: name all of them at once.
    return [*dynamic(product), *target.obstacles(product, form)]


def nearest(plan: Plan, found: Sequence[Obstacle]) -> Plan | None:
    """The plan with the changes that the obstacles ask for; None if one of them knows none.

    Fitted values of the sections that change are forgotten.
    """
    # What stands in the command line's way (a format, an interpreter) is none of the plan's.
    found = [each for each in found if not each.field.startswith("--")]
    if not found or not all(each.nearest for each in found):
        return None
    for each in found:
        for name, changes in each.nearest.items():
            if changes:
                plan = plan.with_section(name, {**plan.sections.get(name, {}), **changes})
            else:
                emptied = plan.with_section(name, {})
                kept = {key: value for key, value in emptied.sections.items() if key != name}
                plan = replace(emptied, sections=kept)
    # What was measured was measured on another plan.
    return replace(plan, evidence={})


def export(
    product: Product,
    target: Target,
    form: str,
    out: str | Path,
    *,
    force: bool = False,
    progress: Progress = SILENT,
) -> Written:
    """Write the model to the folder `out`, which appears whole or not at all.

    Beside what the target writes the folder holds the plan and a model card.

    Args:
        form: one of the target's formats.
        force: what stands in `out` may go, once the new model is whole.

    Raises:
        Refused: the target cannot hold the model; every obstacle is named.
        ExportError: the target has no such format.
        SkimpError: `out` cannot be written, or is not empty.
    """
    found = obstacles(product, target, form)
    if found:
        raise Refused(product, target, found)
    out = Path(out)
    with (
        progress.task(f"writing for {target.engines[0]}", None) as step,
        whole_folder(out, replace=force) as fresh,
        quiet(),
    ):
        path = target.write(product, form, fresh)
        inside = path.relative_to(fresh)
        if not (fresh / PLAN_FILE).is_file():
            product.plan.write(fresh / PLAN_FOLDER / PLAN_FILE)
        (fresh / card.CARD).write_text(card.render(product, target, form), encoding="utf-8")
        step()
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return Written(target.name, form, out, out / inside, size)
