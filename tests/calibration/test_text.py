"""Calibration text: self-written, seeded, or a file; bad files are refused in a sentence."""

from pathlib import Path

import pytest
import torch
from tests import families, tiny

from skimp.calibration.text import Prompt, Sampling, bundled_prompts, calibrate
from skimp.errors import CalibrationError

FEW = (Prompt("story", "Once upon"), Prompt("chat", "Why?"), Prompt("list", "a, b, a, b"))


@pytest.fixture
def few_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skimp.calibration.text.bundled_prompts", lambda: FEW)


def test_bundled_prompts_are_many_and_varied() -> None:
    prompts = bundled_prompts()
    assert len(prompts) >= 60
    assert len({prompt.kind for prompt in prompts}) >= 6
    assert len({prompt.text for prompt in prompts}) == len(prompts)


@pytest.mark.usefixtures("few_prompts")
def test_self_written_text_follows_the_seed_alone() -> None:
    model, tokenizer = families.build("llama"), tiny.byte_tokenizer()
    sampling = Sampling(new_tokens=8, batch=2)
    state = torch.random.get_rng_state()
    one = calibrate(model, tokenizer, seed=3, sampling=sampling)
    assert torch.equal(torch.random.get_rng_state(), state)
    two = calibrate(model, tokenizer, seed=3, sampling=sampling)
    other = calibrate(model, tokenizer, seed=4, sampling=sampling)
    assert all(torch.equal(a, b) for a, b in zip(one.documents, two.documents, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(one.documents, other.documents, strict=True))
    assert one.to_dict() == {
        "documents": 3,
        "tokens": one.tokens,
        "source": "self-written after 3 bundled prompts",
        "seed": 3,
    }


@pytest.mark.usefixtures("few_prompts")
def test_documents_begin_with_their_prompts() -> None:
    tokenizer = tiny.byte_tokenizer()
    found = calibrate(families.build("gpt2"), tokenizer, sampling=Sampling(new_tokens=4, batch=2))
    for prompt, document in zip(FEW, found.documents, strict=True):
        start = tokenizer(prompt.text, return_tensors="pt").input_ids[0]
        assert torch.equal(document[: len(start)], start)
        assert len(document) <= len(start) + 4


def test_a_file_is_cut_into_windows(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("The quick brown fox. " * 40)
    found = calibrate(families.build("llama"), tiny.byte_tokenizer(), text=path)
    assert found.source == "mine.txt"
    assert found.tokens == 21 * 40
    assert max(map(len, found.documents)) == 256


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"too short", "holds 9 tokens"), (b"\xff\xfe\x00", "UTF-8"), (None, "cannot be read")],
)
def test_bad_files_are_refused(tmp_path: Path, content: bytes | None, says: str) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CalibrationError, match=says):
        calibrate(families.build("llama"), tiny.byte_tokenizer(), text=path)


def test_no_tokenizer_is_said() -> None:
    with pytest.raises(CalibrationError, match="no tokenizer"):
        calibrate(families.build("llama"), None)


def test_sample_takes_from_every_kind_in_turn() -> None:
    documents = tiny.documents(12)
    kinds = tuple("abc"[index % 3] for index in range(12))
    from skimp.calibration.text import Calibration

    whole = Calibration(documents, kinds, "test")
    taken = whole.sample(120, seed=0)
    assert sum(map(len, taken[:-1])) < 120 <= sum(map(len, taken))
    assert len(whole.sample(10**6, seed=0)) == 12
    kind_of = {
        tuple(document.tolist()): kind for document, kind in zip(documents, kinds, strict=True)
    }
    assert {kind_of[tuple(document.tolist())] for document in taken[:3]} == {"a", "b", "c"}
    assert max(map(len, whole.sample(60, seed=0, longest=9))) == 9
    texts = [
        {tuple(document.tolist()) for document in whole.sample(60, seed=0, skip=skip)}
        for skip in (0, 6)
    ]
    assert texts[0] and texts[1] and not texts[0] & texts[1]
