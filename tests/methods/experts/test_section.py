"""The `experts` section of a plan: what it may say, and how it is refused."""

import re
from fractions import Fraction
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.families import build
from tests.json_schema import faults

from skimp.errors import PlanError
from skimp.methods.experts.section import Batch, Experts, ExpertsFile, Select, read_section
from skimp.models.anatomy import Anatomy

SHARE = st.floats(0, 1, exclude_min=True)
SECTION = st.fixed_dictionaries(
    {},
    optional={
        "keep": SHARE | st.lists(SHARE, min_size=1, max_size=5),
        "select": st.sampled_from(get_args(Select)),
        "refresh": st.integers(0, 99),
        "batch": st.sampled_from(get_args(Batch)),
        "fill": st.sampled_from(["zero", "mean"]),
        "prior": st.floats(0, 1),
        "block": st.sampled_from([1, 16, 32, 64]),
        "seed": st.integers(0, 2**40),
    },
)


def test_defaults() -> None:
    assert read_section({}) == Experts(
        keep=0.5,
        select="topk",
        refresh=0,
        batch="sequence",
        prior=0.0,
        block=1,
        fill="zero",
        seed=0,
    )


@given(section=SECTION)
def test_settings_and_data_are_the_same(section: dict[str, Any]) -> None:
    found = read_section(section)
    data = found.to_dict()
    assert read_section(data) == found
    assert {name: data[name] for name in section} == section
    schema = ExpertsFile.model_json_schema()
    assert not list(faults(data, schema, schema))


def test_whole_numbers_are_shares_too() -> None:
    assert read_section({"keep": [1, 0.5], "prior": 1}) == Experts((1.0, 0.5), prior=1.0)


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"keep": 0}, "experts.keep: 0.0 is no share above 0 and up to 1"),
        ({"keep": 1.01}, "experts.keep: 1.01 is no share"),
        ({"keep": -0.5}, "experts.keep: -0.5 is no share"),
        ({"keep": float("nan")}, "experts.keep: nan is no share"),
        ({"keep": float("inf")}, "experts.keep: inf is no share"),
        ({"keep": [0.5, 0, 1]}, "experts.keep: 0.0 is no share"),
        ({"keep": [0.5, "1"]}, "experts.keep: [0.5, '1'] is no share"),
        ({"keep": True}, "experts.keep: True is no share"),
        ({"keep": None}, "experts.keep: None is no share"),
        ({"keep": "half"}, "experts.keep: 'half' is no share"),
        ({"select": "best"}, "experts.select: "),
        ({"select": 1}, "experts.select: "),
        ({"refresh": -1}, "experts.refresh: "),
        ({"refresh": 1.5}, "experts.refresh: "),
        ({"refresh": True}, "experts.refresh: "),
        ({"batch": "all"}, "experts.batch: "),
        ({"prior": -0.1}, "experts.prior: "),
        ({"prior": 1.5}, "experts.prior: 1.5 is no weight from 0 to 1"),
        ({"prior": float("nan")}, "experts.prior: "),
        ({"prior": "0.5"}, "experts.prior: "),
        ({"block": 8}, "experts.block: "),
        ({"block": 0}, "experts.block: "),
        ({"block": "16"}, "experts.block: "),
        ({"seed": -1}, "experts.seed: "),
        ({"seed": 0.5}, "experts.seed: "),
        ({"kept": 0.5}, "experts.kept: "),
    ],
)
def test_malformed_section_is_refused(section: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=re.escape(words)) as caught:
        read_section(section)
    message = str(caught.value)
    assert message.startswith("experts.")
    assert message.endswith(".")
    assert "\n" not in message


@pytest.mark.parametrize("shares", [3, 5])
def test_shares_for_another_model_are_refused(shares: int) -> None:
    anatomy = Anatomy.of(build("llama"))
    section = read_section({"keep": [0.5] * shares})
    with pytest.raises(PlanError, match=rf"^experts.keep: lists {shares} shares, but .* 4 layers"):
        section.check(anatomy)
    read_section({"keep": [0.5] * 4}).check(anatomy)
    read_section({"keep": 0.5}).check(anatomy)


def test_shares_are_counted_by_layers_of_the_dense_model() -> None:
    anatomy = Anatomy.of(build("llama")).without_layers([1, 2])
    section = read_section({"keep": [0.1, 0.2, 0.3, 1]})
    section.check(anatomy)
    assert [section.keep_of(layer) for layer in range(4)] == [0.1, 0.2, 0.3, 1]
    assert [section.dense(layer) for layer in range(4)] == [False, False, False, True]


# --- how many -----------------------------------------------------------------------------------


@given(percent=st.integers(1, 100), width=st.integers(1, 3000))
def test_count_rounds_down_what_was_written(percent: int, width: int) -> None:
    exact = Fraction(percent, 100) * width
    found = Experts(percent / 100).count(0, width)
    assert found == max(1, exact.numerator // exact.denominator)


@given(
    keep=SHARE,
    block=st.sampled_from([1, 16, 32, 64]),
    blocks=st.integers(1, 50),
    odd=st.integers(0, 63),
)
def test_count_is_whole_blocks(keep: float, block: int, blocks: int, odd: int) -> None:
    width = block * blocks
    found = Experts(keep, block=block).count(0, width)
    assert block <= found <= width
    assert found % block == 0
    assert found - block < keep * width + 1e-3
    assert found == block or found <= keep * width + 1e-3
    assert found + block > keep * width
    if odd % block:
        assert Experts(keep, block=block).count(0, width + odd) == width + odd


def test_count_by_layer() -> None:
    section = Experts((0.5, 1.0, 0.29, 1e-9), block=1)
    assert [section.count(layer, 100) for layer in range(4)] == [50, 100, 29, 1]


# --- the prior ----------------------------------------------------------------------------------


@pytest.mark.parametrize("select", get_args(Select))
def test_prior_is_needed_where_it_is_weighed(select: Select) -> None:
    assert not Experts(select=select).needs_prior
    weighed = Experts(select=select, prior=0.25).needs_prior
    assert weighed is (select in ("topk", "sample", "topk_sample"))
