"""From a prompt to an mp4 in six lines. Writes `red_ball.mp4`; needs neither a card nor a download."""

from mochi_tt import MochiPipeline
from models.jobs.video import write_mp4
from models.mochi.vae.frames import to_uint8

size = {"height": 64, "width": 64, "num_frames": 13}  # what the tiny model was trained on
with MochiPipeline.from_pretrained("tiny", mesh="2x4") as pipe:
    frames = pipe(prompt="a red ball rolls left", num_inference_steps=16, seed=0, output_type="np", **size).frames
write_mp4(to_uint8(frames[0]), "red_ball.mp4")
