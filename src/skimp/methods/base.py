"""What every method gives: its section of the plan, its surgery and its cost."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import BaseModel
from torch import Tensor

from skimp.calibration.replay import Replay
from skimp.models.anatomy import Anatomy
from skimp.models.surgery import Surgery
from skimp.progress import Progress


@dataclass(frozen=True)
class Applying:
    """What a method needs to change a model: everything reversible goes through `surgery`.

    `model` is a transformers causal language model, typed loosely since its attributes are dynamic.
    """

    model: Any
    anatomy: Anatomy
    values: Mapping[str, Tensor]
    surgery: Surgery


class Method(Protocol):
    """One way of leaving something out. `name` is its section's key in the plan.

    A method joins by standing in a folder of :mod:`skimp.methods` that exports `METHOD`, or by the
    entry point group `skimp.methods`.

    A method with an attribute `on_planned` that is true is fitted on the model as the plan's other
    sections leave it; `fit` is still given the dense model's anatomy.
    """

    name: str
    schema: type[BaseModel]

    def read(self, data: Mapping[str, Any]) -> Any:
        """Turn plain data into the method's frozen settings; PlanError names a bad field."""
        ...

    def check(self, section: Any, anatomy: Anatomy) -> None:
        """Raise PlanError unless the section fits the model."""
        ...

    def needs_values(self, section: Any) -> bool:
        """Whether the section must be fitted on calibration text before it can be applied."""
        ...

    def tokens(self, section: Any) -> int | None:
        """About how many tokens of calibration text the fit reads; None: all of it."""
        ...

    def fit(
        self, section: Any, anatomy: Anatomy, replay: Replay, progress: Progress
    ) -> dict[str, Tensor]:
        """Fit those values on the dense model, replayed over calibration text."""
        ...

    def apply(self, section: Any, work: Applying) -> None:
        """Change the model in place."""
        ...

    def reduce(self, section: Any, anatomy: Anatomy) -> Anatomy:
        """The anatomy that `apply` leaves, worked out without a model."""
        ...
