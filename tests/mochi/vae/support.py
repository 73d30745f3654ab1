"""A small random VAE, its decoder on the mesh, and comparisons frame by frame."""

import functools

import torch

from models.mochi.vae.config import DecoderConfig
from models.mochi.vae.decoder import MochiVaeDecoder
from models.reference.genmo_vae import decode_by_formulas
from models.reference.metrics import relative_rmse
from models.reference.random_weights import randomize_
from tests.support import StateDict, check

# Between two decodes; PyTorch's own bfloat16 is about 0.013 from float32.
SAME = 0.02

# Two widths of group (1 and 2 or 3 channels), several blocks in one place, one in the others.
SMALL = {
    "encoder_block_out_channels": (32, 32, 32, 32),
    "decoder_block_out_channels": (32, 64, 64, 96),
    "layers_per_block": (1, 1, 1, 2, 1),
    "add_attention_block": (False,) * 5,
}


@functools.cache
def reference(dtype: torch.dtype = torch.float32):
    from diffusers import AutoencoderKLMochi

    model = AutoencoderKLMochi(**SMALL).eval()
    randomize_(model.decoder, seed=4)
    model.encoder = None
    return model.to(dtype)


class Component:
    """The VAE component of a checkpoint, with some encoder weights that must not be claimed."""

    def __init__(self):
        self.config = dict(reference().config)
        self._decoder = StateDict(reference().decoder, "decoder.")

    def keys(self):
        return [*self._decoder.keys(), "encoder.proj_in.weight"]

    def shape(self, key):
        return self._decoder.shape(key)

    def tensor(self, key):
        return self._decoder.tensor(key)


def decoder(mesh, split: str | None = None, first_frames: str = "diffusers") -> MochiVaeDecoder:
    return MochiVaeDecoder.from_checkpoint(Component(), mesh, split=split, first_frames=first_frames)


def config() -> DecoderConfig:
    return DecoderConfig.from_dict(reference().config)


def latents(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(1, 12, *size, generator=torch.Generator().manual_seed(seed))


@functools.cache
def expected(size: tuple[int, ...], dtype: torch.dtype = torch.float32, *, keep_all_frames: bool = False):
    """Raw frames [F, H, W, 3] of Diffusers' decoder."""
    from models.mochi.vae.frames import denormalise

    model = reference(dtype)
    model.drop_last_temporal_frames = not keep_all_frames
    with torch.no_grad():
        video = model.decode(denormalise(latents(*size), model.config).to(dtype), return_dict=False)[0]
    return video.float()[0].permute(1, 2, 3, 0)


@functools.cache
def expected_of_genmo(size: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Frames [F, H, W, 3] of the decoder by its formulas, Genmo's way."""
    from models.mochi.vae.frames import denormalise

    model = reference(dtype)
    with torch.no_grad():
        given = denormalise(latents(*size), model.config).to(dtype)
        video = decode_by_formulas(model.decoder.state_dict(), model.config, given)
    return video.float()[0].permute(1, 2, 3, 0)


def check_frames(actual: torch.Tensor, size: tuple[int, ...], *, keep_all_frames: bool = False) -> None:
    """Every frame, and every pixel row and column next to a seam or an edge is among them, against Diffusers'."""
    exact = expected(size, keep_all_frames=keep_all_frames)
    rounded = expected(size, torch.bfloat16, keep_all_frames=keep_all_frames)
    check_each_frame(actual, exact, rounded)


def check_frames_of_genmo(actual: torch.Tensor, size: tuple[int, ...]) -> None:
    """Every frame against the formulas, Genmo's way."""
    check_each_frame(actual, expected_of_genmo(size), expected_of_genmo(size, torch.bfloat16))


def check_each_frame(actual: torch.Tensor, exact: torch.Tensor, rounded: torch.Tensor) -> None:
    assert actual.shape == exact.shape
    for frame in range(len(exact)):
        check(actual[frame], exact[frame], rounded[frame])


def check_same(one: torch.Tensor, other: torch.Tensor) -> None:
    """Two decodes agree to bfloat16 rounding, each frame and each row and column of pixels on its own."""
    assert one.shape == other.shape
    for dim in range(3):
        for index in range(one.shape[dim]):
            error = relative_rmse(other.select(dim, index), one.select(dim, index))
            assert error <= SAME, f"{('frame', 'row', 'column')[dim]} {index}: relative RMSE {error:.5f} > {SAME}"
