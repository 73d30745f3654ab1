"""What a user says of the reuse of blocks, and the calibrated lists of steps that `mochi-tt calibrate` writes.

`off`, a threshold such as 0.1, `steps:3,4,6`, or `steps:FILE`. Nothing here needs torch or ttnn.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.machine.checks import json_file, number, sequence, short, typed, whole
from models.machine.errors import InputError
from models.machine.files import write_json
from models.mochi.precision import Precision
from models.mochi.sampling.reuse import ReuseBelow, ReusePolicy, ReuseSteps
from models.mochi.sampling.schedule import MOST_GUIDANCE, MOST_STEPS, check_sigmas
from models.mochi.sampling.solver import EULER, check_solver

if TYPE_CHECKING:
    from weight_cache.checkpoints.lora import LoraRequest

_FORMS = "off, a threshold such as 0.1, steps:3,4,6, or steps:FILE of mochi-tt calibrate"
_KIND = "mochi-tt reused steps"
_MEND = "give a file that mochi-tt calibrate wrote, or list the steps as steps:3,4,6"
_SAME_SIGMA = 1e-6
"""Sigmas that differ by less are the same: a caller may have had them in float32."""
_PER_STEP = {"parts": MOST_STEPS + 1}


@dataclass(frozen=True)
class Weights:
    """The transformer that a list of steps is used with.

    Attributes:
        fingerprint: gives that of its checkpoint, and is called only where a file of steps is read; None where only
            sizes were named, as for a projection.
        precision: name of a policy of `models.mochi.precision`.
        loras: merged into it.
    """

    fingerprint: Callable[[], str] | None
    precision: str = "default"
    loras: Sequence[LoraRequest] = ()

    def merged(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the identities and names of the LoRAs that change something; their order does not matter.

        Raises:
            InputError: a file cannot be read.
        """
        found = sorted((lora.identity(), lora.name) for lora in self.loras if lora.strength != 0)
        return tuple(identity for identity, _ in found), tuple(name for _, name in found)


@dataclass(frozen=True)
class Conditions:
    """What of a run decides how its steps resemble each other.

    Attributes:
        sigmas: n + 1 noise levels.
        guidance: n guidance scales.
        solver: of `models.mochi.sampling.solver`.
        guidance_reuse: K of `models.mochi.sampling.denoise.ReuseUnconditional`; None if every guided step is computed.
        size: width, height and number of frames; None if it does not matter.
    """

    sigmas: Sequence[float]
    guidance: Sequence[float]
    solver: str = EULER
    guidance_reuse: int | None = None
    size: tuple[int, int, int] | None = None

    @property
    def steps(self) -> int:
        """Number of steps."""
        return len(self.guidance)


@dataclass(frozen=True)
class Calibration:
    """The steps that could be reused for every prompt of a calibration, and what they were found with.

    Attributes:
        checkpoint: fingerprint of the transformer's files.
        num_steps: of the runs.
        threshold: of the first block's change, below which a step was reused.
        reused_steps: those reused for every prompt.
        sigmas: n + 1 noise levels.
        guidance_schedule: n guidance scales.
        solver: of the runs.
        size: width, height and number of frames.
        precision: of the transformer.
        guidance_reuse: K, if the unconditional branch was reused.
        loras: identities of those that were merged, sorted.
        lora_names: of the same, in the same order, for messages.
        prompts: that were run.
        model: as the user named it.
    """

    checkpoint: str
    num_steps: int = field(metadata={"most": MOST_STEPS})
    threshold: float = field(metadata={"most": 1.0})
    reused_steps: tuple[int, ...] = field(metadata={"least": 0, **_PER_STEP})
    sigmas: tuple[float, ...] = field(metadata={"least": None, **_PER_STEP})
    guidance_schedule: tuple[float, ...] = field(metadata={"most": MOST_GUIDANCE, **_PER_STEP})
    solver: str
    size: tuple[int, ...]
    precision: str
    guidance_reuse: int | None = None
    loras: tuple[str, ...] = ()
    lora_names: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    model: str = ""

    @classmethod
    def of(
        cls,
        weights: Weights,
        conditions: Conditions,
        threshold: float,
        reused_steps: Sequence[int],
        prompts: Sequence[str] = (),
        model: str = "",
    ) -> Calibration:
        """Return what runs under these conditions have found."""
        assert weights.fingerprint is not None
        assert conditions.size is not None
        return cls(
            weights.fingerprint(),
            conditions.steps,
            threshold,
            tuple(reused_steps),
            tuple(conditions.sigmas),
            tuple(conditions.guidance),
            conditions.solver,
            conditions.size,
            weights.precision,
            conditions.guidance_reuse,
            *weights.merged(),
            tuple(prompts),
            model,
        )

    @classmethod
    def read(cls, path: str | Path) -> Calibration:
        """Read a file of `write`.

        Raises:
            MissingInputError: there is no such file.
            InputError: it is another file, or damaged.
        """
        values = json_file(path, "list of reused steps", _MEND)
        if values.get("kind") != _KIND:
            raise InputError(f"{path} is no list of reused steps: {_MEND}")
        where = f"list of reused steps {path}"
        found = typed(cls, values, where)
        try:
            found.check()
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
        return found

    def check(self) -> None:
        """Check that its values go together.

        Raises:
            InputError: they do not.
        """
        lengths = {
            "sigmas": (self.sigmas, self.num_steps + 1),
            "guidance_schedule": (self.guidance_schedule, self.num_steps),
            "size": (self.size, 3),
            "lora_names": (self.lora_names, len(self.loras)),
        }
        for name, (values, wanted) in lengths.items():
            if len(values) != wanted:
                raise InputError(f"{name} has {len(values)} entries, but must have {wanted}: {_MEND}")
        if len(set(self.reused_steps)) != len(self.reused_steps):
            raise InputError(f"reused_steps names a step twice: {_MEND}")
        if min(self.guidance_schedule) < 1:
            raise InputError(
                f"guidance_schedule has {min(self.guidance_schedule):g}, but scales are at least 1: {_MEND}"
            )
        check_sigmas(self.sigmas)
        check_solver(self.solver)
        Precision.named(self.precision)
        ReuseSteps(frozenset(self.reused_steps)).check(self.num_steps)

    def write(self, path: str | Path, about: dict[str, Any]) -> None:
        """Write it with what else the reader may want to know, whole or not at all.

        Raises:
            OSError: the file could not be written.
        """
        write_json({"kind": _KIND, **asdict(self), **about}, path)

    def policy(self, path: str, run: Conditions, weights: Weights | None) -> ReuseSteps:
        """Return the policy of a run, after checking that the list is for such a run.

        Another number of steps, other sigmas, another solver, checkpoint or LoRA are refused: the list says nothing of
        them. Another guidance, size or precision is noted (`ReuseSteps.note`). Where only sizes were named, no video is
        made, and what belongs to weights and videos is not compared.

        Args:
            path: where it was read, for messages.
            run: what it is used in.
            weights: what it is used with; without them nobody knows whether it fits.

        Raises:
            InputError: it is for another run.
        """
        if run.steps != self.num_steps:
            raise InputError(
                f"{path} is for {self.num_steps} steps, not {run.steps}: take {self.num_steps} steps, or calibrate anew"
            )
        anew = "calibrate again with these options"
        if run.solver != self.solver:
            raise InputError(f"{path} is for solver {self.solver}, not {run.solver}: {anew}")
        for index, (own, other) in enumerate(zip(self.sigmas, run.sigmas, strict=True)):
            if abs(own - other) > _SAME_SIGMA:
                raise InputError(f"{path} is for other sigmas ({own:.6g} at step {index}, not {other:.6g}): {anew}")
        if weights is None:
            raise InputError(f"{path} is for a checkpoint, and this pipeline has none: list the steps as steps:3,4,6")
        if weights.fingerprint is None:
            return ReuseSteps(frozenset(self.reused_steps))
        if (found := weights.fingerprint()) != self.checkpoint:
            raise InputError(
                f"{path} is for another checkpoint ({self.checkpoint} of {self.model or 'an unknown model'}, not "
                f"{found}): calibrate this one with mochi-tt calibrate"
            )
        loras, names = weights.merged()
        if loras != self.loras:
            raise InputError(f"{path} is for {_loras(self.lora_names, self.loras)}, not {_loras(names, loras)}: {anew}")
        return ReuseSteps(frozenset(self.reused_steps), self._note(path, run, weights))

    def _note(self, path: str, run: Conditions, weights: Weights) -> str | None:
        """Return a line on what differs and does not forbid the list; None if nothing does."""
        differ = []
        if (list(run.guidance), run.guidance_reuse) != (list(self.guidance_schedule), self.guidance_reuse):
            own, other = (
                _guidance(*each)
                for each in ((self.guidance_schedule, self.guidance_reuse), (run.guidance, run.guidance_reuse))
            )
            differ.append(f"{own}, not {other if other != own else 'in the same steps'}")
        if run.size is not None and run.size != self.size:
            differ.append(f"{_size(self.size)}, not {_size(run.size)}")
        if weights.precision != self.precision:
            differ.append(f"precision {self.precision}, not {weights.precision}")
        if not differ:
            return None
        return (
            f"{path} was calibrated with {'; '.join(differ)}: other steps may be the ones to reuse, so look at the "
            "video or calibrate again with these options"
        )


def _loras(names: Sequence[str], identities: Sequence[str]) -> str:
    if not names:
        return "no LoRA"
    return "LoRA " + ", ".join(f"{name} ({identity})" for name, identity in zip(names, identities, strict=True))


def _guidance(scales: Sequence[float], every: int | None) -> str:
    guided = [scale for scale in scales if scale != 1]
    least, most = min(guided, default=1.0), max(guided, default=1.0)
    words = f"guidance {least:g}" if least == most else f"guidance {least:g} to {most:g}"
    if 0 < len(guided) < len(scales):
        words += f" in {len(guided)} of {len(scales)} steps"
    return words if every is None else f"{words} and its reuse {every}"


def _size(size: Sequence[int]) -> str:
    return f"size {size[0]}x{size[1]} of {size[2]} frames"


def parse_reuse(value: Any, run: Conditions, weights: Weights | None = None) -> ReusePolicy | None:
    """Return the policy that a user asked for; None for none.

    Args:
        value: one of the forms of the command line as text; or in Python None, a threshold, a list of steps, or a
            policy.
        run: what it is for.
        weights: that it is for; without them no file of steps is taken.

    Raises:
        InputError: it is none of these, a threshold or step is out of range, or a file is for another run.
    """
    if value is None or (isinstance(value, str) and value == "off"):
        return None
    if callable(getattr(value, "blocks", None)) and hasattr(value, "threshold"):
        return value
    if isinstance(value, str):
        kind, colon, rest = value.partition(":")
        if kind == "steps" and colon and rest.strip():
            return _steps_named(rest, run, weights)
        try:
            return _below(float(value), run.steps)
        except ValueError as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"reuse {short(value)} is not known: write {_FORMS}") from None
    if hasattr(value, "__iter__") and getattr(value, "ndim", 1) == 1:
        return _listed(sequence("reuse", value, "a threshold, or a list of steps such as [3, 4, 6]"), run.steps)
    return _below(number("reuse", value), run.steps)


def _below(threshold: float, steps: int) -> ReuseBelow:
    if not 0 < threshold <= 1:
        raise InputError(f"reuse threshold {threshold:g} must be above 0 and at most 1; off turns reuse off")
    return ReuseBelow.of(threshold, steps)


def _steps_named(rest: str, run: Conditions, weights: Weights | None) -> ReuseSteps:
    if not re.fullmatch(r"[\s\d,+-]+", rest):
        return Calibration.read(rest).policy(rest, run, weights)
    parts = [part.strip() for part in rest.split(",")]
    if not all(re.fullmatch(r"\d{1,6}", part) for part in parts):
        raise InputError(
            f"reuse steps:{short(rest)} must be whole numbers with commas between them, such as steps:3,4,6"
        )
    return _listed([int(part) for part in parts], run.steps)


def _listed(values: Sequence[Any], steps: int) -> ReuseSteps:
    policy = ReuseSteps(frozenset(whole("reused step", value, 0, MOST_STEPS) for value in values))
    policy.check(steps)
    return policy
