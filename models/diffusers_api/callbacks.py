"""A caller's `callback_on_step_end`, with the tensors that it asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from models.machine.checks import function, short
from models.machine.errors import InputError

if TYPE_CHECKING:
    from models.mochi.inputs import Run
    from models.mochi.outputs import Encoded
    from models.mochi.sampling.state import StepState

TENSORS = ("latents", "prompt_embeds", "negative_prompt_embeds")


class Callbacks:
    """A callback during one call of a pipeline. Only latents that it returns or changes take effect."""

    def __init__(self, pipe: Any, callback: Callable[..., Any], tensors: Sequence[str]) -> None:
        """Call `callback` with those of `TENSORS` that are named."""
        self._pipe, self._callback, self._tensors = pipe, callback, tuple(tensors)
        self.wants_latents = "latents" in self._tensors
        self._encoded: Encoded | None = None
        self._times: list[float] = []
        self._done = 0

    @classmethod
    def of(cls, pipe: Any, callback: Any, tensors: Any) -> Callbacks | None:
        """Return what a call is to do; None without a callback.

        Raises:
            InputError: it is no function, or there is no such tensor.
        """
        tensors = () if tensors is None else tensors
        cls.check(tensors)
        if callback is None:
            return None
        function("callback_on_step_end", callback)
        return cls(pipe, callback, tensors)

    @staticmethod
    def check(tensors: Any) -> None:
        """Check the names of tensors.

        Raises:
            InputError: there is another than those of `TENSORS`.
        """
        if not isinstance(tensors, list | tuple | set) or not all(name in TENSORS for name in tensors):
            raise InputError(
                f"callback_on_step_end_tensor_inputs {short(tensors)} must be a list of {', '.join(TENSORS)}"
            )

    def begin(self, encoded: Encoded, run: Run) -> None:
        """Take what a run works with, before its first step."""
        self._encoded, self._times = encoded, [1000 * (1 - sigma) for sigma in run.sigmas]
        if self.wants_latents:
            size = run.noise_BCTHW[0].numel() * 4 / 1e6
            self._pipe.say(
                "callback latents",
                f"latents ({size:.3g} MB) are downloaded after each step for callback_on_step_end; "
                "callback_on_step_end_tensor_inputs=[] leaves them on the mesh",
            )
        if len(encoded.prompts) > 1:
            self._pipe.say(
                "callback videos",
                "videos are made one after the other: callback_on_step_end is called for each step of each",
            )

    def on_step(self, pipe: Any, step: int, time: float, _: dict) -> None:
        """Call the caller's callback without latents."""
        self._call(self._done // (len(self._times) - 1), step, {})
        self._done += 1

    def on_state(self, video: int, state: StepState) -> None:
        """Call the caller's callback with latents, and replace them if it made others of them."""
        step, latents = state.step - 1, state.latents()
        kept = latents.clone()
        returned = self._call(video, step, {"latents": latents}).get("latents", latents)
        if not isinstance(returned, torch.Tensor) or returned.shape != kept.shape:
            shape = list(getattr(returned, "shape", []))
            raise InputError(
                f"callback_on_step_end returned latents {shape or type(returned).__name__}, but must return a tensor "
                f"{list(kept.shape)}"
            )
        changed = returned.detach().to("cpu", torch.float32)
        if torch.equal(changed, kept):
            return
        if not changed.isfinite().all():
            raise InputError(f"callback_on_step_end returned latents that are not finite after step {step}")
        state.replace(changed)

    def _call(self, video: int, step: int, tensors: dict[str, Any]) -> dict[str, Any]:
        """Call the callback, and return what it returns; only latents may change."""
        pipe, scale = self._pipe, self._pipe._guidance_scale
        fixed = self._texts(video)
        copies = {name: value.clone() for name, value in fixed.items()}
        time = torch.tensor(self._times[step], dtype=torch.float32)
        pipe._current_timestep = 1000 - time
        given = {name: {**tensors, **fixed}[name] for name in self._tensors}
        returned = self._callback(pipe, step, time, given)
        if returned is None:
            returned = {}
        if not isinstance(returned, Mapping):
            raise InputError(f"callback_on_step_end must return a dict of tensors or nothing, not {short(returned)}")
        unknown = sorted(set(returned) - set(self._tensors), key=str)
        if unknown:
            raise InputError(
                f"callback_on_step_end returned {short(unknown[0])}, which it did not ask for by "
                f"callback_on_step_end_tensor_inputs; they may be {', '.join(TENSORS)}"
            )
        for name, copy in copies.items():
            for value in (fixed[name], returned.get(name, copy)):
                if value.shape != copy.shape or not torch.equal(value, copy):
                    raise InputError(
                        f"callback_on_step_end changed {name}, which is on the mesh for all steps already: only "
                        "latents can be changed; guidance_interval= ends guidance early"
                    )
        if pipe._guidance_scale is not scale and pipe._guidance_scale != scale:
            raise InputError(
                "callback_on_step_end changed the guidance scale, which is on the mesh for all steps already: give "
                "guidance_scale= one per step, or guidance_interval="
            )
        return dict(returned)

    def _texts(self, video: int) -> dict[str, torch.Tensor]:
        """Return the features that a caller asks for, as Diffusers' loop has them: unconditional ones first."""
        if self._encoded is None or not set(self._tensors) - {"latents"}:
            return {}
        prompt = self._encoded.prompts[video].embeds
        negatives = self._encoded.negatives
        negative = negatives[video % len(negatives)].embeds if negatives else None
        made = {"prompt_embeds": prompt if negative is None else torch.cat([negative, prompt])}
        if negative is not None:
            made["negative_prompt_embeds"] = negative
        elif "negative_prompt_embeds" in self._tensors:
            raise InputError("there are no negative_prompt_embeds without guidance: leave them out")
        return {name: value for name, value in made.items() if name in self._tensors}
