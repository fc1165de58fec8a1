"""Which neurons are chosen, against a plain reference in float64."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from skimp.methods.experts.section import Experts, Select
from skimp.methods.experts.select import Chosen, choose, left_out, magnitudes, ordered, widened
from skimp.methods.experts.statistic import squares

PROMPTED = ("topk", "sample", "topk_sample")


@dataclass(frozen=True)
class Ask:
    """Arguments of `choose`; weights of priors are quarters, so that fused ranks are exact."""

    sums: Tensor
    counts: Tensor
    count: int
    section: Experts
    layer: int
    magnitude: Tensor
    prior: Tensor | None

    @property
    def width(self) -> int:
        return self.sums.shape[1]

    def choose(self) -> Chosen:
        given = {"magnitude": self.magnitude, "prior": self.prior}
        return choose(self.sums, self.counts, self.count, self.section, self.layer, **given)

    def alone(self, row: int) -> "Ask":
        return replace(self, sums=self.sums[row : row + 1], counts=self.counts[row : row + 1])


@st.composite
def asks(draw: st.DrawFn, **fixed: Any) -> Ask:
    block = fixed.get("block", draw(st.sampled_from([1, 1, 16])))
    width = block * draw(st.integers(1, 12 if block == 1 else 4))
    batch, tokens = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    z = torch.randn(batch, tokens, width, generator=random)
    # Many neurons are off, as after a ReLU, or say the same as others.
    z *= torch.rand(z.shape, generator=random) < draw(st.sampled_from([1, 0.5, 0.1]))
    if draw(st.booleans()):
        z = z.sign()
    real = torch.rand(batch, tokens, generator=random) < draw(st.sampled_from([1, 0.3]))
    share = draw(st.sampled_from([0.0, 0.0, 0.25, 0.5, 1.0]))
    section = Experts(
        keep=draw(st.floats(0.05, 1)),
        select=fixed.get("select", draw(st.sampled_from(get_args(Select)))),
        batch=fixed.get("batch", draw(st.sampled_from(["sequence", "shared"]))),
        prior=share,
        block=block,
        seed=draw(st.integers(0, 2**40)),
    )
    layer = draw(st.integers(0, 3))
    prior = torch.rand(width, generator=random)
    return Ask(
        squares(z, real),
        real.sum(-1),
        section.count(layer, width),
        section,
        layer,
        torch.rand(width, generator=random),
        prior if share or draw(st.booleans()) else None,
    )


def kept(chosen: Chosen, batch: int) -> list[list[int]]:
    """The neurons of each sequence."""
    if chosen.mask is None:
        return [chosen.rows.tolist()] * batch
    return [chosen.rows[row].tolist() for row in chosen.mask]


def ranks(values: list[float]) -> list[int]:
    order = sorted(range(len(values)), key=lambda index: (values[index], -index))
    return [order.index(index) for index in range(len(values))]


def weights(ask: Ask) -> list[list[float] | None]:
    """What speaks for each block, of each sequence or of all; None: nothing, so all stay."""
    if ask.section.select == "magnitude":
        rows = [ask.magnitude.double()]
        empty = [False]
    elif ask.section.batch == "sequence":
        # Scores in float32, or what is equal there were not equal here.
        rows = list(ask.sums.sqrt().double())
        empty = [count == 0 for count in ask.counts.tolist()]
    else:
        seen = [i for i, count in enumerate(ask.counts.tolist()) if count]
        parts = [ask.sums[i].sqrt() / ask.counts[i].float().sqrt() for i in seen]
        rows = [torch.stack([torch.zeros(ask.width), *parts]).sum(0).double()]
        empty = [not seen]
    return [_one(ask, row, none) for row, none in zip(rows, empty, strict=True)]


def _one(ask: Ask, row: Tensor, empty: bool) -> list[float] | None:
    size = ask.section.block
    share = 1.0 if empty else ask.section.prior
    if ask.section.select == "magnitude" or (not share and not empty):
        return [sum(v * v for v in part.tolist()) ** 0.5 for part in row.split(size)]
    if ask.prior is None:
        return None
    pairs = zip(ranks(row.tolist()), ranks(ask.prior.tolist()), strict=True)
    fused = [(1 - share) * mine + share * theirs for mine, theirs in pairs]
    return [sum(fused[at : at + size]) / size for at in range(0, ask.width, size)]


def spread(blocks: list[int], size: int) -> list[int]:
    return sorted(block * size + offset for block in blocks for offset in range(size))


def best(values: list[float], units: int) -> list[int]:
    return sorted(range(len(values)), key=lambda index: (-values[index], index))[:units]


# --- any choice ---------------------------------------------------------------------------------


@given(ask=asks())
def test_form(ask: Ask) -> None:
    chosen = ask.choose()
    rows = chosen.rows
    assert rows.dtype == torch.int32
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert set(rows.tolist()) <= set(range(ask.width))
    if chosen.mask is not None:
        assert chosen.mask.dtype == torch.bool
        assert chosen.mask.shape == (len(ask.sums), len(rows))
        assert chosen.mask.any(0).all(), "a row that nobody keeps"
        assert not chosen.mask.all(), "a mask that says nothing"


@given(ask=asks())
def test_each_keeps_as_many_as_asked_in_whole_blocks(ask: Ask) -> None:
    prompted = ask.section.select in PROMPTED and ask.prior is None
    unseen = ask.counts == 0
    thin = unseen if ask.section.batch == "sequence" else unseen.all().expand(len(unseen))
    for own, none in zip(kept(ask.choose(), len(ask.sums)), thin.tolist(), strict=True):
        assert len(own) == (ask.width if prompted and none else ask.count)
        size = ask.section.block
        assert own == spread([index // size for index in own[::size]], size)


@given(ask=asks(batch="sequence"))
def test_company_does_not_matter(ask: Ask) -> None:
    for row, own in enumerate(kept(ask.choose(), len(ask.sums))):
        assert ask.alone(row).choose().rows.tolist() == own
        assert ask.alone(row).choose().mask is None


@given(ask=asks(batch="shared"))
def test_shared_experts_need_no_mask(ask: Ask) -> None:
    assert ask.choose().mask is None


@given(ask=asks())
def test_same_again(ask: Ask) -> None:
    first, second = ask.choose(), ask.choose()
    assert torch.equal(first.rows, second.rows)
    assert kept(first, len(ask.sums)) == kept(second, len(ask.sums))


# --- which --------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 16])
@pytest.mark.parametrize("select", ["topk", "magnitude"])
@given(data=st.data())
def test_best_are_chosen(select: Select, block: int, data: st.DataObject) -> None:
    ask = data.draw(asks(select=select, block=block))
    found = kept(ask.choose(), len(ask.sums))
    wanted = weights(ask)
    for own, values in zip(found, wanted * (len(found) // len(wanted)), strict=True):
        if values is None:
            assert own == list(range(ask.width))
        elif block == 1:
            assert own == spread(best(values, ask.count), 1)
        else:  # root sums differ in the last place, so judge by what was gained
            units = ask.count // block
            gain = sum(values[index // block] for index in own[::block])
            ideal = sum(values[index] for index in best(values, units))
            assert gain == pytest.approx(ideal, rel=1e-5)


@given(ask=asks(select="sample"))
def test_sample_takes_no_neuron_that_was_off_before_all_others(ask: Ask) -> None:
    found = kept(ask.choose(), len(ask.sums))
    wanted = weights(ask)
    size = ask.section.block
    for own, values in zip(found, wanted * (len(found) // len(wanted)), strict=True):
        if values is not None and ask.count < ask.width:
            on = [index for index, value in enumerate(values) if value > 0]
            off = [index for index, value in enumerate(values) if value == 0]
            units = ask.count // size
            blocks = {index // size for index in own}
            if units <= len(on):
                assert blocks <= set(on)
            else:
                assert blocks == {*on, *off[: units - len(on)]}


@given(ask=asks(select="topk_sample", block=1))
def test_half_are_the_best(ask: Ask) -> None:
    found = kept(ask.choose(), len(ask.sums))
    wanted = weights(ask)
    for own, values in zip(found, wanted * (len(found) // len(wanted)), strict=True):
        if values is not None:
            assert set(best(values, ask.count - ask.count // 2)) <= set(own)


SCORES = torch.tensor([[0.0, 1, 2, 3, 4]])


def draws(select: Select, count: int, times: int = 4000, **settings: Any) -> list[list[int]]:
    """Choices by many seeds, from scores 0 to 4."""
    counts = torch.ones(1, dtype=torch.long)

    def draw(seed: int) -> list[int]:
        section = Experts(select=select, seed=seed, **settings)
        return choose(SCORES**2, counts, count, section, 2).rows.tolist()

    return [draw(seed) for seed in range(times)]


def shares(found: list[list[int]]) -> list[float]:
    return [sum(index in own for own in found) / len(found) for index in range(SCORES.shape[1])]


def without_replacement(odds: list[float]) -> list[float]:
    """Chance of each to be among the first two drawn, in proportion to what is left."""
    total = sum(odds)

    def second(index: int) -> float:
        return sum(
            odds[first] / total * odds[index] / (total - odds[first])
            for first in range(len(odds))
            if first != index
        )

    return [odds[index] / total + second(index) for index in range(len(odds))]


def test_samples_follow_the_statistic() -> None:
    assert shares(draws("sample", 1)) == pytest.approx([0, 0.1, 0.2, 0.3, 0.4], abs=0.04)
    expected = without_replacement(SCORES[0].tolist())
    assert shares(draws("sample", 2)) == pytest.approx(expected, abs=0.04)


def test_random_is_uniform() -> None:
    assert shares(draws("random", 2)) == pytest.approx([0.4] * 5, abs=0.04)


def test_second_half_is_sampled_from_the_others() -> None:
    found = draws("topk_sample", 2)
    assert shares(found) == pytest.approx([0, 1 / 6, 2 / 6, 3 / 6, 1], abs=0.04)
    assert shares(draws("topk_sample", 1, times=50)) == [0, 0, 0, 0, 1]


def test_layers_draw_apart() -> None:
    sums, counts = torch.ones(1, 64), torch.ones(1)
    rows = [choose(sums, counts, 32, Experts(select="random"), layer).rows for layer in range(8)]
    assert len({tuple(row.tolist()) for row in rows}) == 8


# --- the prior ----------------------------------------------------------------------------------


def test_ranks_are_fused_not_scores() -> None:
    sums = torch.tensor([[100.0, 4, 1, 0]])
    prior = torch.tensor([0.1, 0.3, 0.2, 0.4])

    def rows(weight: float) -> list[int]:
        section = Experts(prior=weight)
        return choose(sums, torch.ones(1), 2, section, 0, prior=prior).rows.tolist()

    # Ranks: 3 2 1 0 by the prompt, 0 2 1 3 by the prior.
    assert rows(0.25) == [0, 1]
    assert rows(0.5) == [0, 1]  # 1.5, 2, 1, 1.5
    assert rows(0.75) == [1, 3]
    assert rows(1.0) == [1, 3]


@given(ask=asks(batch="sequence"))
def test_no_prompt(ask: Ask) -> None:
    silent = replace(ask, sums=torch.zeros_like(ask.sums), counts=torch.zeros_like(ask.counts))
    found = silent.choose()
    assert found.mask is None
    if ask.section.select == "topk" and ask.prior is not None and ask.section.block == 1:
        assert found.rows.tolist() == sorted(best(ask.prior.tolist(), ask.count))
    elif ask.section.select in PROMPTED and ask.prior is None:
        assert found.rows.tolist() == list(range(ask.width))
    else:
        assert len(found.rows) == ask.count


@pytest.mark.parametrize(
    ("section", "words"),
    [
        (Experts(prior=0.5), "needs a prior"),
        (Experts(select="magnitude"), "needs the magnitudes"),
    ],
)
def test_missing_values_are_refused(section: Experts, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        choose(torch.ones(1, 8), torch.ones(1), 4, section, 0)


def test_none_cannot_be_chosen() -> None:
    with pytest.raises(ValueError, match="0 neurons"):
        choose(torch.ones(1, 8), torch.ones(1), 0, Experts(), 0)


# --- magnitudes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("maps", [1, 2])
@pytest.mark.parametrize("convert", [Tensor.float, Tensor.bfloat16])
def test_magnitudes(maps: int, convert: Callable[[Tensor], Tensor]) -> None:
    random = torch.Generator().manual_seed(0)
    given = [convert(torch.randn(7, 5, generator=random)) for _ in range(maps)]
    found = magnitudes(given)
    assert found.dtype == torch.float32
    for neuron in range(7):
        product = 1.0
        for weight in given:
            product *= sum(value**2 for value in weight[neuron].double().tolist()) ** 0.5
        assert found[neuron].item() == pytest.approx(product, rel=1e-5)


@given(count=st.integers(1, 8), seed=st.integers(0, 99), batch=st.integers(1, 3))
def test_widened_experts_are_the_same_experts(count: int, seed: int, batch: int) -> None:
    sums = torch.rand(batch, 8, generator=torch.Generator().manual_seed(seed))
    chosen = choose(sums, torch.ones(batch), count, Experts(keep=count / 8), 0)
    wide = widened(chosen, 8)
    assert wide.rows.tolist() == list(range(8)) and wide.mask is not None
    values = torch.ones(batch, 8)
    assert torch.equal(left_out(wide, values), left_out(chosen, values))


@given(seed=st.integers(0, 99), batch=st.integers(2, 4))
def test_order_puts_neurons_together_that_the_same_sequences_keep(seed: int, batch: int) -> None:
    sums = torch.rand(batch, 32, generator=torch.Generator().manual_seed(seed))
    chosen = ordered(choose(sums, torch.ones(batch), 12, Experts(keep=12 / 32), 0))
    if chosen.mask is None or chosen.order is None:
        assert chosen.mask is None and chosen.order is None
        return
    assert sorted(chosen.order.tolist()) == list(range(len(chosen.rows)))
    patterns = [tuple(column) for column in chosen.mask[:, chosen.order.long()].T.tolist()]
    changes = sum(a != b for a, b in pairwise(patterns))
    assert changes == len(set(patterns)) - 1
