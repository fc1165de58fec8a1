"""Figures of divergence against the textbook, written out plainly."""

import copy
import math
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tests.families import VOCABULARY, build
from tests.measure.tiny import WORDS, tokenizer
from torch.nn import functional

import skimp.measure.fidelity as module
from skimp.errors import EvaluationError
from skimp.measure.fidelity import fidelity, windows


def _documents(count: int = 5, low: int = 6, high: int = 20) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(low, high + 1, (count,), generator=generator).tolist()
    return [torch.randint(0, VOCABULARY, (length,), generator=generator) for length in lengths]


def _moved(model: Any) -> Any:
    """The same model with one layer's weights shifted."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for weight in other.get_submodule("model.layers.1").parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    return other


def _in_place(model: Any, other: Any):
    """A context in which `model` has the weights of `other`, as an applied plan would."""

    @contextmanager
    def context():
        layers, changed = model.model.layers, other.model.layers
        model.model.layers = changed
        try:
            yield
        finally:
            model.model.layers = layers

    return context


def _textbook(
    model: Any, other: Any, documents: list[torch.Tensor], prompt: int
) -> dict[str, float]:
    p, q, true = [], [], []
    for document in documents:
        with torch.no_grad():
            for found, each in ((p, model), (q, other)):
                logits = each(document[None], use_cache=False).logits[0, prompt:-1]
                found.append(logits.double().log_softmax(-1))
        true.append(document[prompt + 1 :])
    p, q, true = torch.cat(p), torch.cat(q), torch.cat(true)
    right_p, right_q = p.argmax(-1) == true, q.argmax(-1) == true
    return {
        "loss_dense": functional.nll_loss(p, true).item(),
        "loss_planned": functional.nll_loss(q, true).item(),
        "kl": functional.kl_div(q, p, log_target=True, reduction="batchmean").item(),
        "top1_agreement": (p.argmax(-1) == q.argmax(-1)).double().mean().item(),
        "lost": (right_p & ~right_q).double().mean().item(),
        "gained": (right_q & ~right_p).double().mean().item(),
        "tokens": len(true),
    }


@pytest.mark.parametrize("prompt", [0, 4])
@pytest.mark.parametrize("family", ["llama", "gemma2", "mistral"])
def test_figures_are_the_textbooks(family: str, prompt: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 3 * VOCABULARY)  # several chunks a document
    model = build(family)
    other, documents = _moved(model), _documents(40)
    # Some documents that the dense model predicts well, or nothing could be lost.
    with torch.no_grad():
        for document in documents[:20]:
            document[-1] = model(document[None, :-1]).logits[0, -1].argmax()
    expected = _textbook(model, other, documents, prompt)
    assert expected["lost"] > 0
    for planned in (other, _in_place(model, other)):
        found = fidelity(model, planned, documents, prompt=prompt, batch_tokens=50)
        for name, value in expected.items():
            assert getattr(found, name) == pytest.approx(value, abs=1e-5), name
        assert found.flips == pytest.approx(found.lost + found.gained)
        assert found.perplexity_planned == pytest.approx(math.exp(found.loss_planned))
        assert found.loss_difference == pytest.approx(found.loss_planned - found.loss_dense)
        assert found.loss_difference in _span(found.loss_interval)
        assert found.kl in _span(found.kl_interval)
        assert found.documents == 40


class _span:
    def __init__(self, bounds: tuple[float, float]) -> None:
        self.low, self.high = bounds

    def __contains__(self, value: float) -> bool:
        return self.low < value < self.high


def test_a_model_is_perfectly_faithful_to_itself() -> None:
    model = build("llama")
    found = fidelity(model, model, _documents())
    assert (found.kl, found.flips, found.top1_agreement) == (0, 0, 1)
    assert found.loss_difference == 0 and found.loss_interval == (0, 0)
    assert found.perplexity_dense == found.perplexity_planned


def test_the_plan_is_off_whenever_the_dense_model_runs() -> None:
    model = build("llama")
    other = _moved(model)
    entered = []
    context = _in_place(model, other)

    @contextmanager
    def counting():
        entered.append(True)
        with context():
            yield

    documents = _documents(6, 8, 8)
    batched = fidelity(model, counting, documents, batch_tokens=16)
    assert len(entered) == 3
    whole = fidelity(model, counting, documents, batch_tokens=1000)
    assert len(entered) == 4
    assert batched.kl == pytest.approx(whole.kl, rel=1e-5)
    assert fidelity(model, model, documents).kl == 0


def test_results_are_plain_data() -> None:
    model = build("llama")
    data = fidelity(model, _moved(model), _documents(1)).to_dict()
    assert data["loss_interval"] == [None, None]
    assert data["documents"] == 1 and isinstance(data["tokens"], int)


@pytest.mark.parametrize(
    ("documents", "prompt"), [([], 0), ([torch.tensor([1])], 0), ([torch.arange(5)], 4)]
)
def test_too_little_text_is_refused(documents: list[torch.Tensor], prompt: int) -> None:
    model = build("llama")
    with pytest.raises(EvaluationError, match="documents:"):
        fidelity(model, model, documents, prompt=prompt)


TEXT = " ".join(WORDS * 20)


def test_windows_cut_the_text_into_disjoint_pieces() -> None:
    found = windows(TEXT, tokenizer(), window=16, tokens=70)
    ids = tokenizer()(TEXT)["input_ids"]
    assert [len(window) for window in found] == [16] * 4
    assert torch.cat(found).tolist() == ids[:64]


def test_windows_begin_as_the_tokenizer_begins_texts() -> None:
    found = windows(TEXT, tokenizer(begins=True), window=16, tokens=32)
    ids = tokenizer()(TEXT)["input_ids"]
    assert [window.tolist() for window in found] == [[1, *ids[:15]], [1, *ids[15:30]]]


def test_a_short_tail_is_dropped() -> None:
    ids = tokenizer()(TEXT)["input_ids"]
    assert len(windows(TEXT, tokenizer(), window=len(ids) // 2 + 1, tokens=10_000)) == 1


@pytest.mark.parametrize("text", ["", "the red house"])
def test_short_text_is_refused_with_what_was_found_and_needed(text: str) -> None:
    found = len(tokenizer()(text)["input_ids"])
    with pytest.raises(EvaluationError, match=rf"{found} tokens found.* 64 are needed"):
        windows(text, tokenizer(), window=64, tokens=64)


@pytest.mark.parametrize(("window", "tokens"), [(1, 10), (16, 15)])
def test_windows_that_cannot_be_are_refused(window: int, tokens: int) -> None:
    with pytest.raises(EvaluationError, match="window:"):
        windows(TEXT, tokenizer(), window=window, tokens=tokens)


def test_text_without_a_tokenizer_is_refused() -> None:
    with pytest.raises(EvaluationError, match="tokenizer:"):
        windows(TEXT, None)
