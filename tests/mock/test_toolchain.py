import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from models.mock.toolchain import (
    COMPILER,
    Toolchain,
    compiler_banner,
    is_complete,
    locate_toolchain,
    mock_variables,
    package_directory,
    prepare_toolchain,
    zig_program,
)

PREPARE = "import sys, pathlib; from models.mock.toolchain import prepare_toolchain as p; "
PREPARE += "print(p(pathlib.Path(sys.argv[1])).root)"


def snapshot(directory: Path) -> dict[str, tuple[int, int]]:
    return {
        os.path.join(folder, name): (info.st_size, info.st_mtime_ns)
        for folder, folders, names in os.walk(directory)
        for name in names + folders
        for info in [os.lstat(os.path.join(folder, name))]
        if "__pycache__" not in folder and name != "__pycache__"
    }


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache in which two processes that raced have built the toolchain."""
    directory = tmp_path_factory.mktemp("cache")
    before = snapshot(package_directory())
    racers = [
        subprocess.Popen([sys.executable, "-c", PREPARE, str(directory)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    roots = {racer.communicate()[0].strip() for racer in racers}
    assert [racer.returncode for racer in racers] == [0, 0]
    assert roots == {str(locate_toolchain(directory).root)}
    assert snapshot(package_directory()) == before
    return directory


@pytest.fixture
def chain(cache: Path) -> Toolchain:
    built = prepare_toolchain(cache)
    assert is_complete(built)
    return built


def run(chain: Toolchain, *arguments: str | Path) -> str:
    done = subprocess.run([chain.compiler, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def link(chain: Toolchain, processor: str, out: Path) -> bytes:
    scripts = chain.root / "runtime/hw/toolchain/wormhole"
    firmware = next((chain.root / "tt_metal/pre-compiled").glob(f"*/{processor}/{processor}_weakened.elf"))
    flags = [f"-T{scripts}/kernel_{processor}.ld", f"-Wl,--just-symbols={firmware}", "-Wl,--emit-relocs"]
    run(chain, "-O3", *flags, f"-L{scripts}", "some.o", "-o", out)
    return out.read_bytes()


def test_racers_leave_only_the_root(cache: Path) -> None:
    key = locate_toolchain(cache).root.name
    assert {entry.name for entry in (cache / "runtime").iterdir()} == {key, f"{key}.lock"}


def test_a_complete_root_is_reused(chain: Toolchain, cache: Path) -> None:
    written = chain.compiler.stat().st_mtime_ns
    assert prepare_toolchain(cache) == chain
    assert chain.compiler.stat().st_mtime_ns == written


def test_root_links_to_all_of_the_package_but_sfpi(chain: Toolchain) -> None:
    package = package_directory()
    for entry in package.iterdir():
        if entry.name != "runtime":
            assert (chain.root / entry.name).samefile(entry)
    for entry in (package / "runtime").iterdir():
        if entry.name != "sfpi":
            assert (chain.root / "runtime" / entry.name).samefile(entry)
    assert not chain.compiler.resolve().is_relative_to(package)


def test_version_answer_comes_from_the_wheel(chain: Toolchain) -> None:
    wanted = (package_directory() / "tt_metal/sfpi-version").read_text()
    version = wanted.split("sfpi_version='")[1].split("'")[0]
    assert run(chain, "--version").startswith(f"riscv-tt-elf-g++ (tenstorrent/sfpi:{version}[")
    assert run(chain, "--version").strip() == chain.version


def test_another_wheel_has_another_banner_and_root(tmp_path: Path) -> None:
    package = tmp_path / "ttnn"
    (package / "tt_metal").mkdir(parents=True)
    (package / "tt_metal/sfpi-version").write_text("sfpi_version='9.1.2'\nsfpi_build=''\n")
    assert compiler_banner(package) == "riscv-tt-elf-g++ (tenstorrent/sfpi:9.1.2) 15.1.0"
    assert locate_toolchain(tmp_path, package=package).root != locate_toolchain(tmp_path).root
    (package / "tt_metal/sfpi-version").write_text("# nothing\n")
    with pytest.raises(ValueError, match="no sfpi_version line"):
        compiler_banner(package)
    (package / "tt_metal/sfpi-version").unlink()
    with pytest.raises(FileNotFoundError, match="reinstall ttnn"):
        compiler_banner(package)


def test_compile_gives_an_object_and_dependencies(chain: Toolchain, tmp_path: Path) -> None:
    out, dependencies, source = tmp_path / "k.o", tmp_path / "k.d", tmp_path / "k.cc"
    run(chain, "-O3", "-DX=1", "-c", "-o", out, source, "-MF", dependencies)
    assert out.read_bytes()[:4] == b"\x7fELF"
    assert dependencies.read_text() == f"{out}: {source}\n"


def test_precompiled_header_is_empty(chain: Toolchain, tmp_path: Path) -> None:
    run(chain, "-x", "c++-header", tmp_path / "pch.h", "-o", tmp_path / "pch.h.1.gch")
    assert (tmp_path / "pch.h.1.gch").read_bytes() == b""


def test_link_is_cached_by_what_it_depends_on(chain: Toolchain, tmp_path: Path) -> None:
    links = chain.root / "placeholder/links"
    brisc = link(chain, "brisc", tmp_path / "a.elf")
    count = len(list(links.iterdir()))
    assert brisc[:5] == b"\x7fELF\x01"
    assert brisc[18] == 0xF3  # RISC-V
    assert link(chain, "brisc", tmp_path / "b.elf") == brisc
    assert len(list(links.iterdir())) == count
    # Other firmware moves the kernel's text: the symbols to link against are part of the key.
    assert link(chain, "trisc0", tmp_path / "c.elf") != brisc
    assert len(list(links.iterdir())) == count + 1


def test_failed_link_says_so(chain: Toolchain, tmp_path: Path) -> None:
    script = tmp_path / "bad.ld"
    script.write_text("SECTIONS {")
    command = [chain.compiler, f"-T{script}", "x.o", "-o", tmp_path / "x.elf"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "the link of" in done.stderr
    assert not (tmp_path / "x.elf").exists()


def _lose_a_link(root: Path) -> None:
    (root / "tt_metal").unlink()


def _misdirect_a_link(root: Path) -> None:
    (root / "tt_metal").unlink()
    (root / "tt_metal").symlink_to("/")


def _truncate_the_compiler(root: Path) -> None:
    (root / COMPILER).write_bytes((root / COMPILER).read_bytes()[:100])


def _lose_the_compiler(root: Path) -> None:
    (root / COMPILER).unlink()


def _damage_the_object(root: Path) -> None:
    (root / "placeholder/kernel.o").write_bytes(b"")


def _lose_the_manifest(root: Path) -> None:
    (root / "placeholder/complete.json").unlink()


def _garble_the_manifest(root: Path) -> None:
    (root / "placeholder/complete.json").write_text("[1]")


@pytest.mark.parametrize(
    "damage",
    [
        _lose_a_link,
        _misdirect_a_link,
        _truncate_the_compiler,
        _lose_the_compiler,
        _damage_the_object,
        _lose_the_manifest,
        _garble_the_manifest,
    ],
)
def test_damage_is_noticed(damage: Callable[[Path], None], chain: Toolchain, tmp_path: Path) -> None:
    copy = replace(chain, root=tmp_path / "root")
    shutil.copytree(chain.root, copy.root, symlinks=True)
    assert is_complete(copy)
    damage(copy.root)
    assert not is_complete(copy)


def test_damaged_root_is_rebuilt(chain: Toolchain, cache: Path) -> None:
    _truncate_the_compiler(chain.root)
    _lose_a_link(chain.root)
    assert prepare_toolchain(cache) == chain
    assert is_complete(chain)
    assert run(chain, "--version").strip() == chain.version


def test_a_build_that_fails_leaves_nothing(tmp_path: Path) -> None:
    zig = tmp_path / "zig"
    zig.write_text("#!/bin/sh\necho no such target >&2\nexit 3\n")
    zig.chmod(0o755)
    with pytest.raises(RuntimeError, match=r"zig returned 3.*no such target"):
        prepare_toolchain(tmp_path / "cache", zig=zig)
    left = list((tmp_path / "cache/runtime").iterdir())
    assert [entry.suffix for entry in left] == [".lock"]


def test_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install ttnn"):
        package_directory()
    with pytest.raises(FileNotFoundError, match=r"pip install 'mochi-tt\[mock\]'"):
        zig_program()


def test_mock_kernels_stay_out_of_the_hardware_cache(chain: Toolchain, tmp_path: Path) -> None:
    variables = mock_variables(chain, tmp_path / "x.yaml")
    assert variables["TT_METAL_CACHE"] == str(chain.kernels)
    assert chain.kernels.is_relative_to(chain.root.parent.parent)
    assert variables["TT_METAL_SLOW_DISPATCH_MODE"] == "1"


def test_a_cache_directory_that_cannot_be_made_is_one_line():
    from models.machine.errors import MachineError

    with pytest.raises(MachineError, match=r"/proc/nope/runtime cannot be written \(.*\): make it"):
        prepare_toolchain(Path("/proc/nope"))
