"""Directory of the store: as requested, else from the environment, else in the user's cache directory."""

from __future__ import annotations

import os
from pathlib import Path

# Environment variables for the cache directory. Users of tt-metal's own video models have already set the second one.
VARIABLES = ("MOCHI_TT_CACHE_DIR", "TT_DIT_CACHE_DIR")
FOLDER = "mochi-weights"


def store_directory(cache_dir: str | Path | None = None) -> Path:
    """Return the store's directory, which need not exist. The environment is read at each call.

    Args:
        cache_dir: cache directory to use. By default it is that of `MOCHI_TT_CACHE_DIR`, else of `TT_DIT_CACHE_DIR`,
            else `mochi-tt` in the user's cache directory. The store is a folder in it, so that a directory shared with
            other programs stays tidy.
    """
    if cache_dir is None:
        cache_dir = next((os.environ[name] for name in VARIABLES if os.environ.get(name)), None)
    if cache_dir is None:
        import platformdirs

        cache_dir = platformdirs.user_cache_path("mochi-tt")
    return Path(cache_dir).expanduser() / FOLDER
