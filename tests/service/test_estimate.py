"""Seconds left: measured where there are completed jobs, else projected for cards, else not known."""

import pytest

from models.service.estimate import places, rates
from models.service.jobs import Job

FULL = {"width": 848, "height": 480, "num_frames": 163, "tokens": 44_520, "forwards": 100}
HALF = FULL | {"forwards": 50}


def job(state="queued", about=FULL, **values) -> Job:
    return Job(1, values.pop("id", "a"), "me", state, {}, about, 0.0, **values)


def done(denoise, decode, computed=100) -> Job:
    result = {"seconds": {"denoise": denoise, "decode": decode, "load": 999.0}, "forwards": {"computed": computed}}
    return job("completed", result=result)


def test_the_source():
    assert rates([], None) is None
    assert rates([], (1, 1)) is None
    projected = rates([], (2, 4))
    assert projected.source == "projection"
    assert projected.seconds(FULL) == pytest.approx(463)
    measured = rates([done(100, 20), done(300, 40)], (2, 4))
    assert (measured.source, measured.seconds(FULL)) == ("measured", pytest.approx(230))
    assert measured.seconds(HALF) == pytest.approx(130)


def test_reused_forwards_are_not_counted_as_work():
    assert rates([done(100, 0, computed=50)]).seconds(HALF) == pytest.approx(100)


def test_places_add_up():
    found = rates([done(200, 30)])
    running = job("in_progress", id="r", stage="denoise", step=25, steps=50)
    waiting = [running, job(id="a"), job(id="b", about=HALF)]
    assert places(waiting, found) == {"r": (0, 130.0), "a": (1, 360.0), "b": (2, 490.0)}
    assert places(waiting[1:], found)["a"] == (1, 230.0)
    assert places(waiting, None)["b"] == (2, None)
    later = [job(state, id="r", stage=stage) for state, stage in (("in_progress", "decode"), ("cancelling", "write"))]
    assert [places([each], found)["r"][1] for each in later] == [15.0, 3.0]
