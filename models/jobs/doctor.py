"""What this machine has and what it would run: the facts behind `mochi-tt doctor`. Opens no mesh."""

import contextlib
import importlib.metadata
import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

from models.device import DEFAULT_MESH, HARDWARE_HINT, cards
from models.machine import simulator
from models.mock.toolchain import (
    COMPILER,
    cache_directory,
    compiler_banner,
    is_complete,
    locate_toolchain,
    package_directory,
)

_SYSTEM_SFPI = Path("/opt/tenstorrent/sfpi")
_THROTTLE = "TT_MM_THROTTLE_PERF"
_PACKAGES = ("torch", "diffusers", "transformers", "numpy", "safetensors", "ziglang")


@dataclass(frozen=True)
class SystemReport:
    """Facts about this machine; `str()` of it is a page for a terminal."""

    cards: tuple[str, ...]
    """Device nodes of the Tenstorrent cards."""
    mode: str
    """Mode that "auto" gives here."""
    mesh: str
    """Mesh used where none is named."""
    ttnn: str | None
    """Installed ttnn, None if it is not."""
    compiler_wanted: str | None
    """Compiler release that fits the installed ttnn."""
    compiler: Path | None
    """Tenstorrent's own compiler, where ttnn looks for it; None if it is not there."""
    compiler_version: str | None
    """What that compiler answers to `--version`."""
    placeholder: Path | None
    """Where the mock's placeholder compiler is or would be; None if ttnn or ziglang is missing."""
    placeholder_built: bool
    """Whether the placeholder is complete (it is built at the first mock open)."""
    versions: tuple[tuple[str, str], ...]
    """Name and version of Python and of the packages that matter; "missing" for one that is absent."""
    caches: tuple[tuple[str, Path], ...]
    """Directories written outside the project, by what they hold."""
    hint: str | None
    """What stands between this machine and a run on hardware; None if nothing does."""
    throttle: str | None
    """Value of TT_MM_THROTTLE_PERF, which slows large products down (docs/hardware.md)."""
    simulator: Path | None
    """Library of the simulator that the environment names."""
    simulator_hint: str | None
    """What stands between this machine and a run on the simulator; None if nothing is seen to."""

    def rows(self) -> list[tuple[str, str]]:
        """(label, value) pairs in reading order."""
        placeholder = "not available (needs ttnn and ziglang)"
        if self.placeholder is not None:
            placeholder = str(self.placeholder) if self.placeholder_built else "built at the first mock open"
        compiler = f"{self.compiler} ({self.compiler_version})" if self.compiler else "none"
        return [
            ("cards", ", ".join(self.cards) or "none"),
            ("mode", f"{self.mode} (what auto gives here)"),
            ("default mesh", self.mesh),
            ("ttnn", self.ttnn or "missing"),
            ("compiler wanted", self.compiler_wanted or "unknown"),
            ("compiler found", compiler),
            ("mock placeholder", placeholder),
            *self.versions,
            *((f"cache: {name}", str(path)) for name, path in self.caches),
            (_THROTTLE, self.throttle or "not set: products run at full power (docs/hardware.md)"),
            ("simulator", str(self.simulator or "none")),
            *([("to hardware", self.hint)] if self.hint else []),
            *([("to the simulator", self.simulator_hint)] if self.simulator_hint else []),
        ]

    def __str__(self) -> str:
        rows = self.rows()
        width = max(len(label) for label, _ in rows)
        return "\n".join(f"{label:<{width}}  {value}" for label, value in rows)


def describe(card_directory: Path | None = None) -> SystemReport:
    """Look at this machine without opening a mesh or importing ttnn.

    Args:
        card_directory: where to look for cards; the kernel driver's directory by default.
    """
    found = tuple(cards(card_directory))
    package, wanted, compiler = None, None, None
    with contextlib.suppress(FileNotFoundError, ValueError):
        package = package_directory()
        wanted = compiler_banner(package)
    if package is not None:
        root = Path(os.environ.get("TT_METAL_RUNTIME_ROOT") or package)
        places = (root / COMPILER, package / COMPILER, _SYSTEM_SFPI / COMPILER.relative_to("runtime/sfpi"))
        compiler = next((place for place in places if place.exists()), None)
    chain = None
    with contextlib.suppress(FileNotFoundError, ValueError):
        chain = locate_toolchain()
    mock = cache_directory()
    hint = None
    if not found:
        hint = HARDWARE_HINT
    elif compiler is None:
        hint = f"cards are present but no RISC-V compiler; install Tenstorrent's sfpi package ({wanted})"
    library, simulator_hint = simulator.named(), simulator.problem()
    if simulator_hint is None and compiler is None:
        simulator_hint = f"no RISC-V compiler; install Tenstorrent's sfpi package ({wanted})"
    return SystemReport(
        cards=found,
        mode="simulator" if library else "hardware" if found else "golden",
        mesh=DEFAULT_MESH,
        ttnn=_version("ttnn"),
        compiler_wanted=wanted,
        compiler=compiler,
        compiler_version=_answer(compiler),
        placeholder=chain.compiler if chain else None,
        placeholder_built=chain is not None and is_complete(chain),
        versions=(
            ("python", platform.python_version()),
            *((name, _version(name) or "missing") for name in _PACKAGES),
        ),
        caches=(
            ("mock runtime roots", mock / "runtime"),
            ("mock kernels", mock / "kernels"),
            ("mock clusters", mock / "clusters"),
            ("hardware kernels", Path(os.environ.get("TT_METAL_CACHE") or Path.home() / ".cache/tt-metal-cache")),
        ),
        hint=hint,
        throttle=os.environ.get(_THROTTLE),
        simulator=library,
        simulator_hint=simulator_hint,
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _answer(compiler: Path | None) -> str | None:
    """First line of the compiler's `--version`, or None if it does not run."""
    if compiler is None:
        return None
    try:
        done = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.partition("\n")[0]
