"""Checkpoints in every form: their files and names, LoRAs, downloads, and the tiny one that ships with the package."""

from pathlib import Path

TINY = Path(__file__).parent / "tiny"
"""The checkpoint that ships with the package, under the name `tiny`. Its `README.md` is its model card."""
