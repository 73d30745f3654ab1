"""What all routes share: reading a body, naming what is wrong with it, sending a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from anyio import to_thread
from fastapi import Path, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ValidationError
from python_multipart.multipart import parse_options_header
from starlette.concurrency import iterate_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException

from models.machine.checks import json_object, short
from models.machine.errors import InputError
from models.service import schemas
from models.service.errors import ServiceError
from models.service.files import BadRange, byte_range, pieces
from models.service.inputs import Input
from models.service.jobs import Job, StoreUnavailable
from models.service.keys import Key
from models.service.limits import encoded
from models.service.service import Result, Service

_MOST_FIELDS, _MOST_IDEMPOTENCY = 100, 200
_LISTS, _FILES = ("lora",), ("input_reference", "image", "video", "file")
Name = Annotated[str, Path(max_length=200, description="A video's id.", examples=["video_" + "0" * 32])]


class AsciiJSON(JSONResponse):
    """JSON in ASCII: it holds what clients sent, which need be no Unicode."""

    def render(self, content: Any) -> bytes:
        """Return the body."""
        return encoded(content)


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the errors of a route for OpenAPI; those that every route has are added."""
    every = (400, 401, 403, 404, 405, 408, 413, 415, 422, 500, 503)
    return {status: {"model": schemas.ErrorBody} for status in sorted({*every, *statuses})}


def service_of(request: Request) -> Service:
    """Return the service of a request's application."""
    return request.app.state.service


def owner_of(request: Request) -> Key:
    """Return who asks."""
    return request.state.key


def refuse_query(request: Request, *known: str) -> None:
    """Refuse query parameters that a route does not know, or that are there twice.

    Raises:
        ServiceError: there is one.
    """
    given = [name for name, _ in request.query_params.multi_items()]
    for name in given:
        if name not in known:
            raise ServiceError(422, f"query parameter {short(name)} is not known here", "unknown_field", None)
        if given.count(name) > 1:
            raise ServiceError(
                422, f"query parameter {name} is there {given.count(name)} times: give it once", "invalid_value", name
            )


async def fields_of(request: Request) -> dict[str, Any]:
    """Read the fields of a body: JSON, or a form of either kind.

    Raises:
        ServiceError: it is of another type, or broken.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        try:
            return json_object(await request.body(), "the request", "send one JSON object")
        except InputError as error:
            raise ServiceError(400, str(error), "invalid_json") from error
    if kind not in ("multipart/form-data", "application/x-www-form-urlencoded"):
        raise ServiceError(
            415, "content type must be application/json or multipart/form-data", "unsupported_media_type"
        )
    if kind == "multipart/form-data":
        boundary = parse_options_header(request.headers["content-type"])[1].get(b"boundary", b"")
        if b"--" + boundary + b"--" not in await request.body():  # the parser would drop the last part
            raise ServiceError(400, "the form is not complete: its last boundary is missing", "invalid_form")
    try:
        form = await request.form(max_files=4, max_fields=_MOST_FIELDS)
    except (MultiPartException, HTTPException) as error:
        said = getattr(error, "message", None) or getattr(error, "detail", "")
        raise ServiceError(400, f"the form cannot be read ({said})", "invalid_form") from error
    values: dict[str, Any] = {}
    for name, value in form.multi_items():
        name = name.removesuffix("[]") if name.removesuffix("[]") in _LISTS else name
        name = name.removesuffix("[file_id]") if name.removesuffix("[file_id]") in _FILES else name
        if isinstance(value, UploadFile) and name not in _FILES:
            raise ServiceError(
                422,
                f"field {short(name)} is a file: files are taken as {', '.join(_FILES)}",
                "unknown_field",
                name[:60],
            )
        if name not in values:
            values[name] = value
        elif name in _LISTS:
            before = values[name]
            values[name] = [*(before if isinstance(before, list) else [before]), value]
        else:
            raise ServiceError(422, f"field {short(name)} is there twice: give it once", "invalid_value", name[:60])
    return values


def checked(values: Mapping[str, Any]) -> dict[str, Any]:
    """Check the types and names of a video's fields.

    Raises:
        ServiceError: the first that breaks its rule.
    """
    try:
        return schemas.VideoCreate.model_validate(values).model_dump()
    except ValidationError as error:
        raise broken(error.errors(include_url=False), schemas.VideoCreate) from error


def broken(found: Any, model: type[BaseModel] | None = None) -> ServiceError:
    """Return the answer to what pydantic found: the first field that is not known, else the first."""
    first = next((each for each in found if each["type"] == "extra_forbidden"), found[0])
    place = [str(part) for part in first["loc"] if part not in ("body", "query", "path")]
    name = (place[0] if place else "request")[:60]
    if first["type"] == "extra_forbidden":
        known = f": the fields are {', '.join(model.model_fields)}" if model is not None else ""
        return ServiceError(422, f"field {short(name)} is not known{known}", "unknown_field", name)
    if first["type"] == "missing":
        return ServiceError(422, f"{name} is missing", "missing_field", name)
    rule = first["msg"].removeprefix("Value error, ").removesuffix(".")
    rule = rule[:1].lower() + rule[1:]
    shown = short(first.get("input"))
    return ServiceError(422, f"{name} {rule}" if shown in rule else f"{name} {shown}: {rule}", "invalid_value", name)


async def kept_file(request: Request, name: str, file: UploadFile) -> Input:
    """Check and keep a file of a form.

    Raises:
        ServiceError: it breaks a rule, or there is no room.
    """
    content = await file.read()
    limiter = request.app.state.submitters
    return await to_thread.run_sync(lambda: service_of(request).keep(content, name), limiter=limiter)


async def submit(request: Request, values: Mapping[str, Any]) -> Job:
    """Queue a video of a client's fields.

    Raises:
        ServiceError: a field breaks its rule, or a bound is reached.
    """
    service, owner = service_of(request), owner_of(request)
    files = {name: value for name, value in values.items() if isinstance(value, UploadFile)}
    if "file" in files:
        raise ServiceError(422, "field file is of POST /v1/files: send input_reference", "unknown_field", "file")
    if len(files) > 1:
        raise ServiceError(422, f"{' and '.join(files)} are both given: give one file", "invalid_value", min(files))
    again = request.headers.get("idempotency-key")
    if again is not None and not 1 <= len(again) <= _MOST_IDEMPOTENCY:
        raise ServiceError(422, f"Idempotency-Key must have 1 to {_MOST_IDEMPOTENCY} letters", "invalid_value")
    kept = {name: await kept_file(request, name, file) for name, file in files.items()}
    values = dict(values) | {name: file.id for name, file in kept.items()}

    def queue() -> Job:
        try:
            return service.submit(owner, checked(values), again)
        except (ServiceError, StoreUnavailable):
            for file in kept.values():
                service.drop(file)
            raise

    return await to_thread.run_sync(queue, limiter=request.app.state.submitters)


def shown(request: Request, *jobs: Job) -> list[dict[str, Any]]:
    """Return videos as a client sees them."""
    return service_of(request).shown(*jobs)


def content_of(request: Request, result: Result, name: str | None, kind: str = "video/mp4") -> Response:
    """Return an open file as an answer: whole, a range of it, or nothing where the client has it."""
    headers = {"Accept-Ranges": "bytes", "Cache-Control": "private, no-cache"}
    if result.etag is not None:
        headers["ETag"] = result.etag
        asked = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
        if result.etag in asked or "*" in asked:
            result.file.close()
            return Response(status_code=304, headers=headers)
    if name is not None:
        headers["Content-Disposition"] = f'attachment; filename="{name}"'
    wanted = request.headers.get("range")
    if "if-range" in request.headers and request.headers["if-range"] != result.etag:
        wanted = None
    try:
        part = byte_range(wanted, result.size)
    except BadRange:
        result.file.close()
        raise ServiceError(
            416,
            f"the range begins behind the file's {result.size} bytes",
            "bad_range",
            None,
            {"Content-Range": f"bytes */{result.size}"},
        ) from None
    first, end = part or (0, result.size)
    if part is not None:
        headers["Content-Range"] = f"bytes {first}-{end - 1}/{result.size}"
    headers["Content-Length"] = str(end - first)
    if request.method == "HEAD":
        result.file.close()
        return Response(status_code=206 if part else 200, headers=headers, media_type=kind)
    return StreamingResponse(
        iterate_in_threadpool(pieces(result.file, first, end)), 206 if part else 200, headers, media_type=kind
    )
