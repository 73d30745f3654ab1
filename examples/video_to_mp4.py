"""From a prompt to an mp4 in four lines. Writes `red_ball.mp4`; needs neither a card nor a download."""

from mochi_tt import MochiPipeline, export_to_video

with MochiPipeline.from_pretrained("tiny", mesh="2x4") as pipe:
    frames = pipe(prompt="a red ball rolls left", seed=0).frames
export_to_video(frames[0], "red_ball.mp4", fps=30)
