"""The profile of a machine: what to avoid on it, in a file that commands read on hardware."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models.machine.checks import json_file
from models.machine.errors import InputError
from models.machine.files import write_json
from models.machine.paths import exists
from models.machine.ways import Ways, parse_plain

VERSION = 1
TOPOLOGIES = ("line", "ring")
_KEYS = {"version", "plain", "links", "topology", "attention_chunks", "capture", "made_by"}


@dataclass(frozen=True)
class Profile:
    """What a machine's runs take unless the user says otherwise.

    Attributes:
        plain: names of the ops that are avoided (`models.machine.ways`).
        links: most Ethernet links between two chips; all if None.
        topology: `line` or `ring`; by the system if None.
        attention_chunks: such as `256x384`; by rule if None.
        capture: whether a step is recorded and replayed; yes if None.
        made_by: what the profile rests on: digest of the self-test's report, versions, system.
        file: where it was read.
    """

    plain: frozenset[str] = frozenset()
    links: int | None = None
    topology: str | None = None
    attention_chunks: str | None = None
    capture: bool | None = None
    made_by: dict[str, str] = field(default_factory=dict)
    file: Path | None = None

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            InputError: a value breaks its rule.
        """
        Ways(self.plain, self.links)
        if self.attention_chunks is not None and not re.fullmatch(r"\d{1,5}x\d{1,5}", self.attention_chunks):
            raise InputError(f"attention_chunks {self.attention_chunks[:20]!r} must be such as 256x384")
        if self.topology is not None and self.topology not in TOPOLOGIES:
            raise InputError(f"topology {self.topology!r} must be one of {', '.join(TOPOLOGIES)}")

    def to_json(self) -> dict[str, Any]:
        """Return the profile as it stands in its file."""
        return {
            "version": VERSION,
            "plain": sorted(self.plain),
            "links": self.links,
            "topology": self.topology,
            "attention_chunks": self.attention_chunks,
            "capture": self.capture,
            "made_by": self.made_by,
        }

    def __str__(self) -> str:
        said = {
            "plain": ",".join(sorted(self.plain)),
            "links": self.links,
            "topology": self.topology,
            "attention chunks": self.attention_chunks,
            "capture": {True: "on", False: "off", None: None}[self.capture],
        }
        return ", ".join(f"{name} {value}" for name, value in said.items() if value) or "avoids nothing"

    def origin(self, ttnn: str) -> str:
        """Say what the profile rests on, and that it is of another ttnn than `ttnn`, this environment's, if it is."""
        if not self.made_by:
            return "written by hand"
        made = {name: str(self.made_by.get(name, "unknown"))[:40] for name in ("mode", "mesh", "ttnn")}
        line = f"from a self-test on {made['mode']}, mesh {made['mesh']}, ttnn {made['ttnn']}"
        return line if made["ttnn"] == ttnn else f"{line}; this is ttnn {ttnn}: run mochi-tt selftest --profile again"

    def write(self, file: Path) -> None:
        """Write the profile, whole or not at all.

        Raises:
            OSError: it could not be written.
        """
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.to_json(), file)


def default_file() -> Path:
    """Return where the profile of this machine is: `mochi-tt/machine.json` in the user's configuration."""
    import platformdirs

    return platformdirs.user_config_path("mochi-tt") / "machine.json"


def read(file: Path) -> Profile:
    """Read a profile.

    Raises:
        MissingInputError: there is no such file.
        InputError: the file is not a profile of this version, or a value breaks its rule.
    """
    data = json_file(file, "machine profile", "make it with selftest --profile")
    if data.get("version") != VERSION or data["version"] is True:
        raise InputError(f"machine profile {file} has version {data.get('version')!r:.20}, not {VERSION}: make it anew")
    unknown = sorted(set(data) - _KEYS)
    if unknown:
        raise InputError(f"machine profile {file}: unknown entries {', '.join(unknown)}")
    try:
        return Profile(
            plain=_plain(_typed(data, "plain", list) or []),
            links=_typed(data, "links", int),
            topology=_typed(data, "topology", str),
            attention_chunks=_typed(data, "attention_chunks", str),
            capture=_typed(data, "capture", bool),
            made_by=_typed(data, "made_by", dict) or {},
            file=file,
        )
    except (InputError, TypeError) as error:
        raise InputError(f"machine profile {file}: {error}") from error


def find(named: str | Path | None, mode: str) -> Profile | None:
    """Return the profile for a run: the named one, on hardware that of the machine, else None.

    Args:
        named: a file; `none` for no profile; None for that of the machine.
        mode: of the run.

    Raises:
        MissingInputError: the named file does not exist.
        InputError: the file is not a profile.
    """
    if named == "none":
        return None
    if named is not None:
        return read(Path(named))
    file = default_file()
    return read(file) if mode == "hardware" and exists(file) else None


def _plain(names: list[Any]) -> frozenset[str]:
    """Return the names of ops; `all` stands for every op that can be avoided, as on the command line."""
    for name in names:
        if not isinstance(name, str):
            raise InputError(f"plain {name!r:.40} must be the name of an op")
    return parse_plain(",".join(names)) if names else frozenset()


def _typed(data: dict[str, Any], name: str, kind: type) -> Any:
    value = data.get(name)
    if value is not None and type(value) is not kind:
        raise InputError(f"{name} {value!r} must be {kind.__name__} or null")
    return value
