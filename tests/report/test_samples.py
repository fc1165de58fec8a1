"""Where two continuations part."""

from hypothesis import given
from hypothesis import strategies as st

from skimp.report.facts import Sample
from skimp.report.samples import Divergence, compare, diverge


def whole(part: Divergence) -> str:
    return part.shared + part.space + part.word + part.rest


def test_first_differing_word() -> None:
    dense, planned, agreed = diverge("the cat sat down", "the cat ran off")
    assert agreed == 2
    assert (dense.shared, dense.space, dense.word, dense.rest) == ("the cat", " ", "sat", " down")
    assert planned.word == "ran"


def test_one_text_ends_first() -> None:
    dense, planned, agreed = diverge("the cat", "the cat sat")
    assert agreed == 2
    assert (dense.shared, dense.word) == ("the cat", "")
    assert planned.word == "sat"


def test_scripts_without_spaces_part_at_the_character() -> None:
    dense, planned, agreed = diverge("水は百度で沸く", "水は九十度で沸く")
    assert (agreed, dense.word, planned.word) == (2, "百", "九")


def test_indentation_that_both_share_is_not_shown() -> None:
    shown = compare(Sample("p", " a b", " a c"))
    assert shown.dense.shared == "a" and not shown.identical
    unequal = compare(Sample("p", " a", "a"))
    assert not unequal.identical and unequal.agreed == 0


@given(dense=st.text(), planned=st.text())
def test_nothing_is_lost(dense: str, planned: str) -> None:
    ours, theirs, agreed = diverge(dense, planned)
    for part, text in ((ours, dense), (theirs, planned)):
        assert whole(part).replace("⏎", "") == text.replace("⏎", "")
    assert ours.shared == theirs.shared
    if dense != planned:
        assert (ours.space, ours.word) != (theirs.space, theirs.word)
    assert agreed >= 0


@given(prompt=st.text(max_size=2000))
def test_prompts_are_split_but_whole(prompt: str) -> None:
    shown = compare(Sample(prompt, "", ""))
    assert shown.prompt_start + shown.prompt_rest == prompt.rstrip()
    assert shown.identical
