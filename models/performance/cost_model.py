"""Cost model: seconds of a device call from its counts of matrix work and of DRAM, L1 and link bytes.

The time of one call, per chip:

- Matrix time = FLOPs / (peak of the op's cores at its fidelity x efficiency). `_matrix_share` corrects it if the
  published efficiency is for another fidelity or operand type. For attention in chunks it is steps x the published
  time of a step instead (`models.machine.attention_steps`).
- DRAM time = bytes / (bandwidth x efficiency).
- Link time = bytes of the busiest link / (links x bandwidth x efficiency).
- DRAM, L1 and matrix time overlap inside an op (kernels double-buffer), so the longest counts. Plain collectives stream
  from memory to links. In other ops link time overlaps only with what the op itself overlaps (`Cost.exposed_link_bytes`
  is the part without overlap). A part of the overlapped link time adds to the op's time nevertheless.
- Each call takes a launch in addition.

Every constant is in `cost_model.toml` with its source, as a range (fast, expected, slow). Every time is such a range
too. The model does not know power limits, congestion between ops, or re-reads that the counts leave out.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.machine.attention_steps import step_microseconds
from models.machine.systems import System
from models.performance.counts import Cost
from models.performance.trace import Record

DATA = Path(__file__).with_name("cost_model.toml")
CASES = ("low", "expected", "high")
_FALLBACK = "elementwise"
_HERTZ = 1e9
TILE = 32


@dataclass(frozen=True)
class Seconds:
    """A time as a range."""

    low: float = 0.0
    expected: float = 0.0
    high: float = 0.0

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(self.low + other.low, self.expected + other.expected, self.high + other.high)

    def __mul__(self, factor: float) -> Seconds:
        return Seconds(self.low * factor, self.expected * factor, self.high * factor)

    def at_least(self, other: Seconds) -> Seconds:
        """Return the longer of the two times, case by case."""
        return Seconds(max(self.low, other.low), max(self.expected, other.expected), max(self.high, other.high))

    def to_json(self) -> dict[str, float]:
        """Return the range as plain data, rounded to a microsecond."""
        return {case: round(getattr(self, case), 6) for case in CASES}

    def __str__(self) -> str:
        return f"{self.expected:.4g} s ({self.low:.4g} to {self.high:.4g})"


def total(parts: Iterable[Seconds]) -> Seconds:
    """Return the sum of ranges: all fast, all expected, all slow.

    The errors of a model have one sign, so they do not average out.
    """
    return sum(parts, Seconds())


@dataclass(frozen=True)
class OpTime:
    """Time of one call, and its largest expected part: `matrix`, `dram`, `L1`, `link` or `launch`."""

    kind: str
    seconds: Seconds
    bound: str


@functools.cache
def constants() -> dict[str, Any]:
    """Return the constants of the data file."""
    return tomllib.loads(DATA.read_text(encoding="utf-8"))


@functools.cache
def _kinds() -> dict[str, str]:
    return {op: kind for kind, table in constants()["kind"].items() for op in table["ops"]}


def kind_of(op: str) -> str:
    """Return the kind of an op with this full name, such as matmul. It is elementwise if no kind lists the op."""
    return _kinds().get(op, _FALLBACK)


def op_time(record: Record, system: System) -> OpTime:
    """Return the time of one traced call on one chip of a system."""
    kind = kind_of(record.name)
    cases = [_case(record, system, constants()["kind"][kind], index) for index in range(len(CASES))]
    seconds = Seconds(*(sum_ for sum_, _ in cases))
    parts = cases[CASES.index("expected")][1]
    return OpTime(kind, seconds, max(parts, key=lambda name: parts[name]))


def _case(record: Record, system: System, kind: dict[str, Any], index: int) -> tuple[float, dict[str, float]]:
    cost, chip = record.cost, system.architecture
    matrix = _matrix_seconds(record, system, kind, index)
    dram = cost.dram_bytes / (chip.dram_bytes_per_second * kind["dram"][index])
    l1_speed = constants()["l1"]["core_cycle_bytes"][index] * system.cores * chip.clock_hz
    exposed, hidden = _link_seconds(record, system, kind, index)
    work = max(matrix, dram, cost.l1_bytes / l1_speed)
    shown = _exposed(record, system, kind)[index] * min(work, hidden)
    launch = constants()["launch"]["seconds"][index]
    parts = {"matrix": matrix, "dram": dram, "L1": cost.l1_bytes / l1_speed, "link": exposed + hidden, "launch": launch}
    if kind.get("streams"):
        return max(work, exposed + hidden) + launch, parts
    return max(work, hidden) + shown + exposed + launch, parts


def _exposed(record: Record, system: System, kind: dict[str, Any]) -> list[float]:
    """Return the share of the overlapped link time that adds to the op's time."""
    several: list[float] = kind.get("exposed", [0.0] * len(CASES))
    return kind.get("exposed_one_link", several) if _links(record, system, kind) == 1 else several


def _links(record: Record, system: System, kind: dict[str, Any]) -> int:
    return int(record.settings.links or kind.get("links") or min(system.links))


def _matrix_seconds(record: Record, system: System, kind: dict[str, Any], index: int) -> float:
    cost, settings = record.cost, record.settings
    if not cost.flops:
        return 0.0
    share = _matrix_share(settings.fidelity or "HiFi2", settings.operand_bytes or 2.0, system)
    if cost.steps:
        return _attention_seconds(cost, system, index) * _attention_factor(record, share, index)
    return cost.flops * share / (system.peak_flops("HiFi2", settings.cores) * kind["matrix"][index])


def _takes_older_kernel(record: Record) -> bool:
    """Return whether attention uses the kernel that does not overlap softmax with products.

    See `models.layers.attention`.
    """
    return bool(record.settings.float32_sums) or record.name == "ttnn.transformer.joint_scaled_dot_product_attention"


def _attention_factor(record: Record, share: float, index: int) -> float:
    """Return the time of a step of attention against one in HiFi2 on bfloat16 by the streaming kernel."""
    data, settings = constants()["attention"], record.settings
    if _takes_older_kernel(record):
        return data["older_kernel"][index] * _products(share)
    if settings.fidelity == "LoFi":
        return float(data["lofi"][index])
    if (settings.operand_bytes or 2.0) < 2.0:
        return float(data["bfloat8_b"][index])
    return _products(share)


def _products(share: float) -> float:
    product = constants()["attention"]["matrix_share"]
    return float(product * max(share, 1.0) + 1 - product)


def _attention_seconds(cost: Cost, system: System, index: int) -> float:
    """Return the time of the busiest core's steps; their published times are of chips at 1 GHz."""
    microseconds = step_microseconds(*attention_chunks(cost))[index]
    return cost.steps * microseconds * 1e-6 * _HERTZ / system.architecture.clock_hz


def attention_chunks(cost: Cost) -> tuple[float, float]:
    """Return the rows of queries and of keys in a step of attention, as of heads of 128."""
    return TILE * cost.step_tiles / cost.step_keys, TILE * cost.step_keys


def _matrix_share(fidelity: str, operand_bytes: float, system: System) -> float:
    """Return the time of a product relative to HiFi2 on bfloat16.

    The slower of unpacker and matrix unit determines it.
    """
    data = constants()["matrix"]
    passes = system.architecture.fidelity_passes[fidelity]
    fpu = (data["fpu_pass_cycles"] * passes + data["fpu_fixed_cycles"]) / data["step_cycles"]
    return max(operand_bytes / 2, fpu)


def _link_seconds(record: Record, system: System, kind: dict[str, Any], index: int) -> tuple[float, float]:
    """Return seconds on the busiest link: the exposed ones, and those that the op overlaps with its own work."""
    cost = record.cost
    if not cost.link_bytes:
        return 0.0, 0.0
    speed = (
        _links(record, system, kind) * system.architecture.link_bytes_per_second * kind.get("link", kind["dram"])[index]
    )
    return cost.exposed_link_bytes / speed, (cost.link_bytes - cost.exposed_link_bytes) / speed


def output(pixels: int) -> Seconds:
    """Return the host time of the way from decoded frames to an mp4, for all pixels of a video."""
    return Seconds(*constants()["output"]["pixel_seconds"]) * pixels


def dispatch(calls: int, system: System) -> Seconds:
    """Return the host time of sending `calls` ops to all chips of a system, without trace capture."""
    data = constants()["dispatch"]
    pairs = zip(data["call_seconds"], data["chip_seconds"], strict=True)
    return Seconds(*(calls * (call + chip * system.chips) for call, chip in pairs))
