"""`mochi-tt doctor`: what is here, and the way to hardware."""

from models.jobs.doctor import describe


def doctor() -> None:
    """Say what is here: cards, ttnn, compiler, mesh, mode, and the way to hardware."""
    print(describe())
