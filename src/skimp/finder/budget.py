"""What may be lost and what must be won: `loss<=1%`, `speedup>=1.4x`, `accuracy(piqa)>=-1`.

Loss is how much perplexity may rise on text that nothing was chosen on; `kl` is the distance from
the dense model there, in nats per token. `speedup` is that of a mean decode step, `bytes` the same
if time went with the bytes read. `memory` is what the model and a run of the workload need, `kv`
the cache of the full workload; both in bytes, KiB, MiB or GiB. `accuracy(TASK,...)` is the change
of the mean accuracy on these tasks, in points; what may be lost is below 0.
"""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, isfinite, log
from typing import Literal

from skimp.errors import SkimpError

Name = Literal["loss", "kl", "accuracy", "speedup", "bytes", "memory", "kv"]
_QUALITY: tuple[Name, ...] = ("loss", "kl", "accuracy")
_COST: tuple[Name, ...] = ("speedup", "bytes")
_ROOM: tuple[Name, ...] = ("memory", "kv")
NAMES: tuple[Name, ...] = (*_QUALITY, *_COST, *_ROOM)
_APART = re.compile(r",(?![^()]*\))")  # commas outside of parentheses
_SHAPE = re.compile(
    r"\s*([a-z_]+)\s*(?:\(([^()]*)\)\s*)?(<=|>=|<|>|=)\s*([0-9.eE+-]+)\s*([%xA-Za-z]*)\s*"
)
_SIZES = {"": 1, "b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "kb": 1e3, "mb": 1e6, "gb": 1e9}
_EXAMPLE = (
    "for example loss<=1%, kl<=0.05, accuracy(piqa,arc_easy)>=-1, speedup>=1.4x, bytes>=1.3x, "
    "memory<=6GiB or kv<=500MiB"
)


@dataclass(frozen=True)
class Limit:
    """One condition. `value` is in nats per token, times, bytes, or a share of items; `text` as
    given; `tasks` those that accuracy is about."""

    name: Name
    value: float
    text: str
    tasks: tuple[str, ...] = ()

    @property
    def about_quality(self) -> bool:
        return self.name in _QUALITY

    @property
    def about_speed(self) -> bool:
        return self.name in _COST

    def holds(self, value: float) -> bool:
        """Whether a plan of this value keeps it."""
        least = self.about_speed or self.name == "accuracy"
        return value >= self.value if least else value <= self.value

    def shown(self, value: float) -> str:
        """A value as the limit is written."""
        if self.name == "loss":
            return f"{(exp(value) - 1) * 100:.2g}%"
        if self.name == "kl":
            return f"{value:.3g}"
        if self.name == "accuracy":
            return f"{100 * value:+.2g} points"
        return f"{value:.3g}x" if self.about_speed else f"{value / 2**30:.3g}GiB"


@dataclass(frozen=True)
class Budget:
    """Conditions that a plan must keep, at most one a name."""

    limits: tuple[Limit, ...]

    @classmethod
    def parse(cls, texts: Sequence[str]) -> "Budget":
        """Read conditions, each `NAME<=VALUE` or `NAME>=VALUE`; several may stand behind commas.

        Raises:
            SkimpError: one that cannot be read, is given twice, or asks for nothing.
        """
        limits = [_limit(part) for text in texts for part in _APART.split(text)]
        for limit in limits:
            if sum(other.name == limit.name for other in limits) > 1:
                raise SkimpError(f"--budget: {limit.name} is given twice; leave one out.")
        return cls(tuple(limits))

    def __str__(self) -> str:
        return ", ".join(limit.text for limit in self.limits)

    def get(self, name: Name) -> Limit | None:
        return next((limit for limit in self.limits if limit.name == name), None)

    @property
    def quality(self) -> list[Limit]:
        """Limits on loss and KL, which are judged on text."""
        return [each for each in self.limits if each.about_quality and each.name != "accuracy"]

    @property
    def accuracy(self) -> Limit | None:
        return self.get("accuracy")

    @property
    def cost(self) -> list[Limit]:
        return [limit for limit in self.limits if not limit.about_quality]


def _limit(text: str) -> Limit:
    match = _SHAPE.fullmatch(text)
    if match is None:
        raise SkimpError(f"--budget: {text.strip()!r} cannot be read; write {_EXAMPLE}.")
    name, inside, sign, number, unit = match.groups()
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(NAMES)}."
        raise SkimpError(f"--budget: there is no {name!r}; {hint}")
    tasks = _tasks(name, inside, text.strip())
    wanted = ">=" if name in (*_COST, "accuracy") else "<="
    if sign != wanted:
        name = text[: text.index(sign)].strip()
        raise SkimpError(f"--budget: {text.strip()!r} should read {name}{wanted}{number}{unit}.")
    try:
        value = float(number)
    except ValueError:
        value = float("nan")
    if not isfinite(value):
        raise SkimpError(f"--budget: {number!r} in {text.strip()!r} is no number.")
    return Limit(name, _value(name, value, unit, text.strip()), text.strip(), tasks)


def _tasks(name: Name, inside: str | None, text: str) -> tuple[str, ...]:
    """What stands in parentheses: the tasks of an accuracy, and nothing elsewhere."""
    found = tuple(dict.fromkeys(each.strip() for each in (inside or "").split(",")))
    if name != "accuracy":
        if inside is None:
            return ()
        raise SkimpError(f"--budget: {text!r}: only accuracy is of tasks; write {_EXAMPLE}.")
    if not all(found):
        raise SkimpError(f"--budget: {text!r} names no task; write accuracy(piqa,arc_easy)>=-1.")
    return found


def _value(name: Name, value: float, unit: str, text: str) -> float:
    problem = SkimpError(f"--budget: {text!r} cannot be kept by any plan; write {_EXAMPLE}.")
    unknown = SkimpError(f"--budget: {unit!r} in {text!r} is no unit of {name}; write {_EXAMPLE}.")
    if name == "loss":
        if unit not in ("%", ""):
            raise unknown
        if not unit and value >= 1:
            raise SkimpError(
                f"--budget: {text!r} would allow {value * 100:g}% more; write loss<={value:g}% if "
                "that is what is meant."
            )
        share = value / 100 if unit else value
        if share <= 0:
            raise problem
        return log(1 + share)
    if name in _ROOM:
        if unit.lower() not in _SIZES:
            raise unknown
        if value <= 0:
            raise problem
        return value * _SIZES[unit.lower()]
    if unit not in ("", "x" if name in _COST else ""):
        raise unknown
    if name == "accuracy":
        if not -100 < value < 0:
            raise SkimpError(
                f"--budget: {text!r} should allow some points to be lost, or nothing can be shown; "
                "write accuracy(piqa)>=-1 for one point."
            )
        return value / 100
    if value <= 0:
        raise problem
    return value
