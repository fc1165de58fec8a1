"""Attribute changes that can be taken back exactly."""

from types import SimpleNamespace
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from skimp.models.surgery import Surgery


def test_changes_and_additions_are_taken_back() -> None:
    thing = SimpleNamespace(a=1)
    surgery = Surgery()
    surgery.set(thing, "a", 2)
    surgery.set(thing, "b", 3)
    assert vars(thing) == {"a": 2, "b": 3}
    surgery.undo()
    assert vars(thing) == {"a": 1}


NAMES = st.sampled_from("abc")
CHANGES = st.lists(st.tuples(st.integers(0, 1), NAMES, st.integers()))


@given(before=st.lists(st.dictionaries(NAMES, st.integers()), min_size=2, max_size=2), to=CHANGES)
def test_any_sequence_is_taken_back(
    before: list[dict[str, int]], to: list[tuple[int, str, int]]
) -> None:
    things = [SimpleNamespace(**values) for values in before]
    surgery = Surgery()
    for index, name, value in to:
        surgery.set(things[index], name, value)
        assert getattr(things[index], name) == value
    surgery.undo()
    assert [vars(thing) for thing in things] == before


def test_second_undo_does_nothing() -> None:
    thing = SimpleNamespace(a=1)
    surgery = Surgery()
    surgery.set(thing, "a", 2)
    surgery.undo()
    thing.a = 5
    surgery.undo()
    assert thing.a == 5


def test_none_is_a_value() -> None:
    thing = SimpleNamespace(a=None)
    surgery = Surgery()
    surgery.set(thing, "a", 1)
    surgery.undo()
    assert vars(thing) == {"a": None}


def test_modules_keep_their_identity_and_order() -> None:
    model = nn.Sequential()
    for name in ("first", "second", "third"):
        model.add_module(name, nn.Linear(2, 2))
    before = list(model.named_modules())
    surgery = Surgery()
    surgery.set(model, "second", nn.Identity())
    surgery.set(model.first, "bias", None)
    assert "second.weight" not in model.state_dict()
    surgery.undo()
    after = list(model.named_modules())
    assert [name for name, _ in after] == [name for name, _ in before]
    assert all(new is old for (_, new), (_, old) in zip(after, before, strict=True))


def test_parameters_keep_their_identity() -> None:
    layer = nn.Linear(2, 3, bias=False)
    weight = layer.weight
    surgery = Surgery()
    surgery.set(layer, "bias", nn.Parameter(torch.zeros(3)))
    surgery.set(layer, "weight", nn.Parameter(torch.zeros(3, 2)))
    assert set(layer.state_dict()) == {"weight", "bias"}
    surgery.undo()
    assert layer.bias is None
    assert layer.weight is weight
    assert list(layer.state_dict()) == ["weight"]


def test_failing_assignment_is_taken_back_as_well() -> None:
    class Picky:
        a = 1

        def __setattr__(self, name: str, value: Any) -> None:
            if value == 13:
                raise ValueError("not this one")
            super().__setattr__(name, value)

    thing, surgery = Picky(), Surgery()
    surgery.set(thing, "a", 2)
    try:
        surgery.set(thing, "a", 13)
    except ValueError:
        surgery.undo()
    assert thing.a == 1
