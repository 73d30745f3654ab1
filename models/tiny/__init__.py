"""The tiny trained Mochi: its world of moving shapes, how it is trained, and how its videos are judged.

`CHECKPOINT` is the model that ships with the package, under the name `tiny`; `checkpoint/README.md` is its card.
"""

from pathlib import Path

CHECKPOINT = Path(__file__).parent / "checkpoint"
