"""Sentences must follow from the numbers, above all the one that says `not faster`."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skimp.report import words
from skimp.report.facts import (
    Decoder,
    Decoders,
    Estimate,
    Fidelity,
    Fill,
    Quality,
    Selection,
    Side,
    Speed,
    Task,
)

DENSE = Side(weight_bytes=500e6, kv_bytes_per_token=46_080, roofline_share=0.8)
PLANNED = Side(weight_bytes=450e6, kv_bytes_per_token=30_720, roofline_share=0.5)


def speed(value: float | None, low: float | None = None, high: float | None = None) -> Speed:
    return Speed(
        workload="512+128x1",
        dense=DENSE,
        planned=PLANNED,
        decode=Estimate(value, low, high),
        decode_bound=1.12,
    )


@given(
    low=st.floats(0.2, 3.0),
    width=st.floats(0.0, 0.5),
    bound=st.none() | st.floats(0.9, 3.0) | st.just(math.inf),
)
def test_faster_only_if_the_whole_interval_clears_one(
    low: float, width: float, bound: float | None
) -> None:
    measured = replace(speed(low + width / 2, low, low + width), decode_bound=bound)
    verdict = words.decode_verdict(measured)
    if low > 1:
        assert verdict.state == "faster" and verdict.headline.startswith("Faster")
    else:
        assert verdict.state == "not faster" and verdict.headline.startswith("Not faster")
        assert "byte" in verdict.reason
    assert verdict.reason.endswith(".")


def test_an_interval_that_holds_the_bound_blames_the_clock_alone() -> None:
    reason = words.decode_verdict(speed(1.1, 0.6, 1.7)).reason
    assert "too unsteady to tell" in reason
    assert "not collected" not in reason


def test_not_faster_gives_the_bytes() -> None:
    verdict = words.decode_verdict(speed(0.99, 0.97, 1.01))
    assert verdict.headline == (
        "Not faster: decode runs at 0.99× (95% interval 0.97–1.01) the dense speed at 512+128x1."
    )
    assert verdict.reason == (
        "Weights go from 500 MB to 450 MB (−10.0%) and KV bytes per token go from 46.1 kB to "
        "30.7 kB (−33.3%). So bytes allow at most 1.12×, which was not collected: something other "
        "than bytes read sets the pace here (share of roofline reached: dense 80.0%, planned "
        "50.0%)."
    )


def test_slower_is_called_slower() -> None:
    assert "slower" in words.decode_verdict(speed(0.9, 0.88, 0.92)).headline
    assert "slower" not in words.decode_verdict(speed(0.99, 0.97, 1.01)).headline


def test_a_small_bound_is_the_reason() -> None:
    small = replace(speed(1.0, 0.98, 1.02), decode_bound=1.02)
    assert "at most 1.02×, too little" in words.decode_verdict(small).reason
    none = replace(small, decode_bound=1.0)
    assert "as many bytes as before" in words.decode_verdict(none).reason


def test_without_bytes_no_reason_is_invented() -> None:
    bare = Speed(decode=Estimate(0.98, 0.96, 1.0))
    assert "no bytes were recorded" in words.decode_verdict(bare).reason


def test_without_an_interval_nothing_is_faster() -> None:
    assert words.decode_verdict(speed(1.3)).state == "unproven"
    assert words.decode_verdict(speed(1.0)).state == "not faster"
    assert words.decode_verdict(None).state == "not measured"
    assert words.decode_verdict(speed(None)).state == "not measured"


def test_share_of_the_bound_is_stated() -> None:
    half = replace(speed(1.1, 1.08, 1.12), decode_bound=1.2)
    assert "50% of that gain" in words.decode_verdict(half).reason
    beyond = replace(half, decode_bound=1.05)
    assert "more than the 1.05×" in words.decode_verdict(beyond).reason


@pytest.mark.parametrize(
    ("decoders", "expected"),
    [
        (Decoders(), None),
        (Decoders(threads=2), None),
        (
            Decoders(Decoder("native"), Decoder("native"), 1),
            "Both sides were decoded by the native program, 1 thread.",
        ),
        (
            Decoders(Decoder("torch", "too large"), Decoder("native")),
            "Dense was decoded by torch (too large); planned was decoded by the native program.",
        ),
        (Decoders(Decoder("transformers")), "Dense was decoded by transformers."),
    ],
)
def test_what_decoded_is_said_as_far_as_it_is_known(
    decoders: Decoders, expected: str | None
) -> None:
    assert words.decoded_sentence(replace(speed(1.1), decoders=decoders)) == expected
    assert words.decoded_sentence(None) is None


def test_bound_is_derived_from_bytes_when_not_recorded() -> None:
    derived = words.decode_bound(replace(speed(1.0), decode_bound=None))
    context = 512 + 127 / 2
    expected = (500e6 + 46_080 * context) / (450e6 + 30_720 * context)
    assert derived == pytest.approx(expected)


def test_an_end_near_one_does_not_round_to_one() -> None:
    assert words.between(Estimate(1.01, 1.002, 1.02)) == "1.002–1.020"
    assert words.between(Estimate(1.1, 1.05, 1.15)) == "1.05–1.15"


def test_prefill_sentence() -> None:
    assert words.prefill_sentence(None) is None
    slow = replace(speed(1.1), prefill=Estimate(0.98, 0.95, 1.01))
    sentence = words.prefill_sentence(slow)
    assert sentence is not None
    assert sentence.startswith("Prefill is not faster: 0.98×")
    assert "−10.0%" in sentence


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (
            Selection(attention=tuple(range(10)), fill=Fill("linear", 16), layers=30, known=True),
            "10 of 30 attention sublayers, replaced by rank-16 linear maps",
        ),
        (
            Selection(attention=(1, 2), ffn=(5,), fill=Fill("mean"), layers=8, known=True),
            "2 of 8 attention and 1 of 8 FF sublayers, replaced by their mean output",
        ),
        (
            Selection(attention=(3, 4), ffn=(3, 4), layers=8, known=True),
            "2 of 8 whole layers, with nothing in their place",
        ),
        (Selection(ffn=(3,), known=True), "1 FF sublayer, with nothing in its place"),
        (Selection(layers=8, known=True), "No sublayer left out"),
        (
            Selection(layers=8, known=True, other_sections=("experts", "weights")),
            "No sublayer left out; the plan also has a section on experts and weights",
        ),
        (
            Selection(attention=(1, 2), layers=8, repair="64", known=True),
            "2 of 8 attention sublayers, with nothing in their place; kept output projections "
            "repaired (rank 64)",
        ),
        (Selection(), "What was left out is not recorded"),
    ],
)
def test_what_was_left_out(selection: Selection, expected: str) -> None:
    assert words.left_out(selection) == expected


def quality(value: float, low: float | None, high: float | None) -> Quality:
    mean = Task("mean", dense=0.5, planned=0.5 + value, difference=Estimate(value, low, high))
    return Quality("plan", mean=mean)


def test_quality_sentence_states_what_cannot_be_excluded() -> None:
    unsure = words.quality_sentence(quality(-0.004, -0.015, 0.007))
    assert "no loss was shown, and a loss of 1.5 points cannot be excluded" in unsure
    assert "the loss is real" in words.quality_sentence(quality(-0.03, -0.05, -0.01))
    assert "rose by 3.0 points" in words.quality_sentence(quality(0.03, 0.01, 0.05))
    assert "without an interval" in words.quality_sentence(quality(-0.03, None, None))
    assert words.quality_sentence(None) == "Mean accuracy was not measured."


def test_perplexity_sentence() -> None:
    assert words.perplexity_sentence(Fidelity(20.0, 21.0)) == "Perplexity 20.0 → 21.0 (+5.0%)."
    assert words.perplexity_sentence(Fidelity(20.0, math.inf)) == "Perplexity 20.0 → ∞."
    sure = Fidelity(20.0, 21.0, perplexity_change=Estimate(0.05, 0.04, 0.06))
    assert words.perplexity_sentence(sure) == (
        "Perplexity 20.0 → 21.0 (+5.0%, 95% interval +4.0% to +6.0%)."
    )
    assert words.perplexity_sentence(None) is None
