"""Editing by RF-inversion against its formulas, written out in float32 on Diffusers' modules."""

import itertools

import pytest
import torch

from models.machine.errors import InputError
from models.mochi.editing import Edit
from models.mochi.sampling.schedule import linear_quadratic_schedule
from models.reference.metrics import relative_rmse
from tests.mochi.test_sources import ASKED, PROMPT, SIZE, clip, encoded_by, modules, pipe, velocities  # noqa: F401 (fixtures)
from tests.support import check

pytestmark = pytest.mark.alone  # Meshes and pipelines leave memory behind.

EDIT = {name: value for name, value in ASKED.items() if name != "seed"} | {"height": 32, "width": 48, "edit": True}


def expected(models, sigmas, scale, edit):
    """Back to the noise with a blank prompt, and forth with the prompt, guidance and eta."""
    video, velocity = encoded_by(models, clip()), velocities(models)
    state = video.clone()
    for now, after in itertools.pairwise(sigmas[::-1]):
        state = state - (after - now) * velocity(state, now)[1]
    for eta, (now, after) in zip(edit.etas(len(sigmas) - 1), itertools.pairwise(sigmas), strict=True):
        one, none = velocity(state, now)
        towards = (video - state) / now
        state = state + (now - after) * ((1 - eta) * (none + scale * (one - none)) + eta * towards)
    return state


@pytest.mark.parametrize("edit", [Edit(), Edit(0.0, 0.5), Edit(0.6, 1.0)], ids=str)
def test_against_a_loop_of_diffusers_modules(pipe, modules, edit):  # noqa: F811
    made = pipe(**EDIT, video=clip(), eta=edit.eta, eta_end=edit.end)
    sigmas = linear_quadratic_schedule(6, pipe.defaults.threshold_noise)
    exact, rounded = (expected(models, sigmas, 3.0, edit) for models in modules.values())
    for frame in range(2):
        # The forwards back and forth are 18, with T5 and the encoder before them.
        check(made.frames[:, :, frame], exact[:, :, frame], rounded[:, :, frame], min_pcc=0.999, max_rmse=0.05)
    assert made.sigmas == sigmas
    assert set(made.seconds) == {"encode_video", "invert", "encode", "denoise", "decode"}


def test_eta_of_one_to_the_end_is_the_video(pipe):  # noqa: F811
    """The whole way is straight, so that the last step ends in the video's own latents."""
    held = Edit(1.0, 1.0)
    assert held.etas(4) == [1.0, 0.75, 0.5, 0.25]
    seen = []
    made = pipe(**EDIT, video=clip(), eta=1.0, eta_end=1.0, on_state=lambda video, state: seen.append(state.step))
    assert seen == [1, 2, 3, 4, 5, 6], "what the caller watches is called too"
    start = pipe.encode_video(clip())
    free = pipe(**EDIT, video=clip(), eta=0.0).frames
    assert relative_rmse(start, made.frames) < 0.7 * relative_rmse(start, free)


def test_no_noise_is_drawn(pipe):  # noqa: F811
    both = [pipe(**EDIT, video=clip(), seed=seed).frames for seed in (1, 2)]
    assert torch.equal(*both)
    two = pipe(**EDIT | {"prompt": [PROMPT, "a blue square"]}, video=clip(), seed=1).frames
    assert torch.equal(two[:1], both[0])


def test_etas():
    assert Edit(0.9, 0.5).etas(4) == pytest.approx([0.9, 0.45, 0, 0])
    assert Edit(0.9, 0.0).etas(3) == [0, 0, 0]
    assert Edit(0.9, 0.35).etas(30)[:2] == pytest.approx([0.9, 0.9 * (1 - 1 / 10.5)])
    assert Edit(0.9, 0.35).etas(30)[11] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "edit needs what is edited"),
        ({"video": 1, "strength": 0.5}, "give one"),
        ({"video": 1, "solver": "unipc"}, "its solver is euler, not unipc"),
        ({"video": 1, "eta": 1.2}, "eta 1.2 and eta_end 0.35 must be from 0 to 1"),
        ({"video": 1, "eta": "x"}, "eta 'x' must be a number"),
        ({"video": 1, "edit": 3}, "edit 3 must be true or false"),
        ({"video": 1, "edit": False, "eta_end": 0.5}, "give edit too"),
    ],
)
def test_what_is_refused(pipe, options, message):  # noqa: F811
    if "video" in options:
        options = options | {"video": clip()}
    with pytest.raises(InputError, match=message):
        pipe(**EDIT | options)


def test_the_command(pipe, tmp_path):  # noqa: F811
    """`generate --edit` is refused together with what excludes it, before a mesh opens."""
    from models.jobs.generate import GenerateRequest, plan
    from models.jobs.video import write_mp4
    from models.mochi.setup import Request, VideoRequest

    write_mp4(clip(), tmp_path / "a.mp4")
    video = VideoRequest(height=32, width=48, num_frames=7, num_steps=3)
    own = Request(mesh="1x2", mode="golden", video=video)
    asked = {"prompt": "x", "request": own, "out": str(tmp_path / "b.mp4"), "source": str(tmp_path / "a.mp4")}
    job = plan(GenerateRequest(**asked, edit=True, eta=0.5))
    assert job.video.whole is None
    job.reservation.release()
    with pytest.raises(InputError, match="give one"):
        plan(GenerateRequest(**asked, edit=True, strength=0.5))
    with pytest.raises(InputError, match="give edit too"):
        plan(GenerateRequest(**asked, eta=0.5))
    with pytest.raises(InputError, match="give --video FILE"):
        plan(GenerateRequest(**asked | {"source": None}, edit=True))
    assert SIZE["num_frames"] == 7
