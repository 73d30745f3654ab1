"""Measured times of a machine, invented here, and what projections make of them."""

import importlib.metadata
import json
from dataclasses import replace

import pytest

from models.machine.systems import system
from models.performance.calibration import Calibration, calibrate, default_file, find, read, used
from models.performance.cost_model import constants, op_time
from models.performance.counts import Cost
from models.performance.projection import Projection
from models.performance.report import markdown
from models.performance.settings import Settings
from models.performance.trace import Record, Trace
from tests.performance.test_projection import PRODUCT, SMALL, projection

GALAXY = system("galaxy")
LAUNCH = constants()["launch"]["seconds"][1]
NAMES = {"layout": "4x8sp1tp0", "precision": "default", "ttnn": importlib.metadata.version("ttnn")}
WAITING = 5e-5
GATHER = Record("ttnn.all_gather", (), Cost(link_bytes=1e8, exposed_link_bytes=1e8), Settings(links=4))


def invented(factors: dict[str, float]) -> Calibration:
    """That of a machine on which each kind takes so many times what the model says, and a call is waited for 50 us."""
    records = [PRODUCT, PRODUCT, GATHER, SMALL]
    times = [op_time(record, GALAXY) for record in records]
    took = [time.seconds.expected * factors.get(time.kind, 1.0) + WAITING for time in times]
    whole = sum(took) - len(took) * WAITING
    return calibrate(Trace(records, 0, seconds=took), GALAXY, step_seconds=whole, **NAMES)


def test_the_ratios_are_those_of_the_machine():
    made = invented({"matmul": 1.3, "gather": 2.0})
    assert made.ratios["matmul"] == pytest.approx(1.3, rel=0.01)
    assert made.ratios["gather"] == pytest.approx(2.0, rel=0.01)
    assert made.ratios["elementwise"] == pytest.approx(1.0, rel=0.01)
    assert made.step_ratio == pytest.approx(1.0, rel=0.01)


def test_a_projection_takes_them_and_names_the_file(tmp_path):
    file = tmp_path / "calibration.json"
    invented({"matmul": 1.3}).write(file)
    plain = projection(encode=[PRODUCT], denoise=[PRODUCT, GATHER], guide=[PRODUCT], decode=[PRODUCT])
    made = Projection(plain.system, plain.run, plain.num_steps, read(file))
    before, after = plain.seconds()["step"], made.seconds()["step"]
    link = op_time(GATHER, GALAXY).seconds.expected
    assert after.expected - link == pytest.approx(1.3 * (before.expected - link), rel=0.01)
    assert after.high - after.low < before.high - before.low, "a measured kind is more certain"
    report = made.to_json()
    assert any(str(file) in line and "Calibrated" in line for line in markdown(report))
    assert plain.to_json()["calibration"] is None


def test_a_kind_that_was_not_measured_keeps_the_models_time():
    time = op_time(Record("ttnn.experimental.conv3d", (), Cost(flops=1e12), Settings("HiFi3")), GALAXY)
    assert invented({"matmul": 3.0}).applied(time) == time


def test_the_machines_own_is_found_by_system(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert find(None, "galaxy", "default") is None
    invented({}).write(default_file("galaxy"))
    found = find(None, "galaxy", "default")
    assert (found.system, found.misfit) == ("galaxy", None)
    assert find("none", "galaxy", "default") is None
    assert find(None, "quietbox", "default") is None
    with pytest.raises(ValueError, match="is of system galaxy, not quietbox"):
        find(str(default_file("galaxy")), "quietbox", "default")


def test_what_other_kernels_took_is_not_applied(tmp_path, monkeypatch):
    """Another precision is another attention kernel, another ttnn other kernels altogether."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    plain = projection(encode=[PRODUCT], denoise=[PRODUCT], guide=[PRODUCT], decode=[PRODUCT])
    replace(invented({"matmul": 2.0}), precision="accurate", ttnn="0.70").write(default_file("galaxy"))
    made = Projection.on_this_machine(plain.system, plain.run, plain.num_steps)
    assert made.seconds() == plain.seconds()
    said = "not applied: it is of precision accurate, this is default and it is of ttnn 0.70"
    assert any(said in line for line in markdown(made.to_json()))
    invented({"matmul": 2.0}).write(default_file("galaxy"))
    own = Projection.on_this_machine(plain.system, plain.run, plain.num_steps)
    assert own.seconds()["step"].expected == pytest.approx(2 * plain.seconds()["step"].expected, rel=0.01)
    assert [("not applied" in line) for line in used("galaxy", "default", "fast")] == [False, True]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "has version 2, not 1"),
        ({"version": True}, "has version True"),
        ({"ratios": [1]}, "must be a table of kinds"),
        ({"ratios": {"nonsense": 1.0}}, "'nonsense' is no kind of op"),
        ({"ratios": {"matmul": "fast"}}, "ratio of matmul 'fast' must be a number"),
        ({"ratios": {"matmul": 0}}, "must be from 0.02 to 50"),
        ({"step_ratio": 1e9}, "step_ratio 1e\\+09 must be from"),
        ({"system": 3}, "system 3 must be a text"),
        ({"more": 1}, "entries missing or unknown: more"),
    ],
)
def test_a_file_that_was_changed_is_refused(change, message, tmp_path):
    file = tmp_path / "calibration.json"
    file.write_text(json.dumps(invented({}).to_json() | change))
    with pytest.raises(ValueError, match=message):
        read(file)


def test_every_call_must_be_timed():
    with pytest.raises(ValueError, match="2 calls and 1 times"):
        calibrate(Trace([PRODUCT, SMALL], 0, seconds=[1.0]), GALAXY, step_seconds=1.0, **NAMES)
