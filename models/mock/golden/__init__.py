"""Golden execution: numbers on a mock mesh, computed on the host for each device.

`install` attaches it to every ttnn op of the process, and `uninstall` detaches it. Calls of both are counted, so that
several meshes may be open. Model code never imports this package.
"""

from models.mock.golden.engine import Engine
from models.mock.golden.errors import GoldenError
from models.mock.golden.rules import RULES, Rule

__all__ = ["RULES", "Engine", "GoldenError", "Rule", "active", "install", "uninstall"]

_engine: Engine | None = None
_count = 0


def install() -> Engine:
    """Start golden execution, or join it if it runs, and return the engine."""
    global _engine, _count
    if _engine is None:
        # These imports fill the table of rules.
        from models.mock.golden import (  # noqa: F401
            ops_attention,
            ops_collectives,
            ops_elementwise,
            ops_fused,
            ops_layout,
            ops_matrix,
            ops_norm,
            ops_text,
            ops_vision,
        )

        _engine = Engine()
        _engine.attach()
    _count += 1
    return _engine


def uninstall() -> None:
    """Leave golden execution; the last `uninstall` restores ttnn.

    Raises:
        RuntimeError: golden execution is not installed.
    """
    global _engine, _count
    if _count == 0:
        raise RuntimeError("golden execution is not installed")
    _count -= 1
    if _count == 0 and _engine is not None:
        _engine.detach()
        _engine = None


def active() -> Engine | None:
    """Return the running engine, or None."""
    return _engine
