"""OpenAI's requests for completions and chats, read into plain data.

What is read, what is accepted though nothing comes of it, and what is refused stands in
docs/serving.md; the shapes are those of OpenAI's API reference.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from skimp.engine.sampling import Sampling
from skimp.serve.faults import Fault, bad
from skimp.serve.fields import Fields, kind, shown, whole_text
from skimp.serve.messages import Message, read_messages
from skimp.serve.terms import Terms

_MOST_STOPS, _LONGEST_STOP = 16, 256
_MOST_LOGPROBS = 20
_USUAL_NEW = 16  # tokens of a completion, where nobody says how many, as OpenAI has it
_WIDEST_SEED = 2**63

# Fields without effect on an answer, whatever they hold.
_HARMLESS = (
    *("user", "metadata", "store", "service_tier", "safety_identifier"),
    *("prompt_cache_key", "prompt_cache_retention", "parallel_tool_calls"),
)
# Fields that are not served, and the values that ask for nothing.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
}
_NEUTRAL_COMPLETION: Mapping[str, tuple[Any, ...]] = {**_NEUTRAL, "suffix": ("",)}
_NEUTRAL_CHAT: Mapping[str, tuple[Any, ...]] = {
    **_NEUTRAL,
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "reasoning_effort": (),
    "verbosity": (),
}
_BOTH = (
    *("model", "n", "max_tokens", "stop", "seed", "logprobs", "stream", "stream_options", "skimp"),
    *("temperature", "top_p", "top_k", "min_p", "repetition_penalty"),
)
_COMPLETION = [*_BOTH, "prompt", "echo", "best_of", *_HARMLESS, *_NEUTRAL_COMPLETION]
_CHAT = [*_BOTH, "messages", "max_completion_tokens", "top_logprobs", *_HARMLESS, *_NEUTRAL_CHAT]


@dataclass(frozen=True)
class Ask:
    """What a request asks for.

    Of `prompts` (text or token ids, each answered `n` times) and `messages` (of a chat) one is
    empty. `new`: tokens at most, None if left to the server. `tokens`: tell each token's id and
    exit depth. `usage`: end a stream with the usage.
    """

    model: str
    side: str
    prompts: tuple[str | tuple[int, ...], ...] = ()
    messages: tuple[Message, ...] = ()
    n: int = 1
    new: int | None = None
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    echo: bool = False
    stream: bool = False
    usage: bool = False
    tokens: bool = False
    ignore_ends: bool = False
    timeout_s: float | None = None

    @property
    def chat(self) -> bool:
        """Whether this is a chat."""
        return bool(self.messages)


def read_completion(values: Mapping[str, Any], terms: Terms) -> Ask:
    """A body of `/v1/completions`; Fault if it cannot be served."""
    fields = Fields(values)
    fields.only(_COMPLETION)
    _check_neutral(fields, _NEUTRAL_COMPLETION)
    prompts = _prompts(fields, terms)
    common = _common(fields, terms, len(prompts))
    best_of = fields.whole("best_of", 1, None)
    if best_of not in (None, common["n"]):
        raise bad("best_of", f"{best_of} is not n; leave it out, all answers are returned.")
    logprobs = fields.whole("logprobs", 0, _MOST_LOGPROBS)
    echo = fields.flag("echo")
    if echo and logprobs is not None:
        raise bad("echo", "it goes with no logprobs here; leave one of them out.", "unsupported")
    new = fields.whole("max_tokens", 1, terms.new, "this server's limit" if terms.new else "")
    new = new or min(terms.new or _USUAL_NEW, _USUAL_NEW)
    return Ask(prompts=prompts, new=new, logprobs=logprobs, echo=echo, **common)


def read_chat(values: Mapping[str, Any], terms: Terms) -> Ask:
    """A body of `/v1/chat/completions`; Fault if it cannot be served."""
    fields = Fields(values)
    fields.only(_CHAT)
    _check_neutral(fields, _NEUTRAL_CHAT)
    if not terms.chat:
        raise Fault(
            400,
            "messages: this model has no chat template; use /v1/completions.",
            "messages",
            "no_chat_template",
        )
    messages = read_messages(fields.get("messages"))
    common = _common(fields, terms, 1)
    why = "this server's limit" if terms.new else ""
    older = fields.whole("max_tokens", 1, terms.new, why)
    newer = fields.whole("max_completion_tokens", 1, terms.new, why)
    if None not in (older, newer) and older != newer:
        raise bad("max_tokens", "it differs from max_completion_tokens; give only that.")
    wanted = fields.flag("logprobs")
    top = fields.whole("top_logprobs", 0, _MOST_LOGPROBS)
    if top is not None and not wanted:
        raise bad("top_logprobs", "it needs logprobs: true; add that or leave it out.")
    return Ask(
        messages=messages, new=newer or older, logprobs=(top or 0) if wanted else None, **common
    )


def _common(fields: Fields, terms: Terms, prompts: int) -> dict[str, Any]:
    """What both kinds of request have."""
    n = fields.whole("n", 1, 128) or 1
    if n * prompts > terms.choices:
        name = "n" if n > 1 else "prompt"
        raise bad(
            name,
            f"{n * prompts} answers are more than this server's {terms.choices}; ask for less.",
        )
    stream = fields.flag("stream")
    options = fields.object("stream_options")
    if options is not None:
        options.only(["include_usage", "include_obfuscation"])
        options.flag("include_obfuscation")
        if not stream:
            raise bad("stream_options", "it is for streams; add stream: true or leave it out.")
    found = {
        **_model(fields, terms),
        "n": n,
        "sampling": _sampling(fields),
        "stop": _stop(fields),
        "stream": stream,
        "usage": options is not None and options.flag("include_usage"),
        "timeout_s": terms.timeout_s,
    }
    return {**found, **_overrides(fields, terms)}


def _model(fields: Fields, terms: Terms) -> dict[str, str]:
    own = next(iter(terms.models))
    name = fields.text("model")
    if name is None:
        name = own
    if name not in terms.models:
        known = " and ".join(terms.models)
        message = f"model: {shown(name)} is not served here; give {known}."
        raise Fault(404, message, "model", "model_not_found")
    return {"model": name, "side": terms.models[name]}


def _sampling(fields: Fields) -> Sampling:
    top_p = fields.number("top_p", 0.0, 1.0, 1.0)
    top_k = fields.whole("top_k", -1, 2**31)
    seed = fields.whole("seed", -_WIDEST_SEED, _WIDEST_SEED - 1)
    return Sampling(
        temperature=fields.number("temperature", 0.0, 2.0, 1.0),
        top_p=top_p or 1.0,
        # No probability at all leaves the likeliest token; -1 is how vLLM's clients say "all".
        top_k=1 if top_p == 0 else max(top_k or 0, 0),
        min_p=fields.number("min_p", 0.0, 1.0, 0.0),
        repetition_penalty=fields.number("repetition_penalty", 0.0, 2.0, 1.0, above=True),
        seed=secrets.randbits(63) if seed is None else seed % (2 * _WIDEST_SEED),
    )


def _stop(fields: Fields) -> tuple[str, ...]:
    value = fields.get("stop")
    if value is None:
        return ()
    if not isinstance(value, str | list):
        raise bad("stop", f"it is {kind(value)}; give a string or a list of strings.")
    stops = [value] if isinstance(value, str) else value
    if len(stops) > _MOST_STOPS:
        raise bad("stop", f"{len(stops)} strings are too many; give at most {_MOST_STOPS}.")
    for index, stop in enumerate(stops):
        name = "stop" if isinstance(value, str) else f"stop[{index}]"
        if not whole_text(stop, name):
            raise bad(name, "it is empty, and every text holds it; drop it.")
        if len(stop) > _LONGEST_STOP:
            raise bad(name, f"it is too long; give at most {_LONGEST_STOP} characters.")
    return tuple(stops)


def _overrides(fields: Fields, terms: Terms) -> dict[str, Any]:
    """What stands under `skimp`."""
    asked = fields.object("skimp")
    if asked is None:
        return {}
    known = ["side", "timeout_s", "tokens", "ignore_ends"]
    asked.only(known)
    found: dict[str, Any] = {}
    for name in known:
        if asked.get(name) is None:
            continue
        if name not in terms.allow:
            raise bad(
                asked.name(name),
                f"this server does not allow it; start it with `--allow {name}`, or leave it out.",
                "not_allowed",
            )
        if name == "side":
            found[name] = _side(asked, fields.text("model"), terms)
        elif name == "timeout_s":
            found[name] = asked.number(name, 0.0, terms.timeout_s or 86_400.0, 0.0, above=True)
        else:
            found[name] = asked.flag(name)
    return found


def _side(asked: Fields, model: str | None, terms: Terms) -> str:
    """The side asked for; the served name stands for both, `NAME:dense` for one."""
    side = asked.text("side")
    assert side is not None
    if side not in ("planned", "dense"):
        raise bad(asked.name("side"), f"{shown(side)} is no side; give planned or dense.")
    if side not in terms.sides:
        remedy = "start it with --compare" if side == "dense" else "start it with --plan"
        raise bad(
            asked.name("side"),
            f"this server has no {side} model; {remedy}, or leave it out.",
            "not_allowed",
        )
    if model not in (None, next(iter(terms.models))) and terms.models[model] != side:
        raise bad(asked.name("side"), f"model {shown(model)} is another side; give one of the two.")
    return side


def _prompts(fields: Fields, terms: Terms) -> tuple[str | tuple[int, ...], ...]:
    value = fields.get("prompt")
    if value is None:
        raise bad("prompt", "there is none; give a string, or token ids.", "missing_required")
    if isinstance(value, str):
        return (_text(value, "prompt"),)
    if not isinstance(value, list):
        raise bad("prompt", f"it is {kind(value)}; give a string, or token ids.")
    if not value:
        raise bad("prompt", "it is empty; give some text or token ids to continue.")
    if not isinstance(value[0], str | list):
        return (_ids(value, "prompt", terms),)
    if len(value) > terms.choices:
        problem = f"{len(value)} are more than this server's {terms.choices}; ask for less."
        raise bad("prompt", problem)
    rows: list[str | tuple[int, ...]] = []
    for index, row in enumerate(value):
        name = f"prompt[{index}]"
        if isinstance(row, list) != isinstance(value[0], list):
            raise bad(name, f"it is {kind(row)} among others; give all as text, or all as tokens.")
        rows.append(_ids(row, name, terms) if isinstance(row, list) else _text(row, name))
    return tuple(rows)


def _text(value: Any, name: str) -> str:
    if not whole_text(value, name):
        raise bad(name, "it is empty; give some text to continue.")
    return value


def _ids(row: list[Any], name: str, terms: Terms) -> tuple[int, ...]:
    if not row:
        raise bad(name, "it has no tokens; give some to continue.")
    for index, token in enumerate(row):
        if isinstance(token, bool) or not isinstance(token, int):
            raise bad(f"{name}[{index}]", f"it is {_what(token)}; give whole numbers.")
        if not 0 <= token < terms.vocabulary:
            problem = f"the model has no token {shown(token)}; give 0 to {terms.vocabulary - 1}."
            raise bad(f"{name}[{index}]", problem)
    return tuple(row)


def _what(value: Any) -> str:
    return "no whole number" if isinstance(value, float) else f"{kind(value)} among token ids"


def _check_neutral(fields: Fields, neutral: Mapping[str, tuple[Any, ...]]) -> None:
    """Refuse what would change an answer and is not served."""
    for name, values in neutral.items():
        value = fields.get(name)
        if value is None or any(value == one and type(value) is not bool for one in values):
            continue
        raise bad(name, "it is not supported here; leave it out.", "unsupported")
