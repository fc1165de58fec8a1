"""Everything one report shows, gathered from plain JSON documents."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from skimp.report.documents import (
    read_qualities,
    read_samples,
    read_selection,
    read_speed,
    split_evaluations,
)
from skimp.report.facts import Flocking, Leaving, Provenance, Quality, Sample, Selection, Speed
from skimp.report.flocking import read_flocking
from skimp.report.frontier import chosen_speed, read_search
from skimp.report.frontier_facts import Search
from skimp.report.leaving import read_leaving
from skimp.report.provenance import caveats as standing_caveats
from skimp.report.provenance import model_name, read_provenance, with_calibration
from skimp.report.reader import Reader, clean

Document = Mapping[str, Any]


@dataclass(frozen=True)
class ReportData:
    """One report. Parts that were not measured are None or empty, and the report says so.

    `qualities` holds the plan's own evaluation first, then one per comparison rule.
    """

    model: str = "unnamed model"
    selection: Selection = Selection()
    qualities: tuple[Quality, ...] = ()
    speed: Speed | None = None
    search: Search | None = None
    flocking: Flocking | None = None
    leaving: Leaving | None = None
    samples: tuple[Sample, ...] = ()
    provenance: Provenance = Provenance()

    @property
    def quality(self) -> Quality | None:
        """The plan's own evaluation."""
        return self.qualities[0] if self.qualities else None

    @classmethod
    def from_documents(
        cls,
        *,
        plan: Document | None = None,
        evals: Mapping[str, Document] | Document | None = None,
        bench: Document | None = None,
        importance: Document | None = None,
        samples: Sequence[Document] = (),
        model: str | None = None,
        layers: int | None = None,
        plan_yaml: str | None = None,
        commands: Iterable[str] = (),
        versions: Mapping[str, object] | None = None,
        date: str | None = None,
        caveats: Iterable[str] = (),
    ) -> Self:
        """Gather a report from what skimp's commands write as JSON; every part may be absent.

        `plan`, `bench`: the document of that command. `evals`: one `eval` document, or
        `{name: eval document}` in which `plan` (or else the first) is the plan's own and the others
        are comparison rules such as `last`. `importance`: `{rule: {attention: [...], ffn: [...]}}`,
        added to the plan's own. `samples`: `[{prompt, dense, planned}]`. The remaining arguments
        add to, or override, what the documents say.

        Nothing in a document makes this raise: what cannot be read is shown as not measured and is
        named among the report's caveats.
        """
        notes: list[str] = []
        read_plan = Reader(plan, "plan", notes)
        evaluations = split_evaluations(Reader(evals, "eval", notes))
        read_bench = Reader(bench, "bench", notes)
        documents = {"plan": read_plan, **_first(evaluations), "bench": read_bench}
        documents = {role: item for role, item in documents.items() if item.is_mapping()}
        selection = read_selection(
            [read_plan, *(item for role, item in documents.items() if role != "plan")],
            Reader(importance, "importance", notes),
            layers,
        )
        qualities = read_qualities(evaluations)
        search = read_search(read_plan, selection.layers)
        speed = read_speed(read_bench) or chosen_speed(search)
        own = next(iter(evaluations.values()), None)
        flocking = read_flocking(own.child("flocking")) if own else None
        leaving = read_leaving(own.child("exits")) if own else None
        provenance = read_provenance(
            documents,
            commands=tuple(commands),
            versions=versions or {},
            date=date,
            plan_yaml=plan_yaml,
        )
        sampled = read_samples(Reader(samples, "samples", notes))
        names = (model_name(item) for item in documents.values())
        said = (
            *provenance.caveats,
            *standing_caveats(selection, qualities, speed),
            *(clean(text) for text in caveats),
            *notes,
        )
        return cls(
            model=clean(model) if model else next((name for name in names if name), cls.model),
            selection=selection,
            qualities=qualities,
            speed=speed,
            search=search,
            flocking=flocking,
            leaving=leaving,
            samples=sampled,
            provenance=replace(
                provenance,
                facts=with_calibration(provenance, selection),
                caveats=tuple(dict.fromkeys(said)),
            ),
        )


def _first(evaluations: Mapping[str, Reader]) -> dict[str, Reader]:
    return dict(zip(("eval",), evaluations.values(), strict=False))
