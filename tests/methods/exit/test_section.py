"""The `exit` section: what it takes, what it refuses, and the values it asks for."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests import families

from skimp.errors import PlanError
from skimp.methods.exit.features import FEATURES
from skimp.methods.exit.section import Exit, ExitFile, by_exit, read_section
from skimp.methods.exit.values import AGREEMENTS, THRESHOLDS, check, shapes, threshold
from skimp.models.anatomy import Anatomy
from skimp.plan import Plan

ANATOMY = Anatomy.of(families.build("llama"))  # 4 layers, 32 wide, 97 tokens


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ({"probe": [1, 1]}, "exit.probe"),
        ({"probe": [-1]}, "exit.probe"),
        ({"probe": ["2"]}, "exit.probe"),
        ({"rule": "forest"}, "exit.rule"),
        ({"translator": "half"}, "exit.translator"),
        ({"translator": 0}, "exit.translator"),
        ({"translator": True}, "exit.translator: True is none of plain, full or RANK"),
        ({"translator": [8]}, r"exit.translator: \[8\] is none of plain, full or RANK"),
        ({"translator": 1.5}, "exit.translator: 1.5 is none of plain, full or RANK"),
        ({"candidates": 1}, "exit.candidates"),
        ({"candidates": -3}, "exit.candidates"),
        ({"screen": 4}, "exit.screen"),
        ({"agreement": 1.5}, "exit.agreement"),
        ({"agreement": 0.0}, "exit.agreement"),
        ({"agreement": 1.0}, "exit.agreement"),  # no number of documents could promise that
        ({"agreement": 0.9, "threshold": 1.0}, "exit.threshold"),
        ({"threshold": float("nan")}, "exit.threshold"),
        ({"kv": "holes"}, "exit.kv"),
        ({"max_pending": 0}, "exit.max_pending"),
        ({"layers": [2]}, "exit.layers"),
    ],
)
def test_a_bad_field_is_named(data: dict[str, Any], field: str) -> None:
    with pytest.raises(PlanError, match=field):
        read_section(data)


@pytest.mark.parametrize(
    ("section", "field"),
    [
        (Exit((1, 4)), "exit.probe"),
        (Exit((1,), translator=33), "exit.translator"),
        (Exit((1,), candidates=98), "exit.candidates"),
    ],
)
def test_what_does_not_fit_the_model_is_named(section: Exit, field: str) -> None:
    with pytest.raises(PlanError, match=field):
        section.check(ANATOMY)


sections = st.builds(
    Exit,
    probe=st.sets(st.integers(0, 3)).map(lambda found: tuple(sorted(found))),
    rule=st.sampled_from(["threshold", "svm", "crf"]),
    translator=st.one_of(st.sampled_from(["plain", "full"]), st.integers(1, 32)),
    candidates=st.integers(2, 97),
    screen=st.integers(0, 8),
    agreement=st.none() | st.floats(0.5, 1, exclude_max=True),
    kv=st.sampled_from(["exact", "propagate"]),
    max_pending=st.integers(1, 99),
)


@given(sections)
def test_what_is_written_reads_back(section: Exit) -> None:
    section.check(ANATOMY)
    assert read_section(section.to_dict()) == section


def test_defaults_stand_in_the_file_as_in_the_settings() -> None:
    assert read_section({}) == Exit()
    assert set(ExitFile.model_fields) == set(vars(Exit()))


def test_without_probes_nothing_is_asked() -> None:
    plan = Plan.empty(ANATOMY)
    assert by_exit(None) is None
    assert by_exit(plan) is None
    assert by_exit(plan.with_section("exit", {"probe": []})) is None
    assert by_exit(plan.with_section("exit", {"probe": [2]})) == Exit((2,))
    assert not Exit(()).needs_values and shapes(Exit((), screen=3), ANATOMY) == {}


def test_which_values_a_section_needs() -> None:
    assert not Exit((2,), rule="threshold", translator="plain", threshold=0.5).needs_values
    assert Exit((2,), rule="threshold", translator="plain").needs_values
    found = shapes(Exit((1, 3), rule="crf", translator=5, candidates=7, screen=2), ANATOMY)
    assert found == {
        "exit.translator.1.down": (5, 32),
        "exit.translator.1.up": (32, 5),
        "exit.translator.1.bias": (32,),
        "exit.screen.states.centres": (2, 32),
        "exit.screen.states.tokens": (2, 7),
        "exit.screen.states.reach": (2,),
        "exit.screen.states.slope": (32,),
        "exit.rule.1.weight": (len(FEATURES),),
        "exit.rule.1.bias": (1,),
        "exit.rule.3.weight": (len(FEATURES),),
        "exit.rule.3.bias": (1,),
        "exit.rule.3.transition": (2, 2),
    }
    assert all(len(name.split(".")) == 4 for name in found)  # as every method's values


def test_missing_and_misshapen_values_are_named() -> None:
    section = Exit((1,), rule="threshold", threshold=0.5)
    with pytest.raises(PlanError, match=r"exit.translator.1.weight is missing.*fit-exit"):
        check(section, ANATOMY, {})
    values = {"exit.translator.1.weight": torch.zeros(32, 31), "exit.translator.1.bias": None}
    with pytest.raises(PlanError, match=r"exit.translator.1.weight: has shape \(32, 31\)"):
        check(section, ANATOMY, values)  # type: ignore[arg-type]
    screened = Exit((3,), rule="threshold", candidates=2, screen=1, threshold=0.0)
    values = {name: torch.zeros(shape) for name, shape in shapes(screened, ANATOMY).items()}
    values["exit.screen.states.tokens"] = torch.tensor([[3, 97]])
    with pytest.raises(PlanError, match="tokens that the model does not have"):
        check(screened, ANATOMY, values)


def test_values_that_are_no_numbers_are_named() -> None:
    section = Exit((3,), translator="plain", threshold=0.0)
    values = {name: torch.zeros(shape) for name, shape in shapes(section, ANATOMY).items()}
    check(section, ANATOMY, values)
    for bad in (float("nan"), float("inf")):
        values["exit.rule.3.bias"] = torch.full((1,), bad)
        with pytest.raises(PlanError, match=r"exit\.rule\.3\.bias: holds NaN or infinity"):
            check(section, ANATOMY, values)


@pytest.mark.parametrize(
    "levels",
    [[[4.0, 1.5]], [4.0], [float("nan"), 1.5]],
    ids=["of two dimensions", "too few", "no number"],
)
def test_thresholds_that_are_none_are_named(levels: Any) -> None:
    """Rather than never reached in silence, or compared with a list in the middle of an answer."""
    values = {AGREEMENTS: torch.tensor([0.99, 0.9]), THRESHOLDS: torch.tensor(levels)}
    with pytest.raises(PlanError, match=r"exit\.promise\.levels\.threshold: .*skimp fit-exit"):
        threshold(Exit((1,)), values)
    both = {name: torch.tensor(levels) for name in (AGREEMENTS, THRESHOLDS)}
    if torch.tensor(levels).dim() > 1:
        with pytest.raises(PlanError, match="one number for each agreement"):
            threshold(Exit((1,)), both)


def test_the_agreement_picks_the_threshold() -> None:
    values = {AGREEMENTS: torch.tensor([0.99, 0.9]), THRESHOLDS: torch.tensor([4.0, 1.5])}
    assert threshold(Exit((1,)), values) == 4.0
    assert threshold(Exit((1,), agreement=0.9), values) == 1.5
    assert threshold(Exit((1,), threshold=float("inf")), values) == float("inf")
    with pytest.raises(PlanError, match=r"0.95 was not calibrated; take one of 0.99, 0.9"):
        threshold(Exit((1,), agreement=0.95), values)
    with pytest.raises(PlanError, match="no threshold was calibrated"):
        threshold(Exit((1,)), {})
