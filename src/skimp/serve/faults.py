"""What is wrong with a request, as its client is told."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}


class Fault(Exception):
    """A request that is refused or has failed, in the shape that OpenAI's clients read.

    Attributes:
        status: of the HTTP response.
        message: one sentence that names the field and the remedy.
        param: that field, or None.
        code: a word for programs, or None.
        headers: of the response, besides the usual ones.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message = status, message
        self.param, self.code = param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The document: `{"error": {message, type, param, code}}`."""
        return {
            "error": {
                "message": self.message,
                "type": _TYPES.get(self.status, "invalid_request_error"),
                "param": self.param,
                "code": self.code,
            }
        }


def bad(param: str, problem: str, code: str = "invalid_value") -> Fault:
    """The fault of a field whose value cannot be served."""
    return Fault(400, f"{param}: {problem}", param, code)


def encode(document: Any) -> bytes:
    """JSON in UTF-8; half a surrogate pair, which a client may have sent, stays an escape."""
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode("utf-8", "backslashreplace")
