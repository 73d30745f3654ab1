"""Parts that all trainings share: steps, learning rate, averaged weights, resuming, the loss curve, CUDA graphs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

LOG_EVERY = 10
SAVE_EVERY = 100
# Seconds between two saved states of a training whose length is a time.
SAVE_SECONDS = 30.0
CURVE = "losses.jsonl"
STATE, AVERAGE = "state.pt", "average.pt"
# Steps that are run before a step is captured as a CUDA graph, which needs everything set up.
WARM_STEPS = 3

Batch = tuple[torch.Tensor, ...]
Losses = dict[str, torch.Tensor]


def mixed_precision(device: torch.device) -> torch.autocast:
    """Return a context in which products are in bfloat16 if the device supports it.

    On a CPU without AVX-512 a short training took over two minutes with bfloat16 convolutions, and 8 s with float32.
    """
    has = device.type != "cpu" or "AVX512" in torch.backends.cpu.get_cpu_capability()
    return torch.autocast(device.type, torch.bfloat16, enabled=has, cache_enabled=False)


@dataclass(frozen=True)
class Schedule:
    """Length and learning rate of a training: linear warm-up, a constant rate, then a linear fall to zero.

    Attributes:
        steps: largest number of steps.
        rate: the constant learning rate.
        warmup: number of steps of the warm-up.
        fall: share of the training in which the rate falls.
        ema: decay of the averaged weights at the end. It is lower at the beginning, where it would keep the random
            start.
        seconds: length of the training; None for one of `steps` steps.
    """

    steps: int
    rate: float
    warmup: int = 50
    fall: float = 0.3
    ema: float = 0.995
    seconds: float | None = None

    def done(self, step: int, seconds: float) -> float:
        """Return the share of the training that is done, from 0 to 1."""
        share = step / self.steps
        return min(1.0, share if self.seconds is None else max(share, seconds / self.seconds))

    def learning_rate(self, step: int, seconds: float = 0.0) -> float:
        """Return the learning rate of a step, counted from 0, after so many seconds."""
        left = (1 - self.done(step, seconds)) / self.fall
        return self.rate * min(1.0, (step + 1) / self.warmup, left)

    def decay(self, step: int) -> float:
        """Return the decay of the averaged weights in a step."""
        return min(self.ema, (1 + step) / (10 + step))


class Training:
    """A model that is trained with AdamW, and its averaged weights. It resumes from a folder that holds a state.

    On CUDA a step is captured as a graph for each size of batch, because small kernels are bound by their launches.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        loss_of: Callable[..., Losses],
        schedule: Schedule,
        folder: Path,
        graphs: bool = False,
    ):
        """Prepare the training.

        Args:
            model: model whose parameters are trained, in float32.
            loss_of: function from the tensors of a batch to losses. "loss" is minimised; the others are logged.
            schedule: see `Schedule`. A state of another schedule is continued with this one.
            folder: folder of the state and the loss curve, a line of JSON for every `LOG_EVERY` steps, later for ten
                times as many.
            graphs: whether to capture steps as CUDA graphs.
        """
        self.model, self.loss_of, self.schedule, self.folder = model, loss_of, schedule, folder
        named = {name: value for name, value in model.named_parameters() if value.requires_grad}
        self.names = list(named)
        self.parameters: list[torch.Tensor] = list(named.values())
        device = self.parameters[0].device
        self.rate: Any = torch.tensor(0.0, device=device) if device.type == "cuda" else 0.0
        options: Any = {"fused": True, "capturable": True} if device.type == "cuda" else {}
        self.optimiser = torch.optim.AdamW(
            self.parameters, lr=self.rate, betas=(0.9, 0.98), weight_decay=0.01, **options
        )
        self.average = [value.detach().clone() for value in self.parameters]
        self.graphs: dict[Any, tuple[torch.cuda.CUDAGraph, Batch, Losses]] | None = {} if graphs else None
        self.step, self.seconds = 0, 0.0
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / STATE).exists():
            self._load(torch.load(folder / STATE, map_location=device))

    def run(self, batch_of: Callable[[int], Batch], progress: Callable[[int, int, str], None]) -> torch.nn.Module:
        """Train to the end of the schedule, and return the model with averaged weights.

        Args:
            batch_of: function that returns the batch of a step from the step's number alone. It must draw from
                generators seeded by that number, so that a resumed training equals an uninterrupted one.
            progress: called as `progress(done, total, text)`.
        """
        began, before, first = perf_counter(), self.seconds, self.step
        saved = before
        while self.schedule.done(self.step, self.seconds) < 1:
            self._set_rate()
            losses = self._step(batch_of(self.step))
            with torch.no_grad():  # one launch for all parameters
                torch._foreach_lerp_(self.average, self.parameters, 1 - self.schedule.decay(self.step))
            self.step += 1
            if self.step % LOG_EVERY == 0:
                losses["loss"].item()  # waits for the device, so that the time is that of the steps
            self.seconds = before + perf_counter() - began
            done = self.schedule.done(self.step, self.seconds) >= 1
            if done or self.step % (LOG_EVERY if self.step <= 20 * LOG_EVERY else 10 * LOG_EVERY) == 0:
                values = {name: round(float(value.detach()), 5) for name, value in losses.items()}
                line = {"step": self.step, "seconds": round(self.seconds, 1), **values}
                with (self.folder / CURVE).open("a") as file:
                    file.write(json.dumps(line) + "\n")
                rate = (self.seconds - before) / (self.step - first)
                share = round(1000 * self.schedule.done(self.step, self.seconds))
                progress(share, 1000, f"step {self.step} {values} {1000 * rate:.1f} ms a step")
            timed = self.schedule.seconds is not None
            due = self.seconds - saved > SAVE_SECONDS if timed else self.step % SAVE_EVERY == 0
            if due or done:
                saved = self.seconds
                self.save()
        return self.averaged()

    def averaged(self) -> torch.nn.Module:
        """Give the model its averaged weights, and return it."""
        with torch.no_grad():
            for value, average in zip(self.parameters, self.average, strict=True):
                value.copy_(average)
        return self.model

    def prepare(self, batch: Batch) -> None:
        """Compile and capture the step for batches of one size, without training."""
        if self.graphs is not None and _key(batch) not in self.graphs:
            kept = self._kept()
            self._capture(batch)
            for value, old in zip(self._values(), kept, strict=True):
                value.copy_(old)

    def save(self) -> None:
        """Write the state, and the averaged weights alone in bfloat16."""
        state: dict[str, Any] = {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "average": dict(zip(self.names, self.average, strict=True)),
            "step": self.step,
            "seconds": self.seconds,
        }
        average = {name: value.bfloat16() for name, value in state["average"].items()}
        for name, content in ((AVERAGE, average), (STATE, state)):
            torch.save(content, self.folder / f"{name}.part")
            os.replace(self.folder / f"{name}.part", self.folder / name)

    def _load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate
        self.average = [state["average"][name] for name in self.names]
        self.step, self.seconds = state["step"], state["seconds"]

    def _set_rate(self) -> None:
        rate = self.schedule.learning_rate(self.step, self.seconds)
        for group in self.optimiser.param_groups:
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def _step(self, batch: Batch) -> Losses:
        if self.graphs is None:
            return self._update(batch)
        if _key(batch) not in self.graphs:
            self.prepare(batch)
        graph, inputs, losses = self.graphs[_key(batch)]
        for place, value in zip(inputs, batch, strict=True):
            place.copy_(value)
        graph.replay()
        return losses

    def _update(self, batch: Batch) -> Losses:
        self.optimiser.zero_grad(set_to_none=True)
        losses = self.loss_of(*batch)
        losses["loss"].backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimiser.step()
        return losses

    def _capture(self, batch: Batch) -> None:
        assert self.graphs is not None
        inputs = tuple(value.clone() for value in batch)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_STEPS):
                self._update(inputs)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        self.optimiser.zero_grad(set_to_none=True)
        # Another thread may use the device at the same time.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            losses = self._update(inputs)
        self.graphs[_key(batch)] = graph, inputs, losses

    def _values(self) -> list[torch.Tensor]:
        states = [value for state in self.optimiser.state.values() for value in state.values()]
        return [value.detach() for value in (*self.parameters, *states)]

    def _kept(self) -> list[torch.Tensor]:
        """Return copies of the parameters and of the optimiser's state, which a first step makes: zeros."""
        if not self.optimiser.state:
            fresh = [value.detach().clone() for value in self.parameters]
            for value in self.parameters:
                value.grad = torch.zeros_like(value)
            self._rate_zero_step()
            for value, old in zip(self.parameters, fresh, strict=True):
                value.detach().copy_(old)
            for state in self.optimiser.state.values():
                for value in state.values():
                    value.zero_()
        return [value.clone() for value in self._values()]

    def _rate_zero_step(self) -> None:
        for group in self.optimiser.param_groups:
            group["lr"].fill_(0.0)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)


def _key(batch: Batch) -> tuple[torch.Size, ...]:
    return tuple(value.shape for value in batch)
