"""The `drop` section of a plan: what it may say, and how it is refused."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.families import build

from skimp.errors import PlanError
from skimp.methods import registry
from skimp.methods.drop import METHOD, Drop, FillKind
from skimp.methods.drop.layout import mean_folds, reduce
from skimp.methods.drop.section import read_section
from skimp.methods.drop.values import shapes
from skimp.models.anatomy import Anatomy
from skimp.plan import Plan


@pytest.fixture(scope="module")
def llama() -> Anatomy:
    return Anatomy.of(build("llama"))


# --- reading ------------------------------------------------------------------------------------


def test_defaults() -> None:
    assert read_section({}) == Drop((), (), FillKind("zero"))


def test_layers_are_both_sublayers() -> None:
    found = read_section({"attention": [3, 1], "ffn": [2], "layers": [2, 0]})
    assert found == Drop((0, 1, 2, 3), (0, 2))
    assert found.sublayers == (
        (0, "attention"),
        (0, "ffn"),
        (1, "attention"),
        (2, "attention"),
        (2, "ffn"),
        (3, "attention"),
    )


SUBSET = st.lists(st.integers(0, 40), unique=True, max_size=6)
FILL = st.sampled_from(["zero", "mean", "linear:full"]) | st.integers(1, 99).map("linear:{}".format)


@given(attention=SUBSET, ffn=SUBSET, layers=SUBSET, fill=FILL)
def test_settings_and_data_are_the_same(
    attention: list[int], ffn: list[int], layers: list[int], fill: str
) -> None:
    section = {"attention": attention, "ffn": ffn, "layers": layers, "fill": fill}
    found = read_section(section)
    assert read_section(found.to_dict()) == found
    assert str(found.fill) == fill
    assert set(found.attention) == {*attention, *layers}
    assert set(found.ffn) == {*ffn, *layers}


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"attention": [-1]}, "drop.attention: layers are counted from 0"),
        ({"ffn": [1, -2]}, "drop.ffn: layers are counted from 0"),
        ({"layers": [-1]}, "drop.layers: layers are counted from 0"),
        ({"attention": [2, 1, 2]}, "drop.attention: a layer is named twice"),
        ({"layers": [0, 0]}, "drop.layers: a layer is named twice"),
        ({"attention": 3}, "drop.attention: "),
        ({"attention": ["3"]}, "drop.attention.0: "),
        ({"attention": [1.5]}, "drop.attention.0: "),
        ({"attention": [True]}, "drop.attention.0: "),
        ({"ffn": None}, "drop.ffn: "),
        ({"atention": [1]}, "drop.atention: "),
        ({"fill": 0}, "drop.fill: "),
        ({"fill": "median"}, "drop.fill: 'median' is none of zero, mean, linear:RANK"),
        ({"fill": ""}, "drop.fill: '' is none of"),
        ({"fill": "mean:3"}, "drop.fill: 'mean:3' is none of"),
        ({"fill": "linear"}, "drop.fill: 'linear' is none of"),
        ({"fill": "linear:"}, "drop.fill: 'linear:' is none of"),
        ({"fill": "linear:0"}, "drop.fill: 'linear:0' is none of"),
        ({"fill": "linear:-1"}, "drop.fill: 'linear:-1' is none of"),
        ({"fill": "linear:1.5"}, "drop.fill: 'linear:1.5' is none of"),
        ({"fill": "Zero"}, "drop.fill: 'Zero' is none of"),
    ],
)
def test_malformed_section_is_refused(section: dict[str, Any], words: str) -> None:
    assert_refused(words, lambda: METHOD.read(section))


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"attention": [4]}, "drop.attention: there is no layer 4; the model has layers 0 to 3."),
        ({"ffn": [0, 99]}, "drop.ffn: there is no layer 99"),
        ({"layers": [4]}, "there is no layer 4"),
        ({"attention": [0, 1, 2, 3]}, "drop.attention: at least one attention sublayer must stay"),
        ({"attention": [0, 1], "layers": [2, 3]}, "at least one attention sublayer must stay"),
        ({"layers": [0, 1, 2, 3]}, "at least one attention sublayer must stay"),
        ({"ffn": [1], "fill": "linear:33"}, "drop.fill: rank 33 exceeds the hidden size 32"),
    ],
)
def test_section_for_another_size_is_refused(
    section: dict[str, Any], words: str, llama: Anatomy
) -> None:
    plan = Plan.empty(llama).with_section("drop", section)
    assert_refused(words, lambda: registry.check(plan, llama))


def assert_refused(words: str, act: Any) -> None:
    with pytest.raises(PlanError, match=re.escape(words)) as caught:
        act()
    message = str(caught.value)
    assert message.startswith("drop.")
    assert message.endswith(".")
    assert "\n" not in message


def test_largest_rank_is_allowed(llama: Anatomy) -> None:
    METHOD.check(read_section({"ffn": [1], "fill": "linear:32"}), llama)


# --- values -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fill", "names"),
    [
        ("zero", set()),
        ("mean", {"mean"}),
        ("linear:3", {"down", "up", "bias"}),
        ("linear:full", {"up", "bias"}),
    ],
)
def test_fitted_values_by_fill(fill: str, names: set[str], llama: Anatomy) -> None:
    section = read_section({"ffn": [2], "fill": fill})
    assert set(shapes(section, llama)) == {f"drop.ffn.2.{name}" for name in names}
    assert METHOD.needs_values(section) == bool(names)


def test_repair_reaches_every_kept_projection_behind_the_first_drop(llama: Anatomy) -> None:
    section = read_section({"attention": [1, 3], "repair": 5})
    found = shapes(section, llama)
    size = llama.hidden_size
    assert {name.rpartition(".")[0] for name in found} == {
        "drop.ffn.1",
        "drop.attention.2",
        "drop.ffn.2",
        "drop.ffn.3",
    }
    assert found["drop.attention.2.repair_down"] == (5, size)
    assert found["drop.ffn.2.repair_down"] == (5, llama.ffn_size)
    assert found["drop.ffn.2.repair_up"] == (size, 5)
    full = read_section({"attention": [1, 3], "repair": "full"})
    assert shapes(full, llama)["drop.ffn.2.repair"] == (size, llama.ffn_size)


@pytest.mark.parametrize("repair", ["none", 7, "full"])
def test_repair_round_trip(repair: str | int) -> None:
    section = read_section({"attention": [1], "repair": repair})
    assert section.to_dict()["repair"] == repair
    assert read_section(section.to_dict()) == section


def test_nothing_dropped_needs_no_values() -> None:
    assert not METHOD.needs_values(read_section({"fill": "mean"}))


# --- where means go -----------------------------------------------------------------------------


def folds(name: str, **section: Any) -> dict[Any, Any]:
    drop = read_section({"fill": "mean", **section})
    return mean_folds(drop, Anatomy.of(build(name)))


def test_mean_goes_to_the_last_writer_before_it() -> None:
    assert folds("llama", attention=[2], ffn=[1]) == {
        (1, "ffn"): (1, "attention"),
        (2, "attention"): (1, "attention"),
    }


def test_mean_of_the_first_attention_has_no_writer() -> None:
    assert folds("llama", attention=[0], ffn=[0]) == {}
    assert folds("llama", layers=[0], attention=[1]) == {}


def test_mean_of_a_whole_layer_goes_to_the_layer_before() -> None:
    assert folds("llama", layers=[2]) == {(2, kind): (1, "ffn") for kind in ("attention", "ffn")}


def test_parallel_layers_fold_only_into_themselves() -> None:
    assert folds("gpt_neox", layers=[1], attention=[2], ffn=[3]) == {
        (2, "attention"): (2, "ffn"),
        (3, "ffn"): (3, "attention"),
    }


@pytest.mark.parametrize("name", ["gemma2", "gemma3_text", "olmo2", "opt-post-norm", "granite"])
def test_nothing_folds_through_a_norm_or_a_multiplier(name: str) -> None:
    assert folds(name, attention=[2], ffn=[1]) == {}


def test_experts_have_no_bias_to_fold_into() -> None:
    assert folds("mixtral", ffn=[1], attention=[2, 3]) == {(1, "ffn"): (1, "attention")} | {
        (2, "attention"): (1, "attention")
    }
    assert folds("mixtral", attention=[1]) == {}


def test_only_means_fold() -> None:
    assert folds("llama", attention=[2], fill="zero") == {}
    assert folds("llama", attention=[2], fill="linear:2") == {}


# --- what is left -------------------------------------------------------------------------------


def test_layer_without_branches_goes_whole(llama: Anatomy) -> None:
    left = reduce(read_section({"layers": [1], "attention": [2], "ffn": [3]}), llama)
    assert [layer.source for layer in left.layers] == [0, 2, 3]
    assert [layer.attention.state for layer in left.layers] == ["keep", "zero", "keep"]
    assert left.dense_layers == 4


def test_layer_with_fills_stays(llama: Anatomy) -> None:
    left = reduce(read_section({"layers": [1], "fill": "linear:2"}), llama)
    assert [layer.source for layer in left.layers] == [0, 1, 2, 3]
    assert left.layers[1].attention.state == left.layers[1].ffn.state == "linear:2"


def test_norm_on_the_residual_stream_outlives_its_layer() -> None:
    left = reduce(read_section({"layers": [1]}), Anatomy.of(build("opt-post-norm")))
    assert [layer.source for layer in left.layers] == [0, 1, 2, 3]
    assert left.layers[1].attention.parameters == left.layers[1].ffn.parameters == 0
    assert left.layers[1].shared
