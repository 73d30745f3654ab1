"""The house rules that a reader relies on, checked on the source tree."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# What runs on the device, and what may not know how it runs.
DEVICE_CODE = ["models/parallel", "models/layers", "models/mochi/transformer", "models/mochi/sampling/denoise.py"]
# Each package and what it may import of the project; arrows point down only.
MAY_IMPORT = {
    "models/parallel": {"models.parallel"},
    "models/conversion.py": set(),
    "models/layers": {"models.conversion", "models.layers", "models.parallel"},
    "models/mochi/transformer": {
        "models.conversion",
        "models.mochi.config",
        "models.mochi.precision",
        "models.mochi.transformer",
        "models.layers",
        "models.parallel",
    },
    "models/reference": {"models.reference", "models.mochi", "weight_cache"},
    "weight_cache": {
        "weight_cache",
        "models.conversion",
        "models.layers",
        "models.parallel",
        "models.mochi",
        "models.tiny",
    },
}


def sources(*places: str) -> list[Path]:
    found = []
    for place in places:
        path = ROOT / place
        found += [path] if path.suffix == ".py" else sorted(path.rglob("*.py"))
    assert found, places
    return found


def imports(path: Path, *, top_level: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    names: set[str] = set()
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def within(name: str, packages: set[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_arrows_point_down(package):
    for path in sources(package):
        ours = {name for name in imports(path) if within(name, {"models", "weight_cache", "scripts", "tests"})}
        up = {name for name in ours if not within(name, MAY_IMPORT[package])}
        assert not up, f"{path.relative_to(ROOT)} imports {sorted(up)}"


def test_model_code_knows_nothing_of_the_mock():
    for path in sources("models/mochi", "models/layers", "models/parallel", "weight_cache"):
        hidden = {name for name in imports(path) if within(name, {"models.mock"})}
        assert not hidden, f"{path.relative_to(ROOT)} imports {sorted(hidden)}"


def test_no_torch_on_the_device_path():
    """Torch is for the host boundary (uploads, weight conversion): never a module's own tool."""
    for path in sources(*DEVICE_CODE):
        assert "torch" not in imports(path, top_level=True), path.relative_to(ROOT)


def test_no_environment_at_import():
    for path in sources("models", "weight_cache", "scripts"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)):
                continue
            text = ast.unparse(node)
            reads = [word for word in ("os.environ", "getenv(") if word in text]
            assert not reads, f"{path.relative_to(ROOT)}: {text[:80]}"
