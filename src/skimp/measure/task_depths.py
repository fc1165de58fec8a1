"""How deep the scored tokens of a task had to go, item by item."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from skimp.errors import EvaluationError


@dataclass(frozen=True)
class TaskDepths:
    """`counts[d]` scored tokens of a task were decided after d of the `layers` layers; `items` are
    the shares of layers left out, each the mean over an item's scored tokens."""

    layers: int
    counts: tuple[int, ...]
    items: tuple[float, ...]

    @classmethod
    def of(cls, layers: int, items: Sequence[Sequence[int]]) -> Self:
        """From the depths of each item's scored tokens; none may be without any."""
        counts = [0] * (layers + 1)
        for depth in (depth for item in items for depth in item):
            counts[depth] += 1
        shares = (1 - sum(item) / len(item) / layers for item in items)
        return cls(layers, tuple(counts), tuple(shares))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """KeyError, TypeError or ValueError unless `data` are its fields."""
        counts = tuple(int(count) for count in data["counts"])
        found = cls(int(data["layers"]), counts, tuple(float(share) for share in data["items"]))
        if len(counts) != found.layers + 1:
            raise ValueError("counts are not one for each depth")
        return found

    @property
    def tokens(self) -> int:
        return sum(self.counts)

    @property
    def left_out(self) -> float:
        """The share of layers left out, mean over items."""
        return sum(self.items) / len(self.items)

    @property
    def exits(self) -> float:
        """The share of scored tokens that leave before the last layer."""
        return sum(self.counts[: self.layers]) / self.tokens

    def to_dict(self) -> dict[str, Any]:
        """For JSON: `depths` are shares of tokens by depth, without those of none."""
        return {
            "left_out": self.left_out,
            "exits": self.exits,
            "tokens": self.tokens,
            "depths": shares(self.counts),
        }


def shares(counts: Sequence[int]) -> dict[str, float]:
    """Shares by depth as JSON has them, those of depths that nothing has left out."""
    total = sum(counts)
    return {str(depth): count / total for depth, count in enumerate(counts) if count}


def of_task(task: Any, left: Mapping[int, Sequence[int]], layers: int) -> TaskDepths:
    """Of an answered task of the harness; `left` are depths by the id of a request."""
    items: dict[int, list[int]] = defaultdict(list)
    for instance in task.instances:
        items[instance.doc_id].extend(left[id(instance)])
    return TaskDepths.of(layers, [items[number] for number in sorted(items)])


def refuse_generated(tasks: Mapping[str, Any]) -> None:
    """Raise EvaluationError for a task whose answers are written freely: transformers writes them,
    and knows no early exit."""
    for name, task in tasks.items():
        if task.OUTPUT_TYPE == "generate_until":
            raise EvaluationError(
                f"task {name}: with early exits tasks are scored along given texts, which has no "
                "part in generate_until; leave the task out."
            )
