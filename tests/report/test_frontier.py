"""The section on a search: there where a plan document holds one, and true to it."""

import math
import re
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.report import documents, searching
from tests.report.searching import LAYERS, document, entry, plan, search
from tests.report.test_data import _JSON
from tests.report.test_render import Page, _rows

from skimp.report import ReportData, render
from skimp.report.facts import Side
from skimp.report.frontier import pick_command
from skimp.report.frontier_charts import frontier_chart
from skimp.report.frontier_facts import Search
from skimp.report.frontier_map import shade, spans
from skimp.report.reader import Reader


def page(found: Any) -> str:
    return render(ReportData.from_documents(plan={**document(), "search": found}))


def section(found: Any) -> str:
    html = page(found)
    return html[html.index('<section id="frontier"') : html.index('<section id="map"')]


def read(found: Any) -> tuple[Search | None, list[str]]:
    data = ReportData.from_documents(plan={**document(), "search": found})
    return data.search, [text for text in data.provenance.caveats if "plan.search" in text]


def of(*plans: Any, **changes: Any) -> Any:
    return {**search(), "plans": list(plans), "chosen": None, "withheld": [], **changes}


DENSE = entry(0, "dense", "dense")


def test_nothing_is_shown_without_it() -> None:
    for html in (render(ReportData.from_documents(**documents.everything())), page(None)):
        assert 'id="frontier"' not in html and "#frontier" not in html


def test_every_plan_is_in_the_plot_the_table_and_the_map() -> None:
    html = section(search())
    for one in search()["plans"]:
        tips = re.findall(rf"<title>plan {one['number']}, {re.escape(one['name'])}[;,<]", html)
        in_map = one["source"] != "dense"
        assert len(tips) == 1 + in_map, one["name"]
    numbers = [row[0] for row in _rows(html) if row[0].isdecimal()]
    assert numbers == [str(number) for number in range(25)]


def test_the_table_shows_what_was_measured() -> None:
    one = entry(
        3,
        "finder",
        "finder",
        left_out={"attention": [7, 12], "ffn": [0], "keep": [0.1, 0.5] + [1.0] * 28},
        byte_bound=1.12,
        foretold=1.10,
        speedup=1.09,
        speedup_interval=[1.07, 1.11],
        kl=0.05,
        kl_interval=[0.04, 0.06],
        loss_difference=0.03,
        loss_interval=[0.01, 0.05],
        agreement=0.91,
    )
    rows = _rows(section(of(DENSE, one, chosen=3)))
    assert [
        "3",
        "finder|chosen",
        "1.09×|1.07–1.11",
        "1.10×",
        "1.12×",
        "+0.0300|+0.0100 to +0.0500",
        "0.0500|0.0400 to 0.0600",
        "91.0%",
        "2 / 1",
        "98.3%",
    ] in rows


def test_what_was_not_timed_is_no_speedup() -> None:
    slow = plan(1, "finder", "finder", 1.37, 0.1, speedup=None, speedup_interval=None)
    html = section(of(DENSE, slow, chosen=1))
    assert ["1", "finder|chosen", "–|not timed"] in [row[:3] for row in _rows(html)]
    assert "plan 1, finder, chosen; not timed, byte bound 1.37×; loss" in html
    assert "It was not timed; bytes would allow at most 1.37×." in html
    assert "byte bound, not timed</text>" in html and "which is no speedup" in html
    assert html.count("1.37×") == 3  # the tip, the sentence and the column of bounds
    assert 'class="dot untimed series-0"' in html
    assert "of these plans none was timed" in html.lower()
    data = ReportData.from_documents(plan=document(of(DENSE, slow, chosen=1)))
    assert data.speed is None


def test_the_axis_says_which_speed_it_is() -> None:
    untimed = plan(2, "finder", "finder", 1.4, 0.1, speedup=None, speedup_interval=None)
    timed = plan(1, "finder", "finder", 1.2, 0.05)
    for plans, said in (
        ((DENSE, timed), "measured decode speedup</text>"),
        ((DENSE, timed, untimed), "measured decode speedup, or byte bound</text>"),
        ((DENSE, untimed), "byte bound, not timed</text>"),
    ):
        html = section(of(*plans))
        assert said in html
        assert ("which is no speedup" in html) == (untimed in plans)


def _lines(html: str, look: str) -> int:
    ends = " ".join(f'{name}="[^"]*"' for name in ("x1", "y1", "x2", "y2"))
    return len(re.findall(f'<line {ends} class="{look}"></line>', html))


def test_the_line_is_the_finders_and_dashed_where_an_end_was_not_timed() -> None:
    timed = [plan(step, "finder", "finder", 1 + step / 10, step / 50) for step in (1, 3, 5)]
    bare = plan(2, "finder", "finder", 1.15, 0.03, speedup=None, speedup_interval=None)
    off = plan(8, "finder", "finder", 1.2, 0.2, frontier=False)
    rule = plan(9, "rule", "a rule on the frontier", 1.9, 0.5)
    html = section(of(rule, *reversed(timed), off, bare, DENSE))
    assert (_lines(html, "trace series-0"), _lines(html, "trace series-0 dashed")) == (2, 2)


def test_a_plan_that_is_not_faster_is_called_so() -> None:
    slow = plan(1, "rule", "last", 1.02, 0.1, speedup=1.01, speedup_interval=[0.98, 1.04])
    html = section(of(DENSE, slow, chosen=1))
    assert "1.01×|0.98–1.04, not faster" in [cell for row in _rows(html) for cell in row]
    assert "It is not faster: decode at 1.01× (95% interval 0.98–1.04) the dense speed." in html


def test_the_headline_is_of_the_chosen_plan_where_nothing_else_was_timed() -> None:
    html = page(search())
    assert "Faster: decode runs at 1.19× (95% interval 1.17–1.21)" in html
    data = ReportData.from_documents(plan=document(), bench=documents.bench(1.3))
    assert data.speed is not None and data.speed.decode.value == 1.3
    assert data.speed.dense != Side()
    for number in (None, 0):
        assert (
            ReportData.from_documents(plan=document({**search(), "chosen": number})).speed is None
        )


def _marks(html: str, look: str) -> list[tuple[float, float]]:
    """Where discs of that look stand: percent from the left, pixels from the top."""
    found = re.findall(rf'<circle cx="([\d.]+)%" cy="([\d.]+)" r="4.5" class="{look}"', html)
    return [(float(x), float(y)) for x, y in found]


def test_marks_stand_where_their_numbers_say() -> None:
    plans = [plan(step, "finder", "finder", 1 + step / 10, step / 20) for step in range(1, 8)]
    spots = _marks(section(of(DENSE, *plans)), "dot solid series-0")
    assert len(spots) == 7
    assert spots == sorted(spots, key=lambda spot: (spot[0], -spot[1]))
    steps = [b[0] - a[0] for a, b in pairwise(spots)]
    assert max(steps) - min(steps) < 0.01  # equal steps of speed are equal steps on the page
    assert all(0 < x < 100 and 22 <= y <= 352 for x, y in spots)


def test_whiskers_end_at_the_interval() -> None:
    one = plan(1, "finder", "finder", 1.2, 0.2, loss_interval=[0.1, 0.4])
    html = section(of(DENSE, one))
    (x, y), *_ = _marks(html, "dot solid series-0")
    found = re.findall(
        r'x1="([\d.]+)%" y1="([\d.]+)" x2="([\d.]+)%" y2="([\d.]+)" class="whisker series-0"', html
    )
    ((left, low, right, high),) = [tuple(map(float, ends)) for ends in found]
    assert left == right == x
    # The axis goes from 0 at the bottom to 0.2 at the top, so that the whisker is cut there.
    assert (low, high, y) == (187.0, 22.0, 22.0)
    assert html.count('<path d="M-3 0H3" class="whisker series-0">') == 1


def test_a_giant_does_not_flatten_the_rest() -> None:
    found = search()
    found["plans"][-1].update(loss_difference=900.0, loss_interval=[800.0, 1000.0])
    html = section(found)
    assert f"Beyond the edge of the plot: plan 24 ({found['plans'][-1]['name']}) +900." in html
    heights = [y for _, y in _marks(html, "dot solid series-0")]
    assert max(heights) - min(heights) > 150


def test_labels_cover_neither_each_other_nor_marks() -> None:
    html = section(search())
    for look, wide in (("wide-only", 520.0), ("narrow-only", 240.0)):
        boxes = []
        for text, x, y, dx, anchor in _beside(html, look):
            length, middle = 6.2 * len(text), wide * x / 100 + dx
            left = middle - {"start": 0.0, "mid": length / 2, "end": length}[anchor]
            assert left >= 0 and left + length <= wide
            boxes.append((left, y - 9, left + length, y + 3))
        assert len(boxes) >= 9
        for number, one in enumerate(boxes):
            assert not any(_overlap(one, other) for other in boxes[:number])
            for x, y in _marks(html, "dot solid series-0"):
                centre = wide * x / 100
                assert not _overlap(one, (centre - 5, y - 5, centre + 5, y + 5))


def _beside(html: str, look: str) -> list[tuple[str, float, float, float, str]]:
    pattern = (
        r'<text x="([\d.]+)%" y="([\d.]+)"(?: dx="([-\d.]+)")? class="beside (\w+)[^"]*'
        + look
        + r'">([^<]*)</text>'
    )
    return [
        (text, float(x), float(y), float(dx or 0), anchor)
        for x, y, dx, anchor, text in re.findall(pattern, html)
    ]


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    across = min(one[2], other[2]) - max(one[0], other[0])
    return across > 0 and min(one[3], other[3]) - max(one[1], other[1]) > 0


def test_rules_and_the_chosen_plan_are_labelled() -> None:
    texts = [text for text, *_ in _beside(section(search()), "wide-only")]
    assert "4, chosen" in texts and "dense" in texts
    assert set(searching.RULES) <= set(texts)
    assert section(search()).count('class="ring"') == 2  # on the plot and in its legend
    assert 'class="ring"' not in section({**search(), "chosen": None})


@pytest.mark.parametrize("crowd", [1, 30, 120])
def test_a_crowd_at_one_place_keeps_its_labels_apart(crowd: int) -> None:
    plans = [plan(step, "rule", f"rule {step}", 1.2, 0.1) for step in range(1, crowd + 1)]
    found = _beside(section(of(DENSE, *plans)), "wide-only")
    assert 2 <= len(found) <= 10
    assert len({(x, y, dx, anchor) for _, x, y, dx, anchor in found}) == len(found)


def test_the_map_shades_by_what_is_gone() -> None:
    left = {"attention": [2], "ffn": [3], "keep": [1.0, 0.75, 0.5, 0.25] + [1.0] * (LAYERS - 4)}
    html = section(of(DENSE, plan(1, "finder", "finder", 1.2, 0.1, left_out=left)))
    cells = re.findall(
        r"<title>plan 1, layer (\d+), (attention|FF): ([^<]*)</title>"
        r'<rect [^>]*fill-opacity="([\d.]+)" class="goes"',
        html,
    )
    shades = {(int(layer), kind): (said, float(depth)) for layer, kind, said, depth in cells}
    assert shades.keys() == {(2, "attention"), (1, "FF"), (2, "FF"), (3, "FF")}
    assert shades[2, "attention"] == ("left out", 1.0) == shades[3, "FF"]
    assert shades[1, "FF"][0] == "75.0% of neurons kept"
    assert 0 < shades[1, "FF"][1] < shades[2, "FF"][1] < 1


@pytest.mark.parametrize("layers", [1, 30, 126])
def test_the_map_has_a_band_for_64_layers_at_most(layers: int) -> None:
    left = {"attention": [layers - 1], "ffn": [], "keep": [0.5] * layers}
    made = of(DENSE, plan(1, "finder", "finder", 1.2, 0.1, left_out=left))
    html = render(ReportData.from_documents(plan={**documents.plan(layers), "search": made}))
    assert len(re.findall('<title id="frontier-map-', html)) == math.ceil(layers / 64)
    assert len(re.findall("<title>plan 1, layer ", html)) == layers + 1


def test_exits_are_marked() -> None:
    probing = plan(1, "rule", "exits", 1.2, 0.1, sections={"exit": {"probe": [12, 16]}})
    html = section(of(DENSE, probing))
    assert "exit after layer 12" in html and "exit after layer 16" in html
    assert "rule, with early exits" in html and "tokens may leave here" in html
    assert "tokens may leave here" not in section(search())


def test_shades_and_spans() -> None:
    assert (shade(0), shade(1)) == (0, 1)
    assert 0 < shade(0.01) < shade(0.5) < shade(0.99) < 1
    assert spans([0, 1, 2, 5, 7, 8]) == "0–2, 5, 7–8"
    assert spans([]) == "–"


def test_the_promise_is_said_in_words() -> None:
    html = section(search())
    assert '<div class="verdict faster">' in html and search()["promise"]["words"] in html
    said = "Bound 0.008; confidence 95%; 6,144 tokens of 40 documents; plans looked at: 6."
    assert said in html
    broken = {**search(), "promise": {**search()["promise"], "holds": False, "words": None}}
    html = section(broken)
    assert '<div class="verdict not-faster">' in html
    assert "loss&lt;=1% is not shown to hold." in html


def test_without_a_promise_nothing_is_promised() -> None:
    bare = {**search(), "promise": None}
    assert "no plan was shown to keep the budget" in section(bare)
    assert "no budget was given" in section({**bare, "budget": None})
    html = section({**bare, "chosen": None})
    assert "No plan was chosen under the budget loss&lt;=1%." in html
    assert "no plan is worth taking" in section({**bare, "chosen": 0})


def test_what_is_withheld_is_named_with_its_reason() -> None:
    html = section(search())
    assert "Plan 6: its loss exceeds the budget on other documents." in html
    assert "finder|withheld" in [row[1] for row in _rows(html) if len(row) > 1]
    assert "<h3>Withheld</h3>" not in section({**search(), "withheld": []})


def test_a_search_that_was_cut_says_so() -> None:
    assert "took 512 s" in section(search())
    html = section({**search(), "complete": False})
    assert "cut off after 512 s, so better plans may exist" in html and "took 512 s" not in html
    assert "by bytes, without timing" in section(searching.untimed())


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("skimp plan demo --budget 'loss<=1%'", "skimp plan demo --budget 'loss<=1%' --pick N"),
        ("skimp plan 'a b' --pick 3 --out x", "skimp plan 'a b' --out x --pick N"),
        ("skimp plan demo --pick=3", "skimp plan demo --pick N"),
        ("skimp plan 'open", None),
        ("skimp bench demo", None),
        (None, None),
    ],
)
def test_the_command_to_pick_is_exact(command: str | None, expected: str | None) -> None:
    assert pick_command(Reader({"command": command}, "plan", [])) == expected
    html = render(ReportData.from_documents(plan=document(command=command)))
    shown = re.findall(r'<pre class="commands"><code>([^<]* --pick N)</code>', html)
    assert len(shown) == (expected is not None)
    assert ("run the same <code>skimp plan</code>" in html) == (expected is None)


def test_what_is_damaged_is_left_out_and_named() -> None:
    found, notes = read(searching.hostile())
    assert found is not None
    assert {one.number for one in found.plans} == {0, 1, 2, 3, 4, 5, 90, 91, 92, 93, 94}
    said = "\n".join(notes)
    for place in (
        "plans[6]",
        "plans[7].number",
        "plans[8].source",
        "plans[9].speedup",
        "plans[9].byte_bound",
        "plans[9].agreement",
        "plans[10].loss_difference",
        "plans[10].kl",
        "plans[11].loss_interval",
        "plans[11].frontier",
        "plans[12].left_out.keep",
        "plans[12].left_out.ffn[0]",
        "plans[12].left_out.attention",
        "plans[13].number",
        "plans[14].left_out",
        "complete",
        "promise.bound",
        "promise.level",
        "withheld[1].number",
    ):
        assert f"plan.search.{place} is not" in said, place


@pytest.mark.parametrize("value", [7, "x", [], {}, {"plans": []}, {"plans": [{}]}, {"plans": 3}])
def test_what_holds_nothing_is_absent(value: Any) -> None:
    found, _ = read(value)
    assert found is None
    assert 'id="frontier"' not in page(value)


def test_a_lone_plan_is_drawn() -> None:
    for one in (DENSE, plan(1, "finder", "finder", 1.0, 0.0, speedup=None, byte_bound=None)):
        found, _ = read(of(one))
        Page(page(of(one)))
        assert (frontier_chart(found) is None) == (one["source"] == "finder")
    assert "Not on the plot, for want of a speed or a loss: 1." in section(
        of(DENSE, plan(1, "finder", "finder", 1.0, 0.0, speedup=None, byte_bound=None))
    )


@settings(max_examples=60, deadline=None)
@given(
    value=_JSON,
    part=st.sampled_from([*search(), "plans[1]"]),
    name=st.sampled_from([*DENSE, "attention", "keep", "holds"]),
)
def test_nothing_breaks_the_page(value: Any, part: str, name: str) -> None:
    whole = search(2, 1)
    if part == "plans[1]":
        whole["plans"][1] = {**whole["plans"][1], name: value}
    else:
        whole[part] = value
    Page(page(whole))
