"""The table of costs, from doubles of the dry runs: which runs are made, and what becomes of their seconds."""

import contextlib
from types import SimpleNamespace

import pytest

from models.machine.systems import system
from models.machine.ways import ALL_PLAIN, ALTERNATIVES, FUSED, Ways
from models.mochi.precision import Precision
from models.parallel import Layout
from models.performance import fallbacks as module
from models.performance.cost_model import Seconds
from models.performance.dry_run import preview_geometry

STEPS = 50


@pytest.fixture
def runs(monkeypatch):
    """Every run that was asked for. A step of three blocks takes 0.3 s, 0.03 s more for each plain op; halo decodes 5 s
    longer; ring attention does not fit."""
    made = []

    @contextlib.contextmanager
    def open_mesh(shape, mode, *, system):
        yield SimpleNamespace(device=None)

    def dry_run(placed, geometry, *, stages, precision, blocks, chunks):
        made.append((placed.ways, tuple(stages), chunks))
        if placed.ways.plain == {"ring-attention"}:
            raise RuntimeError("Out of Memory")
        stage = SimpleNamespace(device_calls=10)
        return SimpleNamespace(ways=placed.ways, stages=dict.fromkeys(("denoise", "guide"), stage))

    class Projection:
        def __init__(self, system, run, num_steps):
            self.ways = run.ways

        on_this_machine = classmethod(type.__call__)

        def seconds(self):
            step, decode = 0.3 + 0.03 * len(self.ways.plain), 20 + 5 * ("halo" in self.ways.plain)
            return {"step": Seconds(step, step, step), "decode": Seconds(decode, decode, decode)}

    monkeypatch.setattr(module, "open_mesh", open_mesh)
    monkeypatch.setattr(module, "place", lambda device, layout, ways: SimpleNamespace(ways=ways, release=lambda: None))
    monkeypatch.setattr(module, "dry_run", dry_run)
    monkeypatch.setattr(module, "Projection", Projection)
    return made


def table(name: str) -> dict[str, list[str]]:
    machine = system(name)
    layout = Layout.default(machine.mesh, 24)
    rows = module.fallbacks(machine, layout, Precision.named("default"), preview_geometry(), STEPS)
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return {row[0]: row[2:] for row in cells[2:]}


def test_differences_are_of_all_blocks_and_steps(runs):
    found = table("quietbox")
    # 0.03 s for three blocks, 48 blocks, 50 steps; the video takes 0.3 * 16 * 50 + 20 = 260 s.
    assert found["norm"] == ["+24.0", "+0.0", "+9.2%"]
    assert found["halo"] == ["+24.0", "+5.0", "+11.2%"]
    assert found["ring-attention"] == ["does not fit", "", ""]
    assert found["more than one link"] == ["+0.0", "+0.0", "+0.0%"]
    assert found["all of these"][0] == f"{24 * len(ALTERNATIVES):+.1f}"
    assert "rings" not in found
    assert [ways for ways, _, _ in runs[:2]] == [FUSED, Ways(frozenset({next(iter(ALTERNATIVES))}))]
    assert ALL_PLAIN in [ways for ways, _, _ in runs]


def test_only_what_the_decoder_uses_is_decoded(runs):
    table("quietbox")
    decoded = {op for ways, stages, _ in runs if "decode" in stages and len(ways.plain) == 1 for op in ways.plain}
    assert decoded == {"halo", "all-reduce"}


def test_rings_have_a_row(runs):
    assert "rings" in table("galaxy-torus")
