"""Where two continuations part: the shared words, and the first word that differs."""

import re
from dataclasses import dataclass

from skimp.report.facts import Sample

# One word with the space before it. Scripts written without spaces count each character as a word.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"\s*(?:[{_UNSPACED}]|[^\s{_UNSPACED}]+)|\s+$")
_LONG_PROMPT = 420


@dataclass(frozen=True)
class Divergence:
    """One continuation, split where it leaves the other: what is shared, the word, the rest."""

    shared: str
    space: str
    word: str
    rest: str


@dataclass(frozen=True)
class ComparedSample:
    """One sample as it is shown; `agreed` counts the words before the texts part."""

    prompt_start: str
    prompt_rest: str
    dense: Divergence
    planned: Divergence
    agreed: int
    identical: bool


def _split(words: list[str], agreed: int) -> Divergence:
    shared = "".join(words[:agreed])
    if agreed >= len(words):
        return Divergence(shared, "", "", "")
    word = words[agreed]
    bare = word.lstrip()
    return Divergence(
        shared, word[: len(word) - len(bare)], bare or "⏎", "".join(words[agreed + 1 :])
    )


def diverge(dense: str, planned: str) -> tuple[Divergence, Divergence, int]:
    """Split both texts at their first differing word; also how many words they share before it."""
    ours, theirs = _WORD.findall(dense), _WORD.findall(planned)
    agreed = 0
    for one, other in zip(ours, theirs, strict=False):
        if one != other:
            break
        agreed += 1
    return _split(ours, agreed), _split(theirs, agreed), agreed


def compare(sample: Sample) -> ComparedSample:
    """One sample ready to be shown; a long prompt is split so that its rest can be folded."""
    # Most tokenizers put the space between prompt and text into the text; it only shifts the line.
    indents = {len(text) - len(text.lstrip(" ")) for text in (sample.dense, sample.planned)}
    indent = indents.pop() if len(indents) == 1 else 0
    dense, planned, agreed = diverge(sample.dense[indent:], sample.planned[indent:])
    prompt = sample.prompt.rstrip()
    cut = len(prompt) if len(prompt) <= _LONG_PROMPT else prompt.rfind(" ", 0, _LONG_PROMPT)
    cut = _LONG_PROMPT if cut <= 0 and prompt else cut
    return ComparedSample(
        prompt_start=prompt[:cut],
        prompt_rest=prompt[cut:],
        dense=dense,
        planned=planned,
        agreed=agreed,
        identical=sample.dense == sample.planned,
    )
