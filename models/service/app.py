"""The application: routes in OpenAI's shape over `Service`. Aliases of other shapes are in `aliases`.

A page mounts on what `make_app` returns, and calls the functions of `app.state.service`.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import models_json_schema
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from models.machine.version import __version__
from models.service import schemas
from models.service.aliases import PredictionCreate
from models.service.aliases import router as aliases
from models.service.errors import ServiceError, body
from models.service.http import (
    AsciiJSON,
    Name,
    broken,
    content_of,
    errors,
    fields_of,
    kept_file,
    owner_of,
    refuse_query,
    service_of,
    shown,
    submit,
)
from models.service.inputs import KEEP_SECONDS
from models.service.jobs import Job, StoreUnavailable
from models.service.keys import Keys
from models.service.limits import Guard
from models.service.metrics import Metrics
from models.service.service import Service, unavailable

_SUBMITTERS = 4
"""Requests that are checked and queued at a time; checking computes, and /health answers beside it."""
router = APIRouter()


def _video(request: Request, response: Response, job: Job) -> dict[str, Any]:
    response.headers["openai-poll-after-ms"] = str(service_of(request).settings.poll_ms)
    return shown(request, job)[0]


_FILE_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string", "enum": ["vision", "user_data"]},
                    },
                    "required": ["file"],
                    "additionalProperties": False,
                }
            }
        },
    }
}
_FORM = {"schema": {"$ref": "#/components/schemas/VideoCreate"}}


@router.post(
    "/v1/videos",
    response_model=schemas.Video,
    responses=errors(409, 429),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": _FORM, "multipart/form-data": _FORM},
        }
    },
)
async def create_video(request: Request, response: Response) -> Any:
    """Queue a video."""
    refuse_query(request)
    job = await submit(request, await fields_of(request))
    return await to_thread.run_sync(lambda: _video(request, response, job))


@router.post("/v1/files", response_model=schemas.FileObject, responses=errors(429), openapi_extra=_FILE_BODY)
async def create_file(request: Request) -> Any:
    """Send a picture or a video, which videos can start from by its id for an hour. Nothing else is done with it."""
    refuse_query(request)
    values = await fields_of(request)
    unknown = sorted(set(values) - {"file", "purpose"})
    if unknown:
        raise ServiceError(
            422, f"field {unknown[0][:60]} is not known: file, purpose are", "unknown_field", unknown[0][:60]
        )
    file, purpose = values.get("file"), values.get("purpose", "vision")
    if not isinstance(file, UploadFile):
        raise ServiceError(422, "file is missing: send it as a file of the form", "missing_field", "file")
    if purpose not in ("vision", "user_data"):
        raise ServiceError(
            422, f"purpose {str(purpose)[:60]!a} must be vision or user_data", "invalid_value", "purpose"
        )
    kept = await kept_file(request, "file", file)
    now = int(time.time())
    return {
        "id": kept.id,
        "bytes": kept.bytes,
        "created_at": now,
        "expires_at": now + int(KEEP_SECONDS),
        "filename": (file.filename or "")[:255],
        "purpose": purpose,
        "kind": kept.kind,
    }


class Page(BaseModel):
    """Which videos of a list."""

    model_config = ConfigDict(extra="forbid")

    after: str | None = Field(None, max_length=200, description="The last id of the page before.")
    limit: int = Field(20, ge=1, le=100)
    order: Literal["asc", "desc"] = "desc"


@router.get("/v1/videos", response_model=schemas.VideoList, responses=errors())
def list_videos(request: Request, page: Annotated[Page, Query()]) -> Any:
    """List your videos, the newest first."""
    refuse_query(request, *Page.model_fields)
    jobs, more = service_of(request).page(owner_of(request).name, page.limit, page.after, page.order)
    return {
        "object": "list",
        "data": shown(request, *jobs),
        "first_id": jobs[0].id if jobs else None,
        "last_id": jobs[-1].id if jobs else None,
        "has_more": more,
    }


@router.get("/v1/videos/{video_id}", response_model=schemas.Video, responses=errors())
def get_video(request: Request, response: Response, video_id: Name) -> Any:
    """Say how a video is."""
    refuse_query(request)
    return _video(request, response, service_of(request).get(video_id, owner_of(request).name))


@router.delete("/v1/videos/{video_id}", response_model=schemas.VideoDeleted, responses=errors(409))
def delete_video(request: Request, video_id: Name) -> Any:
    """Delete a video and its file. One that is made at present must be cancelled before."""
    refuse_query(request)
    return {
        "id": service_of(request).delete(video_id, owner_of(request).name),
        "object": "video.deleted",
        "deleted": True,
    }


@router.post("/v1/videos/{video_id}/cancel", response_model=schemas.Video, responses=errors(409))
def cancel_video(request: Request, response: Response, video_id: Name) -> Any:
    """Cancel a video: at once if it waits, within one step if it is made at present."""
    refuse_query(request)
    return _video(request, response, service_of(request).cancel(video_id, owner_of(request).name))


_BYTES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"video/mp4": {"schema": {"type": "string", "format": "binary"}}}, "description": "The file."},
    206: {
        "content": {"video/mp4": {"schema": {"type": "string", "format": "binary"}}},
        "description": "A range of it.",
    },
    304: {"description": "The client has it."},
}


@router.head("/v1/videos/{video_id}/content", include_in_schema=False)
@router.get("/v1/videos/{video_id}/content", responses=errors(416) | _BYTES, response_class=Response)
def get_content(request: Request, video_id: Name, variant: Literal["video"] = "video") -> Response:
    """Download a completed video. Ranges are served; the ETag is of the content."""
    refuse_query(request, "variant")
    return content_of(request, service_of(request).content(video_id, owner_of(request).name), f"{video_id}.mp4")


@router.get(
    "/v1/videos/{video_id}/preview",
    responses=errors()
    | {
        200: {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}, "description": "A picture."}
    },
    response_class=Response,
)
def get_preview(request: Request, video_id: Name) -> Response:
    """Download the latest preview of a video that is made at present, if there is one."""
    refuse_query(request)
    return content_of(request, service_of(request).preview(video_id, owner_of(request).name), None, "image/png")


@router.get("/v1/models", response_model=schemas.NamedList, responses=errors())
def list_models(request: Request) -> Any:
    """Show the model that is served."""
    refuse_query(request)
    planner = service_of(request).planner
    words = None if planner.words is None else list(planner.words.known)
    return {"object": "list", "data": [{"id": planner.name, "object": "model", "words": words}]}


@router.get("/v1/loras", response_model=schemas.NamedList, responses=errors())
def list_loras(request: Request) -> Any:
    """List the LoRAs that a request may name."""
    refuse_query(request)
    return {"object": "list", "data": [{"id": name, "object": "lora"} for name in service_of(request).planner.loras()]}


@router.head("/health", include_in_schema=False)
@router.get("/health")
async def health() -> dict[str, str]:
    """Say that the server answers; it looks at nothing else."""
    return {"status": "ok", "version": __version__}


@router.get("/ready", responses={503: {"description": "The worker does not take jobs yet, or not any more."}})
async def ready(request: Request) -> Any:
    """Say whether the worker takes jobs, and what it loads if not. Jobs may be submitted meanwhile."""
    status = service_of(request).status
    if await to_thread.run_sync(service_of(request).jobs.is_full):
        said = body(503, "the service's disk is full: delete videos, or make room on it", "disk_full")
        return AsciiJSON({"status": "full", "loading": status.loading} | said, 503, {"Retry-After": "60"})
    if status.ready:
        return {"status": "ready", "loading": None}
    what = "stopping" if status.stopping else "loading"
    said = body(503, f"the worker is {what}" + (f": {status.loading}" if status.loading else ""), f"not_ready_{what}")
    return AsciiJSON({"status": what, "loading": status.loading} | said, 503, {"Retry-After": "5"})


@router.get(
    "/metrics",
    response_class=Response,
    responses=errors() | {200: {"content": {"text/plain": {}}, "description": "Prometheus' text format."}},
)
def metrics(request: Request) -> Response:
    """Show the metrics."""
    return Response(request.app.state.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def make_app(service: Service, keys: Keys, page: str | None = None) -> FastAPI:
    """Return the application of a service.

    Args:
        service: what the routes call.
        keys: who may ask.
        page: the path where a page will be mounted; None for none.
    """
    app = FastAPI(
        title="mochi-tt serve",
        version=__version__,
        description="Videos from text, by Mochi 1 on Tenstorrent. Errors have one shape, OpenAI's.",
        docs_url=None,  # They would load scripts from other machines.
        redoc_url=None,
        default_response_class=AsciiJSON,
    )
    app.state.service, app.state.metrics = service, Metrics(service)
    app.state.submitters = CapacityLimiter(_SUBMITTERS)
    app.include_router(aliases)
    app.include_router(router)
    handlers: dict[type[Exception], Callable[[Request, Any], Awaitable[Response]]] = {
        ServiceError: _answered,
        StoreUnavailable: _answered,
        RequestValidationError: _answered,
        HTTPException: _answered,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)
    _describe(app, secured=bool(keys))

    def count(route: str, status: int, seconds: float) -> None:
        app.state.metrics.requests.labels(route, str(status)).inc()
        app.state.metrics.seconds.observe(seconds)

    app.add_middleware(
        Guard,  # type: ignore[arg-type]
        keys=keys,
        body_bytes=service.settings.body_bytes,
        body_seconds=service.settings.body_seconds,
        input_bytes=service.settings.input_bytes,
        input_seconds=service.settings.input_seconds,
        count=count,
        page=page,
    )
    return app


def _describe(app: FastAPI, *, secured: bool) -> None:
    """Put into OpenAPI what FastAPI does not see: the body that `create_video` reads by itself, and the keys."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        whole = made()
        parts = whole.setdefault("components", {})
        bodies: list[tuple[type[BaseModel], Any]] = [
            (schemas.VideoCreate, "validation"),
            (PredictionCreate, "validation"),
        ]
        _, found = models_json_schema(bodies, ref_template="#/components/schemas/{model}")
        parts["schemas"] |= found["$defs"]
        if secured:
            parts["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            whole["security"] = [{"key": []}]
        return whole

    app.openapi = openapi  # type: ignore[method-assign]


async def _answered(request: Request, error: Exception) -> Response:
    """Return an error in the one shape."""
    if isinstance(error, StoreUnavailable):
        error = unavailable(error)
    elif isinstance(error, RequestValidationError):
        error = broken(error.errors())
    elif isinstance(error, HTTPException):
        said = {404: "this path does not exist", 405: f"method {request.method} is not possible here"}
        codes = {404: "not_found", 405: "method_not_allowed"}
        status = error.status_code
        error = ServiceError(
            status, said.get(status, str(error.detail)), codes.get(status, "invalid_request"), None, error.headers
        )
    assert isinstance(error, ServiceError)
    return AsciiJSON(error.body(), error.status, error.headers)
