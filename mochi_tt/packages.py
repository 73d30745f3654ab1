"""Our packages beside foreign ones of the same name.

Python takes a package name for the first folder on its path that has one. This module makes `models`, `weight_cache`
and `scripts` mean the folders beside `mochi_tt`, wherever they stand on the path, and adds the foreign folders behind
them: `models.mochi` is ours and `models.tt_dit` is tt-metal's, in one process.
"""

from __future__ import annotations

import importlib.util
import pkgutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType

NAMES = ("models", "weight_cache", "scripts")
_ROOT = Path(__file__).resolve().parents[1]


def claim_packages() -> None:
    """Make the package names of this project mean this project's folders.

    A foreign package that is imported already stays what it is, and finds our modules first from then on.

    Raises:
        ImportError: one of our modules cannot be reached, because a foreign one of its name, or a foreign file that is
            no package, is imported already.
    """
    for name in NAMES:
        folder = _ROOT / name
        known = sys.modules.get(name)
        if known is None:
            known = _import_ours(name, folder)
        elif not _is_in(known, folder):
            _refuse_file(name, known)
            _refuse_imported(name, folder)
            known.__path__ = [str(folder), *known.__path__]
        known.__path__ = _LivePath(name, known.__path__)


class _LivePath(list[str]):
    """Folders of a package: those given, and behind them what Python's path has of that name at the time of asking."""

    def __init__(self, name: str, folders: Iterable[str]) -> None:
        super().__init__(folders)
        self._name = name

    def __iter__(self) -> Iterator[str]:
        return iter(pkgutil.extend_path(list(super().__iter__()), self._name))


def _import_ours(name: str, folder: Path) -> ModuleType:
    """Import the package in `folder`, whatever the path says."""
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _is_in(module: ModuleType, folder: Path) -> bool:
    """Whether a package's first folder is `folder`."""
    path = list(getattr(module, "__path__", []))
    return bool(path) and Path(path[0]).resolve() == folder


def _refuse_file(name: str, known: ModuleType) -> None:
    """Refuse a foreign module of the name that is no package."""
    if not hasattr(known, "__path__"):
        where = getattr(known, "__file__", "of an unknown place")
        raise ImportError(
            f"{name} is already imported from the file {where}, so mochi-tt cannot use its own package "
            "of that name: rename the file, or run mochi-tt in a process of its own"
        )


def _refuse_imported(name: str, folder: Path) -> None:
    """Refuse a foreign package of which a module with the name of one of ours is imported already."""
    ours = {entry.stem for entry in folder.iterdir() if entry.suffix == ".py" or (entry / "__init__.py").is_file()}
    for stem in sorted(ours - {"__init__"}):
        other = sys.modules.get(f"{name}.{stem}")
        if other is not None:
            where = getattr(other, "__file__", None) or "another place"
            raise ImportError(
                f"{name}.{stem} is already imported from {where}, so mochi-tt cannot use its own of that name: "
                "import mochi_tt before it, or run mochi-tt in a process of its own"
            )
