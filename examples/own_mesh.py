"""A mesh of your own: open it once, make several videos, keep their latents, and decode one of them later.

Run it as `python examples/own_mesh.py [STEPS]`. It writes `latents.pt`, `0.mp4` and `1.mp4`.
"""

import sys

import torch

from mochi_tt import MochiPipeline, open_mesh
from models.jobs.video import write_mp4
from models.mochi.vae.frames import to_uint8

PROMPTS = ["a green cross moves to the right", "a yellow triangle grows"]


def main(steps: int = 16) -> None:
    """The mesh outlives the pipelines that are put on it; closing a pipeline leaves the mesh open."""
    with open_mesh("2x2") as mesh:
        print(f"mesh {mesh.shape[0]}x{mesh.shape[1]}, mode {mesh.mode}")

        # Several videos with one pipeline. With output_type="latent" nothing is decoded yet.
        with MochiPipeline.from_pretrained("tiny", mesh=mesh, layout="sp1tp0") as pipe:
            made = pipe(prompt=PROMPTS, num_inference_steps=steps, seed=3, output_type="latent")
        torch.save(made.frames, "latents.pt")
        print(f"kept latents {list(made.frames.shape)}")

        # Later, perhaps in another process: decoding alone. The layout may be another one.
        with MochiPipeline.from_pretrained("tiny", mesh=mesh, layout="sp0tp1") as pipe:
            videos = pipe.decode(torch.load("latents.pt"), "np")
    for index, frames in enumerate(videos):
        write_mp4(to_uint8(frames), f"{index}.mp4")
    print("wrote 0.mp4 and 1.mp4")


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
