"""Performance per system, in the form that owners of tt_dit know: ``-k 2x4sp0tp1``, ``-k 4x8``.

With cards and ``--model DIRECTORY`` the pipeline is measured on them. Without cards a full-size dry run is projected,
once for all tests of a system, and its exact counts are held against the committed baseline. After a change that is
meant to move them, ``make baselines`` writes new ones.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from models.device import cards
from models.machine.systems import system
from models.parallel import Layout
from models.performance.compare import THRESHOLD, ratios, read, regressions

BASELINES = Path(__file__).parent / "baselines"
SYSTEMS = {name: str(Layout.default(system(name).mesh, heads=24)) for name in ("quietbox", "galaxy")}
# Seconds. tt_dit's own test ceilings (tt-metal models/tt_dit/tests/models/mochi/test_performance_mochi.py).
CEILINGS = {
    "quietbox": {"encode": 8, "denoise": 1320, "decode": 55, "total": 1385},
    "galaxy": {"encode": 8, "denoise": 400, "decode": 22, "total": 430},
}


DEFAULTS = [pytest.param(name, layout, id=layout) for name, layout in SYSTEMS.items()]


@pytest.fixture
def report(name, layout, request, tmp_path_factory) -> dict:
    """What `mochi-tt measure` says of a system, made once per test run, whichever worker asks first."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    path = folder / f"performance-{name}-{layout}.json"
    with FileLock(f"{path}.lock"):
        if not path.exists():
            command = [sys.executable, "-m", "scripts.cli", "measure", "--system", name, "--layout", layout]
            command += ["--json", str(path)]
            model = request.config.getoption("--model")
            if cards():
                if model is None:
                    pytest.skip("a measurement on cards needs weights: give --model DIRECTORY")
                command += ["--model", model, "--precision", request.config.getoption("--precision")]
            done = subprocess.run(command, capture_output=True, text=True, timeout=None if cards() else 500)
            assert done.returncode == 0, done.stderr[-2000:]
            print(done.stdout)
    return json.loads(path.read_text())


@pytest.mark.parametrize(
    ("name", "layout"),
    [*DEFAULTS, pytest.param("quietbox", "2x4sp0tp1", id="2x4sp0tp1", marks=pytest.mark.full)],  # tt_dit's on 2x4
)
def test_performance(name, layout, report):
    """Within the seconds that tt_dit's own test allows itself, measured or projected."""
    middle = "median" if report["mode"] == "hardware" else "expected"
    over = {
        stage: report["seconds"][stage][middle]
        for stage, ceiling in CEILINGS[name].items()
        if report["seconds"][stage][middle] > ceiling
    }
    assert not over, f"{report['note']}: {over} over {CEILINGS[name]}"


@pytest.mark.parametrize(("name", "layout"), DEFAULTS)
@pytest.mark.skipif(bool(cards()), reason="counts are held against the baseline where dry runs make them")
def test_counts_do_not_grow(name, layout, report):
    """Device calls, FLOPs, bytes and peak memory per chip stay within 2% of the committed baseline."""
    worse = regressions(ratios(read(BASELINES / f"{name}.json"), report), THRESHOLD)
    assert not worse, "grown; if meant so, run make baselines:\n" + "\n".join(map(str, worse))
