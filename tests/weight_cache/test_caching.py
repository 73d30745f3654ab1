"""The caching step in the form that owners of tt-metal's models know.

`pytest tests/weight_cache/test_caching.py -k 2x4sp0tp1 --model genmo/mochi-1-preview --variant bf16` fills the store
(that of MOCHI_TT_CACHE_DIR, TT_DIT_CACHE_DIR or the user's cache directory) for that layout, and checks what it
filled. Without `--model` it fills a temporary one with the random checkpoint of the tests.
"""

import pytest

from models.device import cards
from models.mochi.components import COMPONENTS, Configs, Models
from models.mochi.precision import Precision
from models.parallel import Layout
from weight_cache.checkpoints.checkpoint import Checkpoint
from weight_cache.entry import Entry
from weight_cache.key import parameter_fields, stored_parameters
from weight_cache.plan import data_bytes, plan
from weight_cache.store import Store

LAYOUTS = ("1x1sp0tp1", "1x2sp0tp1", "2x2sp0tp1", "2x4sp0tp1", "2x4sp1tp0", "4x8sp1tp0")


# Where there are cards, who fills a store names the layout.
PLACES = [
    pytest.param(
        mesh, component, marks=[pytest.mark.full] if "4x8" in mesh and component != "vae" and not cards() else []
    )
    for mesh in LAYOUTS
    for component in COMPONENTS
]


@pytest.mark.parametrize(("mesh", "component"), PLACES, indirect=["mesh"])
@pytest.mark.timeout(4 * 3600)
def test_fill(mesh, component, request, small_checkpoint, capsys):
    checkpoint = Checkpoint.open(
        request.config.getoption("--model") or small_checkpoint, request.config.getoption("--variant")
    )
    precision = Precision.named(request.config.getoption("--precision")).weights
    store, source = Store(), getattr(checkpoint, component)

    def declared():
        return getattr(Models.declare(Configs.of(checkpoint), mesh), component)

    manifest, path = store.build(declared(), source, precision=precision)
    with capsys.disabled():
        print(f"\n{component}: {manifest.bytes / 1e9:.3f} GB for {manifest.about['layout']} in {path}")

    model = declared()
    planned = plan(model, component, precision)
    assert manifest.key_fields["layout"] == str(model.mesh.layout)
    stored = {
        r.name: {"shape": list(r.shape), "dtype": r.dtype, "layout": r.layout, "sp": r.sp, "tp": r.tp}
        for r in manifest.tensors
    }
    wanted = parameter_fields(model)
    for fields in wanted.values():
        del fields["sources"], fields["packing"], fields["conversion"]
    assert stored == wanted
    sizes = {record.name: record.bytes for record in manifest.tensors}
    for name, _, parameter in stored_parameters(model):
        assert 0 <= sizes[name] - data_bytes(parameter, model.mesh) <= 8192, name
    assert manifest.bytes <= planned.disk_bytes
    files = {file.name for file in (path / "tensors").iterdir()}
    assert files == {record.file for record in manifest.tensors}
    assert store.verify([path.name]) == {path.name: {}}

    before = Entry(path).manifest_path.stat().st_mtime_ns
    assert store.build(declared(), source, precision=precision)[0] == manifest
    assert Entry(path).manifest_path.stat().st_mtime_ns == before, "what is there is not converted again"


def test_every_layout_has_its_own_name():
    assert [str(Layout.parse(text)) for text in LAYOUTS] == list(LAYOUTS)
