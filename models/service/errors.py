"""What the service answers where it does not answer with a result: one shape, OpenAI's, for every route."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class ServiceError(Exception):
    """An answer that is an error.

    Attributes:
        status: of HTTP.
        message: one line for the client: value, rule, mend.
        code: one word for programs.
        param: the field that broke the rule, if one did.
        headers: such as Retry-After.
    """

    def __init__(
        self, status: int, message: str, code: str, param: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        """Create an error."""
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """Return the body of the answer."""
        return body(self.status, self.message, self.code, self.param)


_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def body(status: int, message: str, code: str, param: str | None = None) -> dict[str, Any]:
    """Return the body of an error in OpenAI's shape."""
    kind = _KINDS.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def unknown_job(name: str) -> ServiceError:
    """Return the error for a job that is not there, or is another key's: a client cannot tell which."""
    return ServiceError(404, f"video {name[:60]!a} does not exist: list yours with GET /v1/videos", "not_found", "id")
