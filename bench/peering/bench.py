"""One run: engines are got ready, agree on the model, take turns, and their figures are written."""

import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from bench.peering import roster, schedule, show
from bench.peering.crew import PLACES, Crew
from bench.peering.figures import Figures, figures
from bench.peering.strangers import Strangers
from bench.peering.subject import Model, Subject, require_room, resolve, step_bytes
from rich.markup import escape

import skimp
from skimp.measure.machine import Machine, identity, profile
from skimp.measure.memory import check_workload
from skimp.models.anatomy import Anatomy
from skimp.progress import RichProgress


class Bench:
    """One run, from the names of the engines to the document."""

    def __init__(
        self,
        source: str,
        entries: list[roster.Entry],
        timing: schedule.Timing,
        threads: int,
        seed: int,
        folder: Path,
    ) -> None:
        self._source, self._entries, self._timing = source, entries, timing
        self._threads, self._seed, self._folder = threads, seed, folder
        self._progress = RichProgress()
        self._anatomies: dict[str, Anatomy] = {}

    def run(self) -> dict[str, Any]:
        """Get the engines ready, time them, and return the document.

        Raises:
            SkimpError, Out: bad arguments, or the first engine failed.
        """
        torch.set_num_threads(self._threads)
        with Crew(self._folder, self._threads, self._note) as crew:
            crew.hire(self._entries)
            subject = self._load(crew)
            agrees = crew.agreement(subject.prompt)
            machine = profile("cpu", torch.bfloat16, self._threads)
            strangers = Strangers()
            records = self._time(crew, subject.anatomy.vocabulary)
            others = strangers.cores(sum(record.cpu for record in records.values()))
            found = self._figures(records, machine)
            if max(each.roofline_share for each in found.values()) > 1:
                # Faster than the yardstick: it was taken while the machine was busy.
                machine = profile("cpu", torch.bfloat16, self._threads, fresh=True)
                found = self._figures(records, machine)
            return {
                **self._header(subject),
                "engines": {
                    member.entry.name: {
                        **asdict(found[member.entry.name]),
                        "agrees": agrees[member.entry.name],
                        "exact": member.entry.kind.exact,
                        "versions": member.versions,
                        "turns": asdict(records[member.entry.name]),
                    }
                    for member in crew.members
                },
                "missing": crew.missing,
                "strangers_cores": others,
                "measured": machine.as_dict(),
            }

    def _note(self, text: str) -> None:
        self._progress.note(escape(text))  # what pip calls extras, rich takes for styles

    def _load(self, crew: Crew) -> Subject:
        """Load the model into every engine; it is let go of here before anything is timed."""
        model = Model(self._source, self._seed, self._progress)
        subject, work = model.subject, self._timing.workload
        check_workload(subject.anatomy, work, torch.device("cpu"))
        crew.fit(lambda entry: self._fit(entry, subject))
        require_room([member.entry for member in crew.members], self._anatomies)
        length = max(work.prompt + work.new, len(subject.prompt) + PLACES)
        crew.load(
            lambda form: model.export(form, self._folder),
            source=self._source,
            seed=self._seed,
            length=length,
        )
        return subject

    def _fit(self, entry: roster.Entry, subject: Subject) -> roster.Entry:
        entry, self._anatomies[entry.name] = resolve(entry, subject)
        return entry

    def _time(self, crew: Crew, vocabulary: int) -> dict[str, schedule.Record]:
        draws = torch.Generator().manual_seed(self._seed)
        timing = self._timing

        def prompt() -> list[int]:
            return torch.randint(vocabulary, (timing.start,), generator=draws).tolist()

        peers = [member.peer for member in crew.members]
        turns = len(peers) * timing.rounds * len(timing.turns)
        with show.bar(f"timing {timing.workload}", turns) as step:
            return schedule.run(peers, timing, prompt, fell_out=crew.lose, step=step)

    def _figures(self, records: dict[str, schedule.Record], machine: Machine) -> dict[str, Figures]:
        kinds = {entry.name: entry.kind for entry in self._entries}
        first = next(iter(records))
        return {
            name: figures(
                record,
                None if name == first else records[first],
                step_bytes=step_bytes(self._anatomies[name], self._timing.window, kinds[name]),
                bandwidth=machine.bandwidth,
            )
            for name, record in records.items()
        }

    def _header(self, subject: Subject) -> dict[str, Any]:
        timing = self._timing
        return {
            "skimp": skimp.__version__,
            "model": subject.head,
            "workload": str(timing.workload),
            "threads": self._threads,
            "seed": self._seed,
            "rounds": timing.rounds,
            "turns": list(timing.turns),
            "contexts": [timing.start, timing.start + sum(timing.turns) - 1],
            "prompt": subject.text,
            "places": PLACES,
            "machine": identity(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": " ".join(["bench/peers.py", *sys.argv[1:]]),
        }
