"""The page: a form, the video that was chosen with its progress, and all videos of who asks.

It calls the functions of `Service`, as the routes do, so a closed tab loses nothing: jobs are in the store, and the
browser only keeps which one was chosen. It loads nothing from other machines.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Mapping
from contextlib import suppress
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import RedirectResponse, Response

from models.machine.files import renamed_when_done
from models.mochi.editing import ETA, ETA_END
from models.mochi.presets import presets
from models.service.errors import ServiceError
from models.service.files import PREVIEW
from models.service.http import checked, content_of
from models.service.jobs import CANCELLING, COMPLETED, IN_PROGRESS, QUEUED, StoreUnavailable
from models.service.keys import LOCAL, Key, Keys
from models.service.service import Service, unavailable

if TYPE_CHECKING:
    import gradio

PATH = "/ui"
FEWEST, MOST = 20, 100
"""Videos in the list, and after a click for more."""
_SECONDS = 1.0
_LOCAL_KEY = Key(LOCAL, b"")
_WORDS = {
    "queued": "waits",
    "in_progress": "is made",
    "cancelling": "is being cancelled",
    "completed": "is done",
    "failed": "failed",
    "cancelled": "was cancelled",
}
_LABELS = {
    "prompt": "Prompt",
    "negative_prompt": "Negative prompt",
    "preset": "Preset",
    "width": "Width",
    "height": "Height",
    "num_frames": "Frames",
    "num_inference_steps": "Steps",
    "guidance_scale": "Guidance",
    "seed": "Seed",
    "input_reference": "The picture or video",
    "strength": "Strength",
    "fit": "Whole picture",
    "edit": "Edit",
    "eta": "Eta",
    "eta_end": "Eta end",
    "lora": "LoRA",
}
"""What the page calls the fields of a request."""
_SENTENCES = {
    "not_found": "This video is not there any more: choose another one",
    "already_ended": "This video has ended already",
}
_CHECKED = ("fit", "edit")
"""Fields that are on or off."""
_NOT_SENT = "not sent: "
_SEND = """async (...given) => {
  const file = document.querySelector('#mochi-file')?.files[0], key = given[0], place = given.length - 1
  if (!file) return given
  const form = new FormData()
  form.append('file', file)
  try {
    const answer = await fetch('/v1/files', {
      method: 'POST', body: form, headers: key ? {Authorization: `Bearer ${key}`} : {},
    })
    const said = await answer.json()
    given[place] = answer.ok ? said.id : 'not sent: ' + said.error.message
  } catch (error) {
    given[place] = 'not sent: the file could not be sent: try again'
  }
  document.querySelector('#mochi-file').value = ''
  return given
}"""
"""Sends the chosen file before the fields: by the service's own route, with its key and its bounds."""
_GONE = "gone "
"""Begins what the page remembers where the chosen video was deleted, whose sentence then stays."""
_MARKS = {"queued": "…", "in_progress": "▶", "cancelling": "▶", "completed": "✓", "failed": "✗", "cancelled": "-"}
_STYLE = """
.mochi-view progress { width: 100%; height: 1.2em; }
.mochi-view video, .mochi-view img { width: 100%; max-height: 70vh; background: #000; border-radius: 6px; }
.mochi-view img { image-rendering: pixelated; }
.mochi-view p { overflow-wrap: anywhere; margin: 0.4em 0; }
.mochi-error { color: #b00020; font-weight: 600; }
#mochi-list label { width: 100%; }
"""


def mount(app: FastAPI, service: Service, keys: Keys) -> None:
    """Mount the page on the application of a service, below `PATH`.

    Args:
        app: of `models.service.app.make_app` with `page=PATH`.
        service: whose functions it calls.
        keys: who may ask; with some the page asks for one.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported, which is below
    os.environ.setdefault("GRADIO_TEMP_DIR", str(service.settings.folder / "page"))
    import gradio as gr

    page = Page(service, keys)
    app.include_router(page.routes())
    system = ["system-ui", "sans-serif"]
    theme = gr.themes.Default(font=system, font_mono=["ui-monospace", "monospace"])
    gr.mount_gradio_app(
        app, page.blocks(gr), PATH, theme=theme, css=_STYLE, footer_links=[], run_history=False, ssr_mode=False
    )


class Page:
    """What the page shows and does; every method may be called from any thread."""

    def __init__(self, service: Service, keys: Keys) -> None:
        """Take the service; links to files are signed with a secret of its folder, so that they outlive a restart."""
        self._service, self._keys = service, keys
        self._secret = _secret_of(service.settings.folder / "page.secret")

    def owner(self, typed: str | None) -> Key:
        """Return who asks, by the key that was typed.

        Raises:
            ServiceError: the key is none.
        """
        if not self._keys:
            return _LOCAL_KEY
        found = self._keys.find(f"Bearer {typed or ''}")
        if found is None:
            raise ServiceError(401, "this key is not known: type the one that you were given", "invalid_api_key")
        return found

    def submit(self, typed: str | None, fields: Mapping[str, Any]) -> str:
        """Queue a video, and return its name. Fields that were left empty or off are left out; no seed draws one.

        Raises:
            ServiceError: a field breaks its rule, or a bound is reached.
        """
        given = {name: value for name, value in fields.items() if value not in (None, "", []) and value is not False}
        source = str(given.get("input_reference", ""))
        if source.startswith(_NOT_SENT):
            raise ServiceError(422, source.removeprefix(_NOT_SENT)[:300], "invalid_file", "input_reference")
        given.setdefault("seed", secrets.randbelow(2**31))
        return self._service.submit(self.owner(typed), checked(given)).id

    def choices(self, typed: str | None, most: int) -> list[tuple[str, str]]:
        """Return the newest videos of who asks, as what is read of each and its name."""
        jobs, _ = self._service.page(self.owner(typed).name, most, None, "desc")
        made = []
        for shown in self._service.shown(*jobs):
            seed = shown["settings"].get("seed")
            about = f"{shown['size']}, {float(shown['seconds']):.3g} s, seed {seed}"
            made.append((f"{_MARKS[shown['status']]} {shown['prompt'][:80]} ({about})", shown["id"]))
        return made

    def view(self, typed: str | None, name: str | None) -> str:
        """Return the chosen video as HTML: what it is, its progress, preview or the video itself."""
        if not name:
            return "<div class='mochi-view'><p>Describe a video and press the button, or choose one below.</p></div>"
        job = self._service.get(name, self.owner(typed).name)
        (shown,) = self._service.shown(job)
        lines = [f"<p><b>{escape(shown['prompt'])}</b></p>", f"<p>{escape(sentence(shown))}</p>"]
        if not job.has_ended:
            lines.append(f"<progress max='100' value='{shown['progress']}'></progress>")
            with suppress(OSError):  # there is none, or the next one is being put in its place
                stamp = (self._service.files.folder(name, job.worker or "") / PREVIEW).stat().st_mtime_ns
                lines.append(f"<img alt='preview' src='{self._link(name, PREVIEW)}?at={stamp}'>")
        elif job.state == COMPLETED and not job.expired:
            link = self._link(name, "video.mp4")
            lines.append(f"<video controls loop playsinline preload='auto' src='{link}'></video>")
            lines.append(f"<p><a href='{link}' download='{name}.mp4'>Download the mp4</a></p>")
        if shown["error"]:
            lines.append(f"<p class='mochi-error'>{escape(shown['error']['message'])}</p>")
        lines += [f"<p>{escape(message)}</p>" for message in shown["messages"]]
        return f"<div class='mochi-view' data-state='{job.state}' data-step='{job.step}'>{''.join(lines)}</div>"

    def may_cancel(self, typed: str | None, name: str | None) -> bool:
        """Return whether the chosen video can be cancelled."""
        return bool(name) and self._service.get(str(name), self.owner(typed).name).state in (QUEUED, IN_PROGRESS)

    def fields(self, typed: str | None, name: str) -> tuple[dict[str, Any], list[str]]:
        """Return the page's fields as a video was asked for, its seed among them, and other settings that it had."""
        job = self._service.get(name, self.owner(typed).name)
        given = {"seed": job.about["seed"], **job.fields}
        if given.pop("size", None) is not None:
            given |= {"width": job.about["width"], "height": job.about["height"]}
        if given.pop("seconds", None) is not None:
            given["num_frames"] = job.about["num_frames"]
        for kind in ("image", "video"):
            if kind in given:
                given["input_reference"] = given.pop(kind)
        return given, sorted(set(given) - set(_LABELS) - {"model"})

    def routes(self) -> APIRouter:
        """Return the routes of files, by signed links, since a browser's video element sends no key; and of `/`."""
        router = APIRouter()

        @router.get("/", include_in_schema=False)
        def root() -> Response:
            return RedirectResponse(PATH)

        @router.get("/favicon.ico", include_in_schema=False)
        def icon() -> Response:
            return RedirectResponse(f"{PATH}/favicon.ico")

        @router.get(PATH + "/files/{name}/{sign}/{file}", include_in_schema=False)
        def file_of(request: Request, name: str, sign: str, file: str) -> Response:
            if not hmac.compare_digest(self._sign(name, file).encode(), sign.encode("utf-8", "replace")):
                raise ServiceError(404, "this link is not valid", "not_found")
            if file == PREVIEW:
                return content_of(request, self._service.preview(name, None), None, "image/png")
            return content_of(request, self._service.content(name, None), f"{name}.mp4")

        return router

    def _link(self, name: str, file: str) -> str:
        return f"{PATH}/files/{name}/{self._sign(name, file)}/{file}"

    def _sign(self, name: str, file: str) -> str:
        return hmac.new(self._secret, f"{name}/{file}".encode("utf-8", "replace"), hashlib.sha256).hexdigest()

    def heading(self) -> str:
        """Return what stands on top, in Markdown: the model, and what a machine without cards means."""
        setup = self._service.planner.setup
        lines = [f"# Videos from text\n{escape(self._service.planner.name)}, mesh {setup.mesh_shape[0]}x"]
        lines[0] += f"{setup.mesh_shape[1]}, precision {setup.precision.name}"
        if setup.mode != "hardware":
            lines.append(
                "**There is no card here.** This host computes what a mesh would, by this project's reading of the "
                "kernels. Its seconds say nothing of cards."
            )
        return "\n\n".join(lines)

    def blocks(self, gr: Any) -> gradio.Blocks:
        """Return the page of gradio."""
        defaults, loras = self._service.planner.setup.defaults, sorted(self._service.planner.loras())

        def number(label: str, info: str) -> Any:
            """Return a field that may stay empty, which gradio's own fields of numbers may not."""
            return gr.Textbox(
                label=label,
                info=info,
                max_length=20,
                min_width=100,
                html_attributes=gr.InputHTMLAttributes(autocomplete="off"),
            )

        with gr.Blocks(title="mochi-tt", analytics_enabled=False) as blocks:
            # The library tells every browser this secret, so it is another one than that of the links.
            kept = hmac.new(self._secret, b"kept in browsers", hashlib.sha256).hexdigest()[:32]
            chosen = gr.BrowserState("", storage_key="mochi-tt-video", secret=kept)
            typed = gr.BrowserState("", storage_key="mochi-tt-key", secret=kept)
            most, last = gr.State(FEWEST), gr.State("")
            gr.Markdown(self.heading())
            key = gr.Textbox(
                label="Key", type="password", visible=bool(self._keys), info="Kept in this browser once it is typed."
            )
            with gr.Row():
                with gr.Column():
                    prompt = gr.Textbox(label="Prompt", lines=3, max_length=8000, elem_id="mochi-prompt")
                    negative = gr.Textbox(label="Negative prompt", info="What to steer away from.", max_length=8000)
                    preset = gr.Dropdown(
                        [
                            ("none: the checkpoint's defaults", ""),
                            *((f"{n}: {p.about}", n) for n, p in presets().items()),
                        ],
                        value="",
                        label="Preset",
                        info="Settings for whatever is left empty below.",
                    )
                    with gr.Row():
                        width = number("Width", f"Of 16 pixels. Empty: {defaults.width}")
                        height = number("Height", f"Of 16 pixels. Empty: {defaults.height}")
                        frames = number("Frames", f"6k + 1. Empty: {defaults.num_frames}")
                    with gr.Row():
                        steps = number("Steps", f"Empty: {defaults.num_steps}")
                        scale = number("Guidance", f"Empty: {defaults.guidance_scale:g}")
                        seed = number("Seed", "Empty: another one each time")
                    lora = gr.Dropdown(
                        loras,
                        label="LoRA",
                        multiselect=True,
                        allow_custom_value=True,
                        visible=bool(loras),
                        info="NAME, or NAME:0.8 for its strength.",
                    )
                    gr.HTML(
                        "<label>Start from a picture or a video (optional) "
                        "<input type='file' id='mochi-file' accept='image/*,video/*'></label>"
                    )
                    with gr.Row():
                        strength = number("Strength", "0 keeps it, 1 ignores it. Empty: 0.8")
                        source = gr.Textbox(
                            label="File that was sent",
                            interactive=True,
                            max_length=400,
                            elem_id="mochi-source",
                            info="Empty it to start from noise alone.",
                        )
                    with gr.Row():
                        fit = gr.Checkbox(label=_LABELS["fit"], info="With black bars; else its middle is cut out.")
                        edit = gr.Checkbox(label=_LABELS["edit"], info="By inversion: its movement stays.")
                    with gr.Row():
                        eta = number(_LABELS["eta"], f"Of an edit: 1 keeps it. Empty: {ETA:g}")
                        eta_end = number(_LABELS["eta_end"], f"Of an edit: share of the run. Empty: {ETA_END:g}")
                    make = gr.Button("Make the video", variant="primary", elem_id="mochi-make")
                    if (words := self._service.planner.words) is not None:
                        with gr.Accordion("Words that this model knows", open=False):
                            gr.Markdown(", ".join(words.known))
                with gr.Column():
                    said = gr.HTML("", elem_id="mochi-said")
                    view = gr.HTML(self.view(None, None) if not self._keys else "", elem_id="mochi-view")
                    with gr.Row():
                        cancel = gr.Button("Cancel", interactive=False, elem_id="mochi-cancel")
                        reuse = gr.Button("Use its prompt and settings", elem_id="mochi-reuse")
            gr.Markdown("## Your videos")
            listed = gr.Radio([], label="The newest first", elem_id="mochi-list")
            more = gr.Button("Show more")
            inputs = {  # by the names of `_LABELS`
                "prompt": prompt,
                "negative_prompt": negative,
                "preset": preset,
                "width": width,
                "height": height,
                "num_frames": frames,
                "num_inference_steps": steps,
                "guidance_scale": scale,
                "seed": seed,
                "lora": lora,
                "strength": strength,
                "fit": fit,
                "edit": edit,
                "eta": eta,
                "eta_end": eta_end,
                "input_reference": source,  # the last one, by `_SEND`
            }

            def guarded(action: Any, outputs: int, *, clears: bool = True, says: bool = False) -> Any:
                """Return an action whose errors become a sentence in `said` and leave its outputs as they are.

                Otherwise `said` is cleared, or is the first that the action returns if it `says` something.
                """

                def run(*arguments: Any) -> tuple[Any, ...]:
                    try:
                        made = action(*arguments)
                        return made if says else ("" if clears else gr.skip(), *made)
                    except StoreUnavailable as error:
                        text = sentence_of(unavailable(error))
                    except ServiceError as error:
                        text = sentence_of(error)
                    return (_error(text), *[gr.skip()] * outputs)

                return run

            def refreshed(token: str, name: str, number: int, before: str) -> tuple[Any, ...]:
                if self._keys and not token:
                    told = "<div class='mochi-view'><p>Type your key first.</p></div>"
                    return told, gr.skip(), gr.skip(), "", gr.skip()
                options = self.choices(token, number)
                gone = before.startswith(_GONE) and not name
                try:
                    html = gr.skip() if gone else self.view(token, name)
                except ServiceError as error:
                    if error.code != "not_found":
                        raise
                    # It was deleted, perhaps elsewhere: the choice is given up, and the list goes on.
                    html = f"<div class='mochi-view'>{_error(sentence_of(error))}</div>"
                    return html, gr.Radio(choices=options, value=None), gr.Button(interactive=False), _GONE, ""
                now = (_GONE if gone else "") + hashlib.sha256(repr((html, options)).encode()).hexdigest()
                if now == before:
                    return gr.skip(), gr.skip(), gr.skip(), before, gr.skip()
                value = name if name in {each for _, each in options} else None
                button = gr.Button(interactive=self.may_cancel(token, name))
                return html, gr.Radio(choices=options, value=value), button, now, gr.skip()

            # Without gradio's queue, whose page may join it just as its stream of answers ends, and waits for ever.
            quick = {"show_progress": "hidden", "queue": False}
            shown = [view, listed, cancel, last, chosen]

            def refresh(event: Any, **more_options: Any) -> None:
                event(
                    guarded(refreshed, len(shown), clears=False),
                    [typed, chosen, most, last],
                    [said, *shown],
                    **quick,
                    **more_options,
                )

            def submitted(token: str, *values: Any) -> tuple[Any, ...]:
                given = dict(zip(inputs, values, strict=True))
                return self.submit(token, given), given["input_reference"]

            made = make.click(
                guarded(submitted, 2), [typed, *inputs.values()], [said, chosen, source], js=_SEND, **quick
            )
            refresh(made.success)
            cancelled = cancel.click(
                guarded(lambda token, name: (self._cancelled(token, name),), 1),
                [typed, chosen],
                [said, last],
                **quick,
            )
            refresh(cancelled.success)

            def used(token: str, name: str) -> tuple[Any, ...]:
                if not name:
                    return (_error("Choose a video first."), *[gr.skip()] * len(inputs))
                given, others = self.fields(token, name)
                values: dict[str, Any] = {field: str(given.get(field, "")) for field in inputs}
                values |= {"lora": _listed(given.get("lora"))}
                values |= {field: bool(given.get(field)) for field in _CHECKED}
                said = _error(f"This page has no field for {', '.join(others)}, so it is left out.") if others else ""
                return (said, *values.values())

            reuse.click(guarded(used, len(inputs), says=True), [typed, chosen], [said, *inputs.values()], **quick)
            picked = listed.input(lambda value: (value, ""), [listed], [chosen, last], **quick)
            refresh(picked.success)
            grown = more.click(lambda: (MOST, ""), None, [most, last], **quick)
            refresh(grown.success)
            entered = key.change(lambda value: ("", value, ""), [key], [said, typed, last], **quick)
            refresh(entered.success)
            refresh(blocks.load)
            refresh(gr.Timer(_SECONDS).tick, trigger_mode="once", concurrency_limit=8)
        return blocks

    def _cancelled(self, typed: str | None, name: str) -> str:
        if name:
            self._service.cancel(name, self.owner(typed).name)
        return ""


def sentence_of(error: ServiceError) -> str:
    """Say an error in a sentence, with the page's names of the fields."""
    text = _SENTENCES.get(error.code, error.message)
    if error.code in ("invalid_value", "missing_field", "invalid_file") and error.param in _LABELS:
        text = re.sub(rf"^{error.param}\b", _LABELS[error.param], text)
    text = re.sub(r"\b[a-z]+_[a-z_]+\b", lambda found: _LABELS.get(found[0], found[0]), text)
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def _error(text: str) -> str:
    return f"<p class='mochi-error'>{escape(text)}</p>"


def sentence(shown: Mapping[str, Any]) -> str:
    """Say in a sentence how a video is, of what `Service.shown` gives."""
    state = shown["status"]
    text = f"It {_WORDS[state]}"
    if state == "queued":
        ahead = (shown["position"] or 1) - 1
        text += f" behind {ahead} other{'' if ahead == 1 else 's'}" if ahead else " and is the next"
    elif state in ("in_progress", CANCELLING) and shown["stage"]:
        text += f": {shown['stage']}"
        if shown["steps"]:
            text += f", {shown['step']} of {shown['steps']} steps"
    if shown["expired"]:
        text += ", and its file has expired"
    if shown["estimated_seconds"] is not None and state in ("queued", "in_progress"):
        text += f"; about {_time(shown['estimated_seconds'])} left ({shown['estimate_source']})"
    if shown["timings"]:
        text += f" after {_time(sum(shown['timings'].values()))}"
    settings = shown["settings"]
    return f"{text}. {shown['size']}, {float(shown['seconds']):.3g} s, seed {settings.get('seed')}."


def _time(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{max(seconds, 1):.0f} s"


def _listed(names: Any) -> list[str]:
    """Return names of LoRAs as a list, of a list or of a text with commas."""
    return [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names or [])


def _secret_of(path: Path) -> bytes:
    """Return the secret of a file, which is made if it is not there; all servers of a folder have the same."""
    found = b""
    with suppress(FileNotFoundError):
        found = path.read_bytes()
    if len(found) == 32:
        return found
    made = secrets.token_bytes(32)
    own = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    with renamed_when_done(own, 0o600) as scratch:
        scratch.write_bytes(made)
    try:
        if found:
            own.replace(path)  # What was there is none.
        else:
            os.link(own, path)
    except FileExistsError:  # Another server of the folder was quicker.
        return _secret_of(path)
    finally:
        own.unlink(missing_ok=True)
    return made
