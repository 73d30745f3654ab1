"""What a connection may do: who it is, how much and how slowly it may send and read, and what every answer carries.

`Guard` is the outermost layer of the application. `PatientProtocol` is uvicorn's protocol with limits on time.
"""

from __future__ import annotations

import asyncio
import json
import time
from asyncio import TimerHandle, Transport
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from secrets import token_hex
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from models.service.errors import ServiceError, body
from models.service.keys import LOCAL, Key, Keys, is_loopback
from models.service.log import log, log_error

OPEN = ("/health", "/ready", "/tt-liveness", "/openapi.json")
"""Paths that need no key: they say nothing of anybody's jobs."""
_WITH_FILES = ("/v1/videos", "/v1/files", "/v1/videos/generations")
"""Paths whose forms may hold a file."""
MOST_UPLOADS = 4
_DRAIN_BYTES, _DRAIN_SECONDS = 8 << 20, 2.0
_GONE = 499
"""Status in the log and the metrics of a request whose client went away before it was whole."""
_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cache-control": "no-store",
}
_PAGE_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; media-src 'self' blob:; frame-ancestors 'none'"
)
"""The page's scripts are its own, and it may load nothing from elsewhere."""
# By the last one a page that has lost the service sees that it is back.
_PAGE_PATHS = ("", "config", "theme.css", "favicon.ico", "manifest.json", "gradio_api/app_id")
_PAGE_FOLDERS = ("assets/", "static/", "files/", "gradio_api/heartbeat/")
_LOCAL_KEY = Key(LOCAL, b"")


class Guard:
    """Knows who asks, bounds what is sent, adds headers, logs, and turns what nobody expected into an answer."""

    def __init__(
        self,
        app: ASGIApp,
        keys: Keys,
        *,
        body_bytes: int,
        body_seconds: float,
        input_bytes: int = 0,
        input_seconds: float = 0.0,
        count: Callable[[str, int, float], None] = lambda route, status, seconds: None,
        page: str | None = None,
    ) -> None:
        """Wrap an application.

        Args:
            app: the application.
            keys: who may ask; without any, everybody on this machine.
            body_bytes: most of a request.
            body_seconds: in which it must have come.
            input_bytes: most of a file in a form, where files are taken.
            input_seconds: in which such a form must have come.
            count: called with the route, the status and the seconds of every request.
            page: the path of a page, which needs no key for itself; None for none.
        """
        self._app, self._keys, self._count, self._page = app, keys, count, page
        self._usual = (body_bytes, body_seconds)
        self._with_file = (body_bytes + input_bytes, max(body_seconds, input_seconds))
        self._uploads = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status, request = time.perf_counter(), 0, token_hex(8)

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request
                for name, value in _HEADERS.items():
                    of_page = name == "content-security-policy" and self._is_page(scope["path"])
                    headers.setdefault(name, _PAGE_POLICY if of_page else value)
                if status in (401, 408, 413, 429):
                    headers["connection"] = "close"  # Its body is not read.
            await send(message)

        try:
            if self._is_page(scope["path"]) and not self._of_page(scope["method"], scope["path"]):
                raise ServiceError(404, "this path does not exist", "not_found")
            headers = Headers(scope=scope)
            uploads = self._takes_file(scope["method"], scope["path"], headers)
            most, seconds = self._with_file if uploads else self._usual
            key = self._admit(headers, scope["path"], most)
            scope.setdefault("state", {})["key"] = key
            large = uploads and (_length(headers) > self._usual[0] or "content-length" not in headers)
            with self._counted(large):
                await self._app(scope, self._bounded(receive, most, seconds), answer)
        except ServiceError as error:
            if not status:
                if error.status in (401, 403, 413, 429):
                    await _drain(receive)
                await _refuse(error, answer)
        except ClientDisconnect:
            status = _GONE
        except Exception as error:
            log_error("fault of the service", error, request=request, path=_route(scope))
            if not status:
                await _refuse(
                    ServiceError(500, f"the service failed; its log has the reason ({request})", "internal_error"),
                    answer,
                )
        seconds = time.perf_counter() - start
        self._count(_route(scope), status, seconds)
        key = scope.get("state", {}).get("key")
        log(
            "request",
            request=request,
            method=scope["method"],
            route=_route(scope),
            status=status,
            ms=round(1000 * seconds, 1),
            owner=None if key is None else key.name,
        )

    def _takes_file(self, method: str, path: str, headers: Headers) -> bool:
        """Return whether a request is a form that may hold a file."""
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        return method == "POST" and path in _WITH_FILES and kind == "multipart/form-data"

    @contextmanager
    def _counted(self, counts: bool) -> Iterator[None]:
        """Hold one of the few places for large requests, whose bodies are in memory, while the block runs.

        Raises:
            ServiceError: all are taken.
        """
        if counts and self._uploads >= MOST_UPLOADS:
            raise ServiceError(
                429,
                f"{self._uploads} files are sent at present: try again",
                "too_many_uploads",
                None,
                {"Retry-After": "5"},
            )
        self._uploads += counts
        try:
            yield
        finally:
            self._uploads -= counts

    def _admit(self, headers: Headers, path: str, most: int) -> Key | None:
        """Return who asks; None for an open path.

        Raises:
            ServiceError: nobody who may; or a body that is too large.
        """
        if _length(headers) > most:
            raise _too_large(most)
        if not self._keys:
            self._check_origin(headers)
            return _LOCAL_KEY
        key = self._keys.find(headers.get("authorization"))
        if key is None and path not in OPEN and not self._is_page(path):
            raise ServiceError(
                401,
                "a key is missing or wrong: send the header Authorization: Bearer KEY",
                "invalid_api_key",
                None,
                {"WWW-Authenticate": "Bearer"},
            )
        return key

    def _is_page(self, path: str) -> bool:
        """Return whether a path is the page's, which asks for a key by itself and signs its links to files."""
        return self._page is not None and (
            path in ("/", "/favicon.ico", self._page) or path.startswith(f"{self._page}/")
        )

    def _of_page(self, method: str, path: str) -> bool:
        """Return whether a path below the page's is one that the page uses.

        The library of the page has more, which need no key of ours: files to send, a proxy, functions to call.
        """
        below = path.removeprefix(self._page or "").strip("/")  # of "/" and "/favicon.ico" as well
        if method == "POST":
            return below == "gradio_api/run/predict"
        return method in ("GET", "HEAD") and (below in _PAGE_PATHS or below.startswith(_PAGE_FOLDERS))

    def _check_origin(self, headers: Headers) -> None:
        """Refuse what a page of another site sends through the browser of who sits here: there is no key to know it by.

        Raises:
            ServiceError: the name or the origin is not of this machine.
        """
        host = _host(headers.get("host", ""))
        if not is_loopback(host):
            raise ServiceError(403, "a service without keys answers to the name of this machine only", "wrong_host")
        origin = headers.get("origin")
        if origin is not None and _place(origin) != headers.get("host"):
            raise ServiceError(403, "a service without keys answers to no page of another origin", "wrong_origin")
        if headers.get("sec-fetch-site") == "cross-site":
            raise ServiceError(403, "a service without keys answers to no page of another site", "wrong_origin")

    def _bounded(self, receive: Receive, most: int, seconds: float) -> Receive:
        """Return a receiver that gives up on bodies that are too long or come too slowly."""
        end, got, done = time.monotonic() + seconds, 0, False

        async def bounded() -> Message:
            nonlocal got, done
            if done:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(end - time.monotonic(), 0.001))
            except TimeoutError:
                raise ServiceError(
                    408, f"the request did not come within {seconds:g} seconds", "request_timeout"
                ) from None
            got += len(message.get("body", b""))
            done = message["type"] != "http.request" or not message.get("more_body", False)
            if got > most:
                raise _too_large(most)
            return message

        return bounded


def _too_large(most: int) -> ServiceError:
    return ServiceError(413, f"the request has more than {most} bytes, the most that is read", "too_large")


def _length(headers: Headers) -> int:
    """Return the length that a request states; 0 where it states none."""
    length = headers.get("content-length")
    if length is not None and length.isascii() and length.isdigit():
        return int(length)
    return 0


def _host(text: str) -> str:
    try:
        return urlsplit(f"//{text}").hostname or ""
    except ValueError:
        return ""


def _place(origin: str) -> str:
    """Return the name and port of an origin; nothing of what is none."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


def _route(scope: Scope) -> str:
    """Return the pattern of a request's route: a path could be anything."""
    route = scope.get("route")
    return getattr(route, "path", "none")


def encoded(content: Any) -> bytes:
    """Return JSON as ASCII: it holds what clients sent, which need be no Unicode."""
    return json.dumps(content).encode("ascii")


async def _drain(receive: Receive) -> None:
    """Read what a refused client still sends, in bounds: closing before would reset the connection under its answer."""
    got, end = 0, time.monotonic() + _DRAIN_SECONDS
    with suppress(TimeoutError):
        while got < _DRAIN_BYTES and (left := end - time.monotonic()) > 0:
            message = await asyncio.wait_for(receive(), left)
            got += len(message.get("body", b""))
            if message["type"] != "http.request" or not message.get("more_body", False):
                return


async def _refuse(error: ServiceError, send: Send) -> None:
    content = encoded(body(error.status, error.message, error.code, error.param))
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    headers += [(name.lower().encode(), value.encode()) for name, value in error.headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": content})


def patient(head_seconds: float, send_seconds: float) -> type[H11Protocol]:
    """Return uvicorn's protocol with limits on the time of a request's head and of a stalled reader.

    uvicorn itself waits for both without end.
    """

    class PatientProtocol(H11Protocol):
        """Closes connections that send no whole head, or do not read what they are sent."""

        _head: TimerHandle | None = None
        _stalled: TimerHandle | None = None

        def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._wait_for_head()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:
                self._head = _ended(self._head)
            elif self._head is None:
                self._wait_for_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._head, self._stalled = _ended(self._head), _ended(self._stalled)
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._stalled = _ended(self._stalled)
            self._stalled = self.loop.call_later(send_seconds, self._give_up)

        def resume_writing(self) -> None:
            self._stalled = _ended(self._stalled)
            super().resume_writing()

        def _wait_for_head(self) -> None:
            self._head = self.loop.call_later(head_seconds, self._give_up)

        def _give_up(self) -> None:
            log("connection closed: too slow")
            self.transport.abort()

    return PatientProtocol


def _ended(timer: TimerHandle | None) -> TimerHandle | None:
    """Cancel a timer, and return what stands for none."""
    if timer is not None:
        timer.cancel()
    return None
