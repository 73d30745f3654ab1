"""What a user says of the reuse of blocks, and the calibrated lists of steps that `mochi-tt calibrate` writes.

`off`, a threshold such as 0.1, `steps:3,4,6`, or `steps:FILE`. Nothing here needs torch or ttnn.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from models.machine.checks import json_file, number, short, typed, whole
from models.machine.errors import InputError
from models.machine.files import write_json
from models.mochi.sampling.reuse import ReuseBelow, ReusePolicy, ReuseSteps
from models.mochi.sampling.schedule import MOST_STEPS

Fingerprint = Callable[[], str]
"""Gives the fingerprint of the transformer's checkpoint; called only where a file of steps is read."""
_FORMS = "off, a threshold such as 0.1, steps:3,4,6, or steps:FILE of mochi-tt calibrate"
_KIND = "mochi-tt reused steps"
_MEND = "give a file that mochi-tt calibrate wrote, or list the steps as steps:3,4,6"


@dataclass(frozen=True)
class Calibration:
    """The steps that could be reused for every prompt of a calibration.

    Attributes:
        checkpoint: fingerprint of the transformer's files.
        num_steps: of the runs.
        threshold: of the first block's change, below which a step was reused.
        reused_steps: those reused for every prompt.
        prompts: that were run.
        model: as the user named it.
    """

    checkpoint: str
    num_steps: int
    threshold: float
    reused_steps: tuple[int, ...] = field(metadata={"least": 0})
    prompts: tuple[str, ...] = ()
    model: str = ""

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
        return typed(cls, values, f"list of reused steps {path}")

    def write(self, path: str | Path, about: dict[str, Any]) -> None:
        """Write it with what else the reader may want to know, whole or not at all.

        Raises:
            OSError: the file could not be written.
        """
        write_json({"kind": _KIND, **asdict(self), **about}, path)

    def policy(self, path: str, steps: int, fingerprint: Fingerprint | None) -> ReuseSteps:
        """Return the policy of a run, after checking that the list is for its checkpoint and number of steps.

        Raises:
            InputError: it is not; `path` is where it was read, for the message.
        """
        if steps != self.num_steps:
            raise InputError(
                f"{path} is for {self.num_steps} steps, not {steps}: take {self.num_steps} steps, or calibrate anew"
            )
        if fingerprint is None:
            raise InputError(f"{path} is for a checkpoint, and this pipeline has none: list the steps as steps:3,4,6")
        if (found := fingerprint()) != self.checkpoint:
            raise InputError(
                f"{path} is for another checkpoint ({self.checkpoint} of {self.model or 'an unknown model'}, not "
                f"{found}): calibrate this one with mochi-tt calibrate"
            )
        return ReuseSteps(frozenset(self.reused_steps))


def parse_reuse(value: Any, steps: int, fingerprint: Fingerprint | None = None) -> ReusePolicy | None:
    """Return the policy that a user asked for; None for none.

    Args:
        value: one of the forms of the command line as text; or in Python None, a threshold, a list of steps, or a
            policy.
        steps: of the run.
        fingerprint: of the checkpoint; without it no file of steps is taken.

    Raises:
        InputError: it is none of these, a threshold or step is out of range, or a file is for another run.
    """
    if value is None or (isinstance(value, str) and value == "off"):
        return None
    if hasattr(value, "blocks") and hasattr(value, "threshold"):
        return value
    if isinstance(value, str):
        kind, colon, rest = value.partition(":")
        if kind == "steps" and colon and rest.strip():
            return _steps_named(rest, steps, fingerprint)
        try:
            return _below(float(value), steps)
        except ValueError as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"reuse {short(value)} is not known: write {_FORMS}") from None
    if isinstance(value, Iterable) and getattr(value, "ndim", 1) == 1:
        return _listed(value, steps)
    return _below(number("reuse", value), steps)


def _below(threshold: float, steps: int) -> ReuseBelow:
    if not 0 < threshold <= 1:
        raise InputError(f"reuse threshold {threshold:g} must be above 0 and at most 1; off turns reuse off")
    return ReuseBelow.of(threshold, steps)


def _steps_named(rest: str, steps: int, fingerprint: Fingerprint | None) -> ReuseSteps:
    if not re.fullmatch(r"[\s\d,+-]+", rest):
        policy = Calibration.read(rest).policy(rest, steps, fingerprint)
        policy.check(steps)
        return policy
    parts = [part.strip() for part in rest.split(",")]
    if not all(re.fullmatch(r"\d{1,6}", part) for part in parts):
        raise InputError(
            f"reuse steps:{short(rest)} must be whole numbers with commas between them, such as steps:3,4,6"
        )
    return _listed([int(part) for part in parts], steps)


def _listed(values: Iterable[Any], steps: int) -> ReuseSteps:
    policy = ReuseSteps(frozenset(whole("reused step", value, 0, MOST_STEPS) for value in values))
    policy.check(steps)
    return policy
