"""Make docs/evidence.md anew: `python -m scripts.evidence [--add RECORDS]`.

Full-size dry runs of every way of `models.performance.evidence.WAYS` give the op configurations of the device path, and
`tests/evidence` holds what tests recorded on kernels and on golden execution. Takes about five minutes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from models.machine.files import renamed_when_done, write_json
from models.machine.processes import fresh_processes

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "evidence.md"
RECORDS = ROOT / "tests" / "evidence"
DEVICE_PATH = RECORDS / "device_path.json"
START, END = "<!-- configurations -->\n", "<!-- end -->\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Trace the device path, and write its configurations and the table."""
    from models.performance.evidence import WAYS, device_path, kept, read, table, witnesses

    parser = argparse.ArgumentParser(prog="python -m scripts.evidence", description=__doc__)
    parser.add_argument("--jobs", type=int, default=1, help="dry runs at a time")
    parser.add_argument("--traced", action="store_true", help="take the dry runs' configurations as they were kept")
    parser.add_argument("--add", type=Path, metavar="RECORDS", help="what `pytest --evidence RECORDS` wrote, to keep")
    chosen = parser.parse_args(arguments)
    if chosen.traced:
        path = json.loads(DEVICE_PATH.read_text(encoding="utf-8"))
    else:
        with fresh_processes(chosen.jobs) as pool:
            path = {str(way): names for way, names in zip(WAYS, pool.map(device_path, WAYS), strict=True)}
        write_json(path, DEVICE_PATH)
    if chosen.add is not None:
        records = read([chosen.add])
        for mode in sorted({record["mode"] for record in records}):
            own = kept(
                [record for record in records if record["mode"] == mode], {n for ns in path.values() for n in ns}
            )
            lines = [json.dumps(record, ensure_ascii=False) for record in own]
            with renamed_when_done(RECORDS / f"{mode}.jsonl") as scratch:
                scratch.write_text("\n".join(lines) + "\n", encoding="utf-8")
    rows = table(path, witnesses(read(sorted(RECORDS.glob("*.jsonl")))))
    text = DOCUMENT.read_text(encoding="utf-8")
    head, _, rest = text.partition(START)
    _, _, tail = rest.partition(END)
    with renamed_when_done(DOCUMENT) as scratch:
        scratch.write_text(head + START + "\n".join(rows) + "\n" + END + tail, encoding="utf-8")
    print("\n".join(rows[:6]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
