"""A prompt from the command line as the tokens that a model reads."""

from __future__ import annotations

from typing import Any

from skimp.errors import SkimpError


def encode(tokenizer: Any, prompt: str, *, chat: bool | None) -> list[int]:
    """The token ids of a prompt; `chat` None wraps it if the tokenizer has a chat template.

    Raises:
        SkimpError: the prompt is empty, or there is no chat template where one is asked for.
    """
    if not prompt.strip():
        raise SkimpError("PROMPT: it is empty; give some text to continue.")
    template = getattr(tokenizer, "chat_template", None)
    if chat and not template:
        raise SkimpError("--chat: this model's tokenizer has no chat template; use --no-chat.")
    if chat or (chat is None and template):
        messages = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    else:
        ids = tokenizer(prompt)["input_ids"]
    if not ids:
        raise SkimpError("PROMPT: the tokenizer makes no token of it; give other text.")
    return list(ids)
