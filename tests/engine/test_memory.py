"""What an engine holds once its dense model is let go of: what was predicted, and no more."""

import gc
import weakref
from typing import Any

import pytest
import torch
from tests.contract.cases import CASES, plan_for
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from skimp.engine import Engine, State
from skimp.engine.runners import cache_tensors
from skimp.measure import cost
from skimp.methods import registry
from skimp.models.anatomy import Anatomy
from skimp.plan import Plan

BAR = 0.03
PROMPTS, NEW = [[1, 2, 3, 4], [5, 6], [7] * 700], 68
CAPACITY = 700 + NEW
DROP = {"attention": [0, 2], "ffn": [1], "layers": [4]}


def llama() -> Any:
    """Its FF is most of it, as in models of full size."""
    return AutoConfig.for_model(
        "llama",
        vocab_size=512,
        hidden_size=128,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
    )


def gpt2() -> Any:
    return AutoConfig.for_model(
        "gpt2", vocab_size=512, n_embd=128, n_inner=1024, n_layer=6, n_head=4, n_positions=1024
    )


def built(config: Any) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    return model


def stored(tensors: list[Tensor]) -> dict[int, int]:
    """Bytes by address: each storage once, whole, whatever views of it there are."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    return {storage.data_ptr(): storage.nbytes() for storage in storages if storage.nbytes()}


def alive() -> list[Tensor]:
    """Every tensor that Python knows of, wherever it is kept."""
    gc.collect()
    # Of subclasses, which tracers and other tests leave about, some have no storage.
    found = [item for item in gc.get_objects() if type(item) in (Tensor, nn.Parameter)]
    return [tensor for tensor in found if tensor.device.type == "cpu"]


def held(engine: Engine, state: State) -> int:
    """Bytes of the weights, buffers and slots that an engine and a request reach."""
    model = engine.model
    return sum(
        stored([*model.parameters(), *model.buffers(), *cache_tensors(state.cache)]).values()
    )


def near(size: int, predicted: int) -> bool:
    return abs(size - predicted) <= BAR * predicted


@pytest.mark.parametrize("decode", ["native", "eager"])
@pytest.mark.parametrize("case", ["drop-zero", "drop-linear:4"])
@pytest.mark.parametrize("config", [llama, gpt2])
def test_what_is_left_out_is_gone_with_the_dense_model(config: Any, case: str, decode: Any) -> None:
    before = alive()  # kept alive, so that no new tensor can take an old one's place
    model = built(config())
    anatomy = Anatomy.of(model)
    plan = plan_for(CASES[case], {**DROP, "fill": case.removeprefix("drop-")}, anatomy)
    reduced = registry.reduce(plan, anatomy)
    predicted = reduced.weight_bytes + cost.kv_bytes(reduced, CAPACITY, len(PROMPTS))
    dense = anatomy.weight_bytes + cost.kv_bytes(anatomy, CAPACITY, len(PROMPTS))
    modules = [weakref.ref(module) for module in model.modules()]

    engine = Engine(model, plan, decode=decode)
    if decode == "native":
        assert engine.warm_up(len(PROMPTS)) is None
    logits, state = engine.prefill(PROMPTS, NEW)
    assert not near(held(engine, state), dense)
    # A linear map in a sublayer's place reads what the sublayer's norm gives: that one stays.
    named = model.named_parameters()
    weights = weakref.WeakSet(w for name, w in named if ".4." in name and w.dim() > 1)
    assert len(weights) >= 4
    del named
    del model
    gc.collect()

    assert [module() for module in modules if module() is not None] == []
    assert len(weights) == 0, "a layer that was left out is still in memory"
    logits = engine.decode(state, logits.argmax(-1))
    assert bool(logits.isfinite().all())
    assert near(held(engine, state), predicted)
    # Nothing is kept elsewhere either: no copy of a weight, no scratch space to speak of.
    new = stored(alive())
    for address in stored(before):
        new.pop(address, None)
    assert near(sum(new.values()), predicted)


@pytest.mark.parametrize("config", [llama, gpt2])
def test_without_a_plan_nothing_is_copied(config: Any) -> None:
    """Beside the caller's model an engine holds no weights of its own."""
    model = built(config())
    own = stored([*model.parameters(), *model.buffers()])
    engine = Engine(model)
    engine.generate([[1, 2]], 3)
    held = stored([*engine.model.parameters(), *engine.model.buffers()])
    assert held == own
    assert near(sum(held.values()), Anatomy.of(model).weight_bytes)


def test_finished_requests_leave_nothing_behind() -> None:
    """Slots go with their state, of any number of requests."""
    engine = Engine(built(llama()))
    engine.generate(PROMPTS, 2)
    before = sum(stored(alive()).values())
    for _ in range(3):
        engine.generate(PROMPTS, 2)
        slots = weakref.ref(cache_tensors(engine.prefill(PROMPTS, NEW)[1].cache)[0])
        assert slots() is None
    assert sum(stored(alive()).values()) == before


def test_engines_let_go_of_what_they_held() -> None:
    model = built(llama())
    plan = Plan.empty(Anatomy.of(model)).with_section("drop", DROP)
    engine = Engine(model, plan)
    assert engine.warm_up(1) is None
    engine.generate([[1, 2, 3]], 4)
    modules = [weakref.ref(module) for module in engine.model.modules()]
    del engine
    gc.collect()
    assert [module() for module in modules if module() is not None] == []
