"""Texts that an engine divides otherwise are named."""

from tests.export.test_gguf_tokenizer import byte_level

from skimp.export import dividing


def test_texts_with_other_tokens_are_named() -> None:
    tokenizer = byte_level("gpt-2")
    asked = dividing.texts(tokenizer)
    found = [tokenizer(text)["input_ids"] for text in asked]
    assert not dividing.otherwise(tokenizer, asked, found)
    other = byte_level("smollm")
    found = [other(text)["input_ids"] for text in asked]
    assert asked[2] in dividing.otherwise(tokenizer, asked, found)


def test_special_tokens_are_among_the_texts() -> None:
    tokenizer = byte_level("gpt-2")
    *_, together, apart = dividing.texts(tokenizer)
    ids = {tokenizer.bos_token_id, tokenizer.eos_token_id}
    assert ids <= set(tokenizer(together)["input_ids"]) & set(tokenizer(apart)["input_ids"])
