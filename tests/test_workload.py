import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skimp.errors import WorkloadError
from skimp.workload import Workload

COUNT = st.integers(1, 10**6)


@given(prompt=COUNT, new=COUNT, batch=COUNT)
def test_text_round_trip(prompt: int, new: int, batch: int) -> None:
    workload = Workload(prompt, new, batch)
    assert Workload.parse(str(workload)) == workload


def test_batch_is_one_unless_said() -> None:
    assert Workload.parse(" 512+128 ") == Workload(512, 128, 1)


@given(prompt=COUNT, new=st.integers(1, 1000))
def test_mean_context_is_the_mean_over_decode_steps(prompt: int, new: int) -> None:
    # The step that makes token i reads the prompt and the i tokens made before it.
    read = [prompt + made for made in range(new)]
    assert Workload(prompt, new).mean_context == pytest.approx(sum(read) / new)


@pytest.mark.parametrize(
    "text", ["", "512", "512+", "+128", "512+128x", "512x128", "512-128", "5.5+1", "-1+2", "a+b"]
)
def test_other_forms_are_refused(text: str) -> None:
    with pytest.raises(WorkloadError, match=re.escape(repr(text)) + r".*PROMPT\+NEWxBATCH"):
        Workload.parse(text)


@pytest.mark.parametrize(
    ("text", "field"), [("0+1", "prompt"), ("1+0", "new"), ("1+1x0", "batch"), ("0+0x0", "prompt")]
)
def test_nothing_to_do_is_refused(text: str, field: str) -> None:
    with pytest.raises(WorkloadError, match=rf"^workload: {field} must be at least 1\.$"):
        Workload.parse(text)


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        found = Workload.parse(text)
    except WorkloadError as error:
        assert str(error).endswith(".")
    else:
        assert min(found.prompt, found.new, found.batch) >= 1
