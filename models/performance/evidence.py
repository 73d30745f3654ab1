"""Evidence of the device path: every op configuration it runs, and the best witness of each.

A witness is a test that compared numbers and passed. `pytest --evidence FILE` records which configurations each test
ran, and on what: a line of JSON per test with `test`, `mode`, `chips`, `seconds`, `outcome`, `configurations`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from models.device import open_mesh
from models.machine.systems import system
from models.mochi.precision import Precision
from models.mochi.sampling.reuse import ReuseBelow
from models.parallel import Layout, place
from models.performance.configurations import configurations
from models.performance.dry_run import STAGES, Sampling, dry_run, preview_geometry

# Names of witnesses, from the best to the least, and what each means.
WITNESSES = {
    "hardware": "tests of this project passed on cards",
    "kernels": "tests of this project passed on ttnn's kernels, run by a functional simulator",
    "vector": "golden execution gives what a recorded run of the kernel gave, within the limits of its test",
    "near": "as `kernels`, but with one link for several, two chips for more, or operands that end elsewhere in a tile",
    "golden": "golden execution alone, which is this project's reading of the kernel",
}
_OF_MODE = {"hardware": "hardware", "simulator": "kernels"}


@dataclass(frozen=True)
class Way:
    """A way through the device code: a system, a layout of its mesh, a precision policy, and how steps are made.

    With `reuses` a threshold decides which steps reuse blocks, and the solver is one that keeps tensors. With `encodes`
    a video and an image are encoded to latents, and no video is made.
    """

    system: str
    layout: str
    precision: str = "default"
    reuses: bool = False
    encodes: bool = False

    def __str__(self) -> str:
        further = " reuse" * self.reuses + " encode" * self.encodes
        return f"{self.system} {self.layout} {self.precision}{further}"

    @property
    def sampling(self) -> Sampling:
        """How steps are made."""
        return Sampling("unipc", ReuseBelow.of(0.1, _STEPS), keeps_difference=True) if self.reuses else Sampling()

    @property
    def runs(self) -> tuple[tuple[int, Sequence[str]], ...]:
        """What is run: numbers of frames, and stages."""
        return ((163, ("encode_video",)), (1, ("encode_video",))) if self.encodes else ((163, STAGES),)


# The default layouts with every policy; layouts that owners ask for; one chip.
WAYS = (
    *(Way("quietbox", "sp1tp0", precision) for precision in ("accurate", "bf16", "default", "bf8", "fast")),
    Way("quietbox", "sp0tp1"),
    Way("quietbox", "cfg0sp1tp0fsdp"),
    Way("galaxy", "sp1tp0"),
    Way("galaxy", "sp1tp0", "fast"),
    Way("galaxy", "cfg0sp1tp0"),
    Way("quietbox", "sp1tp0", reuses=True),
    Way("galaxy", "sp1tp0", reuses=True),
    Way("quietbox", "sp1tp0", encodes=True),
    Way("galaxy", "sp1tp0", encodes=True),
)
_STEPS = 2
_BLOCKS = 2  # one like all others and the last one


def device_path(way: Way) -> list[str]:
    """Return the configurations of all stages of one video of 848x480x163, or of its encoding and an image's, sorted.

    Only two transformer blocks are built: the others run the same.
    """
    machine = system(way.system)
    found: set[str] = set()
    for frames, stages in way.runs:
        with open_mesh(machine.mesh, "dry-run", system=machine.name) as opened, configurations() as ran:
            dry_run(
                place(opened.device, Layout.parse(way.layout, machine.mesh)),
                preview_geometry(num_frames=frames),
                stages=stages,
                blocks=_BLOCKS,
                steps=_STEPS,
                sampling=way.sampling,
                precision=Precision.named(way.precision),
            )
        found |= set(ran)
    return sorted(found)


@dataclass(frozen=True)
class Witness:
    """Who says what a configuration computes: the kind, a test, and the chips it ran on."""

    kind: str
    test: str = ""
    chips: int = 0

    def __str__(self) -> str:
        chips = "" if self.kind in ("vector", "golden") else f", {self.chips} chip{'s' if self.chips > 1 else ''}"
        return self.kind if not self.test else f"{self.kind}{chips}: `{self.test}`"


def read(files: Iterable[Path]) -> list[dict]:
    """Return the records of some files, in order."""
    return [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]


def witnesses(records: Iterable[Mapping]) -> dict[str, Witness]:
    """Return the best witness of each configuration that a passed test ran. Among equals the first record counts.

    A test on golden execution is a witness only if it replays kernel vectors.
    """
    order = list(WITNESSES)
    best: dict[str, Witness] = {}
    for record in records:
        kind = "vector" if record["mode"] == "golden" else _OF_MODE[record["mode"]]
        if record["outcome"] != "passed" or (kind == "vector" and "kernel_vectors" not in record["test"]):
            continue
        for name in record["configurations"]:
            if name not in best or order.index(kind) < order.index(best[name].kind):
                best[name] = Witness(kind, record["test"], record["chips"])
    return best


def widened(found: Mapping[str, Witness], names: Iterable[str]) -> dict[str, Witness]:
    """Add a `near` witness to each of `names` that has none, if a configuration close to it ran on kernels."""
    close = {_class(name): row for name, row in found.items() if row.kind in ("hardware", "kernels")}
    near = {
        name: Witness("near", close[_class(name)].test, close[_class(name)].chips)
        for name in names
        if _class(name) in close
    }
    return {**near, **found}


def _class(name: str) -> str:
    """Leave out what a near configuration may differ in."""
    name = name.replace("/part", "").replace("links several", "links 1")
    return name.replace("over 3+ chips", "over 2 chips")


def kept(records: Iterable[Mapping], names: Iterable[str]) -> list[dict]:
    """Return the records that are the best or a near witness of a configuration, with those configurations only."""
    records = list(records)
    found, wanted = witnesses(records), set(names)
    classes = {_class(name) for name in wanted}
    rows: dict[str, list[str]] = {}
    for name, row in found.items():
        if name in wanted or _class(name) in classes:
            rows.setdefault(row.test, []).append(name)
    chosen = {}
    for record in records:
        if record["outcome"] == "passed" and record["test"] in rows and record["test"] not in chosen:
            mine = [name for name in record["configurations"] if name in rows[record["test"]]]
            chosen[record["test"]] = {**record, "configurations": mine}
    return list(chosen.values())


def table(path: Mapping[str, Iterable[str]], found: Mapping[str, Witness]) -> list[str]:
    """Return Markdown tables: how many configurations have which witness, and a row for each, least evidence first.

    Args:
        path: the configurations of each way, by its name.
        found: the best witness of each configuration.
    """
    ways: dict[str, list[str]] = {}
    for way, names in path.items():
        for name in names:
            ways.setdefault(name, []).append(way)
    found = widened(found, ways)
    rows = {name: found.get(name, Witness("golden")) for name in ways}
    counts = {kind: sum(row.kind == kind for row in rows.values()) for kind in WITNESSES}
    lines = ["| witness | configurations | what it means |", "|---|---|---|"]
    lines += [f"| {kind} | {counts[kind]} | {meaning} |" for kind, meaning in WITNESSES.items()]
    lines += ["", "| op and configuration | in | witness |", "|---|---|---|"]
    order = list(WITNESSES)
    for name in sorted(rows, key=lambda name: (-order.index(rows[name].kind), name)):
        where = "all" if len(ways[name]) == len(path) else f"{len(ways[name])} of {len(path)}"
        where = ways[name][0] if len(ways[name]) == 1 else where
        lines.append(f"| {name} | {where} | {rows[name]} |")
    return lines
