"""From :class:`ReportData` to one offline HTML file."""

import os
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from skimp import __version__
from skimp.errors import SkimpError
from skimp.report import (
    charts,
    flocking_charts,
    importance_charts,
    layer_map,
    leaving_charts,
    numbers,
    tables,
    words,
)
from skimp.report.data import ReportData
from skimp.report.facts import KIND_LABEL, KINDS, Predicted
from skimp.report.frontier_view import frontier_view
from skimp.report.samples import compare


class ReportError(SkimpError):
    """A report cannot be written where it was asked for."""


@dataclass(frozen=True)
class Legend:
    """One entry of the map's legend: its look in the style sheet, and what it means."""

    looks: str
    text: str


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("skimp.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    names = ("significant", "count", "times", "share", "points", "plus", "size", "seconds")
    environment.filters.update({name: getattr(numbers, name) for name in names})
    return environment


def _legend(data: ReportData) -> list[Legend]:
    selection = data.selection
    if not selection.known:
        return [Legend("unknown", "not recorded whether kept")]
    found = [Legend("kept", "kept")]
    if selection.attention or selection.ffn:
        kind = selection.fill.kind
        looks = kind if kind in ("zero", "mean", "linear") else "other"
        gone = "left out, nothing in its place"
        text = gone if kind == "zero" else f"replaced by {words.fill_words(selection.fill)}"
        found.append(Legend(f"out {looks}", text))
    return found


def _full_height(data: ReportData) -> str:
    axis = layer_map.importance_axis(data.selection.ruler)
    return numbers.tick(axis.high, axis.step)


def _quality_tone(data: ReportData) -> str:
    mean = data.quality.mean if data.quality else None
    return tables.tone(mean.difference) if mean else ""


def render(data: ReportData) -> str:
    """The report as one HTML document; the same data always give the same text."""
    verdict = words.decode_verdict(data.speed, words.bound_sentence(data.selection))
    importance = importance_charts.importance_charts(data.selection)
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            data=data,
            selection=data.selection,
            quality=data.quality,
            speed=data.speed,
            provenance=data.provenance,
            version=__version__,
            left_out=words.left_out(data.selection),
            verdict=verdict,
            decoded_sentence=words.decoded_sentence(data.speed),
            prefill_sentence=words.prefill_sentence(data.speed),
            quality_tone=_quality_tone(data),
            quality_sentence=words.quality_sentence(data.quality),
            perplexity_sentence=words.perplexity_sentence(
                data.quality.fidelity if data.quality else None
            ),
            tiles=tables.tiles(data.speed, data.quality),
            map=layer_map.layer_map(data.selection),
            map_legend=_legend(data),
            full_height=_full_height(data),
            map_cells=list(zip(*(layer_map.cells(data.selection, k) for k in KINDS), strict=True)),
            tasks=tables.task_table(data.qualities),
            fidelity=tables.fidelity_table(data.qualities),
            differences=charts.difference_plot(data.qualities),
            speed_rows=tables.speed_table(data.speed),
            foretold=data.speed is not None and data.speed.predicted != Predicted(),
            speedup_rows=tables.speedup_table(data.speed),
            ratios=charts.ratio_plot(data.speed) if data.speed else None,
            step_bytes=charts.bytes_plot(data.speed) if data.speed else None,
            importance_table=tables.importance_table(data.selection),
            importance_charts=importance,
            path_chart=importance_charts.path_chart(data.selection),
            flocking=data.flocking,
            neuron_maps=flocking_charts.neuron_maps(data.flocking),
            overlap=flocking_charts.overlap_chart(data.flocking),
            overlap_by_layer=flocking_charts.layers_chart(data.flocking),
            search=data.search,
            frontier=frontier_view(data.search, data.selection.layers),
            leaving=data.leaving,
            depth_charts=leaving_charts.histograms(data.leaving),
            depth_agreement=leaving_charts.agreement_chart(data.leaving),
            decided=leaving_charts.sample(data.leaving),
            samples=[compare(sample) for sample in data.samples],
            kind_label=KIND_LABEL,
            gap=numbers.GAP,
        )
    )


def write(data: ReportData, path: str | Path) -> Path:
    """Render `data` to `path` (UTF-8), whole or not at all; return the path.

    Raises ReportError if the folder is missing or cannot be written to.
    """
    target = Path(path)
    if target.is_dir():
        raise ReportError(f"report: {target} is a folder; name the HTML file to write.")
    content = render(data).encode("utf-8")
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(
            dir=target.parent, prefix=f".{target.name}.", suffix=".tmp", delete=False
        ) as file:
            temporary = Path(file.name)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # Temporary files are private to their owner; a report is there to be shown.
        temporary.chmod(0o644)
        temporary.replace(target)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        reason = error.strerror or "unknown error"
        raise ReportError(
            f"report: {target} cannot be written ({reason}); choose a folder that exists and that "
            "you may write to."
        ) from error
    return target
