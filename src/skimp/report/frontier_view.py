"""The section on a search, laid out: its sentences, plot, table and map."""

from dataclasses import dataclass

from markupsafe import Markup

from skimp.report import frontier_rows as rows
from skimp.report.frontier_charts import FrontierChart, frontier_chart
from skimp.report.frontier_facts import Search
from skimp.report.frontier_map import MapRow, frontier_map, map_table, shade


@dataclass(frozen=True)
class FrontierView:
    """What the section shows; `shades` are the map's colours with what they stand for."""

    summary: str
    chosen: str
    promise: rows.PromiseWords | None
    chart: FrontierChart | None
    rows: tuple[rows.FrontierRow, ...]
    foretold: bool
    map: Markup | None
    map_rows: tuple[MapRow, ...]
    shades: tuple[tuple[str, str], ...]
    exits: bool
    beaten: bool


def frontier_view(search: Search | None, layers: int | None) -> FrontierView | None:
    """All of it; None without a search."""
    if search is None:
        return None
    others = [plan for plan in search.plans if plan.source != "dense"]
    return FrontierView(
        summary=rows.summary(search),
        chosen=rows.chosen_sentence(search),
        promise=rows.promise_words(search),
        chart=frontier_chart(search),
        rows=tuple(rows.frontier_rows(search)),
        foretold=any(plan.foretold is not None for plan in search.plans),
        map=frontier_map(search, layers),
        map_rows=tuple(map_table(search)),
        shades=_shades(search),
        exits=any(plan.left_out.exits for plan in others),
        beaten=any(plan.frontier for plan in others) and any(not plan.frontier for plan in others),
    )


def _shades(search: Search) -> tuple[tuple[str, str], ...]:
    """The legend's samples: shares of neurons only where some plan keeps a share."""
    thinned = any(0 < keep < 1 for plan in search.plans for keep in plan.left_out.keep)
    samples = [("75% of neurons kept", 0.25), ("25% kept", 0.75)] if thinned else []
    samples.append(("left out", 1.0))
    return tuple((text, f"{shade(gone):.2f}") for text, gone in samples)
