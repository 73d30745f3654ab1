"""A private runtime root for the mock mesh, with a placeholder in place of the RISC-V compiler.

`ttnn` builds every kernel before it runs an op, also on a mock mesh, but the wheel has no compiler. This module builds
a runtime root in the user's cache directory, once per machine. It contains symbolic links to everything in the
installed package, and the placeholder compiler `runtime/sfpi/compiler/bin/riscv-tt-elf-g++`. This is a small native
program (see `placeholder.c`) that always outputs the same loadable ELF.

Nothing is ever written into the installed package. Kernels built this way go to a separate kernel cache. Only
`mock_variables` makes a process use them.
"""

import contextlib
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from models.machine.errors import InputError, MissingInputError
from models.machine.files import refused_as_the_machines

COMPILER = Path("runtime/sfpi/compiler/bin/riscv-tt-elf-g++")
"""Path of the compiler that ttnn calls, below a runtime root."""

CACHE_MEND = "make it writable, or set XDG_CACHE_HOME (or HOME) to a folder that is"
_SUPPORT = Path("placeholder")
_OBJECT = _SUPPORT / "kernel.o"
_LINKS = _SUPPORT / "links"
_MANIFEST = _SUPPORT / "complete.json"
_HERE = Path(__file__).parent
_SOURCES = ("placeholder.c", "kernel.c")
_LAYOUT = "1"  # Raise it when the result of this module changes for another reason than its sources.

_KERNEL_TARGET = ("-target", "riscv32-freestanding-none", "-mcpu=generic_rv32+m", "-ffreestanding")
_KERNEL_FLAGS = (*_KERNEL_TARGET, "-fno-sanitize=all", "-fno-asynchronous-unwind-tables", "-g0", "-O1", "-c")


@dataclass(frozen=True)
class Toolchain:
    """Paths of the mock's runtime root and its caches."""

    root: Path
    """Runtime root: links to the installed package, and the placeholder compiler."""
    kernels: Path
    """Kernel cache of mock runs, never shared with a card."""
    version: str
    """The placeholder's answer to `--version`."""
    package: Path
    """The installed ttnn package that the root links to."""
    zig: Path
    """The program that links kernels for the placeholder."""

    @property
    def compiler(self) -> Path:
        """Path of the placeholder compiler."""
        return self.root / COMPILER


def cache_directory() -> Path:
    """Return the user's cache directory for everything that the mock writes. It is not created here."""
    return platformdirs.user_cache_path("mochi-tt") / "mock"


def package_directory() -> Path:
    """Return the directory of the installed ttnn package, without importing the package.

    Raises:
        FileNotFoundError: ttnn is not installed.
    """
    spec = importlib.util.find_spec("ttnn")
    if spec is None or spec.origin is None:
        raise MissingInputError("package ttnn is not installed; run `pip install ttnn==0.81.1`")
    return Path(spec.origin).resolve().parent


def zig_program() -> Path:
    """Return the zig program of the ziglang package.

    Raises:
        FileNotFoundError: ziglang is not installed.
    """
    spec = importlib.util.find_spec("ziglang")
    if spec is not None and spec.origin is not None:
        program = Path(spec.origin).resolve().parent / "zig"
        if program.exists():
            return program
    raise MissingInputError(
        "package ziglang is not installed, and the mock's placeholder kernels are linked with it; "
        "run `pip install 'mochi-tt[mock]'`, or `make setup` in a checkout"
    )


def compiler_banner(package: Path) -> str:
    """Return the answer to `--version` of the compiler that fits this ttnn.

    It has to name the release in the package's `tt_metal/sfpi-version`. Otherwise ttnn does not use the wheel's
    pre-compiled firmware.

    Raises:
        FileNotFoundError: the package has no such file.
        ValueError: the file contains no version.
    """
    path = package / "tt_metal" / "sfpi-version"
    if not path.exists():
        raise MissingInputError(f"{path} is missing, so this ttnn is not a complete wheel; reinstall ttnn")
    values = {}
    for line in path.read_text().splitlines():
        name, equals, value = line.partition("=")
        if equals:
            values[name.strip()] = value.strip().strip("'\"")
    if not values.get("sfpi_version"):
        raise InputError(f"{path} has no sfpi_version line, so this ttnn cannot be mocked; reinstall ttnn")
    build = f"[{values['sfpi_build']}]" if values.get("sfpi_build") else ""
    return f"riscv-tt-elf-g++ (tenstorrent/sfpi:{values['sfpi_version']}{build}) 15.1.0"


def locate_toolchain(cache: Path | None = None, *, package: Path | None = None, zig: Path | None = None) -> Toolchain:
    """Return the paths of the mock's runtime root, whether it exists or not. Nothing is built.

    Args:
        cache: directory for the root; the user's cache directory by default.
        package: installed ttnn package; found by default.
        zig: zig program; that of the ziglang package by default.

    Raises:
        FileNotFoundError: ttnn or ziglang is not installed.
    """
    cache = cache_directory() if cache is None else cache
    package = package_directory() if package is None else package
    zig = zig_program() if zig is None else zig
    banner = compiler_banner(package)
    key = _key(package, zig, banner)
    return Toolchain(cache / "runtime" / key, cache / "kernels" / key, banner, package, zig)


def prepare_toolchain(cache: Path | None = None, *, package: Path | None = None, zig: Path | None = None) -> Toolchain:
    """Build the mock's runtime root, or return an existing complete one.

    A damaged or incomplete root is built again. Processes that build at the same time wait for one another. The
    arguments are those of `locate_toolchain`.

    Raises:
        FileNotFoundError: ttnn or ziglang is not installed.
        MachineError: the user's cache directory cannot be written.
        RuntimeError: the placeholder could not be compiled.
    """
    chain = locate_toolchain(cache, package=package, zig=zig)
    if is_complete(chain):
        return chain
    with refused_as_the_machines(chain.root.parent, CACHE_MEND), _locked(chain.root.with_suffix(".lock")):
        if not is_complete(chain):
            _build(chain)
    return chain


def mock_variables(chain: Toolchain, descriptor: Path) -> dict[str, str]:
    """Return the environment variables that make ttnn open the cluster of `descriptor` with the placeholder compiler.

    They must be set at the process's first device query, and only then. The host writes the commands (slow dispatch),
    because a mock has no memory that a dispatch core could poll, and ops on a part of a mesh would write to it.
    """
    return {
        "TT_METAL_RUNTIME_ROOT": str(chain.root),
        "TT_METAL_CACHE": str(chain.kernels),
        "TT_METAL_MOCK_CLUSTER_DESC_PATH": str(descriptor),
        "TT_METAL_SLOW_DISPATCH_MODE": "1",
    }


def _key(package: Path, zig: Path, banner: str) -> str:
    """Return a hash of everything that the content of the root depends on."""
    try:
        version = importlib.metadata.version("ttnn")
    except importlib.metadata.PackageNotFoundError:
        version = "unknown"
    facts = [_LAYOUT, version, str(package), str(zig), banner, platform.machine()]
    facts += [(_HERE / name).read_text() for name in _SOURCES]
    return hashlib.sha256("\0".join(facts).encode()).hexdigest()[:16]


def _wanted_links(package: Path) -> dict[str, Path]:
    """Return name under the root -> target of the link: everything in the package except sfpi, which is built here."""
    links = {entry.name: entry for entry in package.iterdir() if entry.name != "runtime"}
    runtime = package / "runtime"
    if runtime.is_dir():
        links |= {f"runtime/{entry.name}": entry for entry in runtime.iterdir() if entry.name != "sfpi"}
    return links


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def is_complete(chain: Toolchain) -> bool:
    """Return whether every link of the runtime root is in place and the placeholder is the one that was built."""
    try:
        manifest = json.loads((chain.root / _MANIFEST).read_text())
        links = _wanted_links(chain.package)
        return (
            all(os.readlink(chain.root / name) == str(target) for name, target in links.items())
            and manifest["links"] == sorted(links)
            and all(_digest(chain.root / name) == digest for name, digest in manifest["files"].items())
            and os.access(chain.compiler, os.X_OK)
            and (chain.root / _LINKS).is_dir()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(chain: Toolchain) -> None:
    """Build the root beside its final place, then rename it, so that no process sees a half-built root."""
    parent = chain.root.parent
    with tempfile.TemporaryDirectory(dir=parent, prefix=f".{chain.root.name}-") as scratch:
        new = Path(scratch) / "root"
        links = _wanted_links(chain.package)
        for folder in (COMPILER.parent, _LINKS):
            (new / folder).mkdir(parents=True)
        for name, target in links.items():
            (new / name).symlink_to(target)
        _zig(chain.zig, scratch, [*_KERNEL_FLAGS, str(_HERE / "kernel.c"), "-o", str(new / _OBJECT)])
        defines = {
            "VERSION": chain.version,
            "ZIG": str(chain.zig),
            "OBJECT": str(chain.root / _OBJECT),
            "LINKS": str(chain.root / _LINKS),
        }
        flags = [f"-DPLACEHOLDER_{name}={json.dumps(value)}" for name, value in defines.items()]
        source = str(_HERE / "placeholder.c")
        _zig(chain.zig, scratch, ["-O2", "-s", "-Wall", "-Werror", *flags, source, "-o", str(new / COMPILER)])
        files = {str(name): _digest(new / name) for name in (COMPILER, _OBJECT)}
        (new / _MANIFEST).write_text(json.dumps({"links": sorted(links), "files": files}))
        if chain.root.exists() or chain.root.is_symlink():
            chain.root.rename(Path(scratch) / "damaged")
        new.rename(chain.root)


def _zig(zig: Path, scratch: str, arguments: list[str]) -> None:
    caches = {"ZIG_GLOBAL_CACHE_DIR": scratch, "ZIG_LOCAL_CACHE_DIR": scratch}
    command = [str(zig), "cc", *arguments]
    done = subprocess.run(command, env=os.environ | caches, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(
            f"the mock's placeholder compiler could not be built (zig returned {done.returncode}): "
            f"{done.stderr.strip()[-500:]}; reinstall ziglang==0.17.0"
        )
