"""The pictures of early exits: there where an evaluation holds them, and true to it."""

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.report import documents
from tests.report.test_data import _JSON
from tests.report.test_render import Page

from skimp.report import ReportData, render
from skimp.report.facts import Leaving


def page(found: Any) -> str:
    return render(ReportData.from_documents(evals={**documents.evaluation(), "exits": found}))


def read(found: Any) -> tuple[Leaving | None, list[str]]:
    data = ReportData.from_documents(evals={**documents.evaluation(), "exits": found})
    return data.leaving, [text for text in data.provenance.caveats if "eval.exits" in text]


def test_nothing_is_shown_without_it() -> None:
    for html in (render(ReportData.from_documents(**documents.everything())), page(None)):
        assert 'id="exits"' not in html


def test_tokens_are_coloured_by_their_depth() -> None:
    html = page(documents.exits())
    shown = re.findall(r'<span class="depth depth-(\d)( other)?" title="([^"]*)">([^<]*)<', html)
    assert [(step, bool(other)) for step, other, _, _ in shown] == [
        ("5", False),
        ("0", False),
        ("4", True),
        ("5", False),
    ]
    assert "".join(text for *_, text in shown) == "The mill runs on"
    assert shown[2][2] == "decided after 4 of 6 layers; not what the full model predicts"
    assert "without colour: all 6" in html
    assert Page(html).ids.count("exits") == 1


def test_histograms_have_a_bar_for_every_depth() -> None:
    html = page(documents.exits())
    for name in ("piqa", "arc_easy", "held-out text"):
        assert f"{name}: share of tokens by the layers that were run for them" in html
    assert "after 2 of 6 layers: 25.0% of tokens" in html
    assert html.count('class="depth-bar whole"') == 3 and html.count('class="depth-bar"') == 4
    assert "piqa: 16.7% of layers left out" in html


def test_agreement_stands_against_depth() -> None:
    html = page(documents.exits())
    said = "after 4 of the layers: plain 60.0%, translated 80.0%; of tokens that leave here 95.0%"
    assert said in html and "after 1 of the layers: plain 10.0%" in html
    assert "62.5% of an answer is written before it first differs" in html


@pytest.mark.parametrize("part", ["tasks", "text", "free"])
def test_each_part_may_be_missing(part: str) -> None:
    whole = {**documents.exits(), part: None}
    found, notes = read(whole)
    assert found is not None and not notes
    assert (found.free is None) == (part == "free")
    assert (found.sample == ()) == (part == "text") == (found.agreement == ())
    assert 'id="exits"' in page(whole)


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("text", "depths"), {"9": 1.0}),
        (("text", "depths"), {"deep": 1.0}),
        (("text", "lens"), [{"depth": -1, "plain": 0.5}]),
        (("text", "lens"), [{"depth": 1, "plain": 2}]),
        (("text", "sample"), {"tokens": ["a"], "depths": [1, 2], "agree": [True]}),
        (("text", "sample"), {"tokens": ["a"], "depths": [7], "agree": [True]}),
        (("text", "sample"), {"tokens": [3], "depths": [1], "agree": [True]}),
        (("free", "until_first"), 7),
        (("tasks", "piqa"), 3),
    ],
)
def test_what_is_damaged_is_left_out_and_named(where: tuple[str, str], value: Any) -> None:
    whole = documents.exits()
    part, name = where
    whole[part] = {**whole[part], name: value}
    found, notes = read(whole)
    assert found is not None
    assert any(name in text for text in notes), notes
    assert 'id="exits"' in page(whole)


@pytest.mark.parametrize("value", [7, "x", [], {}, {"layers": 0}, {"layers": 4}, {"layers": 1e9}])
def test_what_holds_nothing_is_absent(value: Any) -> None:
    found, _ = read(value)
    assert found is None
    assert 'id="exits"' not in page(value)


@settings(max_examples=60, deadline=None)
@given(
    value=_JSON,
    part=st.sampled_from(["tasks", "text", "free"]),
    name=st.sampled_from(["depths", "lens", "sample", "agreement", "until_first", "piqa"]),
)
def test_nothing_breaks_the_page(value: Any, part: str, name: str) -> None:
    whole = documents.exits()
    Page(page({**whole, part: value}))
    Page(page({**whole, part: {**whole[part], name: value}}))
    Page(page(value))
