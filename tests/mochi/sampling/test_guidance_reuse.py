"""Reuse of the unconditional branch: which steps, and what they compute on a mesh."""

from types import SimpleNamespace

import pytest
import torch

from models.machine.errors import InputError
from models.mochi.sampling.branches import StepKind
from models.mochi.sampling.denoise import ReuseUnconditional, denoise
from models.mochi.sampling.schedule import guidance_schedule, model_times
from models.mochi.transformer import MochiTransformer
from models.reference.metrics import relative_rmse
from tests.support import SMALL, StateDict, config_of, randn, reference

LETTER = {StepKind.GUIDED: "g", StepKind.CONDITIONAL: "c", StepKind.DIFFERENCE: "d"}


def kinds(scales, every):
    policy = ReuseUnconditional(scales, every)
    return "".join(LETTER[policy.kind(index)] for index in range(len(scales)))


@pytest.mark.parametrize(
    ("scales", "every", "expected"),
    [
        ([3.0] * 12, 1, "g" * 12),
        ([3.0] * 12, 2, "gggggdgdgdgg"),
        ([3.0] * 12, 3, "gggggddgddgg"),
        ([3.0] * 12, 100, "gggggddddddg"),
        ([3.0] * 6 + [1.0] + [3.0] * 5, 2, "gggggdcgdgdg"),
        ([1.0] * 8 + [3.0] * 4, 2, "ccccccccgdgg"),
        ([3.0], 2, "g"),
        ([3.0] * 2, 2, "gg"),
        ([1.0] * 5, 2, "ccccc"),
        (guidance_schedule(3, 12, "0.5:1"), 2, "ccccccgdgdgg"),
    ],
)
def test_which_steps_compute_the_unconditional_branch(scales, every, expected):
    assert kinds(scales, every) == expected


SIGMAS = [1.0, 0.95, 0.85, 0.7, 0.5, 0.3, 0.0]
GUIDANCE = [4.0, 4.0, 4.0, 3.0, 1.0, 3.0]
PROMPTS = [(randn(1, 9, SMALL["text_embed_dim"], seed=seed), torch.ones(1, 9, dtype=torch.bool)) for seed in (2, 3)]
NOISE = randn(1, 12, 2, 6, 10, seed=1)


class Script:
    """A policy that follows letters."""

    def __init__(self, letters):
        self.letters = letters

    def kind(self, index):
        return next(kind for kind, letter in LETTER.items() if letter == self.letters[index])


def on_host(model, letters):
    state, difference = NOISE.clone(), None
    for index, letter in enumerate(letters):
        time = torch.tensor([model_times(SIGMAS)[index]])
        with torch.no_grad():
            velocity = model(state, PROMPTS[0][0], time, PROMPTS[0][1], return_dict=False)[0]
            if letter == "g":
                difference = model(state, PROMPTS[1][0], time, PROMPTS[1][1], return_dict=False)[0] - velocity
        if letter != "c":
            velocity = velocity + (1 - GUIDANCE[index]) * difference
        state = state + (SIGMAS[index] - SIGMAS[index + 1]) * velocity
    return state


@pytest.mark.parametrize("mesh", ["1x2sp0tp1"], indirect=True)
def test_a_kept_difference_guides_as_on_the_host(mesh):
    model = reference(**SMALL)
    ours = MochiTransformer(config_of(model), mesh)
    ours.load(StateDict(model))
    calls, forward = [], ours.__class__.__call__
    arguments = dict(sigmas=SIGMAS, guidance=GUIDANCE, prompt=PROMPTS[0], negative=PROMPTS[1])

    def counted(self, *given):
        calls.append(1)
        return forward(self, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MochiTransformer, "__call__", counted)
        made = denoise(ours, NOISE, policy=Script("gddgcd"), **arguments)
    assert len(calls) == 8
    assert relative_rmse(on_host(model, "gddgcd"), made) < 0.02
    assert relative_rmse(on_host(model, "ggggcg"), made) > 0.04
    # K = 1 reuses nothing: the same bits as without.
    every = denoise(ours, NOISE, policy=ReuseUnconditional(GUIDANCE, 1), **arguments)
    assert torch.equal(every, denoise(ours, NOISE, **arguments))


def test_halves_say_that_they_save_nothing():
    """The reuse is left out, and that is said; a policy that insists is refused by the sampler."""
    from models.mochi.defaults import Defaults
    from models.mochi.geometry import Scales
    from models.mochi.inputs import Run

    def asked(**options):
        size, noise = (32, 32, 7), (None, None)
        return Run.of(1, Defaults(), Scales(), None, size, 2, 3.0, noise, None, None, True, seed=0, **options)

    for options in ({"guidance_reuse": 2}, {"policy": ReuseUnconditional([3.0, 3.0], 2)}):
        run = asked(**options)
        assert run.policy is None
        (line,) = run.notes
        assert line.startswith("guidance_reuse saves nothing on a layout of two halves")
    assert asked().notes == []
    assert asked(guidance_reuse=1).notes == []

    class Declared:
        config = SimpleNamespace(patch_size=2, in_channels=12)
        mesh = None
        grid = staticmethod(lambda *size: None)
        prepare = staticmethod(lambda *given: None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("models.mochi.sampling.denoise.Schedule.upload", lambda *given: None)
        with pytest.raises(InputError, match="two halves compute both branches at once"):
            denoise(
                Declared(),
                NOISE,
                sigmas=SIGMAS,
                guidance=GUIDANCE,
                prompt=PROMPTS[0],
                negative=PROMPTS[1],
                parallel=SimpleNamespace(unconditional=None),
                policy=Script("gddgcd"),
            )
