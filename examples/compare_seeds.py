"""One prompt from several seeds, side by side in one mp4, and how far the videos are from the first one.

Run it as `python examples/compare_seeds.py [STEPS]`. It writes `seeds.mp4`.
"""

import sys

import numpy as np

from mochi_tt import MochiPipeline
from models.jobs.video import write_mp4
from models.mochi.vae.frames import to_uint8

PROMPT = "a blue square moves up"
SEEDS = (0, 1, 2)


def main(steps: int = 16) -> None:
    """Make a video for each seed with one pipeline: the weights are loaded once."""
    videos = []
    with MochiPipeline.from_pretrained("tiny", mesh="1x2") as pipe:
        for seed in SEEDS:
            made = pipe(prompt=PROMPT, num_inference_steps=steps, seed=seed, output_type="np")
            videos.append(made.frames[0])
            difference = float(np.abs(videos[-1] - videos[0]).mean())
            print(f"seed {seed}: mean difference from seed {SEEDS[0]} {difference:.4f}, seconds {made.seconds}")
    write_mp4(to_uint8(np.concatenate(videos, axis=2)), "seeds.mp4")
    print("wrote seeds.mp4")


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
