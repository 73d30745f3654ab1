"""Parts that both trainings share: seeded steps, learning rate, averaged weights, resuming, and the loss curve."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch

LOG_EVERY = 10
SAVE_EVERY = 100
CURVE = "losses.jsonl"


def mixed_precision(device: torch.device) -> torch.autocast:
    """Return a context in which products are in bfloat16 if the device supports it.

    On a CPU without AVX-512 a short training took over two minutes with bfloat16 convolutions, and 8 s with float32.
    """
    has = device.type != "cpu" or "AVX512" in torch.backends.cpu.get_cpu_capability()
    return torch.autocast(device.type, torch.bfloat16, enabled=has)


@dataclass(frozen=True)
class Schedule:
    """Length and learning rate of a training: linear warm-up, a constant rate, then a linear fall to zero.

    Attributes:
        steps: number of steps in all.
        rate: the constant learning rate.
        warmup: number of steps of the warm-up.
        fall: share of the steps in which the rate falls.
        ema: decay of the averaged weights at the end. It is lower at the beginning, where it would keep the random
            start.
    """

    steps: int
    rate: float
    warmup: int = 50
    fall: float = 0.3
    ema: float = 0.995

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        left = (self.steps - step) / max(1, self.steps * self.fall)
        return self.rate * min(1.0, (step + 1) / self.warmup, left)

    def decay(self, step: int) -> float:
        """Return the decay of the averaged weights in a step."""
        return min(self.ema, (1 + step) / (10 + step))


def train[Model: torch.nn.Module](
    model: Model,
    loss_of: Callable[[int], dict[str, torch.Tensor]],
    schedule: Schedule,
    folder: Path,
    progress: Callable[[int, int, str], None],
) -> Model:
    """Train `model` in place with AdamW, resuming from `folder` if it holds a state, and return averaged weights.

    Args:
        model: model whose parameters are trained, in float32.
        loss_of: function that returns the losses of a step from the step's number alone. It must draw from generators
            seeded by that number, so that a resumed training equals an uninterrupted one. "loss" is minimised; the
            others are logged.
        schedule: see `Schedule`. A state of another schedule is continued with this one.
        folder: folder of `state.pt` and the loss curve, one line of JSON for every `LOG_EVERY` steps.
        progress: called as `progress(done, total, text)`.

    Returns:
        `model`, holding the averaged weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parameters = dict(model.named_parameters())
    optimiser = torch.optim.AdamW(parameters.values(), lr=schedule.rate, betas=(0.9, 0.98), weight_decay=0.01)
    average = {name: value.detach().clone() for name, value in parameters.items()}
    start, state_file = 0, folder / "state.pt"
    if state_file.exists():
        state = torch.load(state_file, map_location=next(iter(parameters.values())).device)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        average, start = state["average"], state["step"]
    began = perf_counter()
    for step in range(start, schedule.steps):
        for group in optimiser.param_groups:
            group["lr"] = schedule.learning_rate(step)
        losses = loss_of(step)
        losses["loss"].backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, value in parameters.items():
                average[name].lerp_(value, 1 - schedule.decay(step))
        done = step + 1
        if done % LOG_EVERY == 0 or done == schedule.steps:
            values = {name: round(float(value.detach()), 5) for name, value in losses.items()}
            with (folder / CURVE).open("a") as file:
                file.write(json.dumps({"step": done, **values}) + "\n")
            rate = (perf_counter() - began) / (done - start)
            progress(done, schedule.steps, f"{values} {rate:.2f} s a step")
        if done % SAVE_EVERY == 0 or done == schedule.steps:
            state = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "average": average, "step": done}
            torch.save(state, folder / "state.pt.part")
            os.replace(folder / "state.pt.part", state_file)
    model.load_state_dict(average, strict=False)
    return model
