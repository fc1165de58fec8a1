"""What every method gives: its section of the plan, its surgery and its cost."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import BaseModel
from torch import Tensor

from skimp.calibration.replay import Replay
from skimp.methods.in_order import Place, Task
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

    One with values to fit is also a :class:`Fitted`, or a :class:`FittedInOrder` for sections of
    which it says so, or either by section.
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

    def apply(self, section: Any, work: Applying) -> None:
        """Change the model in place."""
        ...

    def reduce(self, section: Any, anatomy: Anatomy) -> Anatomy:
        """The anatomy that `apply` leaves, worked out without a model."""
        ...


class Fitted(Method, Protocol):
    """A method that is fitted by itself."""

    def fit(
        self, section: Any, anatomy: Anatomy, replay: Replay, progress: Progress
    ) -> dict[str, Tensor]:
        """Fit those values on the dense model, replayed over calibration text."""
        ...


class FittedInOrder(Method, Protocol):
    """A method fitted sublayer by sublayer, in one walk with all others that are.

    See :mod:`skimp.methods.in_order`.
    """

    def in_order(self, section: Any) -> bool:
        """Whether this section is fitted that way."""
        ...

    def tasks(
        self, section: Any, anatomy: Anatomy, replay: Replay, progress: Progress
    ) -> dict[Place, Task]:
        """What is to be done at which sublayers, of the dense model replayed."""
        ...

    def values(self, section: Any, fitted: Mapping[Place, dict[str, Tensor]]) -> dict[str, Tensor]:
        """The plan's values, of what the tasks fitted; some may have given way to others."""
        ...
