"""Budgets: what is read, what it means, and what is refused by name."""

from math import log

import pytest

from skimp.errors import SkimpError
from skimp.finder.budget import Budget


def test_limits_are_read_in_their_units() -> None:
    found = Budget.parse(["loss<=1%", "speedup>=1.4x, memory <= 6GiB", "kv<=500MiB"])
    values = {limit.name: limit.value for limit in found.limits}
    assert values == {
        "loss": pytest.approx(log(1.01)),
        "speedup": 1.4,
        "memory": 6 * 2**30,
        "kv": 500 * 2**20,
    }
    assert str(found) == "loss<=1%, speedup>=1.4x, memory <= 6GiB, kv<=500MiB"


def test_accuracy_names_its_tasks() -> None:
    found = Budget.parse(["accuracy(arc_easy, my/tasks:piqa)>=-1.5,loss<=1%"])
    accuracy = found.accuracy
    assert accuracy is not None and accuracy.tasks == ("arc_easy", "my/tasks:piqa")
    assert accuracy.value == pytest.approx(-0.015)
    assert accuracy.holds(-0.01) and not accuracy.holds(-0.02)
    assert accuracy.shown(-0.01) == "-1 points"
    assert [limit.name for limit in found.quality] == ["loss"] and not found.cost


def test_a_limit_holds_on_its_own_side() -> None:
    loss, speed = Budget.parse(["kl<=0.1", "bytes>=1.2"]).limits
    assert loss.holds(0.1) and not loss.holds(0.11)
    assert speed.holds(1.2) and not speed.holds(1.19)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("los<=1%", "did you mean 'loss'"),
        ("loss>=1%", "should read loss<="),
        ("speedup<=2x", "should read speedup>="),
        ("loss", "cannot be read"),
        ("loss<=-1%", "cannot be kept"),
        ("loss<=0", "cannot be kept"),
        ("loss<=5", "would allow 500% more; write loss<=5%"),
        ("speedup>=1.4%", "no unit of speedup"),
        ("memory<=6x", "no unit of memory"),
        ("kl<=e", "is no number"),
        ("loss<=1%,loss<=2%", "given twice"),
        ("", "cannot be read"),
        ("accuracy>=-1", "names no task"),
        ("accuracy()>=-1", "names no task"),
        ("accuracy(piqa)<=-1", "should read accuracy(piqa)>=-1"),
        ("accuracy(piqa)>=1", "should allow some points"),
        ("accuracy(piqa)>=0", "should allow some points"),
        ("loss(piqa)<=1%", "only accuracy is of tasks"),
        ("accuracy(piqa)>=-1,accuracy(boolq)>=-1", "given twice"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(text: str, words: str) -> None:
    with pytest.raises(SkimpError, match="--budget") as caught:
        Budget.parse([text])
    assert words in str(caught.value)
