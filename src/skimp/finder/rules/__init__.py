"""Rules that choose what to drop: one small registered function a file.

A rule takes a :class:`Problem` and returns a :class:`Ruling`. It joins by standing in this folder
with the decorator `rule`.
"""

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType

from torch import Tensor

from skimp.calibration.replay import Replay
from skimp.errors import SkimpError
from skimp.finder.harm import Harm
from skimp.finder.trials import Part, part_of
from skimp.methods.drop.fit import Place
from skimp.progress import SILENT, Progress


@dataclass(frozen=True)
class Material:
    """What is known from calibration text: the dense model on it, harm, and fills fitted alone."""

    replay: Replay
    harm: Harm
    fills: Mapping[Place, Mapping[str, Tensor]]


@dataclass(frozen=True)
class Problem:
    """How many parts of each name ("attention", "ffn", "layer") to leave out of how many layers.

    The last `keep_last` layers stay. `material` is None for rules that read no text.
    """

    layers: int
    counts: Mapping[str, int]
    keep_last: int = 0
    material: Material | None = None
    progress: Progress = field(default=SILENT, repr=False)

    @property
    def text(self) -> Material:
        """The calibration material; a rule that asks for it must be registered as reading text."""
        if self.material is None:
            raise SkimpError("rule: it needs calibration text, but none was given.")
        return self.material

    def candidates(self, name: str) -> list[Part]:
        """Parts of one name that may be left out, in running order."""
        return [part_of(name, layer) for layer in range(self.layers - self.keep_last)]

    @property
    def wanted(self) -> list[str]:
        """The names of which any are to be left out."""
        return [name for name, count in self.counts.items() if count]


@dataclass(frozen=True)
class Ruling:
    """The parts chosen, the importance of every candidate, and the order of the choice.

    Importance is what is lost without a part, in the rule's own unit; `path` holds each chosen
    part and, if the rule measured it, the harm after it was left out.
    """

    chosen: tuple[Part, ...]
    importance: Mapping[Part, float] = field(default_factory=dict)
    path: tuple[tuple[Part, float | None], ...] = ()


Choose = Callable[[Problem], Ruling]


@dataclass(frozen=True)
class Rule:
    """A registered rule.

    `reads_text` says whether it needs calibration; of every `keeps_one_in` layers, one at the end
    is left alone unless the caller says how many (0: none is).
    """

    name: str
    choose: Choose
    reads_text: bool
    keeps_one_in: int = 0

    def keep_last(self, layers: int) -> int:
        """Layers at the end that the rule leaves alone by default."""
        return layers // self.keeps_one_in if self.keeps_one_in else 0

    @property
    def summary(self) -> str:
        """First line of the rule's docstring."""
        return (self.choose.__doc__ or "").strip().splitlines()[0]


def rule(
    name: str, *, reads_text: bool = True, keeps_one_in: int = 0
) -> Callable[[Choose], Choose]:
    """Register a function of this folder under `name`; see :class:`Rule`."""

    def register(function: Choose) -> Choose:
        function.__dict__["rule"] = Rule(name, function, reads_text, keeps_one_in)
        return function

    return register


@cache
def rules() -> Mapping[str, Rule]:
    """Every rule by name."""
    found: dict[str, Rule] = {}
    for module in pkgutil.iter_modules(__path__):
        names = vars(importlib.import_module(f"{__name__}.{module.name}"))
        for each in names.values():
            if "rule" in getattr(each, "__dict__", {}) and isinstance(each.rule, Rule):
                found[each.rule.name] = each.rule
    return MappingProxyType(found)


def lowest(problem: Problem, importance: Mapping[Part, float]) -> Ruling:
    """Leave out the parts of least importance, each name's share on its own."""
    ranked = sorted(importance, key=lambda part: (importance[part], part))
    chosen: list[Part] = []
    for name in problem.wanted:
        own = [part for part in ranked if part.name == name]
        chosen += own[: problem.counts[name]]
    return Ruling(tuple(chosen), importance, tuple((part, None) for part in chosen))
