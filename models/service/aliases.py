"""Other shapes of the same jobs: tt-media-server's routes, and Replicate's predictions."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from anyio import to_thread
from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, ValidationError

from models.service.errors import ServiceError
from models.service.http import Name, broken, content_of, errors, fields_of, owner_of, refuse_query, service_of, submit
from models.service.jobs import CANCELLED, CANCELLING, COMPLETED, FAILED, IN_PROGRESS, QUEUED, Job
from models.service.schemas import VideoCreate

_LISTED = 100
_WAIT = re.compile(r"wait(?:=(\d{1,3}))?")
_MOST_WAIT, _POLL = 60, 0.25
router = APIRouter()


class Generation(BaseModel):
    """A job as tt-media-server shows it (tt-inference-server 11ac526, `open_ai_api/video.py`)."""

    id: str
    job_type: Literal["video"] = "video"
    status: str
    created_at: int
    model: str
    request_parameters: dict[str, Any]
    error: dict[str, Any] | None = None


def _generation(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "job_type": "video",
        "status": job.state,
        "created_at": int(job.created_at),
        "model": job.about["model"],
        "request_parameters": dict(job.fields),
        "error": job.error,
    }


_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/VideoCreate"}}},
    }
}


@router.post(
    "/v1/videos/generations",
    status_code=202,
    response_model=Generation,
    responses=errors(409, 429),
    openapi_extra=_BODY,
)
async def generate(request: Request) -> Any:
    """Queue a video; tt-media-server's route."""
    refuse_query(request)
    return _generation(await submit(request, await fields_of(request)))


@router.get("/v1/videos/jobs", response_model=list[Generation], responses=errors())
def list_jobs(request: Request) -> Any:
    """List your latest videos; tt-media-server's route."""
    refuse_query(request)
    return [_generation(job) for job in service_of(request).page(owner_of(request).name, _LISTED, None, "desc")[0]]


@router.post("/v1/videos/generations/i2v", include_in_schema=False)
@router.post("/v1/videos/generations/i2v/upload", include_in_schema=False)
async def from_image(request: Request) -> None:
    """Refuse what other models do with pictures: Mochi 1 has no such weights.

    Raises:
        ServiceError: always.
    """
    raise ServiceError(
        404,
        "Mochi 1 has no weights for pictures: /v1/videos starts from one with input_reference and strength",
        "not_supported",
    )


@router.get("/v1/videos/generations/{video_id}", response_model=Generation, responses=errors())
def get_generation(request: Request, video_id: Name) -> Any:
    """Say how a video is; tt-media-server's route."""
    refuse_query(request)
    return _generation(service_of(request).get(video_id, owner_of(request).name))


@router.get("/v1/videos/generations/{video_id}/download", include_in_schema=False)
def download(request: Request, video_id: Name) -> Response:
    """Download a completed video; tt-media-server's route."""
    refuse_query(request)
    return content_of(request, service_of(request).content(video_id, owner_of(request).name), f"{video_id}.mp4")


@router.post("/v1/videos/generations/{video_id}/cancel", response_model=Generation, responses=errors(409))
def cancel_generation(request: Request, video_id: Name) -> Any:
    """Cancel a video; tt-media-server's route."""
    refuse_query(request)
    return _generation(service_of(request).cancel(video_id, owner_of(request).name))


@router.get("/tt-liveness")
async def liveness(request: Request) -> dict[str, str]:
    """Say that the server answers; tt-media-server's route."""
    return {"status": "alive"}


class PredictionCreate(BaseModel):
    """A prediction to make, in Replicate's shape."""

    model_config = ConfigDict(extra="forbid")

    input: VideoCreate
    version: str | None = None


class Prediction(BaseModel):
    """A prediction in Replicate's shape (their HTTP API's reference)."""

    id: str
    model: str
    version: str
    status: Literal["starting", "processing", "succeeded", "failed", "canceled"]
    input: dict[str, Any]
    output: str | None
    error: str | None
    logs: str
    created_at: str
    started_at: str | None
    completed_at: str | None
    metrics: dict[str, float]
    urls: dict[str, str]


class PredictionList(BaseModel):
    """A page of predictions."""

    next: str | None
    previous: None
    results: list[Prediction]


_STATES = {
    QUEUED: "starting",
    IN_PROGRESS: "processing",
    CANCELLING: "processing",
    COMPLETED: "succeeded",
    FAILED: "failed",
    CANCELLED: "canceled",
}


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat()


def _prediction(request: Request, job: Job) -> dict[str, Any]:
    root = str(request.base_url).rstrip("/")
    done = job.state == COMPLETED and not job.expired
    seconds = job.result.get("seconds", {})
    return {
        "id": job.id,
        "model": job.about["model"],
        "version": job.about["model"],
        "status": _STATES[job.state],
        "input": dict(job.fields),
        "output": f"{root}/v1/videos/{job.id}/content" if done else None,
        "error": None if job.error is None else job.error["message"],
        "logs": "\n".join(job.messages),
        "created_at": _time(job.created_at),
        "started_at": _time(job.started_at),
        "completed_at": _time(job.finished_at),
        "metrics": {"predict_time": round(sum(seconds.values()), 3)} if seconds else {},
        "urls": {
            "get": f"{root}/v1/predictions/{job.id}",
            "cancel": f"{root}/v1/predictions/{job.id}/cancel",
        },
    }


_INPUT = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/PredictionCreate"}}},
    }
}


@router.post(
    "/v1/predictions", status_code=201, response_model=Prediction, responses=errors(409, 429), openapi_extra=_INPUT
)
async def create_prediction(request: Request) -> Any:
    """Queue a video; Replicate's shape. `Prefer: wait=SECONDS` waits for its end, 60 seconds at most."""
    refuse_query(request)
    values = await fields_of(request)
    given = _input_of(values)
    if values.get("version") is not None:
        given = {"model": values["version"], **given}
    job = await submit(request, given)
    asked = _WAIT.search(request.headers.get("prefer", ""))
    if asked is not None:
        end = time.monotonic() + min(int(asked[1] or _MOST_WAIT), _MOST_WAIT)
        while not job.has_ended and time.monotonic() < end:
            await asyncio.sleep(_POLL)
            job = await to_thread.run_sync(service_of(request).get, job.id, owner_of(request).name)
    return _prediction(request, job)


def _input_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a prediction's input, whose own rules are checked later.

    Raises:
        ServiceError: the request has other fields, or no input.
    """
    unknown = sorted(set(values) - set(PredictionCreate.model_fields))
    try:
        if unknown or not isinstance(values.get("input"), dict) or not isinstance(values.get("version"), str | None):
            PredictionCreate.model_validate(values)
    except ValidationError as error:
        raise broken(error.errors(include_url=False), PredictionCreate) from error
    return values["input"]


@router.get("/v1/predictions", response_model=PredictionList, responses=errors())
def list_predictions(request: Request) -> Any:
    """List your latest videos; Replicate's shape."""
    refuse_query(request)
    jobs, _ = service_of(request).page(owner_of(request).name, _LISTED, None, "desc")
    return {"next": None, "previous": None, "results": [_prediction(request, job) for job in jobs]}


@router.get("/v1/predictions/{video_id}", response_model=Prediction, responses=errors())
def get_prediction(request: Request, video_id: Name) -> Any:
    """Say how a video is; Replicate's shape."""
    refuse_query(request)
    return _prediction(request, service_of(request).get(video_id, owner_of(request).name))


@router.post("/v1/predictions/{video_id}/cancel", response_model=Prediction, responses=errors(409))
def cancel_prediction(request: Request, video_id: Name) -> Any:
    """Cancel a video; Replicate's shape."""
    refuse_query(request)
    return _prediction(request, service_of(request).cancel(video_id, owner_of(request).name))
