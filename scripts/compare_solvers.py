"""Measure solvers and less guidance on the tiny model: `python -m scripts.compare_solvers [--prompts N]`.

Prints the tables of docs/usage.md: PSNR of the worst frame, mean and worst over prompts, against Euler's full run.
"""

from __future__ import annotations

import argparse

from models.device import quiet_ttnn
from models.mochi.sampling.solver import SOLVERS
from scripts.progress import make_reporter, quiet_libraries


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=3, help="held-out prompts, from the first")
    parser.add_argument("--full-steps", type=int, default=64, help="steps of Euler's full run")
    arguments = parser.parse_args()
    quiet_libraries()
    quiet_ttnn()
    from models.jobs.solvers import HEAD, Settings, compare

    ways = [Settings(solver, steps) for steps in (8, 12, 16, 32) for solver in SOLVERS]
    ways += [Settings("euler", 64, interval) for interval in ("0:0.5", "0:0.75", "0:0.9", "0.1:1")]
    ways += [Settings("euler", 64, "0:1", every) for every in (2, 3, 5)]
    ways += [Settings("unipc", 32, "0:0.75"), Settings("unipc", 32, "0:1", 3), Settings("unipc", 16, "0:0.75")]
    with make_reporter() as reporter:
        rows = compare(Settings("euler", arguments.full_steps), ways, arguments.prompts, progress=reporter.progress)
    print(f"against euler, {arguments.full_steps} steps, guidance in all; {arguments.prompts} prompts\n")
    print("\n".join([HEAD, *map(str, rows)]))


if __name__ == "__main__":
    main()
