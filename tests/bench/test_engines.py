"""The engines that run in this environment choose the tokens that the model does."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bench.engines import eager, llm_drop, static
from bench.engines.base import Engine, Options
from bench.peering.process import Peer
from tests.export.gguf_kit import product
from tests.models import model_files as files

import skimp
from skimp.export.gguf.target import write
from skimp.plan import Plan

_PROMPT = [5, 6, 7, 8, 9]
_OTHER = [11, 3, 4]
_COUNT = 16

# bfloat16 moves this model's logits by at most 0.11 of their spread (640 places, 20 seeds), so a
# token that leads by more than twice that is nobody's matter of rounding.
_RANGE, _CLEAR = 0.2, 0.25


@pytest.fixture
def options(tmp_path: Path) -> Options:
    model = files.llama(initializer_range=_RANGE, num_hidden_layers=3)
    return Options(str(files.write(tmp_path / "model", model)), threads=1, length=32)


def _greedy(model: Any, ids: list[int], count: int = _COUNT) -> list[int]:
    """Greedy tokens, each from a pass over everything before it."""
    for _ in range(count):
        with torch.inference_mode():
            logits = model(torch.tensor([ids]), use_cache=False).logits
        ids = [*ids, int(logits[0, -1].argmax())]
    return ids[-count:]


def _free(engine: Engine, ids: list[int], count: int = _COUNT) -> list[int]:
    found = [engine.prefill(ids)]
    for _ in range(count - 1):
        found.append(engine.decode(found[-1]))
    return found


def _wrong(reference: Any, ids: list[int], choose: Callable[[list[int]], list[int]]) -> list[int]:
    """The places behind `ids` where the reference decides clearly and `choose` otherwise.

    `choose` is given the reference's tokens, and says what it would take at each place.
    """
    tokens = _greedy(reference, ids)
    chosen = choose(tokens)
    with torch.inference_mode():
        logits = reference(torch.tensor([ids + tokens])).logits[0, len(ids) - 1 : -1]
    best = logits.topk(2).values
    clear = (best[:, 0] - best[:, 1]) > _CLEAR * logits.std(1)
    assert int(clear.sum()) >= _COUNT // 3, "the model decides too little clearly to tell"
    return [place for place in range(_COUNT) if clear[place] and chosen[place] != tokens[place]]


def _check(engine: Engine, reference: Any, *prompts: list[int]) -> None:
    """The engine decides like the reference, and nothing is left of the request before."""
    for prompt in prompts:

        def choose(tokens: list[int], prompt: list[int] = prompt) -> list[int]:
            return [engine.prefill(prompt), *(engine.decode(token) for token in tokens[:-1])]

        assert not _wrong(reference, prompt, choose)


def test_eager(options: Options) -> None:
    model = eager.open_model(options)
    assert model.dtype == torch.bfloat16
    _check(eager.load(options), model.float(), _PROMPT, _OTHER, _PROMPT)


@pytest.mark.slow
def test_static(options: Options) -> None:
    model = eager.open_model(options).float()
    _check(static.load(options), model, _PROMPT, _OTHER, _PROMPT)


@pytest.mark.parametrize("layers", [[1], [0, 2], [0, 1]])
def test_llm_drop_leaves_out_what_a_plan_without_fills_does(layers: list[int]) -> None:
    dense, dropped = (files.llama(initializer_range=0.5, num_hidden_layers=3) for _ in range(2))
    anatomy = skimp.Anatomy.of(dense)
    plan = Plan.empty(anatomy).with_section("drop", {"attention": layers, "fill": "zero"})
    before = _greedy(dense, _PROMPT)
    llm_drop.drop_attention(dropped, layers)
    engine = eager.Eager(dropped)
    with skimp.apply(dense, plan):
        expected = _greedy(dense, _PROMPT)
        kept = sum(weight.numel() for weight in dense.parameters())
    assert expected != before
    for _ in range(2):
        assert _free(engine, _PROMPT) == expected
    assert sum(weight.numel() for weight in dropped.parameters()) == kept


def test_the_layers_of_llm_drop_are_read_from_its_argument(options: Options) -> None:
    engine = llm_drop.load(replace(options, argument="0,2"))
    kept = [hasattr(layer, "self_attn") for layer in engine._model.model.layers]
    assert kept == [False, True, False]


def test_skimps_own_engine(options: Options, tmp_path: Path) -> None:
    own: Any = pytest.importorskip("bench.engines.own", exc_type=ImportError)
    reference = eager.open_model(options).float()
    _check(own.load(options), reference, _PROMPT, _OTHER, _PROMPT)
    anatomy = skimp.Anatomy.of(reference)
    plan = Plan.empty(anatomy).with_section("drop", {"attention": [1], "fill": "zero"})
    plan.write(tmp_path / "plan.yaml")
    planned = own.load(replace(options, argument=str(tmp_path / "plan.yaml")))
    with skimp.apply(reference, plan):
        _check(planned, reference, _PROMPT, _OTHER)


def test_llama_cpp_reads_the_file_as_it_was_meant(tmp_path: Path) -> None:
    python = os.environ.get("SKIMP_PEERS_LLAMA")
    if python is None:
        pytest.skip("SKIMP_PEERS_LLAMA names no Python that has llama_cpp")
    pytest.importorskip("gguf")
    model = files.llama(initializer_range=_RANGE, num_hidden_layers=3).bfloat16()
    write(product(model), "bf16", tmp_path / "m.gguf")
    peer = Peer("llama", "bench.engines.llama", python, 1, tmp_path / "log")

    def choose(tokens: list[int]) -> list[int]:
        return peer.ask("agree", prompt=_PROMPT, forced=tokens, count=_COUNT)["chosen"]

    try:
        peer.ask("import")
        given = {"source": "", "threads": 1, "length": 32, "file": str(tmp_path / "m.gguf")}
        peer.ask("load", options=given)
        assert not _wrong(model.float(), _PROMPT, choose)
    finally:
        peer.close()
