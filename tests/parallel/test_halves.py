"""Two halves of a mesh: what they swap, chip by chip, and sampling with a branch of guidance on each."""

import pytest
import torch
import ttnn

from models.mochi.sampling.branches import GuidanceParallel, StepKind
from models.mochi.sampling.denoise import denoise
from models.mochi.transformer import MochiTransformer
from models.parallel import Halves, Layout, Mesh
from models.reference.metrics import relative_rmse
from tests.support import SMALL, StateDict, config_of, randn, reference

pytestmark = pytest.mark.alone
LAYOUTS = [
    "1x2cfg1sp0tp1",
    "1x8cfg1sp0tp1",
    "8x1cfg0sp0tp1",
    "2x2cfg0sp0tp1",
    "2x2cfg1sp1tp0",
    *(f"2x4cfg{cut}{roles}" for cut in (0, 1) for roles in ("sp0tp1", "sp1tp0")),
]


@pytest.fixture
def halves(request, open_layout):
    """The halves of a mesh, by layout."""
    layout = Layout.parse(request.param)
    rows, columns = layout.mesh_shape
    made = Halves(open_layout(f"{rows}x{columns}sp0tp1").device, layout)
    yield made
    made.release()


@pytest.mark.parametrize("halves", [*LAYOUTS, "4x8cfg0sp1tp0"], indirect=True)
def test_swap(halves):
    """Twice, so that the sockets are used again."""
    for seed in (1, 3):
        rows = 32 * halves.conditional.sp.size
        x, y = randn(1, 1, rows, 48, seed=seed), randn(1, 1, rows, 48, seed=seed + 1)
        on_conditional = halves.conditional.upload(x, dtype=ttnn.float32, sp=2)
        on_unconditional = halves.unconditional.upload(y, dtype=ttnn.float32, sp=2)
        got_y, got_x = halves.swap(on_conditional, on_unconditional)
        assert got_y.shape == on_conditional.shape
        for mesh, got, expected in ((halves.conditional, got_y, y), (halves.unconditional, got_x, x)):
            for tp in range(mesh.tp.size):  # every TP replica, not only the first
                parts = ttnn.get_device_tensors(ttnn.from_device(got))
                columns = mesh.layout.mesh_shape[1]
                chips = [(sp, tp) if mesh.sp.index == 0 else (tp, sp) for sp in range(mesh.sp.size)]
                shards = [ttnn.to_torch(parts[row * columns + column]) for row, column in chips]
                assert torch.equal(torch.cat(shards, dim=2), expected)


def loaded(mesh: Mesh) -> MochiTransformer:
    model = reference(**SMALL)
    ours = MochiTransformer(config_of(model), mesh)
    ours.load(StateDict(model))
    return ours


@pytest.mark.parametrize(
    ("halves", "rows"),
    [
        ("1x2cfg1sp0tp1", 6),
        pytest.param("1x2cfg1sp0tp1", 14, marks=pytest.mark.full),
        pytest.param("2x4cfg0sp0tp1", 6, marks=pytest.mark.full),
        ("2x4cfg0sp0tp1", 14),
        pytest.param("4x8cfg0sp1tp0", 6, marks=pytest.mark.full),
        pytest.param("4x8cfg0sp1tp0", 14, marks=pytest.mark.full),
    ],
    indirect=["halves"],
)
def test_sampling_is_that_of_the_branches_in_turn(halves, rows):
    """Prompts of other lengths on either half, 30 and 70 tokens; a step at scale 1 between guided ones."""
    arguments = {
        "sigmas": [1.0, 0.9, 0.5, 0.0],
        "guidance": [4.5, 1.0, 3.0],
        "prompt": (randn(1, 9, SMALL["text_embed_dim"], seed=2), torch.ones(1, 9, dtype=torch.bool)),
        "negative": (torch.zeros(1, 4, SMALL["text_embed_dim"]), torch.zeros(1, 4, dtype=torch.bool)),
    }
    latents = randn(1, 12, 2, rows, 10, seed=1)
    parallel = GuidanceParallel(halves, loaded(halves.unconditional))
    together = denoise(loaded(halves.conditional), latents, parallel=parallel, **arguments)
    in_turn = denoise(loaded(halves.conditional), latents, **arguments)
    # The same arithmetic, but for the step at scale 1: halves round ``u + (c - u)``, where one branch is just ``c``.
    assert relative_rmse(in_turn, together) < 1e-5


class _GuideOnly:
    """Guides one step and leaves the others to the conditional branch."""

    def __init__(self, guided: int) -> None:
        self.guided = guided

    def kind(self, index: int) -> StepKind:
        return StepKind.GUIDED if index == self.guided else StepKind.CONDITIONAL


@pytest.mark.parametrize(
    "halves", ["1x2cfg1sp0tp1", pytest.param("2x2cfg0sp0tp1", marks=pytest.mark.full)], indirect=True
)
def test_a_policy_is_followed_on_halves(halves, open_layout):
    """Only step 1 is guided: the same as scales of 1 in the others, and not the same as guiding all."""
    model, noise = reference(**SMALL), randn(1, 12, 2, 6, 10, seed=4)
    config = config_of(model)
    models = [MochiTransformer(config, half) for half in (halves.conditional, halves.unconditional)]
    for ours in models:
        ours.load(StateDict(model))
    prompts = [(randn(1, 9, SMALL["text_embed_dim"], seed=seed), torch.ones(1, 9, dtype=torch.bool)) for seed in (5, 6)]

    def run(guidance, policy=None):
        return denoise(
            models[0],
            noise,
            sigmas=[1.0, 0.8, 0.5, 0.0],
            guidance=guidance,
            prompt=prompts[0],
            negative=prompts[1],
            parallel=GuidanceParallel(halves, models[1]),
            policy=policy,
        )

    followed = run([4.5] * 3, _GuideOnly(1))
    assert relative_rmse(run([1.0, 4.5, 1.0]), followed) < 1e-5
    assert relative_rmse(run([4.5] * 3), followed) > 0.05


def test_a_layout_without_halves_is_refused(open_layout):
    device = open_layout("2x2sp0tp1").device
    with pytest.raises(ValueError, match="2x2sp0tp1 does not cut mesh 2x2 in halves: name it with cfg"):
        Halves(device, Layout.parse("2x2sp0tp1"))
    with pytest.raises(ValueError, match="2x2cfg0sp0tp1 is for two halves of a mesh"):
        Mesh(device, Layout.parse("2x2cfg0sp0tp1"))
