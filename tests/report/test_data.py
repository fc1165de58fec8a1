"""Documents to facts: found wherever they may stand, and never silently lost."""

from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.report import documents

from skimp.report import ReportData, render
from skimp.report.facts import Collected, Decoder, Decoders, Estimate, Fill, Predicted
from skimp.report.tables import speedup_table

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda children: (
        st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=8), children, max_size=4)
    ),
    max_leaves=12,
)
_KEYS = (
    st.sampled_from(
        ["tasks", "mean", "fidelity", "plan", "dropped", "attention", "ffn", "fill", "path", "harm"]
    )
    | st.sampled_from(["machine", "speedup", "decode", "dense", "planned", "interval", "versions"])
    | st.sampled_from(["predicted", "collected", "engine", "share", "gain", "reason", "threads"])
)
_DOCUMENT = st.dictionaries(_KEYS, _JSON | st.dictionaries(_KEYS, _JSON, max_size=5), max_size=6)


# A whole page is drawn for each example.
@settings(max_examples=40)
@given(plan=_DOCUMENT, evals=_DOCUMENT, bench=_DOCUMENT, samples=st.lists(_DOCUMENT, max_size=2))
def test_no_document_breaks_a_report(plan: dict, evals: dict, bench: dict, samples: list) -> None:
    data = ReportData.from_documents(plan=plan, evals=evals, bench=bench, samples=samples)
    render(data).encode("utf-8")


def test_frozen() -> None:
    data = ReportData.from_documents()
    with pytest.raises(FrozenInstanceError):
        data.model = "other"  # pyright: ignore[reportAttributeAccessIssue]


def test_one_evaluation_or_many() -> None:
    single = ReportData.from_documents(evals=documents.evaluation())
    assert [item.name for item in single.qualities] == ["plan"]
    many = ReportData.from_documents(
        evals={"last": documents.evaluation(0.1), "plan": documents.evaluation()}
    )
    assert [item.name for item in many.qualities] == ["plan", "last"]
    unnamed = ReportData.from_documents(evals={"greedy": documents.evaluation(), "last": {}})
    assert [item.name for item in unnamed.qualities] == ["greedy"]
    nested = {**documents.evaluation(), "comparisons": {"last": documents.evaluation(0.1)}}
    inside = ReportData.from_documents(evals=nested)
    assert [item.name for item in inside.qualities] == ["plan", "last"]


def test_dropped_parts_are_found_in_a_bench_alone() -> None:
    selection = ReportData.from_documents(bench=documents.bench()).selection
    assert (selection.attention, selection.layers) == ((7, 12, 26), 30)
    assert selection.fill == Fill("linear", 16)


def test_a_plan_file_itself_is_understood() -> None:
    selection = ReportData.from_documents(plan=documents.common()["plan"]).selection
    assert selection.attention == (7, 12, 26) and selection.known


def test_an_empty_plan_is_known_to_drop_nothing() -> None:
    document = {"plan": {"skimp": 1, "model": {"type": "llama", "layers": 4}}}
    selection = ReportData.from_documents(bench=document).selection
    assert selection.known and selection.attention == () and selection.layers == 4


def test_layers_outside_the_model_are_noted() -> None:
    plan = {**documents.plan(10), "dropped": {"attention": [3, 26], "ffn": []}}
    data = ReportData.from_documents(plan=plan)
    assert data.selection.attention == (3,)
    assert any("names layer 26" in text for text in data.provenance.caveats)


def test_missing_differences_and_speedups_are_derived() -> None:
    data = ReportData.from_documents(
        evals={"tasks": {"t": {"dense": 0.5, "planned": 0.25}}},
        bench={"dense": {"tpot_s": 0.03}, "planned": {"tpot_s": 0.02}},
    )
    assert data.quality and data.quality.tasks[0].difference == Estimate(-0.25)
    assert data.speed and data.speed.decode.value == pytest.approx(1.5)


def test_perplexity_is_no_share_of_items() -> None:
    data = ReportData.from_documents(evals=documents.evaluation())
    assert data.quality
    assert [task.is_share for task in data.quality.tasks] == [True, False]


@pytest.mark.parametrize(
    ("section", "expected"),
    [({"repair": "none"}, None), ({"repair": 64}, "64"), ({"repair": "full"}, "full"), ({}, None)],
)
def test_repair_is_read_from_the_plan(section: dict, expected: str | None) -> None:
    bench = documents.bench()
    bench["plan"]["drop"].update(section)
    assert ReportData.from_documents(bench=bench).selection.repair == expected


def test_perplexity_takes_its_interval_from_the_paired_loss() -> None:
    data = ReportData.from_documents(evals=documents.evaluation())
    assert data.quality and data.quality.fidelity
    change = data.quality.fidelity.perplexity_change
    assert change.low == pytest.approx(0.03998, abs=1e-4)
    assert change.high == pytest.approx(0.06003, abs=1e-4)


def test_other_models_and_other_plans_are_called_out() -> None:
    bench = documents.bench()
    bench["model"] = "another"
    bench["plan"]["drop"]["attention"] = [1]
    said = ReportData.from_documents(plan=documents.plan(), bench=bench).provenance.caveats
    assert any("same model: demo (search), another (timing)" in text for text in said)
    assert any("not about the same plan" in text for text in said)
    agreed = ReportData.from_documents(**documents.everything()).provenance.caveats
    assert not any("not about the same" in text for text in agreed)


def test_conditions_that_differ_name_their_step() -> None:
    bench = documents.bench()
    bench["machine"]["threads"] = 8
    facts = ReportData.from_documents(plan=documents.plan(), bench=bench).provenance.facts
    named = {fact.name: fact.value for fact in facts}
    assert named["threads"] == "2 (search); 8 (timing)"
    assert named["seed"] == "3"
    assert named["memory"] == "16.0 GB"


@pytest.mark.parametrize(
    ("held_out", "source", "expected"),
    [
        ("other prose", "some prose", "held-out data"),
        ("some prose", "some prose", "do not overlap"),
        (None, "some prose", "does not name its data"),
        ("other prose", None, "overlap cannot be ruled out"),
    ],
)
def test_held_out_is_never_merely_assumed(
    held_out: str | None, source: str | None, expected: str
) -> None:
    plan, evaluation = documents.plan(), documents.evaluation()
    plan["calibration"]["source"] = source
    evaluation["held_out"] = held_out
    data = ReportData.from_documents(plan=plan, evals=evaluation)
    assert any(expected in text for text in data.provenance.caveats)


def test_a_plan_chosen_without_text_says_so() -> None:
    plan = {**documents.plan(), "calibration": None}
    said = ReportData.from_documents(plan=plan, evals=documents.evaluation()).provenance.caveats
    assert "skimp read no text to choose this plan." in said


def test_an_impossible_share_of_roofline_is_called_out() -> None:
    bench = documents.bench()
    bench["dense"]["roofline_share"] = 2.5
    said = ReportData.from_documents(bench=bench).provenance.caveats
    assert any("above 100%" in text for text in said)


def test_predictions_shares_and_decoders_are_read() -> None:
    speed = ReportData.from_documents(bench=documents.bench()).speed
    assert speed is not None
    assert (speed.predicted.dense.tpot_s, speed.predicted.planned.prefill_s) == (0.029, 0.78)
    assert (speed.predicted.prefill, speed.predicted.decode) == (1.09, 1.234)
    assert (speed.prefill_bound, speed.decode_bound) == (1.14, 1.25)
    assert speed.prefill_collected == Collected(share=0.982, gain=0.857)
    assert speed.decoders == Decoders(Decoder("native"), Decoder("native"), 2)
    old = ReportData.from_documents(bench=documents.old_bench())
    assert old.speed and (old.speed.predicted, old.speed.decoders) == (Predicted(), Decoders())
    assert not any("left out of this report" in text for text in old.provenance.caveats)


def test_nothing_collected_of_a_bound_that_allows_nothing() -> None:
    """Less than nothing of a gain is nothing, and of no gain there is no share."""
    slower = documents.bench(0.9)
    [_, decode] = speedup_table(ReportData.from_documents(bench=slower).speed)
    assert (decode.share, decode.gain) == ("72.0%", "0.0%")
    bare = {**documents.old_bench(), "byte_bound": {"decode": 1.0}}
    [_, decode] = speedup_table(ReportData.from_documents(bench=bare).speed)
    assert (decode.share, decode.gain) == ("120.0%", "–")


def test_arguments_override_documents() -> None:
    data = ReportData.from_documents(
        plan=documents.plan(),
        importance={"random": {"attention": [1.0], "ffn": []}},
        model="mine",
        layers=40,
        plan_yaml="skimp: 1\n",
        commands=["skimp report"],
        versions={"torch": "3", "python": "3.13"},
        date="2027-01-01",
        caveats=["One thing more."],
    )
    assert data.model == "mine"
    assert data.selection.layers == data.selection.columns == 40
    assert [item.rule for item in data.selection.importance] == ["greedy", "cosine", "random"]
    assert data.provenance.plan_yaml == "skimp: 1\n"
    assert data.provenance.commands == ("skimp plan demo", "skimp report")
    assert {fact.name: fact.value for fact in data.provenance.versions}["torch"] == "3"
    assert data.provenance.date == "2027-01-01"
    assert "One thing more." in data.provenance.caveats


def test_the_rule_that_chose_is_the_one_on_the_map() -> None:
    chosen = ReportData.from_documents(plan={**documents.plan(), "rule": "cosine"}).selection
    assert chosen.ruler and chosen.ruler.rule == "cosine"
    unknown = ReportData.from_documents(plan={**documents.plan(), "rule": "other"}).selection
    assert unknown.ruler and unknown.ruler.rule == "greedy"
