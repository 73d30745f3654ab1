"""From the fields of a client to a checked set-up: the rules that `mochi-tt generate` has, at submission.

No field becomes a path: LoRAs are looked up by name among those that the service's own folder had, and lists of reused
steps are lists, never files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from models.jobs.generate import GenerateRequest
from models.jobs.start import from_source
from models.machine import paths
from models.machine.checks import check_text, short, stated_number
from models.machine.errors import InputError, MissingInputError
from models.mochi.geometry import FPS
from models.mochi.presets import preset
from models.mochi.setup import Request, Setup, VideoRequest, planned_forwards, resolve
from models.mochi.text.words import Words
from models.service.errors import ServiceError
from models.service.inputs import Inputs
from weight_cache.checkpoints.lora import LoraRequest

_FILES, _OF_A_START = ("input_reference", "image", "video"), ("strength", "fit", "edit", "eta", "eta_end")
_KINDS = {"image": "a picture", "video": "a video"}
# Fields of a client that have another name in `VideoRequest`.
RENAMED = {"num_inference_steps": "num_steps"}
# Of `VideoRequest`, under their names there.
_OF_A_VIDEO = tuple(field.name for field in fields(VideoRequest))
MOST_LORAS = 8
_STEPS = re.compile(r"steps:[0-9, ]+", re.ASCII)


@dataclass(frozen=True)
class Start:
    """The file of a client that a video starts from.

    Attributes:
        kind: "image" or "video".
        name: of the file.
        options: of `models.jobs.generate.GenerateRequest`.
    """

    kind: str
    name: str
    options: dict[str, Any]


@dataclass(frozen=True)
class Planned:
    """A client's request, checked.

    Attributes:
        setup: of the job, its video in it.
        fields: as the job keeps them: by the names of a client, without what was left out.
        about: size, frames and what else an answer shows, as plain data.
        messages: what the client should know before.
        start: the file that it starts from; None for noise alone.
        pictures: of that file; see `models.jobs.start.from_source`.
    """

    setup: Setup
    fields: dict[str, Any]
    about: dict[str, Any]
    messages: list[str]
    start: Start | None = None
    pictures: Any = None

    @property
    def prompts(self) -> tuple[str, str]:
        """The prompt and the negative prompt."""
        return self.fields["prompt"], self.fields.get("negative_prompt", "")


class Planner:
    """Checks the fields of clients against the one set-up of a service."""

    def __init__(
        self,
        request: Request,
        lora_folder: Path | None = None,
        name: str | None = None,
        inputs: Inputs | None = None,
    ) -> None:
        """Resolve what the service runs: `request` without a video and without LoRAs of a client.

        Raises:
            InputError: see `models.mochi.setup.resolve`; or the folder of LoRAs is none.
        """
        self.setup = resolve(replace(request, video=None))
        if self.setup.checkpoint is None:
            raise InputError("a service needs weights: name a model")
        self.base = replace(self.setup.request, model=self.setup.checkpoint, variant=None, base=None)
        self.base = replace(self.base, precision=self.setup.precision.name)
        self.lora_folder, self.inputs = lora_folder, inputs
        self.name = name or served_name(request.model)
        self.loras()

    def loras(self) -> dict[str, Path]:
        """Return the LoRAs of the folder by name: files without their suffix, and folders that hold one.

        Raises:
            InputError: the folder cannot be listed.
        """
        if self.lora_folder is None:
            return {}
        found: dict[str, Path] = {}
        for path in paths.listed(self.lora_folder):
            if path.name.startswith(".") or ":" in path.name or "," in path.name:
                continue
            if path.suffix == ".safetensors" and paths.is_file(path):
                found[path.stem] = path
            elif paths.is_dir(path):
                found.setdefault(path.name, path)
        return found

    def plan(self, given: Mapping[str, Any]) -> Planned:
        """Check a client's fields.

        Args:
            given: the fields of `models.service.schemas.VideoCreate`; None for what was left out.

        Raises:
            ServiceError: a field breaks its rule; it names the field.
        """
        kept = {name: value for name, value in given.items() if value is not None}
        values = dict(kept)
        try:
            for name in ("prompt", "negative_prompt"):
                check_text(name, values.get(name, ""))
        except InputError as error:
            raise _broken(str(error), name) from error
        if values.pop("model", self.name) != self.name:
            raise ServiceError(
                404,
                f"model {short(kept['model'])} is not served here: leave it out, or name {self.name}",
                "model_not_found",
                "model",
            )
        self._settle_size(values)
        self._settle_seconds(values)
        reuse = values.get("reuse")
        if isinstance(reuse, str) and reuse.startswith("steps:") and not _STEPS.fullmatch(reuse):  # never a file
            raise _broken(f"reuse {short(reuse)} must list steps, such as steps:3,4,6", "reuse")
        loras = self._settle_loras(values)
        start = self._settle_start(values)
        kept = {name: value for name, value in kept.items() if name not in _FILES}
        if start is not None:
            kept[start.kind] = start.name
        video = {RENAMED.get(name, name): value for name, value in values.items()}
        video = {name: value for name, value in video.items() if name in _OF_A_VIDEO}
        unknown = set(values) - {"prompt", "negative_prompt", "lora"} - set(video) - set(RENAMED)
        assert not unknown, unknown
        try:
            setup = resolve(replace(self.base, loras=loras, video=VideoRequest(**video)))
            setup, pictures = self._started(setup, start)
        except MissingInputError as error:
            raise ServiceError(503, "the model's files are not complete at present", "model_unavailable") from error
        except InputError as error:
            raise _broken(str(error), _named_in(str(error), kept)) from error
        return Planned(setup, kept, self._about(setup, kept, start), self._messages(setup, kept), start, pictures)

    def _settle_start(self, values: dict[str, Any]) -> Start | None:
        """Take the file that a video starts from, and what belongs to it, out of the fields."""
        files = {name: values.pop(name) for name in _FILES if name in values}
        options = {name: values.pop(name) for name in _OF_A_START if name in values}
        if not files:
            asked = [name for name, value in options.items() if value is not False]
            if asked:
                name = asked[0]
                raise _broken(f"{name} belongs to a picture or a video to start from: send input_reference", name)
            return None
        if len(files) > 1:
            raise _broken(f"{' and '.join(files)} are both given: give one file", next(iter(files)))
        ((field, name),) = files.items()
        found = None if self.inputs is None else self.inputs.find(name)
        if found is None:
            raise _broken(f"{field} {name[:12]}... is not there, or not any more: send the file again", field)
        path, kind = found
        if field not in ("input_reference", kind):
            raise _broken(f"{field} is {_KINDS[kind]}: give it as {kind}", field)
        return Start(kind, name, {"source": str(path), "is_image": kind == "image", **options})

    def _started(self, setup: Setup, start: Start | None) -> tuple[Setup, Any]:
        """Return the set-up of a video that starts from a file, and the file's pictures."""
        if start is None:
            return setup, None
        request = GenerateRequest("", setup.request, **start.options)
        try:
            return from_source(request, setup)
        except InputError as error:
            raise InputError(str(error).replace(start.options["source"], f"the {start.kind}")) from error

    def _settle_size(self, values: dict[str, Any]) -> None:
        size = values.pop("size", None)
        if size is None:
            return
        if "width" in values or "height" in values:
            raise _broken("size says width and height already: give size, or width and height", "size")
        values["width"], values["height"] = map(int, size.split("x"))

    def _settle_seconds(self, values: dict[str, Any]) -> None:
        """Turn seconds into the nearest number of frames of the checkpoint's grid."""
        seconds = values.pop("seconds", None)
        if seconds is None:
            return
        if "num_frames" in values:
            raise _broken("seconds says num_frames already: give one of the two", "seconds")
        step = self.setup.scales.temporal
        values["num_frames"] = step * max(0, round((seconds * FPS - 1) / step)) + 1

    def _settle_loras(self, values: dict[str, Any]) -> tuple[LoraRequest, ...]:
        asked = values.get("lora")
        if asked is None:
            return tuple(self.setup.loras)
        names = asked.split(",") if isinstance(asked, str) else asked
        if len(names) > MOST_LORAS:
            raise _broken(f"lora has {len(names)} names, {MOST_LORAS} are possible", "lora")
        there = self.loras()
        made = list(self.setup.loras)
        for text in names:
            name, colon, strength = text.strip().partition(":")
            if name not in there:
                known = ", ".join(sorted(there)) or "none"
                raise _broken(f"lora {short(name)} is not in this service's folder, which has: {known}", "lora")
            try:
                made.append(LoraRequest.of((there[name], stated_number("the strength", strength) if colon else 1.0)))
            except InputError as error:
                raise _broken(
                    f"lora {name}: its strength or its file is not valid; write NAME or NAME:0.8", "lora"
                ) from error
        return tuple(made)

    def _about(self, setup: Setup, kept: Mapping[str, Any], start: Start | None) -> dict[str, Any]:
        video = setup.video
        assert video is not None
        size, settings = video.geometry, video.settings
        branches = video.branches(on_halves=setup.on_halves)
        forwards = planned_forwards(video, on_halves=setup.on_halves).to_json()
        computed = sum(forwards[branch]["computed"] for branch in ("conditional", "unconditional"))
        edits = start is not None and start.options.get("edit", False)
        return {
            "model": self.name,
            "width": size.width,
            "height": size.height,
            "num_frames": size.num_frames,
            "fps": settings.fps,
            "seed": settings.seed,
            "num_inference_steps": settings.num_steps,
            "guidance_scale": settings.guidance_scale,
            "solver": video.solver,
            "tokens": size.num_tokens,
            "forwards": computed or len(branches),
            "inversions": len(video.guidance) if edits else 0,
            "is_encoded": start is not None and (edits or video.sigmas[0] < 1),
            "lora": kept.get("lora"),
        }

    def _messages(self, setup: Setup, kept: Mapping[str, Any]) -> list[str]:
        told = setup.notes()
        assert setup.video is not None
        if not setup.video.guidance:
            told.append(
                "strength leaves none of the steps to do: the video is the source as the vae keeps it, and the prompt "
                "has no effect"
            )
        if kept.get("preset") is not None:
            wanted = preset(kept["preset"]).settings.get("precision", setup.precision.name)
            if wanted != setup.precision.name:
                told.append(
                    f"preset {kept['preset']} is of precision {wanted}, this service runs in {setup.precision.name}"
                )
        words = self.words
        prompts = f"{kept['prompt']} {kept.get('negative_prompt', '')}".strip()
        said = None if words is None else words.warning(prompts, f"the {len(words.known)} that it knows are listed")
        return told + ([said] if said is not None else [])

    @property
    def words(self) -> Words | None:
        """All words that the model knows; None where it knows any text."""
        assert self.setup.checkpoint is not None
        return Words.of(self.setup.checkpoint.tokenizer)


def served_name(model: Any) -> str:
    """Return the name under which a model is served: as it was given, a path by its last part."""
    text = str(getattr(model, "source", model))
    return Path(text).name if text.startswith((".", "/", "~")) else text


def _broken(message: str, field: str | None) -> ServiceError:
    return ServiceError(422, message, "invalid_value", field)


# Words of messages that stand for a field.
_WORDS = {
    "guidance scales": "cfg_schedule",
    "linear": "linear_steps",
    "linear steps": "linear_steps",
    "steps": "num_inference_steps",
    "num_steps": "num_inference_steps",
    "guidance": "guidance_scale",
    "width": "size",
    "height": "size",
    "num_frames": "seconds",
}


def _named_in(message: str, given: Mapping[str, Any]) -> str | None:
    """Return the given field that a message names first, by its name or by a word that stands for it."""
    names = {name: name for name in given} | {word: name for word, name in _WORDS.items() if name in given}
    found = [
        (match.start(), -len(word), name) for word, name in names.items() for match in [_find(word, message)] if match
    ]
    return min(found)[2] if found else None


def _find(word: str, message: str) -> re.Match[str] | None:
    return re.search(rf"\b{re.escape(word)}\b", message)
