"""Seconds left: measured where there are completed jobs, else projected for cards, else not known; and progress."""

import pytest

from models.service.estimate import left, places, rates
from models.service.jobs import Job
from models.service.worker import spans

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


EDIT = FULL | {"inversions": 50, "is_encoded": True}


def edited(encode_video=40.0, invert=100.0) -> Job:
    seconds = {"encode_video": encode_video, "invert": invert, "denoise": 200.0, "decode": 20.0, "load": 999.0}
    return job("completed", about=EDIT, result={"seconds": seconds, "forwards": {"computed": 100}})


def test_inversion_counts_as_forwards_and_encoding_by_itself():
    assert rates([edited()]).seconds(FULL) == pytest.approx(220), "neither is in the pixels of other jobs"
    assert rates([edited()]).seconds(EDIT) == pytest.approx(360)
    assert rates([edited(), done(200, 20)]).seconds(EDIT) == pytest.approx(360)
    assert rates([done(200, 20)]).seconds(EDIT) == pytest.approx(340), "encoding is thought as long as the rest"
    assert rates([], (2, 4)).seconds(EDIT) == pytest.approx(463 * 1.5)


def test_a_run_without_a_forward_says_nothing_of_their_seconds():
    still = job("completed", about=FULL | {"forwards": 0}, result=done(0.0, 20, computed=0).result)
    assert rates([still]) is None
    assert rates([still, done(200, 20)]).seconds(FULL) == pytest.approx(220)


@pytest.mark.parametrize(
    ("stage", "step", "steps", "seconds"),
    [
        ("encode_video", 0, 1, 360),
        ("encode_video", 1, 1, 320),
        ("invert", 0, 50, 320),
        ("invert", 25, 50, 270),
        ("encode", 1, 2, 220),
        ("denoise", 25, 50, 120),
        ("decode", 0, 1, 10),
        ("write", 0, 1, 2),
    ],
)
def test_what_is_left_of_an_edit(stage, step, steps, seconds):
    running = job("in_progress", about=EDIT, stage=stage, step=step, steps=steps)
    assert left(running, rates([edited()])) == pytest.approx(seconds)


@pytest.mark.parametrize("about", [{}, FULL, FULL | {"is_encoded": True}, EDIT, EDIT | {"forwards": 0}])
def test_progress_only_grows(about):
    found = list(spans(about).values())
    assert [first for first, _ in found] == [0, *(last for _, last in found[:-1])]
    assert all(first <= last for first, last in found)


def test_progress_of_a_source():
    assert spans(FULL) | {"encode": (0, 3), "denoise": (3, 90), "decode": (90, 97)} == spans(FULL)
    found = spans(EDIT)
    assert (found["encode_video"], found["invert"], found["denoise"]) == ((0, 5), (5, 32), (35, 90))
