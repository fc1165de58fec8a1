"""The replay runs a model piecewise and must not change a digit."""

import pytest
import torch
from tests import families, tiny

from skimp.calibration.replay import Replay, pack
from skimp.models.anatomy import KINDS

ALL = sorted(families.SAMPLES)


@pytest.mark.parametrize("name", ALL)
@torch.no_grad()
def test_pieces_equal_the_whole(name: str) -> None:
    model = families.build(name)
    replay = Replay(model, pack(tiny.documents(), tokens=96))
    for number, batch in enumerate(replay.batches):
        final = replay.run(replay.entry[number], number)
        got = replay.logits(final[batch.real])
        assert torch.equal(got, model(input_ids=batch.ids).logits[batch.real])


@pytest.mark.parametrize("name", ALL)
@torch.no_grad()
def test_padding_on_the_right_changes_nothing(name: str) -> None:
    model = families.build(name)
    long, short = tiny.documents(2)[0], tiny.documents(2)[1][:7]
    replay = Replay(model, pack([long, short], tokens=10_000))
    final = replay.run(replay.entry[0], 0)
    row = int(replay.batches[0].real.sum(1).argmin())
    alone = model(input_ids=short[None]).logits[0]
    torch.testing.assert_close(replay.logits(final[row, :7]), alone, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ALL)
def test_traces_add_up_to_the_residual_stream(name: str) -> None:
    model = families.build(name)
    replay = Replay(model, pack(tiny.documents(3)))
    hidden = replay.run(replay.entry[0], 0, stop=1)
    traces, after = replay.watch(1, KINDS, hidden, 0)
    assert torch.equal(after, replay.layer(1, hidden, 0))
    assert torch.equal(traces["attention"].state, hidden)
    if name in ("llama", "gemma2", "olmo2", "gpt2", "falcon-7b", "gpt_neox"):
        last = traces["attention"] if replay.family.parallel else traces["ffn"]
        other = traces["ffn"].output if replay.family.parallel else 0
        total = last.state + last.output + other
        torch.testing.assert_close(total, after, rtol=0, atol=1e-5)


def test_the_model_is_left_as_it_was() -> None:
    model = families.build("llama")
    before = list(model.modules())
    replay = Replay(model, pack(tiny.documents(2)))
    replay.logits(replay.run(replay.entry[0], 0)[0])
    assert list(model.modules()) == before
    assert model.config.num_hidden_layers == len(replay.layers)


def test_pack_keeps_every_token_and_the_limit() -> None:
    documents = tiny.documents(9)
    batches = pack(documents, tokens=64)
    assert sum(batch.tokens for batch in batches) == sum(map(len, documents))
    assert all(batch.ids.numel() <= 64 or len(batch.ids) == 1 for batch in batches)


@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
def test_all_batches_at_once_change_no_digit_and_take_each_layer_once(name: str) -> None:
    model = families.build(name)
    replay = Replay(model, pack(tiny.documents(), tokens=96))
    assert len(replay.batches) > 1
    alone = [replay.run(entry, batch) for batch, entry in enumerate(replay.entry)]
    order: list[int] = []
    for index, layer in enumerate(replay.layers):
        layer.register_forward_pre_hook(lambda *_, index=index: order.append(index))
    together = replay.run_all(replay.entry)
    assert all(map(torch.equal, alone, together))
    assert order == sorted(order)
    half = replay.run_all(replay.run_all(replay.entry, 0, 1), 1)
    assert all(map(torch.equal, alone, half))
