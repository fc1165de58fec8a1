"""The page as a whole: complete, well formed, offline, safe, and the same every time."""

import re
from html.parser import HTMLParser

import pytest
from tests.report import documents, searching
from tests.report.documents import INJECTION

from skimp.report import ReportData, render

_VOID = {"meta", "link", "br", "img", "input", "hr", "wbr"}
_SECTIONS = ("map", "measured", "importance", "samples", "method")

PARTS = {
    "nothing": {},
    "empty documents": {"plan": {}, "evals": {}, "bench": {}, "samples": []},
    "only a plan": {"plan": documents.plan()},
    "only an evaluation": {"evals": documents.evaluation()},
    "only a bench": {"bench": documents.bench()},
    "only samples": {"samples": documents.samples()},
    "plan without numbers": {"plan": {"dropped": {"attention": [3], "ffn": [3]}}},
    "one layer": {"plan": {**documents.plan(1), "dropped": {"attention": [0]}, "path": []}},
    "whole layers": {
        "plan": {
            **documents.plan(6),
            "dropped": {"attention": [2, 4], "ffn": [2, 4]},
            "importance": {
                "last": {"attention": [None] * 6, "ffn": [], "layer": [9, 5, 4, 3, 2, 1]}
            },
            "path": [{"kind": "layer", "layer": 4, "harm": 2.0}],
        }
    },
    "only the dense model timed": {
        "bench": {
            **documents.bench(),
            "planned": None,
            "speedup": None,
            "byte_bound": None,
            "compute_bound": None,
            "collected": None,
            "predicted": {"dense": {"prefill_s": 0.8, "tpot_s": 0.02}, "planned": None},
            "engine": {"dense": {"path": "native", "reason": None}, "planned": None, "threads": 1},
        }
    },
    "a bench without predictions": {"bench": documents.old_bench()},
    "126 layers": {"plan": documents.plan(126)},
    "200 layers": {"plan": documents.plan(200), "bench": documents.bench()},
    "experts": {"evals": {**documents.evaluation(), "flocking": documents.flocking()}},
    "exits": {"evals": {**documents.evaluation(), "exits": documents.exits()}},
    "a search": {"plan": searching.document()},
    "a search that timed nothing": {"plan": searching.document(searching.untimed())},
    "a hostile search": {"plan": searching.document(searching.hostile())},
    "everything": documents.everything(),
    "hostile": documents.hostile(),
}


class Page(HTMLParser):
    """Checks nesting while it collects ids, references and text."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.ids: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        assert len(found) == len(attrs), f"an attribute twice in {tag}"
        self.tags.append((tag, found))
        if "id" in found:
            self.ids.append(found["id"])
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(params=PARTS, scope="module")
def html(request: pytest.FixtureRequest) -> str:
    return render(ReportData.from_documents(**PARTS[request.param]))


def test_well_formed_with_unique_ids(html: str) -> None:
    page = Page(html)
    assert len(page.ids) == len(set(page.ids))
    assert html.startswith("<!doctype html>")


def test_lxml_reads_no_errors_beyond_html5_names(html: str) -> None:
    etree = pytest.importorskip("lxml.etree")
    parser = etree.HTMLParser(recover=True)
    etree.fromstring(html.encode(), parser)
    # libxml2 predates HTML5, so that it does not know these elements; nothing else may be wrong.
    serious = [item.message for item in parser.error_log if "invalid" not in item.message]
    assert serious == []


def test_every_section_is_there_and_linked(html: str) -> None:
    page = Page(html)
    assert [name for name in _SECTIONS if name not in page.ids] == []
    local = [found["href"][1:] for tag, found in page.tags if tag == "a"]
    assert len(local) == len(set(local))
    assert set(local) == set(_SECTIONS) | ({"frontier", "experts", "exits"} & set(page.ids))


def test_nothing_is_loaded_from_elsewhere(html: str) -> None:
    page = Page(html)
    for tag, found in page.tags:
        assert tag not in {"script", "iframe", "object", "embed", "img", "base", "form"}
        for name, value in found.items():
            assert not name.startswith("on")
            if name in {"href", "src", "action", "data"}:
                pixels = "data:image/png;base64," if tag == "image" else "data:,"
                assert value.startswith(("#", pixels)), (tag, name, value)
    style = html[html.index("<style>") : html.index("</style>")]
    assert not re.search(r"url\(|@import|https?:|//", style)


def test_pictures_have_titles_and_tables_headers(html: str) -> None:
    page = Page(html)
    for tag, found in page.tags:
        if tag == "svg" and found.get("aria-hidden") != "true" and found.get("class") != "at":
            assert found["role"] == "img"
            assert found["aria-labelledby"] in page.ids
        if tag == "th":
            assert found["scope"] in {"col", "row"}


def test_same_data_same_text(html: str, request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.params["html"]
    assert render(ReportData.from_documents(**PARTS[name])) == html


def test_no_raw_python_values(html: str) -> None:
    style = html[html.index("<style>") : html.index("</style>")]
    text = " ".join(Page(html.replace(style, "<style>")).text)
    assert not re.search(r"\b(nan|None|inf|True|False)\b", text)


def test_injection_stays_text() -> None:
    html = render(ReportData.from_documents(**documents.hostile()))
    page = Page(html)
    assert "<script" not in html and "<img" not in html
    assert "49" not in re.findall(r"&amp;(.{0,6})", html), "template syntax was evaluated"
    assert any(INJECTION in text for text in page.text), "the text itself is shown"
    html.encode("utf-8")


def test_hostile_values_are_named_among_the_caveats() -> None:
    data = ReportData.from_documents(**documents.hostile())
    said = "\n".join(data.provenance.caveats)
    for place in (
        "plan.dropped.attention[1]",
        "plan.dropped.ffn",
        "bench.byte_bound",
        "bench.predicted.dense",
        "bench.collected.prefill",
        "bench.engine.planned",
        "samples[3]",
    ):
        assert f"{place} is not" in said


@pytest.mark.parametrize(
    ("name", "lines"),
    {
        "only a plan": ["no task was run", "nothing was timed", "no continuations"],
        "only an evaluation": ["nothing was timed", "no importance", "no continuations"],
        "only a bench": ["no task was run", "no importance", "order in which"],
        "nothing": ["no plan was given", "no task was run", "nothing was timed"],
    }.items(),
)
def test_what_was_not_measured_is_said(name: str, lines: list[str]) -> None:
    html = render(ReportData.from_documents(**PARTS[name]))
    assert [line for line in lines if line not in html] == []


def test_full_report_shows_its_numbers() -> None:
    html = render(ReportData.from_documents(**documents.everything()))
    for text in (
        "3 of 30 attention sublayers, replaced by rank-16 linear maps",
        "1.20×",
        "1.18–1.22",
        "byte bound 1.25×",
        "500 MB",
        "46.1 kB",
        "some prose",
        "other prose",
        "skimp bench plan.yaml",
        "attention: [7, 12, 26]",
        "16.0 GB",
        "21.0 GB/s",
        "150 GFLOP/s",
        "134,515,008",
        "+4.0% to +6.0%",
        "skimp report · 2026-01-02<",
        "Cut at the edge of the plot: layer 0 FF 4.25",
    ):
        assert text in html, text


def _rows(html: str) -> list[list[str]]:
    """Every table row as the texts of its cells, small print after a bar."""
    cells = (
        re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)
        for row in re.findall(r"(?s)<tr.*?</tr>", html)
    )
    plain = ([re.sub(r"</?bdi>|</small>", "", cell) for cell in row] for row in cells)
    return [[cell.replace(" <small>", "|") for cell in row] for row in plain]


def test_what_was_predicted_stands_beside_what_was_measured() -> None:
    html = render(ReportData.from_documents(bench=documents.bench()))
    rows = _rows(html)
    assert ["prefill|predicted", "900 ms|850 ms", "800 ms|780 ms", "−11.1%|−8.2%"] in rows
    assert [
        "time per output token|predicted",
        "30.0 ms|29.0 ms",
        "25.0 ms|23.5 ms",
        "−16.7%|−19.0%",
    ] in rows
    assert ["weights", "500 MB", "400 MB", "−20.0%"] in rows
    prefill = ["prefill", "1.12×", "1.09×", "1.14×", "85.7%|98.2% of bound", "unproven"]
    decode = ["decode", "1.20×|1.18–1.22", "1.23×", "1.25×", "80.0%|96.0% of bound", "faster"]
    assert prefill in rows and decode in rows
    assert "byte bound 1.25×; predicted 1.23×" in html
    assert "Both sides were decoded by the native program, 2 threads." in html


def test_a_file_without_predictions_is_shown_without_them() -> None:
    """What was collected follows from the speedup and the bound, and is shown all the same."""
    html = render(ReportData.from_documents(bench=documents.old_bench()))
    page = html[html.index("<body>") :].lower()
    assert "predicted" not in page and "decoded" not in page
    assert ["prefill", "900 ms", "800 ms", "−11.1%"] in _rows(html)
    assert ["prefill", "1.12×", "–", "–", "unproven"] in _rows(html)
    decode = ["decode", "1.20×|1.18–1.22", "1.25×", "80.0%|96.0% of bound", "faster"]
    assert decode in _rows(html)


def test_what_decoded_each_side_is_said() -> None:
    bench = documents.bench()
    bench["engine"]["planned"] = {"path": "torch", "reason": "routed <experts>"}
    html = render(ReportData.from_documents(bench=bench))
    assert (
        "Dense was decoded by the native program, 2 threads; planned was decoded by torch "
        "(routed &lt;experts&gt;)."
    ) in html
    assert "decoded in different ways (native and torch)" in html


def test_not_faster_is_said_in_the_headline() -> None:
    html = render(ReportData.from_documents(bench=documents.bench(1.01, half=0.03)))
    assert "Not faster" in html and "weights go from" in html.lower()
    assert 'class="verdict not-faster"' in html


def test_a_real_loss_stands_out_even_where_decode_is_faster() -> None:
    lossy = render(ReportData.from_documents(evals=documents.evaluation(0.1)))
    assert re.search(r'<p class="bad">Mean accuracy[^<]*the loss is real', lossy)
    unsure = render(ReportData.from_documents(evals=documents.evaluation(0.001)))
    assert '<p class="bad">' not in unsure


@pytest.mark.parametrize("layers", [1, 30, 126, 200])
def test_map_has_one_column_per_layer_and_kind(layers: int) -> None:
    html = render(ReportData.from_documents(plan=documents.plan(layers)))
    found = re.findall(r"<title>layer (\d+), (attention|FF): (kept|replaced)", html)
    assert len(found) == len(set(found)) == 2 * layers
    expected = sum(layer < layers for layer in (7, 12, 26))
    assert sum(state == "replaced" for _, _, state in found) == expected


def test_whole_layers_are_shown_as_such() -> None:
    html = render(ReportData.from_documents(**PARTS["whole layers"]))
    assert "2 of 6 whole layers, replaced by rank-16 linear maps" in html
    assert "Not scored: attention and FF." in html
    assert "importance (last, whole layer) 2.000; step 1 of 1" in html
    assert ">L4</text>" in html and "L: whole layer" in html


def test_a_plan_that_was_not_timed_still_states_its_bound() -> None:
    html = render(ReportData.from_documents(plan=documents.plan()))
    assert "Decode speed was not measured." in html
    assert "The bytes it reads would allow at most 1.25× at 512+128x1." in html


def test_long_prompt_is_folded_but_whole() -> None:
    prompt = " ".join(f"word{number}" for number in range(400))
    data = ReportData.from_documents(samples=[{"prompt": prompt, "dense": "a", "planned": "b"}])
    html = render(data)
    assert "The rest of the prompt" in html
    assert all(f"word{number}" in html for number in (0, 50, 399))
