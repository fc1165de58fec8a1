"""What cannot be served is refused in one sentence, and the engine then serves as before."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tests.families import VOCABULARY, WINDOW, build
from tests.tiny import byte_tokenizer
from torch import Tensor

import skimp
from skimp.engine import Engine, limits
from skimp.engine.generation import Request
from skimp.errors import LoadError, RequestError, SkimpError

CONTEXT = 64
GOOD = [[5, 6, 7], [9, 10]]


@pytest.fixture(params=["native", "eager"])
def engine(request: pytest.FixtureRequest) -> Engine:
    return made("llama", request.param)


def made(family: str, decode: Any = "eager") -> Engine:
    engine = Engine(build(family), decode=decode)
    if decode == "native":
        for batch in (1, 2):
            assert engine.warm_up(batch) is None
    return engine


@contextmanager
def refused(*words: str, kind: type[SkimpError] = RequestError) -> Iterator[None]:
    """Whatever is done inside is refused by one sentence that holds these words."""
    with pytest.raises(kind) as caught:
        yield
    message = str(caught.value)
    assert re.findall(r"[.!?](?=\s|$)", message) == ["."], message
    assert "\n" not in message
    assert [word for word in words if word not in message] == [], message


def answers(engine: Engine) -> list[Any]:
    return engine.generate(GOOD, 6)


@contextmanager
def as_before(engine: Engine) -> Iterator[None]:
    before = answers(engine)
    yield
    assert answers(engine) == before


BAD: dict[str, tuple[Any, int, tuple[str, ...]]] = {
    "longer than the context": ([[1] * 70], 4, ("prompt", "70", "context of 64", "shorten")),
    "as long as the context": ([[1] * CONTEXT], 1, ("prompt", "context of 64", "shorten")),
    "one of a batch too long": ([[1], [1] * 65], 1, ("prompt", "65", "context of 64", "shorten")),
    "empty prompt": ([[]], 4, ("prompt 0", "no tokens", "give some text")),
    "empty prompt in a batch": ([[1, 2], [], [3]], 4, ("prompt 1", "no tokens", "give some text")),
    "empty batch": ([], 4, ("prompts", "none")),
    "empty tensor": (torch.empty(0, 3, dtype=torch.long), 4, ("prompts", "none")),
    "no new token": ([[1]], 0, ("new", "at least 1")),
    "fewer than no new token": ([[1]], -3, ("new", "at least 1")),
    "token past the vocabulary": ([[1], [2, 97]], 4, ("prompt 1", "token 97", "vocabulary of 97")),
    "negative token": ([[-1]], 4, ("prompt 0", "token -1", "vocabulary of 97")),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_requests(engine: Engine, name: str) -> None:
    """By either door, and nothing of them stays behind."""
    prompts, new, words = BAD[name]
    with as_before(engine):
        with refused(*words):
            engine.prefill(prompts, new)
        with refused(*words):
            engine.generate(prompts, new)


@pytest.mark.parametrize(
    "prompts", [[5, 6, 7], torch.tensor([5, 6, 7]), "some text", ["some text"], 5, [[1.5], [None]]]
)
def test_prompts_that_are_no_lists_of_tokens(engine: Engine, prompts: Any) -> None:
    with as_before(engine):
        with refused("prompts", "token"):
            engine.generate(prompts, 3)
        with refused("prompts", "token"):
            engine.prefill(prompts, 3)
        with refused("prompts", "token"):
            list(engine.start(Request(prompts, 3)))


def test_more_new_tokens_than_the_context_has_room_for(engine: Engine) -> None:
    """`prefill` says how many there is room for, and they can be had; `generate` ends the text."""
    prompt = [3] * 60
    with as_before(engine):
        with refused("new", "60", "context of 64", "at most 4"):
            engine.prefill([prompt], 5)
        logits, state = engine.prefill([prompt], 4)
        for _ in range(4):
            logits = engine.decode(state, logits.argmax(-1))
        assert state.length == CONTEXT
        [answer] = engine.generate([prompt], 5)
        assert (len(answer.tokens), answer.ended) == (4, "context")


def test_more_tokens_than_were_asked_for(engine: Engine) -> None:
    with as_before(engine):
        _, state = engine.prefill(GOOD, 1)
        with refused("tokens", "2", "larger `new`"):
            engine.extend(state, torch.ones(2, 2, dtype=torch.long))
        engine.decode(state, torch.tensor([1, 2]))
        with refused("tokens", "larger `new`"):
            engine.decode(state, torch.tensor([1, 2]))


@pytest.mark.parametrize("chunk", [0, -2])
def test_chunks_of_nothing(engine: Engine, chunk: int) -> None:
    with as_before(engine), refused("chunk", "at least 1"):
        engine.prefill(GOOD, 2, chunk=chunk)


@pytest.mark.parametrize("token", [VOCABULARY, -1, 10**9])
def test_decoding_tokens_outside_the_vocabulary(engine: Engine, token: int) -> None:
    """The request itself goes on as if the token had not been given."""
    with as_before(engine):
        undisturbed, steps = [], [torch.tensor([1, 2]), torch.tensor([3, 4])]
        _, state = engine.prefill(GOOD, 3)
        for tokens in steps:
            undisturbed.append(engine.decode(state, tokens))
        _, state = engine.prefill(GOOD, 3)
        for tokens, wanted in zip(steps, undisturbed, strict=True):
            with refused("token", "vocabulary"):
                engine.decode(state, torch.tensor([1, token]))
            assert torch.equal(engine.decode(state, tokens), wanted)


@pytest.mark.parametrize("token", [VOCABULARY, -1])
def test_reading_tokens_outside_the_vocabulary(engine: Engine, token: int) -> None:
    with as_before(engine):
        _, state = engine.prefill(GOOD, 3)
        with refused("token", "vocabulary"):
            engine.extend(state, torch.tensor([[1, 2], [3, token]]))
        assert state.room == 3


@pytest.mark.parametrize("tokens", [[1], [1, 2, 3]], ids=["too few", "too many"])
def test_decoding_tokens_of_another_batch(engine: Engine, tokens: list[int]) -> None:
    with as_before(engine):
        _, state = engine.prefill(GOOD, 3)
        with refused("tokens", "2"):
            engine.decode(state, torch.tensor(tokens))
        engine.decode(state, torch.tensor([1, 2]))


# --- memory ---------------------------------------------------------------------------------------


def free(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(limits, "available_bytes", lambda device: size)


def test_a_batch_too_large_for_memory(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [[1 + index] * 3 for index in range(6)]
    each = engine.runner.cache_bytes(1, 8)
    with as_before(engine), monkeypatch.context() as patch:
        free(patch, 4 * each + each // 2)
        for serve in (engine.generate, engine.prefill):
            with refused("batch", "6 sequences of 8 tokens", "a batch of 4 would fit"):
                serve(prompts, 5)
        assert len(engine.generate(prompts[:4], 5)) == 4
        with refused("a batch of 4 would fit"):
            engine.generate(prompts[:5], 5)


# Full attention, windows only, windows here and there, and transformers' own cache.
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gptj"])
@pytest.mark.parametrize("share", [0.5, 0.7, 0.95])
def test_a_sequence_too_long_for_memory(
    family: str, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The length that is said to fit does, with sliding windows too, which stop growing."""
    engine = made(family)
    room = 6 * WINDOW
    size = int(engine.runner.cache_bytes(1, room) * share)
    with as_before(engine), monkeypatch.context() as patch:
        free(patch, size)
        with pytest.raises(RequestError) as caught:
            engine.generate([[1] * (room - 2)], 2)
        found = re.search(r"(\d+) tokens of one sequence would fit", str(caught.value))
        assert found is not None, caught.value
        length = int(found[1])
        assert length >= 2
        engine.generate([[1] * (length - 1)], 1)
        with refused("batch"):
            engine.generate([[1] * length], 1)


def test_memory_for_nothing_at_all(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """No advice is better than a length that is no request: a token read and one written."""
    with as_before(engine), monkeypatch.context() as patch:
        free(patch, engine.runner.cache_bytes(1, 2) - 1)
        with refused("batch", "free"), no_length():
            engine.generate(GOOD, 4)


@contextmanager
def no_length() -> Iterator[None]:
    try:
        yield
    except RequestError as error:
        assert not re.search(r"[01] tokens", str(error)), error
        raise


# --- models that compute nonsense -----------------------------------------------------------------

Poison = Callable[[Any], Tensor]
# The embedding of token 5, which the first good prompt alone has, and what every sequence goes by.
WEIGHTS: dict[str, tuple[Poison, str]] = {
    "embedding": (lambda model: model.model.embed_tokens.weight[5], "sequence 0 "),
    "norm": (lambda model: model.model.norm.weight, "sequences 0, 1 "),
    "head": (lambda model: model.lm_head.weight[11], "sequence"),
}


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers(engine: Engine, weight: str, number: float) -> None:
    where, named = WEIGHTS[weight]
    said = refused("logits", "NaN or infinity", named, "load it in", "plan")
    with as_before(engine), filled(where(engine.model), number), said:
        engine.generate(GOOD, 4)


@pytest.mark.parametrize("weight", WEIGHTS)
def test_logits_that_are_no_numbers_behind_transformers_generate(
    engine: Engine, weight: str
) -> None:
    where, _ = WEIGHTS[weight]
    options = {"max_new_tokens": 2, "do_sample": False, "custom_generate": engine.custom_generate}
    said = refused("logits", "NaN or infinity", "sequence", "load it in")
    with as_before(engine), filled(where(engine.model), float("nan")), said:
        engine.model.generate(torch.tensor([[5, 6]]), **options)


@contextmanager
def filled(weight: Tensor, number: float) -> Iterator[None]:
    """This number in all of a weight, for as long as it lasts."""
    with torch.inference_mode():
        kept = weight.clone()
        weight.fill_(number)
    yield
    with torch.inference_mode():
        weight.copy_(kept)


# --- settings -------------------------------------------------------------------------------------


def test_stop_strings_need_a_tokenizer(engine: Engine) -> None:
    with as_before(engine):
        with refused("stop", "tokenizer"):
            engine.generate(GOOD, 3, stop=["a"])
        with refused("stop", "tokenizer"):
            engine.start(Request(GOOD, 3, stop=["a"]))
        assert engine.generate(GOOD, 3, stop=["never"], tokenizer=byte_tokenizer())


@pytest.mark.parametrize("device", ["nonsense", "cuda:", "cuda:x", "cpu:1", ""])
def test_an_unknown_device(device: str) -> None:
    with refused("device", repr(device), "cpu", kind=LoadError):
        skimp.load("random:llama-3.2-1b,layers=1", device=device)


@pytest.mark.parametrize("decode", ["nonsense", "", None])
def test_an_unknown_way_of_decoding(decode: Any) -> None:
    """Also where the model does not decode that way in any case; the model is as it was."""
    for family in ("llama", "gptj"):
        model = build(family)
        before = Engine(model).generate(GOOD, 4)
        with refused(
            "decode", repr(decode), "auto", "native", "compiled", "eager", kind=SkimpError
        ):
            Engine(model, decode=decode)
        assert Engine(model).generate(GOOD, 4) == before


def test_native_decoding_off_the_cpu() -> None:
    """Its program is handed addresses, and those of another device would end the process."""
    model = build("llama").to("meta")
    with refused("decode", "native", "CPU", "auto", kind=SkimpError):
        Engine(model, decode="native")
    assert Engine(model).path() == "torch"
