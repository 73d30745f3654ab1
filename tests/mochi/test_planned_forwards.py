"""What a video will compute, known before it runs."""

import pytest

from models.mochi.setup import Request, VideoRequest, planned_forwards, resolve


def counts(on_halves=False, **video):
    setup = resolve(Request(mode="dry-run", video=VideoRequest(num_steps=12, **video)))
    made = planned_forwards(setup.video, on_halves=on_halves).to_json()
    return [
        *(made[branch][what] for branch in ("conditional", "unconditional") for what in ("computed", "reused")),
        made["reused_steps"],
    ]


@pytest.mark.parametrize(
    ("video", "expected"),
    [
        ({}, [12, 0, 12, 0, []]),
        ({"guidance_scale": 1.0}, [12, 0, 0, 0, []]),
        ({"guidance_interval": "0:0.5"}, [12, 0, 6, 0, []]),
        ({"guidance_reuse": 3}, [12, 0, 8, 0, []]),
        ({"reuse": "steps:3,4,6"}, [9, 3, 9, 3, [3, 4, 6]]),
        ({"reuse": "0.1"}, [12, 0, 12, 0, []]),  # the threshold decides only when it runs
        ({"reuse": "steps:10", "guidance_interval": "0:0.5"}, [11, 1, 6, 0, [10]]),
    ],
    ids=str,
)
def test_counts(video, expected):
    assert counts(**video) == expected


def test_halves_compute_both_branches_at_once():
    assert counts(on_halves=True, guidance_reuse=3) == [12, 0, 12, 0, []]
