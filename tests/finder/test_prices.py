"""Prices explain what they were solved for, and fall back on bytes where nothing was timed."""

import pytest
from tests import families

from skimp.finder.prices import Bytes, Measured, features, references
from skimp.measure.cost import decode_cost
from skimp.methods.registry import reduce
from skimp.models.anatomy import Anatomy
from skimp.workload import Workload

WORK = Workload.parse("64+32x1")


def test_shares_of_the_dense_model_add_up() -> None:
    dense = Anatomy.of(families.build("llama"))
    counted = features(dense, dense, WORK)
    read = [counted[name] for name in ("outside", "attention", "ffn", "apart")]
    assert sum(read) == pytest.approx(1)
    assert (counted["sublayers"], counted["thinned"], counted["fills"]) == (1, 0, 0)


def test_without_timings_the_price_is_that_of_bytes() -> None:
    dense = Anatomy.of(families.build("llama"))
    prices = Measured.solve(dense, WORK, [])
    for plan in references(dense, thin=True):
        planned = reduce(plan, dense)
        share = decode_cost(planned, WORK).bytes / decode_cost(dense, WORK).bytes
        assert prices.step(planned, WORK) == pytest.approx(share, rel=0.02)


def test_made_up_prices_are_found_again() -> None:
    dense = Anatomy.of(families.build("llama"))
    true = {"outside": 1.0, "attention": 0.8, "ffn": 0.7, "apart": 1.6}
    true |= {"sublayers": 0.1, "thinned": 0.3, "fills": 0.05}
    whole = Measured(dense, true).step(dense, WORK)
    planned = [reduce(plan, dense) for plan in references(dense, thin=True)]
    timings = [(each, Measured(dense, true).step(each, WORK) / whole) for each in planned]
    found = Measured.solve(dense, WORK, timings)
    for anatomy, took in timings:
        assert found.step(anatomy, WORK) == pytest.approx(took, rel=0.02)
    assert found.step(dense, WORK) == pytest.approx(1)
    assert min(found.prices.values()) >= 0


def test_bytes_are_those_of_a_step() -> None:
    dense = Anatomy.of(families.build("gpt2"))
    assert Bytes().step(dense, WORK) == decode_cost(dense, WORK).bytes
