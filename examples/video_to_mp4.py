"""From a prompt to an mp4 in six lines. Writes `red_ball.mp4`; needs neither a card nor a download."""

from mochi_tt import MochiPipeline, export_to_video

size = {"height": 64, "width": 64, "num_frames": 13}  # what the tiny model was trained on
with MochiPipeline.from_pretrained("tiny", mesh="2x4") as pipe:
    frames = pipe(prompt="a red ball rolls left", num_inference_steps=16, seed=0, **size).frames
export_to_video(frames[0], "red_ball.mp4", fps=30)
