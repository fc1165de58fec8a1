"""A tokenizer as GGUF metadata.

Two kinds are known: byte-level BPE (llama.cpp's "gpt2") and BPE over characters with a fallback to
bytes, as SentencePiece makes it ("llama"), where llama.cpp merges by scores instead of ranks.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from skimp.export.gguf import splitting
from skimp.export.target import Obstacle, Product

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Kinds of tokens, by their numbers in GGUF."""

_SPACE = "▁"
_UNMERGED = -1e9  # the score of a token that no merge makes: it is never the best
_STRAY = 0.01  # share of tokens that SentencePiece would also merge from other parts
_PREPEND = {"type": "Prepend", "prepend": _SPACE}
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
_APPROXIMATE = {
    "tekken": "llama.cpp splits words at combining marks (Hindi, Thai), where the original "
    "tokenizer does not; such text gives other tokens."
}


@dataclass(frozen=True)
class Vocabulary:
    """What a file says of its tokenizer.

    `model`: llama.cpp's kind. `tokens` and `types`: one entry a row of the embedding. `merges`
    ("a b", best first) and `splitting` for "gpt2", `scores` and `prefix` (whether text is read as
    if a space stood before it) for "llama". `remarks`: sentences on what differs from the original.
    """

    model: str
    tokens: Sequence[str]
    types: Sequence[int]
    merges: Sequence[str] = ()
    splitting: str = ""
    scores: Sequence[float] = ()
    prefix: bool = False
    remarks: Sequence[str] = field(default=())


def read(product: Product) -> Vocabulary | Obstacle | None:
    """The vocabulary, why llama.cpp cannot have it, or None for a model without a tokenizer."""
    if product.tokenizer is None:
        return None
    backend = getattr(product.tokenizer, "backend_tokenizer", None)
    if backend is None:
        return _obstacle("has no tokenizer.json form")
    spec = json.loads(backend.to_str())
    rows = product.model.get_input_embeddings().weight.shape[0]
    words = product.tokenizer.get_vocab()
    if len(words) and max(words.values()) >= rows:
        return _obstacle(f"has {max(words.values()) + 1} tokens, the embedding {rows} rows")
    model = spec["model"]
    if model["type"] != "BPE":
        return _obstacle(f"is of the kind {model['type']}, not BPE")
    tokens = [f"[PAD{number}]" for number in range(rows)]
    types = [UNUSED] * rows
    for word, number in words.items():
        tokens[number], types[number] = word, NORMAL
    for added in spec["added_tokens"]:
        types[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    make = _pieces if model.get("byte_fallback") else _bytes
    return make(spec, tokens, types)


def describe(writer: Any, vocabulary: Vocabulary | None, product: Product) -> None:
    """Write the keys; without a vocabulary llama.cpp makes up names for the tokens."""
    if vocabulary is None:
        writer.add_tokenizer_model("no_vocab")
        return
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.splitting or "default")
    writer.add_token_list(vocabulary.tokens)
    if vocabulary.scores:
        writer.add_token_scores(vocabulary.scores)
        writer.add_add_space_prefix(vocabulary.prefix)
    writer.add_token_types(vocabulary.types)
    if vocabulary.model == "gpt2":
        writer.add_token_merges(vocabulary.merges)
    _describe_special(writer, product)
    template = getattr(product.tokenizer, "chat_template", None)
    if isinstance(template, Mapping):
        template = [{"name": name, "template": text} for name, text in template.items()]
    if template:
        writer.add_chat_template(template)


def ends(product: Product) -> list[int]:
    """Tokens that end an answer, the tokenizer's own first."""
    found = [getattr(product.tokenizer, "eos_token_id", None)]
    for config in (getattr(product.model, "generation_config", None), product.config):
        number = getattr(config, "eos_token_id", None)
        found += number if isinstance(number, list) else [number]
    return list(dict.fromkeys(number for number in found if number is not None))


def _describe_special(writer: Any, product: Product) -> None:
    tokenizer = product.tokenizer
    for name in ("bos", "unk", "pad"):
        number = getattr(tokenizer, f"{name}_token_id", None)
        if number is not None:
            getattr(writer, f"add_{name}_token_id")(number)
    stops = ends(product)
    adds = writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id
    for number, add in zip(stops, adds, strict=False):
        add(number)
    around = tokenizer("a")["input_ids"]
    writer.add_add_bos_token(around[:1] == [tokenizer.bos_token_id])
    writer.add_add_eos_token(around[1:][-1:] == [tokenizer.eos_token_id])


def _bytes(spec: Mapping[str, Any], tokens: list[str], types: list[int]) -> Vocabulary | Obstacle:
    model = spec["model"]
    pre = splitting.name(spec["pre_tokenizer"], whole_words=model.get("ignore_merges", False))
    if pre is None:
        return _obstacle("splits and merges text in a way that llama.cpp has no name for")
    remarks = [_APPROXIMATE[pre]] if pre in _APPROXIMATE else []
    if spec["normalizer"] == {"type": "NFC"}:
        remarks.append(
            "llama.cpp reads text as it stands, where the original tokenizer first composes "
            "accents (NFC); text with separate accents gives other tokens."
        )
    elif spec["normalizer"] is not None:
        return _obstacle(f"rewrites text first ({spec['normalizer']['type']})")
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    return Vocabulary("gpt2", tokens, types, merges, pre, remarks=remarks)


def _pieces(spec: Mapping[str, Any], tokens: list[str], types: list[int]) -> Vocabulary | Obstacle:
    prefix = _prefix(spec)
    if prefix is None:
        return _obstacle("treats spaces in a way that llama.cpp does not know")
    scores = _scores(spec["model"])
    stray = _stray(spec["model"], tokens, types)
    if stray > _STRAY * len(tokens):
        return _obstacle("merges pairs by a list, where llama.cpp merges any two by a score")
    for number, word in enumerate(tokens):
        if re.fullmatch("<0x[0-9A-F]{2}>", word):
            types[number] = BYTE
        elif word == spec["model"].get("unk_token"):
            types[number] = UNKNOWN
        elif types[number] == USER_DEFINED:
            tokens[number] = word.replace(_SPACE, " ")
    ranked = [
        scores.get(word, _UNMERGED) if kind == NORMAL else 0.0
        for word, kind in zip(tokens, types, strict=True)
    ]
    remarks = []
    if stray:
        remarks.append(
            f"llama.cpp merges {stray} of {len(tokens)} tokens from parts that the original "
            "tokenizer does not; rare text gives other tokens."
        )
    if prefix == "where none is":
        remarks.append(
            "llama.cpp puts a space before any text, also behind a special token or where one "
            "stands already, as the original tokenizer does not."
        )
    return Vocabulary(
        "llama", tokens, types, scores=ranked, prefix=prefix != "never", remarks=remarks
    )


def _scores(model: Mapping[str, Any]) -> dict[str, float]:
    """Minus the rank of the best merge that makes a token: the best score is merged first."""
    scores: dict[str, float] = {}
    for rank, pair in enumerate(model["merges"]):
        made = "".join(pair.split(" ") if isinstance(pair, str) else pair)
        scores.setdefault(made, -float(rank))
    return scores


def _stray(model: Mapping[str, Any], tokens: list[str], types: list[int]) -> int:
    """How many tokens two others make up that no merge names."""
    merges = {
        tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]
    }
    words = {word for word, kind in zip(tokens, types, strict=True) if kind == NORMAL}

    def strays(word: str) -> bool:
        pairs = ((word[:at], word[at:]) for at in range(1, len(word)))
        return any(a in words and b in words and (a, b) not in merges for a, b in pairs)

    return sum(strays(word) for word in words)


def _prefix(spec: Mapping[str, Any]) -> str | None:
    """Where a space is put before text: "always", "where none is", "never"; None: unclear."""
    normalizer, splitter = spec["normalizer"], spec["pre_tokenizer"]
    if normalizer is None and splitter is not None and splitter["type"] == "Metaspace":
        if splitter["replacement"] != _SPACE or splitter.get("split", True):
            return None
        scheme = splitter.get("prepend_scheme", "always")
        return "never" if scheme == "never" else "where none is"
    if splitter is not None or normalizer is None:
        return None
    steps = normalizer["normalizers"] if normalizer["type"] == "Sequence" else [normalizer]
    if steps == [_PREPEND, _REPLACE]:
        return "always"
    return "never" if steps == [_REPLACE] else None


def _obstacle(reason: str) -> Obstacle:
    return Obstacle(
        "tokenizer", f"it {reason}", "export `--to transformers`, which carries it as it is"
    )
