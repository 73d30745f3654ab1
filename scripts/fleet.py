"""`mochi-tt fleet`: many boxes on paper."""

from __future__ import annotations

from models.service.simulation import limits, rows


def fleet() -> None:
    """Simulate a day of boxes that share a database (docs/service.md), and print what limits them. On paper only."""
    print("SIMULATION: projected seconds a video, assumed failures, a measured database; no cards")
    for table in (rows(), limits()):
        print()
        for number, row in enumerate(table):
            print(f"| {' | '.join(row)} |")
            if not number:
                print("|" + "---|" * len(row))
