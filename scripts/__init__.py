"""Command-line entry points: thin, with their logic in `models`."""
