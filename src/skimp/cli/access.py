"""Who may ask a server: its options, read and checked."""

from __future__ import annotations

import ipaddress

from skimp.errors import SkimpError


def key(text: str | None) -> str | None:
    """The key that clients must show; SkimpError if nobody could send it."""
    if not text:  # an empty variable in the environment is no key
        return None
    if not text.isprintable() or text != text.strip():
        raise SkimpError("--api-key: it must be some text without spaces around it; give another.")
    return text


def origin(text: str) -> str:
    """An origin of web pages; SkimpError if it is none."""
    scheme, _, rest = text.partition("://")
    if text == "*" or (scheme in ("http", "https") and rest and "/" not in rest):
        return text
    raise SkimpError(f"--cors: {text!r} is no origin; give one such as https://a.example, or *.")


def hosts(host: str, key: str | None) -> frozenset[str] | None:
    """What a server without a key may be called by: anything, unless only this machine may ask."""
    if key is not None or not is_loopback(host):
        return None
    return frozenset({"localhost", "127.0.0.1", "::1", host.lower()})


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
