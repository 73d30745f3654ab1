"""The cost model compared with published times of real cards (`published.toml`).

It states the errors and tunes nothing.
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from models.machine.systems import system
from models.performance.cost_model import Seconds, op_time, total
from models.performance.counts import Cost
from models.performance.settings import Settings
from models.performance.trace import Record

DATA = Path(__file__).with_name("published.toml")
_COST = ("flops", "dram_bytes", "link_bytes", "exposed_link_bytes", "steps", "step_tiles", "step_keys")
_VIDEO = 100.0  # seconds; only whole videos take longer
_SETTINGS = ("fidelity", "cores", "links", "operand_bytes")


@dataclass(frozen=True)
class Case:
    """One published time beside the model's."""

    name: str
    published: float
    modelled: Seconds
    fitted: bool
    source: str
    note: str

    @property
    def error(self) -> float:
        """Expected over published time, minus one."""
        return self.modelled.expected / self.published - 1

    @property
    def is_within(self) -> bool:
        """Whether the published time is in the model's range."""
        return self.modelled.low <= self.published <= self.modelled.high


def cases() -> list[Case]:
    """Return every published case with its time from the cost model.

    Raises:
        ValueError: a case names a field that is neither a count nor a setting.
    """
    return [_case(table) for table in tomllib.loads(DATA.read_text(encoding="utf-8"))["case"]]


def _case(table: dict) -> Case:
    machine = system(table["system"])
    parts = [op_time(_record(op), machine).seconds * op.get("calls", 1) for op in table["op"]]
    return Case(
        table["name"],
        table["seconds"],
        total(parts),
        table.get("fitted", False),
        table["source"],
        table.get("note", ""),
    )


def _record(op: dict) -> Record:
    unknown = set(op) - {"name", "calls", *_COST, *_SETTINGS}
    if unknown:
        raise ValueError(f"{DATA.name}, {op['name']}: unknown fields {', '.join(sorted(unknown))}")
    cost = Cost(**{key: op[key] for key in _COST if key in op})
    return Record(op["name"], (), cost, Settings(**{key: op[key] for key in _SETTINGS if key in op}))


def errors() -> list[str]:
    """Return the error of the fitted cases and of the others as a Markdown table.

    Whole videos of another program are a third group: their published times hold work that no trace has.
    """
    groups: dict[str, list[Case]] = {"independent": [], "fitted": [], "tt_dit's videos": []}
    for case in cases():
        group = "fitted" if case.fitted else "tt_dit's videos" if case.published > _VIDEO else "independent"
        groups[group].append(case)
    lines = [
        "| cases | number | mean error | mean of its size | largest | in range |",
        "|---|---|---|---|---|---|",
    ]
    for group, members in groups.items():
        values = [case.error for case in members]
        largest = max(values, key=abs)
        lines.append(
            f"| {group} | {len(members)} | {mean(values):+.0%} | {mean(map(abs, values)):.0%} | {largest:+.0%} | "
            f"{sum(case.is_within for case in members)} of {len(members)} |"
        )
    return lines


def table() -> list[str]:
    """Return the cases as a Markdown table, fitted ones last."""
    lines = ["| case | published | model, expected (range) | error | in range |", "|---|---|---|---|---|"]
    for case in sorted(cases(), key=lambda case: case.fitted):
        name = f"{case.name} (fitted)" if case.fitted else case.name
        low, expected, high = (_time(value) for value in vars(case.modelled).values())
        lines.append(
            f"| {name} | {_time(case.published)} | {expected} ({low} to {high}) | {case.error:+.0%} | "
            f"{'yes' if case.is_within else '**no**'} |"
        )
    return lines


def _time(seconds: float) -> str:
    return f"{seconds:.4g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"
