"""The house rules that a reader relies on, checked on the source tree."""

import ast
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("mochi_tt", "models", "weight_cache", "scripts")
# What runs on the device, and what may not know how it runs.
DEVICE_CODE = ["models/parallel", "models/layers", "models/mochi/transformer", "models/mochi/sampling"]
# The rooms of the house from the ground up. A module may import those of its own room and of the rooms named.
ROOMS = {
    "models.machine": set(),
    "models.conversion": set(),
    "models.parallel": {"models.machine"},
    "models.layers": {"models.parallel", "models.conversion", "models.machine"},
    "weight_cache": {"models.layers", "models.parallel", "models.conversion", "models.machine"},
    "models.mock": {"models.machine"},
    "models.device": {"models.machine", "models.mock"},
    "models.mochi": {
        "models.device",
        "weight_cache",
        "models.layers",
        "models.parallel",
        "models.conversion",
        "models.machine",
    },
    "models.conformance": {
        "models.mochi",
        "models.device",
        "models.layers",
        "models.parallel",
        "models.machine",
    },
    "models.reference": {"models.mochi", "weight_cache", "models.machine"},
    "models.tiny": {"models.reference", "models.mochi", "weight_cache", "models.device", "models.machine"},
    "models.performance": {
        "models.mochi",
        "models.device",
        "weight_cache",
        "models.layers",
        "models.parallel",
        "models.machine",
    },
    "models.jobs": {
        "models.conformance",
        "models.performance",
        "models.tiny",
        "models.reference",
        "models.mochi",
        "models.device",
        "models.mock",
        "weight_cache",
        "models.layers",
        "models.parallel",
        "models.machine",
    },
    "models.diffusers_api": {
        "models.jobs",
        "models.mochi",
        "models.device",
        "weight_cache",
        "models.machine",
    },
    "mochi_tt": {"scripts", "models.diffusers_api", "models.mochi", "models.device", "models.machine"},
    "models.service": {"models.jobs", "models.mochi", "models.device", "weight_cache", "models.machine"},
    "scripts": {
        "models.service",
        "models.jobs",
        "models.performance",
        "models.tiny",
        "models.mochi",
        "models.device",
        "models.layers",
        "models.parallel",
        "weight_cache",
        "models.machine",
    },
}
# Within the largest room: what the device code of the transformer may import of the rest.
TRANSFORMER = {
    "models.mochi.config",
    "models.mochi.precision",
    "models.mochi.transformer",
    "models.layers",
    "models.parallel",
    "models.conversion",
    "models.machine.errors",
}


def sources(*places: str) -> list[Path]:
    found = []
    for place in places:
        path = ROOT / place
        found += [path] if path.suffix == ".py" else sorted(path.rglob("*.py"))
    assert found, places
    return found


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules() -> dict[str, Path]:
    """Every module of the project by its dotted name."""
    return {module_of(path): path for path in sources(*PACKAGES)}


def _is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def _import_nodes(nodes: Iterable[ast.AST], *, inside: bool) -> list[ast.Import | ast.ImportFrom]:
    """Imports that run: those for type checkers are left out, those in functions are taken if `inside`."""
    found: list[ast.Import | ast.ImportFrom] = []
    for node in nodes:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found.append(node)
        elif not inside and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        else:
            parts = node.orelse if isinstance(node, ast.If) and _is_for_types(node) else ast.iter_child_nodes(node)
            found += _import_nodes(parts, inside=inside)
    return found


def _imported_by_name(tree: ast.AST) -> set[str]:
    """Names given as text to `import_module` or `__import__`; only what `_LAZY` lists may give another value."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    by_name = [node for node in calls if ast.unparse(node.func).rpartition(".")[2] in ("import_module", "__import__")]
    texts = [node.args[0] for node in by_name if node.args]
    return {text.value if isinstance(text, ast.Constant) else "?" for text in texts}


@cache
def imports(path: Path, *, inside: bool = True) -> frozenset[str]:
    """Dotted names that a file imports; a name from one of our packages is the module that holds it."""
    tree = ast.parse(path.read_text())
    package = module_of(path).split(".")[: None if path.name == "__init__.py" else -1]
    names: set[str] = _imported_by_name(tree) - {"?"} if inside else set()
    for node in _import_nodes(tree.body, inside=inside):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
            continue
        base = package[: len(package) - node.level + 1] if node.level else []
        origin = ".".join([*base, *([node.module] if node.module else [])])
        for alias in node.names:
            inner = f"{origin}.{alias.name}"
            names.add(inner if inner in modules() else origin)
    return frozenset(names)


def with_parents(name: str) -> list[str]:
    """A module and the packages that importing it imports first."""
    parts = name.split(".")
    return [".".join(parts[: count + 1]) for count in range(len(parts))]


def within(name: str, packages) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def room_of(name: str) -> str | None:
    return next((room for room in sorted(ROOMS, key=len, reverse=True) if within(name, {room})), None)


def test_every_module_has_a_room():
    assert {name for name in modules() if room_of(name) is None} == {"models"}
    assert not {name for name in imports(modules()["models"]) if within(name, PACKAGES)}


# Modules that import what a table of theirs names.
_LAZY = {"mochi_tt", "scripts.cli", "models.machine.extras"}


def test_names_of_modules_are_not_computed():
    computed = {name for name, path in modules().items() if "?" in _imported_by_name(ast.parse(path.read_text()))}
    assert computed <= _LAZY


@pytest.mark.parametrize("room", ROOMS)
def test_arrows_point_down(room):
    for name, path in modules().items():
        if room_of(name) == room:
            ours = {found for found in imports(path) if within(found, PACKAGES) and found != "models"}
            up = {found for found in ours if not within(found, ROOMS[room] | {room})}
            assert not up, f"{name} imports {sorted(up)}"


def test_the_rooms_are_stacked():
    """The table itself has no circle."""
    order: list[str] = []
    left = {room: set(below) for room, below in ROOMS.items()}
    while left:
        ready = [room for room, below in left.items() if below <= set(order)]
        assert ready, f"a circle among {sorted(left)}"
        order += ready
        left = {room: below for room, below in left.items() if room not in ready}


def test_no_circle_of_modules():
    """Imports that run, in functions too, never lead back to where they began."""
    graph = {name: {found for found in imports(path) if found in modules()} for name, path in modules().items()}
    state: dict[str, int] = {}

    def visit(name: str, trail: tuple[str, ...]) -> None:
        state[name] = 1
        for other in sorted(graph[name]):
            assert state.get(other) != 1, f"circle: {' -> '.join([*trail[trail.index(other) :], other])}"
            if other not in state:
                visit(other, (*trail, other))
        state[name] = 2

    for name in graph:
        if name not in state:
            visit(name, (name,))


def test_the_transformer_knows_its_config_and_what_it_is_built_of():
    for path in sources("models/mochi/transformer"):
        up = {name for name in imports(path) if within(name, PACKAGES) and not within(name, TRANSFORMER)}
        assert not up, f"{path.relative_to(ROOT)} imports {sorted(up)}"


def closure(start: str, *, inside: bool = False) -> set[str]:
    """All modules that importing `start` imports; with `inside` those too that its functions may import."""
    found, queue = set(), [start]
    while queue:
        name = queue.pop()
        if name in found or name not in modules():
            continue
        found.add(name)
        for other in imports(modules()[name], inside=inside):
            queue += with_parents(other)
    return found


# The only functions that may import what a run on hardware never needs, by their module.
DOORS = {
    "models.device": {"models.mock"},  # opens a mock mesh
    "models.jobs.evaluate": {"models.reference", "models.tiny"},  # compares with PyTorch
    "models.jobs.compare_settings": {"models.tiny"},  # looks at what the tiny model made
    "models.jobs.doctor": {"models.mock"},  # says whether the mock can run
}
HOST_ONLY = {"models.mock", "models.reference", "models.tiny"}


def test_only_doors_lead_to_the_mock():
    """In functions too: outside the mock and what is built on it, nothing else imports it."""
    for name, path in modules().items():
        if within(name, HOST_ONLY) or within(name, {"scripts.train_tiny"}):
            continue
        reached = {found for found in imports(path) if within(found, HOST_ONLY)}
        allowed = next((doors for module, doors in DOORS.items() if name == module), set())
        assert not {found for found in reached if not within(found, allowed)}, f"{name} imports {sorted(reached)}"


# Rooms of the model, from the ground up: what each may import of the others.
MODEL = {
    "models.mochi.vae": set(),
    "models.mochi.text": set(),
    "models.mochi.transformer": set(),
    "models.mochi.sampling": {"models.mochi.transformer"},
}


@pytest.mark.parametrize("room", MODEL)
def test_arrows_point_down_within_the_model(room):
    for name, path in modules().items():
        if within(name, {room}):
            up = {found for found in imports(path) if within(found, set(MODEL) - MODEL[room] - {room})}
            assert not up, f"{name} imports {sorted(up)}"


def test_a_command_imports_at_its_top_what_is_light():
    """In a function only what loads ttnn, torch, transformers or an extra's web server: a refusal costs no second."""
    for path in sources("scripts"):
        for name in imports(path) - imports(path, inside=False):
            reached = {found for module in closure(name) for found in imports(modules()[module], inside=False)}
            heavy = {found for found in reached | {name} if within(found, {"ttnn", "torch", "transformers", "uvicorn"})}
            assert heavy, f"{path.relative_to(ROOT)} imports {name} in a function, though it is light"


@pytest.mark.parametrize(
    "start",
    ["models.mochi.pipeline", "models.jobs.generate", "models.jobs.decode", "scripts.generate", "weight_cache.store"],
)
def test_a_run_on_hardware_knows_nothing_of_the_mock(start):
    reached = closure(start)
    assert len(reached) > 10
    assert not {name for name in reached if within(name, {"models.mock", "models.reference", "models.tiny"})}


def test_importing_the_pipeline_imports_no_mock_and_prints_nothing():
    code = (
        "import sys, mochi_tt; mochi_tt.MochiPipeline; print([n for n in sys.modules if n.startswith('models.mock')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_opening_hardware_imports_no_mock(tmp_path):
    """There is a card's file and no card behind it: opening fails after all that it imports."""
    code = f"""
import sys, pathlib
from models.machine import host
host.CARD_DIRECTORY = pathlib.Path({str(tmp_path)!r})
from models.device import open_mesh
try:
    open_mesh((1, 1), "hardware")
except Exception as error:
    print(type(error).__name__, [name for name in sys.modules if name.startswith(("models.mock", "models.reference"))])
"""
    (tmp_path / "0").touch()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout.splitlines()[-1].endswith("Error []"), done.stdout + done.stderr


def test_no_torch_on_the_device_path():
    """Torch is for the host boundary (uploads, weight conversion): never a module's own tool."""
    for path in sources(*DEVICE_CODE):
        assert "torch" not in imports(path, inside=False), path.relative_to(ROOT)


def test_no_environment_at_import():
    for path in sources(*PACKAGES):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)):
                continue
            text = ast.unparse(node)
            reads = [word for word in ("os.environ", "getenv(") if word in text]
            assert not reads, f"{path.relative_to(ROOT)}: {text[:80]}"
