"""What a decode step costs: its bytes, or the seconds that this machine was found to take."""

from dataclasses import dataclass
from typing import Protocol

from skimp.measure import cost
from skimp.models.anatomy import Anatomy
from skimp.workload import Workload


class Prices(Protocol):
    """A way to tell the cost of a mean decode step."""

    @property
    def unit(self) -> str:
        """ "bytes" or "s"."""
        ...

    def step(self, anatomy: Anatomy, workload: Workload) -> float:
        """The cost of a mean decode step of a model, dense or planned."""
        ...


@dataclass(frozen=True)
class Bytes:
    """Bytes read: the byte bound, on no machine in particular."""

    unit: str = "bytes"

    def step(self, anatomy: Anatomy, workload: Workload) -> float:
        return cost.decode_cost(anatomy, workload).bytes
