"""What a server takes on and allows: its settings, and the terms that requests are read by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from skimp.errors import SkimpError

OVERRIDES: Mapping[str, str] = {
    "side": "run on the dense model or the planned one",
    "timeout_s": "give up sooner than the server would",
    "tokens": "tell each token's id and exit depth",
    "ignore_ends": "write on past the end of a text",
}
"""What a request may ask for under `skimp`, and what that is."""

USUAL = frozenset(OVERRIDES) - {"ignore_ends"}
"""Allowed unless the server is told otherwise: what costs no more than a request without it."""


@dataclass(frozen=True)
class Settings:
    """How a server listens and what it refuses.

    `key`: what clients must show, or None. `origins`: web pages that may call it (CORS). `hosts`:
    names a request may call the server by, None any. `body_bytes`: a request at most. `new`: tokens
    of one answer at most, None what the context holds. `timeout_s`: of one request, None never.
    `grace_s`: what running answers are given when the server closes. `allow`: names of `OVERRIDES`.
    """

    key: str | None = None
    origins: tuple[str, ...] = ()
    hosts: frozenset[str] | None = None
    body_bytes: int = 1 << 20
    body_s: float = 30.0
    new: int | None = None
    timeout_s: float | None = 600.0
    grace_s: float = 30.0
    keep_alive_s: float = 15.0
    allow: frozenset[str] = USUAL


@dataclass(frozen=True)
class Terms:
    """What requests are read by.

    `models`: names that a request may give, and the side that each stands for; the first is the
    server's own. `choices`: prompts times `n` at most. `context` and `vocabulary` are the model's.
    `chat`: whether there is a chat template.
    """

    models: Mapping[str, str]
    context: int | None
    vocabulary: int
    chat: bool
    choices: int = 128
    new: int | None = None
    timeout_s: float | None = None
    allow: frozenset[str] = USUAL

    @property
    def sides(self) -> tuple[str, ...]:
        """The sides served, the usual one first."""
        return tuple(dict.fromkeys(self.models.values()))


def read_allow(text: str | None) -> frozenset[str]:
    """The overrides that `--allow` names, separated by commas; all, none, or None for the usual.

    Raises:
        SkimpError: there is no such override.
    """
    if text is None:
        return USUAL
    if text in ("all", "none"):
        return frozenset(OVERRIDES) if text == "all" else frozenset()
    found = frozenset(name.strip() for name in text.split(","))
    for name in sorted(found - set(OVERRIDES)):
        raise SkimpError(
            f"--allow: {name!r} is nothing that a request may ask for; name some of "
            f"{', '.join(OVERRIDES)}, or all, or none."
        )
    return found
