"""Who runs when: all engines in turns, one at a time, in alternating order.

In each round every engine serves one request on the same prompt. A turn is its prefill and a few
decode steps, later turns of the round a few steps more; between its turns an engine keeps its cache
and sleeps. So whatever slows the machine down slows all of them, and each turn has a partner in
every other engine that ran within seconds of it.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from bench.peering.process import Out

from skimp.workload import Workload

SETTLE = 0.02  # s between turns, so that the last engine's threads are asleep
_WARM_STEPS = 2


class Runs(Protocol):
    """What the schedule needs of an engine."""

    name: str

    def ask(self, order: str, **fields: Any) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Timing:
    """What every round does. `start`: tokens in the cache at the first timed decode step; `turns`:
    decode steps of each turn."""

    workload: Workload
    start: int
    rounds: int
    turns: tuple[int, ...]

    @classmethod
    def plan(cls, workload: Workload, rounds: int, steps: int, turn: int) -> "Timing":
        """At most `steps` decode steps, those in the middle of the answer, `turn` at a time."""
        steps = min(steps, workload.new)
        whole, rest = divmod(steps, turn)
        return cls(
            workload=workload,
            start=workload.prompt + (workload.new - steps) // 2,
            rounds=rounds,
            turns=(turn,) * whole + ((rest,) if rest else ()),
        )

    @property
    def window(self) -> Workload:
        """The workload whose decode steps are exactly those timed."""
        return Workload(self.start, sum(self.turns), self.workload.batch)


@dataclass
class Record:
    """What one engine's turns took. Times in s; `steps` holds one list a turn.

    `idle` is the time it waited while others ran, `idle_cpu` the CPU time it used meanwhile, `cpu`
    all CPU time it used from its warm-up on.
    """

    prefills: list[float] = field(default_factory=list)
    steps: list[list[float]] = field(default_factory=list)
    idle: float = 0.0
    idle_cpu: float = 0.0
    cpu: float = 0.0


@dataclass(frozen=True)
class Slot:
    """One turn of one engine."""

    round: int
    turn: int
    engine: str


def slots(engines: Sequence[str], timing: Timing) -> Iterator[Slot]:
    """Every turn in running order; the order of the engines is reversed from turn to turn."""
    for round_ in range(timing.rounds):
        for turn in range(len(timing.turns)):
            direction = -1 if (round_ + turn) % 2 else 1
            for engine in engines[::direction]:
                yield Slot(round_, turn, engine)


def run(
    peers: Sequence[Runs],
    timing: Timing,
    prompt: Callable[[], list[int]],
    *,
    fell_out: Callable[[str, str], None],
    step: Callable[[], None] = lambda: None,
    settle: float = SETTLE,
) -> dict[str, Record]:
    """Time every engine; returns the records of those that lasted, in the order given.

    Args:
        peers: loaded engines; the first is what the others are compared with.
        timing: what to do.
        prompt: draws a round's tokens, [timing.start].
        fell_out: told the name and the reason of an engine that failed; its turns are skipped from
            then on and its record is thrown away.
        step: called after each turn.
        settle: pause before each turn, in s.

    Raises:
        Out: the first engine failed, so there is nothing to compare with.
    """
    racing = {peer.name: peer for peer in peers}
    first = peers[0].name
    base = dict.fromkeys(racing, 0.0)
    records = {name: Record() for name in racing}

    def leave(name: str, error: Out) -> None:
        if name == first:
            raise Out(f"{name}, which the others are compared with: {error}")
        del racing[name], records[name]
        fell_out(name, str(error))

    tokens = prompt()
    for name, peer in list(racing.items()):
        try:
            base[name] = _warm_up(peer, timing, tokens)
        except Out as error:
            leave(name, error)
    seen = -1
    for slot in slots([peer.name for peer in peers], timing):
        if slot.round != seen:
            seen, tokens = slot.round, prompt()
        peer = racing.get(slot.engine)
        if peer is not None:
            time.sleep(settle)
            try:
                _turn(peer, timing, slot.turn, tokens, records[slot.engine], base[slot.engine])
            except Out as error:
                leave(slot.engine, error)
        step()
    return records


def _warm_up(peer: Runs, timing: Timing, tokens: list[int]) -> float:
    """A request like those timed, for what an engine does only once; its CPU seconds so far."""
    steps = min(_WARM_STEPS, sum(timing.turns))
    order = {"prompt": tokens[: timing.workload.prompt], "behind": tokens, "steps": steps}
    return float(peer.ask("turn", **order)["cpu_s"])


def _turn(
    peer: Runs, timing: Timing, turn: int, tokens: list[int], record: Record, base: float
) -> None:
    prompt = tokens[: timing.workload.prompt]
    starts = turn == 0
    later = timing.start > timing.workload.prompt
    answer = peer.ask(
        "turn",
        prompt=prompt if starts else None,
        behind=tokens if starts and later else None,
        steps=timing.turns[turn],
    )
    if starts:
        record.prefills.append(answer["prefill_s"])
    record.steps.append(answer["steps_s"])
    record.idle += answer["idle_s"]
    record.idle_cpu += answer["idle_cpu_s"]
    record.cpu = answer["cpu_s"] - base
