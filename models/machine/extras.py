"""Optional packages: what is needed for some jobs only is an extra of the installation."""

from __future__ import annotations

import importlib
from types import ModuleType

from models.machine.errors import MissingInputError


def require(package: str, extra: str, purpose: str) -> ModuleType:
    """Import an optional package.

    Args:
        package: to import.
        extra: of mochi-tt that brings it.
        purpose: what it is needed for, for the message.

    Raises:
        MissingInputError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package.partition(".")[0]:
            raise
        raise MissingInputError(
            f"{purpose} needs the package {package}, which is not installed: pip install 'mochi-tt[{extra}]', or "
            "make setup in a checkout"
        ) from error
