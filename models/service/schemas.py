"""The bodies of requests and answers, as pydantic models: what OpenAPI shows and what is checked first.

Types and the service's own rules are checked here; the rules of a video by `models.service.requests`.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from models.machine.checks import short

MOST_PROMPT = 8000
"""Most characters of a prompt: the text encoder takes 256 tokens."""
MOST_NUMBERS = 1001
"""Most numbers of a schedule."""
_SIZE = re.compile(r"^[0-9]{1,6}x[0-9]{1,6}$", re.ASCII)
_FILE = re.compile(r"file-[0-9a-f]{64}", re.ASCII)
_WHOLE = re.compile(r"[+-]?[0-9]{1,19}", re.ASCII)
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?", re.ASCII)


def _whole(value: Any) -> Any:
    """Take a whole number, also as the text that a form has."""
    if isinstance(value, str) and _WHOLE.fullmatch(value.strip()):
        return int(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?[0-9]+\s*", value, re.ASCII):
        raise ValueError(f"{short(value)} has too many digits")
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{short(value)} must be a whole number")
    return value


def _real(value: Any) -> Any:
    """Take a number, also as the text that a form has."""
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{short(value)} must be a number")
    return value


def _size(value: str) -> str:
    if not _SIZE.fullmatch(value):
        raise ValueError("must be WIDTHxHEIGHT, such as 848x480")
    return value


def _said(value: str) -> str:
    """Refuse a prompt that says nothing, and characters that no text has."""
    if not value.strip():
        raise ValueError("must say something: it has only spaces")
    if any(ord(letter) < 32 and letter not in "\t\n\r" for letter in value):
        raise ValueError("must hold no control characters")
    return value


def _finite(value: float) -> float:
    if value != value or value in (float("inf"), float("-inf")):
        raise ValueError("must be finite")
    return value


def _numbers(value: Any) -> Any:
    """Take a list of numbers, also as the text with commas that a form has; never the name of a file."""
    parts = [part for part in re.split(r"[\s,;\[\]]+", value) if part] if isinstance(value, str) else value
    if not isinstance(parts, list) or not 1 <= len(parts) <= MOST_NUMBERS:
        raise ValueError(f"{short(value)} must be a list of 1 to {MOST_NUMBERS} numbers")
    return [_finite(float(_real(part))) for part in parts]


def _schema(kind: str, pattern: str) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": [{"type": kind}, {"type": "string", "pattern": pattern}]})


Whole = Annotated[int, BeforeValidator(_whole), _schema("integer", r"^[+-]?[0-9]{1,19}$")]
Real = Annotated[
    float,
    BeforeValidator(_real),
    AfterValidator(_finite),
    _schema("number", r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?$"),
]

Numbers = Annotated[
    list[float],
    BeforeValidator(_numbers),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "array", "items": {"type": "number"}, "minItems": 1, "maxItems": MOST_NUMBERS},
                {"type": "string", "pattern": r"^[-+0-9.eE,; ]{1,20000}$"},
            ]
        }
    ),
]


def _file_id(value: Any) -> Any:
    """Take the id of a file, also as OpenAI's `{"file_id": ID}`."""
    if isinstance(value, dict) and list(value) == ["file_id"]:
        value = value["file_id"]
    if not isinstance(value, str) or not _FILE.fullmatch(value):
        raise ValueError(f"{short(value)} must be the id of POST /v1/files, or a file of a form")
    return value


FileId = Annotated[
    str,
    BeforeValidator(_file_id),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "pattern": r"^file-[0-9a-f]{64}$"},
                {
                    "type": "object",
                    "properties": {"file_id": {"type": "string", "pattern": r"^file-[0-9a-f]{64}$"}},
                    "required": ["file_id"],
                    "additionalProperties": False,
                },
            ]
        }
    ),
]


class VideoCreate(BaseModel):
    """A video to make. What is left out is the checkpoint's default, as for `mochi-tt generate`."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"prompt": "a paper boat on a stream", "size": "848x480", "seconds": "2", "seed": 7}]
        },
    )

    prompt: Annotated[str, AfterValidator(_said)] = Field(
        min_length=1, max_length=MOST_PROMPT, description="What the video shows; 256 tokens are used."
    )
    negative_prompt: str | None = Field(None, max_length=MOST_PROMPT, description="What to steer away from.")
    model: str | None = Field(None, max_length=200, description="The model that this service has (GET /v1/models).")
    size: Annotated[str, AfterValidator(_size)] | None = Field(
        None,
        max_length=20,
        json_schema_extra={"pattern": _SIZE.pattern},
        description="WIDTHxHEIGHT in pixels, multiples of 16.",
    )
    seconds: Real | None = Field(
        None,
        gt=0,
        le=3600,
        description="Length. Frames are the number of the grid 6k + 1 that is nearest to seconds * 30.",
    )
    width: Whole | None = Field(None, description="Pixels, a multiple of 16; in place of size.")
    height: Whole | None = Field(None, description="Pixels, a multiple of 16; in place of size.")
    num_frames: Whole | None = Field(None, description="6k + 1; in place of seconds.")
    fps: Whole | None = Field(None, description="Frames per second of the file; 30 by default.")
    num_inference_steps: Whole | None = Field(None, description="Denoising steps.")
    guidance_scale: Real | None = Field(None, description="1 turns guidance off and halves the time.")
    guidance_interval: str | None = Field(None, max_length=100, description="A:B, shares of the steps with guidance.")
    guidance_reuse: Whole | None = Field(None, description="K: the unconditional branch in every K-th step.")
    threshold_noise: Real | None = Field(None, description="Noise removed in the linear part of the schedule.")
    linear_steps: Whole | None = Field(None, description="Steps of the linear part.")
    solver: str | None = Field(None, max_length=40, description="euler, ab2 or unipc.")
    preset: str | None = Field(None, max_length=40, description="Named settings for what is not given.")
    reuse: str | Real | None = Field(
        None,
        description="Blocks of earlier steps to reuse: off, a threshold such as 0.1, or steps:3,4,6.",
        json_schema_extra={"maxLength": 4000},
    )
    sigmas: Numbers | None = Field(
        None, description="Noise levels from 1 to 0, one more than steps: in place of num_inference_steps."
    )
    cfg_schedule: Numbers | None = Field(None, description="Guidance scales, one per step: in place of guidance_scale.")
    seed: Whole | None = Field(None, description="Of the noise. The same seed gives the same video.")
    lora: str | list[str] | None = Field(
        None,
        description="NAME or NAME:STRENGTH of the service's LoRAs (GET /v1/loras); several in a list or by commas.",
    )
    input_reference: FileId | None = Field(
        None, description="A picture or a video to start from: a file of the form, or the id of POST /v1/files."
    )
    image: FileId | None = Field(None, description="The same, a picture: it stands still. Mochi has no weights for it.")
    video: FileId | None = Field(None, description="The same, a video. Frames are its own, as many as are asked for.")
    strength: Real | None = Field(
        None, description="Share of the steps that are done from there: 1 is a video of the text alone, 0 the source."
    )
    fit: bool | None = Field(None, description="Show the whole picture, with black bars; else its middle is cut out.")
    edit: bool | None = Field(None, description="Edit the video by RF-inversion, in place of strength.")
    eta: Real | None = Field(None, description="Of edit: how strongly the video is kept, from 0 to 1.")
    eta_end: Real | None = Field(None, description="Of edit: share of the steps in which it is.")


class JobError(BaseModel):
    """Why a video failed."""

    code: str
    message: str


class Video(BaseModel):
    """A video, made or to be made. OpenAI's names; those from `position` on are ours."""

    id: str
    object: Literal["video"] = "video"
    status: Literal["queued", "in_progress", "completed", "failed", "cancelling", "cancelled"]
    model: str
    progress: int = Field(description="0 to 100.")
    created_at: int
    started_at: int | None = None
    completed_at: int | None = None
    expires_at: int | None = Field(
        None, description="When its file will be deleted, if its size does not do so before."
    )
    size: str
    seconds: str
    prompt: str
    error: JobError | None = None
    position: int | None = Field(None, description="0 for the video that is made now, 1 for the next.")
    estimated_seconds: float | None = Field(None, description="Until it is done; null until the service has measured.")
    estimate_source: Literal["measured", "projection"] | None = None
    stage: str | None = None
    step: int | None = None
    steps: int | None = None
    expired: bool = False
    messages: list[str] = []
    settings: dict[str, Any] = Field(description="Every field as it was given or follows.")
    timings: dict[str, float] | None = Field(None, description="Seconds of each stage.")


class VideoList(BaseModel):
    """A page of videos."""

    object: Literal["list"] = "list"
    data: list[Video]
    first_id: str | None
    last_id: str | None
    has_more: bool


class VideoDeleted(BaseModel):
    """A video that is gone."""

    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: Literal[True] = True


class ErrorDetail(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(BaseModel):
    """The one shape of all errors."""

    error: ErrorDetail


class FileObject(BaseModel):
    """A file that was sent, in OpenAI's shape."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    kind: Literal["image", "video"]


class Named(BaseModel):
    """A model or a LoRA of the service."""

    id: str
    object: str
    owned_by: str = "mochi-tt"
    words: list[str] | None = Field(None, description="All that a model knows; null where it knows any text.")


class NamedList(BaseModel):
    """All of them."""

    object: Literal["list"] = "list"
    data: list[Named]
