"""Plain data, atomic files, and lists of layers."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skimp.cli import output
from skimp.cli.common import layer_list, layer_words, plan_names
from skimp.errors import SkimpError

_leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
_values = st.recursive(
    _leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20
)


@given(_values)
def test_whatever_is_dumped_is_strict_json(value: object) -> None:
    def refuse(word: str) -> None:
        raise AssertionError(word)

    text = output.dump({"value": value})
    assert json.loads(text, parse_constant=refuse)["value"] == output.plain(value)


def test_numbers_of_other_libraries_become_plain() -> None:
    found = output.plain(
        {"a": np.float32(0.5), "b": torch.tensor([1, 2]), "c": math.nan, "d": Path("x"), 3: (4,)}
    )
    assert found == {"a": 0.5, "b": [1, 2], "c": None, "d": "x", "3": [4]}


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    output.write_text(target, "one", "--json")
    output.write_text(target, "two", "--json")
    assert target.read_text() == "two"
    assert list(tmp_path.iterdir()) == [target]
    with pytest.raises(SkimpError, match="--json"):
        output.write_text(tmp_path / "none" / "a.json", "three", "--json")


@given(st.lists(st.integers(0, 60), unique=True))
def test_layers_survive_being_written_and_read(layers: list[int]) -> None:
    text = layer_words(layers)
    assert layer_list(text if layers else None, "--ffn") == sorted(layers)


@pytest.mark.parametrize("text", ["a", "3,,4", "4-2", "-1", "1,1", "1-3,2", "0-99999999"])
def test_a_list_that_is_none_names_its_option(text: str) -> None:
    with pytest.raises(SkimpError, match="--ffn"):
        layer_list(text, "--ffn")


def test_plans_are_named_by_file_and_told_apart() -> None:
    assert plan_names([Path("a/x.yaml"), Path("b/y.yaml")]) == ["x", "y"]
    assert plan_names([Path("a/x.yaml"), Path("b/x.yaml")]) == ["a/x.yaml", "b/x.yaml"]
    with pytest.raises(SkimpError, match="twice"):
        plan_names([Path("x.yaml"), Path("x.yaml")])
