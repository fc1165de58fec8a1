"""The live model must answer exactly as the harness's own `hf` model does."""

import random
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.families import build
from tests.measure.tiny import WORDS, tokenizer

from skimp.errors import EvaluationError

pytestmark = pytest.mark.eval

FAMILIES = ["llama", "gemma2", "mistral", "opt", "gpt2", "gpt_neox", "falcon-7b", "falcon-alibi"]


def _live(model: Any, tokens: Any, **settings: Any) -> Any:
    from skimp.measure.harness import LiveModel

    return LiveModel(model, tokens, **settings)


def _theirs(model: Any, tokens: Any) -> Any:
    from lm_eval.models.huggingface import HFLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return HFLM(pretrained=model, tokenizer=tokens, batch_size=8)


def _instances(kind: Any, arguments: list[tuple[Any, ...]]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [
        Instance(kind, {}, argument, number, metadata=("tiny", number, 1))
        for number, argument in enumerate(arguments)
    ]


def _pairs(count: int = 45) -> list[tuple[str, str]]:
    """Items with two to eight choices, trailing spaces, empty contexts and over-long contexts."""
    generator = random.Random(0)

    def words(low: int, high: int) -> str:
        return " ".join(generator.choice(WORDS) for _ in range(generator.randint(low, high)))

    pairs = []
    for number in range(count):
        context = words(1, 12) + ("?\n", ":", " ", "  ", "")[number % 5]
        if number % 9 == 4:
            context = ""
        if number % 15 == 14:
            context = words(60, 70)
        for _ in range(generator.randint(2, 8)):
            pairs.append((context, generator.choice(("", " ")) + words(1, 4)))
    return pairs


def _one_token_pairs() -> list[tuple[str, str]]:
    """Contexts with most tokens there are as choices: one is likely what greedy decoding says."""
    choices = [*"abcdefghijklmnopqrstuvwxyz .?", *WORDS, *(f" {word}" for word in WORDS)]
    return [
        (" ".join(WORDS[start : start + 5]), choice) for start in range(8) for choice in choices
    ]


@pytest.mark.parametrize("begins", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_loglikelihoods_and_greedy_flags_are_hfs(family: str, begins: bool) -> None:
    model, tokens = build(family), tokenizer(begins)
    requests = _instances("loglikelihood", [*_pairs(), *_one_token_pairs()])
    assert len(requests) > 200
    expected = _theirs(model, tokens).loglikelihood(requests, disable_tqdm=True)
    found = _live(model, tokens, batch_tokens=300).loglikelihood(requests)
    assert [p for p, _ in found] == pytest.approx([p for p, _ in expected], abs=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert {greedy for _, greedy in expected} == {True, False}


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_rolling_loglikelihoods_are_hfs(family: str) -> None:
    model, tokens = build(family), tokenizer()
    texts = [" ".join(WORDS * size) for size in (1, 3, 7)] + ["a", ""]
    requests = _instances("loglikelihood_rolling", [(text,) for text in texts])
    expected = _theirs(model, tokens).loglikelihood_rolling(requests, disable_tqdm=True)
    found = _live(model, tokens, batch_tokens=100).loglikelihood_rolling(requests)
    assert found == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_generations_are_hfs(family: str) -> None:
    model, tokens = build(family), tokenizer()
    short = {"until": ["e", " r"], "max_gen_toks": 12}
    long = {"until": [], "max_gen_toks": 9, "do_sample": False}
    arguments = [
        (" ".join(WORDS[start : start + 1 + start % 6]), long if start % 3 else short)
        for start in range(9)
    ]
    requests = _instances("generate_until", arguments)
    expected = _theirs(model, tokens).generate_until(requests, disable_tqdm=True)
    found = _live(model, tokens, batch_tokens=64).generate_until(requests)
    assert found == expected
    assert any(found)


def test_sampling_depends_on_the_seed_alone() -> None:
    model, tokens = build("llama"), tokenizer()
    settings = {"until": [], "max_gen_toks": 12, "do_sample": True, "temperature": 1.0}
    requests = _instances("generate_until", [("the red house", settings)])
    state = torch.random.get_rng_state()
    found = [_live(model, tokens, seed=seed).generate_until(requests) for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("the house", ""), "no tokens of its own"),
        (("", ""), "neither a context nor"),
        (("the", " " + " ".join(WORDS * 9)), "does not fit"),
    ],
)
def test_requests_that_cannot_be_scored_are_refused(
    arguments: tuple[str, str], complaint: str
) -> None:
    live = _live(build("llama"), tokenizer())
    with pytest.raises(EvaluationError, match=complaint):
        live.loglikelihood(_instances("loglikelihood", [arguments]))


def test_more_new_tokens_than_the_model_holds_are_refused() -> None:
    live = _live(build("llama"), tokenizer())
    requests = _instances("generate_until", [("the", {"max_gen_toks": 64})])
    with pytest.raises(EvaluationError, match="max_gen_toks"):
        live.generate_until(requests)


def test_progress_counts_requests() -> None:
    from contextlib import contextmanager

    from skimp.progress import Progress

    seen = SimpleNamespace(total=0, steps=0)

    class Counting(Progress):
        @contextmanager
        def task(self, label: str, total: int | None = None) -> Any:
            seen.total += total or 0

            def step() -> None:
                seen.steps += 1

            yield step

    requests = _instances("loglikelihood", _pairs(5))
    _live(build("llama"), tokenizer(), progress=Counting()).loglikelihood(requests)
    assert seen.total == seen.steps == len(requests)
