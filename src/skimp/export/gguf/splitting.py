"""How a tokenizer splits text before it merges pairs, in llama.cpp's words.

llama.cpp knows ways of splitting by name (`tokenizer.ggml.pre`) and computes each by code of its
own; the names stand for what tokenizer.json spells out.
"""

from collections.abc import Mapping
from typing import Any

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+|[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*"
)

# By whether a word that is a token is taken as it is (or else its pairs are merged all the same).
_BY_PATTERN: Mapping[str, Mapping[bool, str]] = {
    rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}": {True: "llama-bpe", False: "dbrx"},
    rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_REST}": {False: "qwen2"},
    rf"{_CASED}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+": {True: "tekken"},
}


def name(pre_tokenizer: Mapping[str, Any] | None, *, whole_words: bool) -> str | None:
    """llama.cpp's name of a byte-level splitting, as tokenizer.json describes it; None: unknown.

    `whole_words`: a word that is a token is taken as it is, whatever its merges ("ignore_merges").
    """
    steps = _steps(pre_tokenizer)
    if not steps or steps[-1]["type"] != "ByteLevel" or steps[-1].get("add_prefix_space"):
        return None
    *leading, last = steps
    if last.get("use_regex", True):  # GPT-2's own pattern
        if whole_words or len(leading) > 1:
            return None
        if not leading:
            return "gpt-2"
        digits = leading[0]["type"] == "Digits" and leading[0].get("individual_digits")
        return "smollm" if digits else None
    if len(leading) != 1 or not _isolates(leading[0]):
        return None
    return _BY_PATTERN.get(leading[0]["pattern"].get("Regex", ""), {}).get(whole_words)


def _steps(pre_tokenizer: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if pre_tokenizer is None:
        return []
    if pre_tokenizer["type"] == "Sequence":
        return list(pre_tokenizer["pretokenizers"])
    return [pre_tokenizer]


def _isolates(step: Mapping[str, Any]) -> bool:
    return step["type"] == "Split" and step["behavior"] == "Isolated" and not step.get("invert")
