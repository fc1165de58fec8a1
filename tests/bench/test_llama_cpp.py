"""What the llama.cpp bench times, and how it counts what came of it."""

import pytest
from bench.llama_cpp import _row, plans
from tests.export.gguf_kit import model

import skimp
from skimp.models.anatomy import Anatomy


def test_plans_leave_out_what_their_names_say() -> None:
    dense = model(num_hidden_layers=6, intermediate_size=256)
    anatomy = Anatomy.of(dense)
    found = {}
    for name, plan in plans(anatomy):
        with skimp.apply(dense, plan):
            found[name] = Anatomy.of(dense)
    states = [layer.attention.state for layer in found["33% of attention"].layers]
    assert states.count("zero") == 2
    assert found["half of the neurons"].ffn_size == 128


def test_a_speedup_is_the_median_of_turns_taken_together() -> None:
    dense = [[0.2, 0.2, 9.0]] * 5 + [[2.0, 2.0, 2.0]] * 3
    planned = [[0.1, 0.1, 0.1]] * 5 + [[1.0, 1.0, 9.0]] * 3
    row = _row([dense, planned], [220.0, 100.0])
    assert row["decode"] == pytest.approx(2)
    assert row["bound"] == pytest.approx(2.2)
    assert row["share"] == pytest.approx(2 / 2.2)
    assert row["passed"]
    assert not _row([dense, planned], [230.0, 100.0])["passed"]
