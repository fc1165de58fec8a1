"""Whether an engine's tokenizer divides text as the model's own does."""

from collections.abc import Sequence
from typing import Any

TEXTS = (
    "Hello world",
    "  two  spaces   three\n\n\nnew\tline ",
    "def f(x):\n    return x**2 + 1234567 # 12.5%\n",
    "naïve café: “quotes” … Ünïcödé, e\u0301 apart",
    "日本語のテキスト 漢字とひらがな",
    "😀👩\u200d👩\u200d👧 emoji",
    "I'm you'll they've 'quoted' DON'T",
    "עברית العربية हिन्दी ไทย ١٢٣ ½",
    "\r\n\r\n a\r\u00a0\u3000",
    "",
    " ",
)


def texts(tokenizer: Any) -> tuple[str, ...]:
    """Texts that tokenizers are apt to disagree on, two with the special tokens in them."""
    special = [str(token) for token in tokenizer.all_special_tokens]
    return (*TEXTS, "".join(f"{token}a" for token in special), " b ".join(special))


def otherwise(tokenizer: Any, asked: Sequence[str], found: Sequence[Sequence[int]]) -> list[str]:
    """Those of the texts `asked` that the engine `found` other tokens in."""
    pairs = zip(asked, found, strict=True)
    return [text for text, ids in pairs if list(tokenizer(text)["input_ids"]) != list(ids)]
