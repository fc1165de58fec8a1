"""Tokens to text piece by piece, with tokenizers whose decoders look at their neighbours."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.cli.conftest import make_tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from skimp.engine.pieces import Pieces

END = "</s>"


def spaced_tokenizer() -> PreTrainedTokenizerFast:
    """As Llama 2's: spaces belong to the words, rare characters are bytes, a first space goes."""
    words = ["▁", "▁the", "▁river", "▁run", "s", "t", "h", "e", ",", "."]
    vocabulary = {END: 0, "<unk>": 1} | {f"<0x{byte:02X}>": byte + 2 for byte in range(256)}
    for word in words:
        vocabulary[word] = len(vocabulary)
    merges = [("t", "h"), ("▁", "th"), ("▁th", "e")]
    for pair in merges:
        vocabulary.setdefault("".join(pair), len(vocabulary))
    backend = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END, unk_token="<unk>")


def word_tokenizer(**settings: Any) -> PreTrainedTokenizerFast:
    """As BERT's: words are joined by spaces, and ## marks a word that goes on."""
    vocabulary = {END: 0, "[UNK]": 1, "do": 2, "n't": 3, ".": 4, "river": 5, "##s": 6, "the": 7}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece(cleanup=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=END, unk_token="[UNK]", **settings
    )


BYTES, SPACED, WORDS = make_tokenizer(), spaced_tokenizer(), word_tokenizer()
TEXT_WITHOUT_MARKS = st.characters(codec="utf-8", exclude_characters="<")
TOKENIZERS = pytest.mark.parametrize("tokenizer", [BYTES, SPACED], ids=["bytes", "spaced"])


def streamed(tokenizer: Any, ids: list[int]) -> list[str]:
    pieces = Pieces(tokenizer)
    return [*(pieces.add(token) for token in ids), pieces.rest()]


def encoded(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def whole(tokenizer: Any, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True)


@TOKENIZERS
@given(text=st.text(max_size=40))
def test_pieces_join_to_the_whole_text(tokenizer: Any, text: str) -> None:
    ids = encoded(tokenizer, text)
    assert "".join(streamed(tokenizer, ids)) == whole(tokenizer, ids)


@given(ids=st.lists(st.integers(0, len(BYTES) - 1), max_size=20))
def test_any_tokens_of_bytes_join_to_the_whole_text(ids: list[int]) -> None:
    # A model may well write bytes that make no character.
    assert "".join(streamed(BYTES, ids)) == whole(BYTES, ids)


@given(ids=st.lists(st.integers(0, len(WORDS) - 1), max_size=12))
def test_any_words_join_to_the_whole_text(ids: list[int]) -> None:
    assert "".join(streamed(WORDS, ids)) == whole(WORDS, ids)


@TOKENIZERS
@given(
    text=st.text(st.characters(codec="utf-8", exclude_characters="<"), max_size=20), data=st.data()
)
def test_special_tokens_have_no_text(tokenizer: Any, text: str, data: st.DataObject) -> None:
    end = tokenizer.eos_token_id
    ids = encoded(tokenizer, text)
    for place in data.draw(st.lists(st.integers(0, len(ids)), max_size=4)):
        ids.insert(place, end)
    joined = "".join(streamed(tokenizer, ids))
    assert joined == whole(tokenizer, ids)
    assert tokenizer.eos_token not in joined


@TOKENIZERS
def test_a_character_of_many_tokens_is_never_torn(tokenizer: Any) -> None:
    ids = encoded(tokenizer, "a🌊é🌊b")
    assert len(ids) > 10
    found = [piece for piece in streamed(tokenizer, ids) if piece]
    assert "".join(found).strip() == "a🌊é🌊b"
    assert all("\ufffd" not in piece for piece in found)
    assert len(found) == 5  # and each is given as soon as it is whole


def test_spaces_go_with_the_words_behind_them() -> None:
    ids = encoded(SPACED, "the the the")
    assert len(ids) == 3
    assert streamed(SPACED, ids) == ["the", " the", " the", ""]


def test_every_plain_token_is_given_at_once() -> None:
    ids = encoded(BYTES, "The river runs past the mill")
    pieces = Pieces(BYTES)
    assert [pieces.add(token) for token in ids] == [BYTES.decode([token]) for token in ids]
    assert pieces.rest() == ""


def test_text_given_out_is_not_cleaned_up_later() -> None:
    tidy = word_tokenizer(clean_up_tokenization_spaces=True)
    ids = [2, 3, 2, 3, 4]
    # The tokenizer's own tidying would join "do" and "n't" after both are given out.
    assert whole(tidy, ids) == "don't don't."
    assert "".join(streamed(tidy, ids)) == whole(WORDS, ids) == "do n't do n't ."


def test_what_never_becomes_whole_comes_at_the_end_once() -> None:
    pieces = Pieces(BYTES)
    wave = encoded(BYTES, "🌊")
    assert [pieces.add(token) for token in wave[:-1]] == [""] * (len(wave) - 1)
    assert pieces.rest() == "\ufffd"
    assert pieces.rest() == ""


def test_no_tokens_no_text() -> None:
    assert streamed(BYTES, []) == [""]
