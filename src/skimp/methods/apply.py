"""Put a plan on a model, in place, and take it off again."""

from types import TracebackType
from typing import Any, Self

from torch import nn

from skimp.errors import PlanError
from skimp.methods.base import Applying
from skimp.methods.registry import check, methods
from skimp.models.anatomy import Anatomy
from skimp.models.surgery import Surgery
from skimp.plan import Plan


class Applied:
    """A plan that stands on a model. `undo` (or leaving the `with` block) restores it exactly.

    What was left out is held by this object alone: let go of it and the memory is free, but then
    the plan cannot be taken off any more.
    """

    def __init__(self, model: nn.Module, plan: Plan, surgery: Surgery) -> None:
        self.model = model
        self.plan = plan
        self._surgery = surgery

    def undo(self) -> None:
        """Restore the dense model; a second call does nothing."""
        self._surgery.undo()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.undo()


def apply(model: nn.Module, plan: Plan, *, anatomy: Anatomy | None = None) -> Applied:
    """Leave out of `model` what `plan` says, in place.

    Args:
        model: a dense transformers causal language model.
        plan: fitted (see :func:`skimp.fit`) if its fills need values.
        anatomy: the dense model's anatomy, if it is at hand.

    Raises:
        PlanError: the plan was made for another model, does not fit it, or lacks fitted values, or
            the model already carries a plan. The model is then as it was.
    """
    config: Any = model.config
    if getattr(config, "skimp", None) is not None:
        raise PlanError("model: it already carries a plan; take that one off with `undo` first.")
    anatomy = anatomy or Anatomy.of(model)
    found = check(plan, anatomy)
    surgery = Surgery()
    work = Applying(model, anatomy, plan.values, surgery)
    try:
        for name, section in found.items():
            methods()[name].apply(section, work)
    except BaseException:
        surgery.undo()
        raise
    return Applied(model, plan, surgery)
