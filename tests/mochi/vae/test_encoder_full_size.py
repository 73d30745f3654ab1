"""Full-size dry runs of the encoder beside all resident models: every op validates and every buffer fits."""

import json
import subprocess
import sys

import pytest

CHILD = """
import json, sys
from models.device import open_mesh
from models.mochi.components import Configs, choose_layout
from models.mochi.precision import PRECISIONS
from models.parallel import place
from models.performance.dry_run import dry_run, preview_geometry

mesh, height, width = json.loads(sys.argv[1])
layout = choose_layout(Configs(), tuple(mesh), PRECISIONS["default"])
with open_mesh(tuple(mesh), "dry-run") as opened:
    run = dry_run(place(opened.device, layout), preview_geometry(height, width), stages=["encode_video"])
    made = run.to_json()
    print(json.dumps({"peak": run.dram_peak_bytes, "resident": sum(run.weights.values()), **made["stages"]}))
"""
GB = 1e9


@pytest.mark.full
@pytest.mark.parametrize(("mesh", "size"), [((2, 4), (480, 848)), ((4, 8), (480, 848)), ((4, 8), (720, 1280))], ids=str)
def test_beside_all_models(mesh, size):
    """163 frames: less than 11.5 GB of a chip's DRAM, and no more than was planned."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps([mesh, *size])], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout.splitlines()[-1])
    stage = report["encode_video"]
    print(mesh, size, {name: value for name, value in stage.items() if name != "ops"})
    assert report["resident"] > 5 * GB
    assert report["peak"] < 11.5 * GB
    assert report["peak"] - report["resident"] <= stage["planned_bytes"]
    assert 1 <= stage["first_stage_frames"] <= 163
