"""The messages of a chat: reading them, and their text by the model's own template."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from skimp.serve.faults import Fault, bad
from skimp.serve.fields import Fields, kind, shown, whole_text

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
# Of a message that a client got from a model and sends back; null where nothing came of them.
_NULL = ["refusal", "annotations", "audio", "function_call", "tool_calls", "tool_call_id"]


@dataclass(frozen=True)
class Message:
    """One turn of a chat, as templates know them."""

    role: str
    content: str


def read_messages(value: Any) -> tuple[Message, ...]:
    """The field `messages`; Fault if it cannot be served."""
    if value is None:
        raise bad("messages", "there is none; give a list of messages.", "missing_required")
    if not isinstance(value, list):
        raise bad("messages", f"it is {kind(value)}; give a list of messages.")
    if not value:
        raise bad("messages", "it is empty; give at least one message.")
    return tuple(_message(item, f"messages[{index}]") for index, item in enumerate(value))


def _message(item: Any, name: str) -> Message:
    if not isinstance(item, dict):
        raise bad(name, f"it is {kind(item)}; give an object with role and content.")
    fields = Fields(item, f"{name}.")
    fields.only(["role", "content", "name", *_NULL])
    role = fields.text("role")
    if role is None:
        raise bad(fields.name("role"), "there is none; give one.", "missing_required")
    if role in ("tool", "function"):
        raise bad(fields.name("role"), "tools are not supported here; leave it out.", "unsupported")
    if role not in _ROLES:
        roles = ", ".join(_ROLES)
        raise bad(fields.name("role"), f"{shown(role)} is no role; give one of {roles}.")
    for field in _NULL:
        if fields.get(field) not in (None, []):
            raise bad(fields.name(field), "it is not supported here; leave it out.", "unsupported")
    fields.text("name")
    return Message(_ROLES[role], _content(fields.get("content"), fields.name("content")))


def _content(value: Any, name: str) -> str:
    """A string, or the text parts of a list, joined."""
    if value is None:
        raise bad(name, "there is none; give a string.", "missing_required")
    if isinstance(value, str):
        return whole_text(value, name)
    if not isinstance(value, list):
        raise bad(name, f"it is {kind(value)}; give a string, or a list of text parts.")
    if not value:
        raise bad(name, "it is empty; give at least one text part.")
    return "".join(_part(part, f"{name}[{index}]") for index, part in enumerate(value))


def _part(part: Any, name: str) -> str:
    if not isinstance(part, dict):
        raise bad(name, f"it is {kind(part)}; give an object with type and text.")
    fields = Fields(part, f"{name}.")
    what = fields.text("type")
    if what != "text":
        problem = f"{shown(what)} is not supported here; give parts of type text."
        raise bad(fields.name("type"), problem, "unsupported")
    text = fields.text("text")
    if text is None:
        raise bad(fields.name("text"), "there is none; give a string.", "missing_required")
    return text


def chat_text(tokenizer: Any, messages: tuple[Message, ...]) -> str:
    """The chat as the model reads it, up to where its answer begins.

    Raises:
        Fault: the template refuses the messages, for example roles that do not take turns.
    """
    turns = [{"role": message.role, "content": message.content} for message in messages]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # whatever a template's code comes up with
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise Fault(
            400,
            f"messages: the model's chat template refuses them ({reason}); change their roles.",
            "messages",
            "invalid_value",
        ) from error
    return text
