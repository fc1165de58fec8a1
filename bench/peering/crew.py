"""Getting engines ready: start their processes, give them the model, see that they agree."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from bench.peering.process import Absent, Out, Peer
from bench.peering.roster import Entry

from skimp.errors import SkimpError

PLACES = 16
"""Tokens that every engine must choose behind the same prompt."""


@dataclass(frozen=True)
class Member:
    """An engine whose process runs, and what its libraries call their versions."""

    entry: Entry
    peer: Peer
    versions: dict[str, str]


class Crew:
    """The engines that take part, in order, and why the others do not. Leaving it ends them all.

    The first engine is what the others are compared with: without it, whatever needs it raises
    SkimpError with the reason.
    """

    def __init__(self, folder: Path, threads: int, note: Callable[[str], None]) -> None:
        self.members: list[Member] = []
        self.missing: dict[str, str] = {}
        self._first: str | None = None
        self._folder, self._threads, self._note = folder, threads, note

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for member in self.members:
            member.peer.close()

    def hire(self, entries: Sequence[Entry]) -> None:
        """Start a process for every engine that is installed."""
        self._first = entries[0].name
        for number, entry in enumerate(entries):
            log = self._folder / f"{number}.log"
            try:
                peer = Peer(entry.name, entry.kind.module, entry.python, self._threads, log)
            except Absent as error:
                self.lose(entry.name, _install(entry, error))
            else:
                self.members.append(Member(entry, peer, {}))
        self._each(lambda member: replace(member, versions=member.peer.ask("import")["versions"]))

    def fit(self, resolve: Callable[[Entry], Entry]) -> None:
        """Let `resolve` settle each engine's argument against the model."""
        self.members = [replace(each, entry=resolve(each.entry)) for each in self.members]

    def load(self, export: Callable[[str], Path], **options: Any) -> None:
        """Export what the engines read and have each load the model, one after the other."""

        def one(member: Member) -> Member:
            form = member.entry.kind.export
            answer = member.peer.ask(
                "load",
                options={
                    **options,
                    "threads": self._threads,
                    "argument": member.entry.argument or member.entry.kind.option,
                    "file": str(export(form)) if form else "",
                },
            )
            return replace(member, versions=member.versions | answer["about"])

        self._each(one)

    def agreement(self, prompt: list[int]) -> dict[str, int]:
        """Of PLACES greedy tokens behind `prompt`, how many are the first engine's.

        Each place is judged with the first engine's tokens before it. Doubles as a warm-up.
        """
        forced: list[int] = []
        found: dict[str, int] = {}

        def one(member: Member) -> Member:
            answer = member.peer.ask("agree", prompt=prompt, forced=forced, count=PLACES)
            chosen = answer["chosen"]
            forced[:] = forced or chosen
            found[member.entry.name] = sum(a == b for a, b in zip(chosen, forced, strict=True))
            return member

        self._each(one)
        return found

    def lose(self, name: str, reason: str) -> None:
        """Note that an engine takes no part, and end its process if it has one.

        Raises:
            SkimpError: it is the first, which the others are compared with.
        """
        for member in self.members:
            if member.entry.name == name:
                member.peer.close()
        self.members = [member for member in self.members if member.entry.name != name]
        self.missing[name] = reason
        if name == self._first:
            raise SkimpError(f"{name}, which the others are compared with, is out: {reason}.")
        self._note(f"{name} is left out: {reason}.")

    def _each(self, work: Callable[[Member], Member]) -> None:
        """Replace every member by what `work` makes of it; those it fails for are lost."""
        for member in list(self.members):
            entry = member.entry
            try:
                done = work(member)
            except Absent as error:
                self.lose(entry.name, _install(entry, error))
            except (Out, SkimpError) as error:
                self.lose(entry.name, str(error).rstrip("."))
            else:
                self.members[self.members.index(member)] = done


def _install(entry: Entry, error: Absent) -> str:
    return f"{error}; {entry.kind.install}"
