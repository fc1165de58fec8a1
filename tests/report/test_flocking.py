"""The pictures of experts: there where an evaluation holds them, and true to it."""

import base64
import re
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import colormaps
from matplotlib.image import imread
from tests.report import documents
from tests.report.test_data import _JSON

from skimp.report import ReportData, render
from skimp.report.facts import Flocking, LayerOverlap


def page(found: Any) -> str:
    return render(ReportData.from_documents(evals={**documents.evaluation(), "flocking": found}))


def read(found: Any) -> tuple[Flocking | None, list[str]]:
    data = ReportData.from_documents(evals={**documents.evaluation(), "flocking": found})
    notes = [text for text in data.provenance.caveats if "eval.flocking" in text]
    return data.flocking, notes


def pixels(html: str, name: str) -> np.ndarray:
    start = html.index(f'aria-labelledby="{name}-title"')
    found = re.search(r'href="data:image/png;base64,([^"]+)"', html[start:])
    assert found
    return imread(BytesIO(base64.b64decode(found[1])), format="png")


def test_nothing_is_shown_without_it() -> None:
    html = render(ReportData.from_documents(**documents.everything()))
    assert 'id="experts"' not in html and "#experts" not in html and "<image" not in html


def test_the_map_has_a_pixel_for_each_value() -> None:
    found = documents.flocking()
    html = page(found)
    for number, rows in enumerate(found["map"]["prompts"]):
        levels = np.array([list(bytes.fromhex(row)) for row in rows])
        wanted = colormaps["magma"](levels)
        np.testing.assert_allclose(pixels(html, f"neurons-{number}"), wanted, atol=1 / 255)
    assert "every 3rd of its 120 neurons" in html
    assert "0.153 and more" in html


def test_overlap_stands_beside_chance() -> None:
    html = page(documents.flocking())
    assert "Two prompts share 62.5% of their experts, where chance alone would give 50.0%." in html
    assert "its own second half chooses 70.0% again, and that of another prompt 62.0%" in html
    assert "prompts 1 and 3: 72.0% in common" in html and "prompt 2 with itself" in html
    assert "layer 5: its own 70.0%, another&#39;s 62.0%, by chance 50.0%" in html
    assert html.count('class="chance-line"') == 6 + 1  # and once in the legend
    assert "3 prompts of 20 to 128 tokens" in html


@pytest.mark.parametrize("part", ["map", "overlap", "prompts"])
def test_each_part_may_be_missing(part: str) -> None:
    whole = documents.flocking()
    found, notes = read({**whole, part: None})
    assert found and not notes
    assert (found.map is None, found.pairs == (), found.sizes == ()) == (
        part == "map",
        part == "overlap",
        part == "prompts",
    )
    html = page({**whole, part: None})
    assert ("neurons-0-title" in html) == (part != "map")
    assert ("overlap-title" in html) == (part != "overlap")


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("map", "top"), 0),
        (("map", "top"), float("nan")),
        (("map", "every"), 0),
        (("map", "neurons"), "many"),
        (("map", "layer"), -1),
        (("map", "prompts"), [["00", "000"]]),
        (("map", "prompts"), [["0g"]]),
        (("map", "prompts"), [[["00"]]]),
        (("map", "prompts"), [["00" * 5000]]),
        (("overlap", "pairs"), [[1, 0.5], [0.5]]),
        (("overlap", "pairs"), [[1.0]]),
        (("overlap", "pairs"), [[1, 2], [2, 1]]),
        (("overlap", "layers"), {"layer": 1}),
        (("overlap", "own"), 70),
    ],
)
def test_what_is_damaged_is_left_out_and_named(where: tuple[str, str], value: Any) -> None:
    whole = documents.flocking()
    part, name = where
    whole[part] = {**whole[part], name: value}
    found, notes = read(whole)
    assert found is not None
    if part == "map":
        assert found.map is None and found.pairs
    else:
        assert found.map is not None
        kept = {"pairs": found.pairs, "layers": found.layers, "own": found.mean and found.mean.own}
        assert not kept[name]
    if value == value:  # NaN is a gap, as anywhere
        assert any(name in text for text in notes), notes
    assert 'id="experts"' in page(whole)


@pytest.mark.parametrize("value", [7, "x", [], {}, [1, 2], {"map": 3}, {"overlap": {"own": 0.5}}])
def test_what_holds_nothing_is_absent(value: Any) -> None:
    found, _ = read(value)
    assert found is None
    assert 'id="experts"' not in page(value)


def test_hostile_values_leave_what_can_be_drawn() -> None:
    found, notes = read(documents.hostile_flocking())
    assert found and found.map and len(found.map.pictures) == 2
    assert found.layers == (LayerOverlap(2, own=0.5),)
    assert found.sizes == (5,) and found.pairs == ()
    assert len(notes) > 5


_KEYS = st.sampled_from(
    ["map", "overlap", "prompts", "pairs", "layers", "layer", "own", "other", "chance", "top"]
)


@settings(max_examples=30)
@given(
    changes=st.dictionaries(_KEYS, _JSON, max_size=4),
    part=st.sampled_from(["map", "overlap", "all"]),
)
def test_no_value_breaks_the_page(changes: dict, part: str) -> None:
    whole = documents.flocking()
    whole = {**whole, **changes} if part == "all" else {**whole, part: {**whole[part], **changes}}
    page(whole).encode("utf-8")
