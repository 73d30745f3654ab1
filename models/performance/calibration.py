"""What a machine's cards take beside what the cost model says, for each kind of op.

`mochi-tt measure` on cards times every op of a denoising step, and writes the ratios to a file. Later projections of
the same system on that machine multiply the model's times by them, and name the file.
"""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from models.machine.checks import json_file, number
from models.machine.errors import InputError
from models.machine.files import write_json
from models.machine.systems import System
from models.performance.cost_model import OpTime, Seconds, constants, op_time
from models.performance.trace import Trace

VERSION = 1
# Times of one shape say something of others; not more than this.
_RANGE = (0.9, 1.0, 1.15)
# Beyond these a ratio is a mistake of the measurement.
_LEAST, _MOST = 0.02, 50.0
_FIELDS = {"version", "system", "layout", "precision", "ttnn", "made", "ratios", "step_ratio"}


@dataclass(frozen=True)
class Calibration:
    """Measured over projected seconds, for each kind of op that a step has.

    Attributes:
        system: name of the system that was measured.
        layout: of the measurement.
        precision: of the measurement.
        ttnn: its version.
        made: day and time, in UTC.
        ratios: by kind of `cost_model.toml`.
        step_ratio: a whole captured step, measured over projected with the ratios.
        file: where it was read.
        misfit: why it is not applied to a projection; None where it is.
    """

    system: str
    layout: str
    precision: str
    ttnn: str
    made: str
    ratios: dict[str, float]
    step_ratio: float
    file: Path | None = None
    misfit: str | None = None

    def __str__(self) -> str:
        where = self.file if self.file is not None else "this run"
        about = f"{where} ({self.system}, layout {self.layout}, {self.precision}, ttnn {self.ttnn}, made {self.made})"
        return about if self.misfit is None else f"{about}, not applied: {self.misfit}"

    def applied(self, time: OpTime) -> OpTime:
        """Return the time of a call with the ratio of its kind; as it was if the kind was not measured."""
        ratio = self.ratios.get(time.kind)
        if ratio is None or self.misfit is not None:
            return time
        middle = time.seconds.expected * ratio * self.step_ratio
        return OpTime(time.kind, Seconds(*(middle * factor for factor in _RANGE)), time.bound)

    def to_json(self) -> dict[str, Any]:
        """Return the calibration as it stands in its file."""
        return {"version": VERSION, **{name: value for name, value in vars(self).items() if name in _FIELDS}}

    def write(self, file: Path) -> None:
        """Write the calibration, whole or not at all.

        Raises:
            OSError: it could not be written.
        """
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.to_json(), file)


def calibrate(
    step: Trace, system: System, *, step_seconds: float, layout: str, precision: str, ttnn: str
) -> Calibration:
    """Make a calibration of a step whose calls were timed one by one.

    A call that is waited for takes the way to the chips and back in addition. That is the time of the quickest call,
    less a launch.

    Args:
        step: trace of a guided step; every record has the seconds until its result was there.
        system: the machine.
        step_seconds: the time of such a step when nothing waits between its calls.
        layout: of the mesh.
        precision: of the transformer.
        ttnn: its version.

    Raises:
        ValueError: a call was not timed.
    """
    seconds: Sequence[float] = step.seconds
    if len(seconds) != len(step.records) or not seconds:
        raise ValueError(f"{len(step.records)} calls and {len(seconds)} times: time every call of the step")
    launch = constants()["launch"]["seconds"][1]
    waiting = min(seconds) - launch
    measured: dict[str, float] = {}
    projected: dict[str, float] = {}
    for record, took in zip(step.records, seconds, strict=True):
        time = op_time(record, system)
        measured[time.kind] = measured.get(time.kind, 0.0) + max(took - waiting, launch)
        projected[time.kind] = projected.get(time.kind, 0.0) + time.seconds.expected
    ratios = {kind: round(measured[kind] / projected[kind], 4) for kind in projected}
    return Calibration(
        system=system.name,
        layout=layout,
        precision=precision,
        ttnn=ttnn,
        made=datetime.now(UTC).isoformat(timespec="minutes"),
        ratios=ratios,
        step_ratio=round(step_seconds / sum(measured.values()), 4),
    )


def default_file(system: str) -> Path:
    """Return where a machine's calibration is: beside its profile, in the user's configuration."""
    from models.machine.profile import default_file as profile

    return profile().with_name(f"calibration-{system}.json")


def read(file: Path) -> Calibration:
    """Read a calibration.

    Raises:
        MissingInputError: there is no such file.
        InputError: the file is not a calibration of this version, or a value breaks its rule.
    """
    data = json_file(file, "calibration", "make it on cards with mochi-tt measure")
    if data.get("version") != VERSION or data["version"] is True:
        raise InputError(f"calibration {file} has version {data.get('version')!r:.20}, not {VERSION}: measure anew")
    if set(data) != _FIELDS:
        odd = ", ".join(sorted(set(data) ^ _FIELDS))
        raise InputError(f"calibration {file}: entries missing or unknown: {odd}; measure anew")
    names = {name: data[name] for name in ("system", "layout", "precision", "ttnn", "made")}
    for name, value in names.items():
        if not isinstance(value, str):
            raise InputError(f"calibration {file}: {name} {value!r:.40} must be a text")
    if not isinstance(data["ratios"], dict):
        raise InputError(f"calibration {file}: ratios {data['ratios']!r:.40} must be a table of kinds of ops")
    unknown = sorted(set(data["ratios"]) - set(constants()["kind"]))
    if unknown:
        raise InputError(f"calibration {file}: {unknown[0]!r:.40} is no kind of op")
    ratios = {kind: _ratio(file, f"ratio of {kind}", value) for kind, value in data["ratios"].items()}
    return Calibration(**names, ratios=ratios, step_ratio=_ratio(file, "step_ratio", data["step_ratio"]), file=file)


def find(named: str | None, system: str, precision: str) -> Calibration | None:
    """Return the calibration for projections of a system: the named one, else the machine's own, if it has one.

    One of another precision or ttnn timed other kernels: it has a `misfit`, and is not applied.

    Args:
        named: a file; `none` for no calibration; None for that of the machine.
        system: name of the system that is projected.
        precision: of the transformer that is projected.

    Raises:
        MissingInputError: the named file does not exist.
        InputError: the file is no calibration, or one of another system.
    """
    if named == "none":
        return None
    file = Path(named) if named is not None else default_file(system)
    if named is None and not file.exists():
        return None
    made = read(file)
    if made.system != system:
        raise InputError(f"calibration {file} is of system {made.system}, not {system}: measure there, or give none")
    installed = importlib.metadata.version("ttnn")
    others = [
        f"it is of {what} {measured}, this is {wanted}"
        for what, measured, wanted in (("precision", made.precision, precision), ("ttnn", made.ttnn, installed))
        if measured != wanted
    ]
    return replace(made, misfit=" and ".join(others) or None)


def used(system: str, *precisions: str) -> list[str]:
    """Return a line for each calibration of this machine that projections in some precisions find."""
    found = (find(None, system, precision) for precision in precisions)
    return [f"Calibrated: {made}." for made in found if made is not None]


def _ratio(file: Path, name: str, value: Any) -> float:
    ratio = number(f"calibration {file}: {name}", value)
    if not _LEAST <= ratio <= _MOST or math.isnan(ratio):
        raise InputError(f"calibration {file}: {name} {ratio:g} must be from {_LEAST:g} to {_MOST:g}: measure anew")
    return ratio
