"""What a user should know of the steps of a run before it begins, each in a line."""

from __future__ import annotations

from collections.abc import Sequence

from models.mochi.sampling.reuse import ReusePolicy, nothing_fresh

_MOST_NAMED = 12


def notes(
    branches: Sequence[int],
    reuse: ReusePolicy | None = None,
    *,
    guidance_reuse: int | None = None,
    on_halves: bool = False,
    whole: str | None = None,
) -> list[str]:
    """Return the lines of a run.

    Args:
        branches: for each step, how many branches of guidance take part.
        reuse: of blocks; None for none.
        guidance_reuse: K that the user asked for.
        on_halves: whether the branches run beside each other.
        whole: a layout of the same mesh without halves, if one is known.
    """
    lines = []
    better = f"layout {whole}" if whole is not None else "a layout without cfg"
    if on_halves and guidance_reuse is not None and guidance_reuse > 1:
        lines.append(
            "guidance_reuse saves nothing on a layout of two halves, which compute both branches at once: it is left "
            f"out; {better} takes it"
        )
    unguided = sum(number == 1 for number in branches)
    if on_halves and unguided:
        lines.append(
            f"{unguided} of {len(branches)} steps have no guidance, which saves no time on a layout of two halves, "
            f"because the other half idles: {better} computes them with all chips"
        )
    if late := nothing_fresh(reuse, branches):
        many = len(late) > 1
        lines.append(
            f"reuse: step{'s' * many} {_named(late)} {'are' if many else 'is'} computed, because the last computed "
            f"step before {'each' if many else 'it'} left out the unconditional branch"
        )
    if (note := getattr(reuse, "note", None)) is not None:
        lines.append(note)
    return lines


def _named(steps: Sequence[int]) -> str:
    rest = len(steps) - _MOST_NAMED
    return ", ".join(map(str, steps[:_MOST_NAMED])) + (f" and {rest} more" if rest > 0 else "")
