"""What an engine gives to its worker, and what it is told. Standard library only."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Options:
    """What to load.

    `source`: the model as skimp names it. `threads`: compute threads. `length`: most tokens that a
    request ever has. `argument`: what stood behind the engine's name, e.g. a plan file. `file`: the
    exported model, for engines that read one.
    """

    source: str
    threads: int
    length: int
    seed: int = 0
    argument: str = ""
    file: str = ""


class Engine(Protocol):
    """One model in one engine, serving one request at a time, greedily, at batch 1.

    An attribute `about`, if there is one, joins the versions in the result file.
    """

    def prefill(self, ids: list[int]) -> int:
        """Forget the last request, read `ids` and return the likeliest next token."""
        ...

    def decode(self, token: int) -> int:
        """Append `token` to the request and return the likeliest next one."""
        ...
