"""Every way of running a model gives the log-likelihoods of running each request by itself."""

import random
from typing import Any

import pytest
import torch
from tests.families import SAMPLES, VOCABULARY, build

import skimp.measure.scorer as scorer_module
from skimp.measure.packing import attention
from skimp.measure.scorer import Scorer, Way

Request = tuple[list[int], list[int]]
# A tree mask means nothing to these: ALiBi is derived from a two-dimensional mask.
UNMASKABLE = {"falcon-alibi"}


def _requests(count: int = 12, longest: int = 30, seed: int = 0) -> list[Request]:
    """Items whose one to four continuations share a context and sometimes a beginning."""
    generator = random.Random(seed)

    def some(low: int, high: int) -> list[int]:
        return [generator.randrange(VOCABULARY) for _ in range(generator.randint(low, high))]

    requests = []
    for _ in range(count):
        context, stem = some(1, longest), some(0, 2)
        requests.extend((context, stem + some(1, 5)) for _ in range(generator.randint(1, 4)))
    return requests


def _alone(model: Any, request: Request, longest: int) -> tuple[float, bool]:
    context, continuation = request
    ids = torch.tensor([(context + continuation)[-(longest + 1) :]])
    with torch.no_grad():
        logits = model(ids[:, :-1], use_cache=False).logits[0, -len(continuation) :].double()
    target = torch.tensor(continuation)
    logprob = logits.log_softmax(-1)[torch.arange(len(target)), target].sum()
    return logprob.item(), bool((logits.argmax(-1) == target).all())


def _with_greedy(model: Any, requests: list[Request]) -> list[Request]:
    """The same, with every third continuation made what the model itself would say."""
    found = []
    for number, (context, continuation) in enumerate(requests):
        said: list[int] = []
        for _ in continuation if number % 3 == 0 else ():
            with torch.no_grad():
                logits = model(torch.tensor([context + said]), use_cache=False).logits
            said.append(int(logits[0, -1].argmax()))
        found.append((context, said or continuation))
    return found


def _check(model: Any, requests: list[Request], way: Way, longest: int = 60) -> Scorer:
    scorer = Scorer(model, max_length=longest, batch_tokens=200, way=way)
    found = scorer.score(requests)
    expected = [_alone(model, request, longest) for request in requests]
    assert [each.logprob for each in found] == pytest.approx([p for p, _ in expected], abs=1e-4)
    assert [each.greedy for each in found] == [greedy for _, greedy in expected]
    return scorer


@pytest.mark.parametrize("family", list(SAMPLES))
def test_the_fastest_way_is_exact_in_every_family(family: str) -> None:
    model = build(family)
    scorer = _check(model, _with_greedy(model, _requests()), "auto")
    assert scorer.taken == ("plain" if family in UNMASKABLE else "packed")


@pytest.mark.parametrize("way", ["plain", "phased"])
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "opt", "falcon-alibi", "gpt2"])
def test_the_other_ways_are_exact_too(family: str, way: Way) -> None:
    model = build(family)
    _check(model, _with_greedy(model, _requests(8)), way)


@pytest.mark.parametrize("way", ["packed", "plain", "phased"])
def test_long_requests_lose_their_beginning(way: Way) -> None:
    model = build("llama")
    requests = [([5] * 40 + [6, 7], [8, 9]), ([1, 2], [3] * 20), ([4], [5] * 21), ([4] * 30, [9])]
    _check(model, requests, way, longest=21)


def test_a_model_that_ignores_tree_masks_is_found_out() -> None:
    class Deaf(torch.nn.Module):
        """Attends causally whatever mask it is given, as a fused kernel might."""

        def __init__(self, model: Any) -> None:
            super().__init__()
            self.inner = model
            self.config, self.dtype = model.config, model.dtype
            self.get_input_embeddings = model.get_input_embeddings
            self.get_output_embeddings = model.get_output_embeddings

        def forward(self, input_ids: Any, attention_mask: Any = None, **inputs: Any) -> Any:
            if attention_mask is not None and attention_mask.ndim == 4:
                attention_mask = None
            return self.inner(input_ids, attention_mask=attention_mask, **inputs)

    assert _check(Deaf(build("llama")), _requests(), "auto").taken == "plain"


def test_a_window_whose_mask_is_not_honoured_is_found_out(monkeypatch: Any) -> None:
    """Short rows may still be packed; rows beyond the window may not."""
    monkeypatch.setattr(
        scorer_module, "attention", lambda rows, width, window=None: attention(rows, width)
    )
    model = build("mistral")
    model.config.sliding_window = 30
    scorer = _check(model, _requests(longest=50), "auto")
    assert scorer.taken == "packed"
    assert not scorer.takes_masks(30)


def test_models_whose_head_is_not_called_are_scored_from_all_their_logits() -> None:
    model = build("llama")
    model.get_output_embeddings = lambda: None
    _check(model, _requests(4), "auto")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_packed_and_close(dtype: torch.dtype) -> None:
    model = build("llama", dtype=dtype)
    requests = _requests()
    scorer = Scorer(model, max_length=60, batch_tokens=200)
    exact = [_alone(build("llama"), request, 60)[0] for request in requests]
    found = [each.logprob for each in scorer.score(requests)]
    assert scorer.taken == "packed"
    assert found == pytest.approx(exact, abs=0.5, rel=0.05)


def test_the_head_sees_scored_positions_only() -> None:
    model: Any = build("llama")
    seen = []
    model.lm_head.register_forward_hook(lambda _, args, out: seen.append(out.shape[1]))
    scorer = Scorer(model, max_length=60, way="packed")
    scorer.score([([1] * 20, [2, 3]), ([1] * 20, [4, 5])])
    assert seen == [3]  # after the context, after 2 and after 4


def test_training_mode_and_hooks_are_as_before() -> None:
    model: Any = build("llama").train()
    Scorer(model, max_length=60).score(_requests(2))
    assert model.training
    assert not model.lm_head._forward_pre_hooks


@pytest.mark.parametrize("request_", [([], [1]), ([1], []), ([1], [2] * 61)])
def test_what_cannot_be_scored_is_refused(request_: Request) -> None:
    with pytest.raises(ValueError, match="request 1"):
        Scorer(build("llama"), max_length=60).score([([1], [2]), request_])
