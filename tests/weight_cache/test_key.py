"""Keys: what tells two sets of weights apart, and what must not."""

import dataclasses
import hashlib
import itertools
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.machine.ways import ALL_PLAIN, FUSED
from models.mochi.components import Configs, Models
from models.mochi.config import TransformerConfig
from models.mochi.precision import Precision
from models.mochi.text.t5 import T5_XXL
from models.mochi.transformer import MochiTransformer
from models.mochi.vae.config import EncoderConfig
from models.mochi.vae.encoder import MochiVaeEncoder
from models.parallel import Layout
from tests.weight_cache.helpers import declared, fields
from weight_cache import digest, key, location, versions
from weight_cache.checkpoints.component import Component
from weight_cache.checkpoints.held import HeldFile
from weight_cache.digest import DigestMemory
from weight_cache.key import entry_key
from weight_cache.manifest import FORMAT_VERSION
from weight_cache.plan import NamedMesh, plan
from weight_cache.precision import set_precision


@pytest.fixture
def component(small_checkpoint, tmp_path):
    """A copy of the tiny transformer."""
    return Component(shutil.copytree(small_checkpoint / "transformer", tmp_path / "transformer"))


def test_every_difference_makes_another_key(component, tmp_path):
    digests = tmp_path / "digests.json"
    variants = [
        dict(layout=layout, precision=precision)
        for layout, precision in itertools.product(
            ("1x1sp0tp1", "1x2sp0tp1", "2x1sp0tp1", "2x2sp0tp1", "2x2sp1tp0", "2x4sp0tp1", "2x4sp1tp0", "4x8sp1tp0"),
            ("bf16", "mixed", "bf8"),
        )
    ]
    keys = [entry_key(fields(component, digests, **variant)) for variant in variants]
    assert len(set(keys)) == len(variants)
    assert [entry_key(fields(component, digests, **variant)) for variant in variants] == keys


def test_a_field_that_a_layout_gets_later_changes_no_key(component, tmp_path):
    """The key has a layout as people write it, which tells everything: parsed again it is the same."""

    @dataclasses.dataclass(frozen=True)
    class Later(Layout):
        pipeline_axis: int | None = None

    for text in ("1x1sp0tp1", "2x4cfg0sp1tp0fsdp", "4x8cfg1sp0tp1"):
        assert Layout.parse(str(Layout.parse(text))) == Layout.parse(text)
        assert str(Later(**dataclasses.asdict(Layout.parse(text)))) == text
    assert fields(component, tmp_path / "digests.json", layout="2x4sp1tp0")["layout"] == "2x4sp1tp0"


PINNED = Path(__file__).with_name("declared.json")


def test_what_is_declared_is_pinned():
    """A change of packing, placement, dtype or shape makes other keys, and leaves entries that nothing reads any more.

    They are known to be outdated only if a version was raised with the change. So raise the version of a conversion
    that changed (`models/conversion.py`), or `FORMAT_VERSION` (`weight_cache/manifest.py`), and then let
    `MOCHI_TT_PIN=1 pytest tests/weight_cache/test_key.py -k pinned` write the file.
    """
    configs = Configs(dataclasses.replace(T5_XXL, num_layers=2), transformer=TransformerConfig(num_layers=2))
    now = {}
    for layout, policy in itertools.product(("1x1sp0tp1", "2x4sp1tp0", "2x4sp0tp1fsdp"), ("bf16", "default", "fast")):
        mesh = NamedMesh(Layout.parse(layout))
        models = Models.declare(configs, mesh, Precision.named(policy))
        set_precision(models.transformer, Precision.named(policy).weights)
        encoder = MochiVaeEncoder(EncoderConfig(), mesh)
        for name, module in [*models.by_component().items(), ("vae_encoder", encoder)]:
            text = json.dumps(key.parameter_fields(module), sort_keys=True)
            now[f"{name} {layout} {policy}"] = hashlib.sha256(text.encode()).hexdigest()[:16]
    present = {"format": FORMAT_VERSION, "versions": versions.versions(), "digests": now}
    pinned = json.loads(PINNED.read_text())
    if os.environ.get("MOCHI_TT_PIN"):
        assert present["digests"] == pinned["digests"] or (present["format"], present["versions"]) != (
            pinned["format"],
            pinned["versions"],
        ), "raise a version first"
        PINNED.write_text(json.dumps(present, indent=1) + "\n")
        return
    assert present == pinned


def test_a_path_or_a_day_makes_no_difference(component, small_checkpoint, tmp_path):
    elsewhere = shutil.copytree(small_checkpoint / "transformer", tmp_path / "else" / "where" / "transformer")
    for path in elsewhere.iterdir():
        path.touch()
    first = fields(component, tmp_path / "1.json")
    assert fields(Component(elsewhere), tmp_path / "2.json") == first
    assert str(tmp_path) not in json.dumps(first)


@pytest.mark.parametrize("change", ["weight", "name", "config"])
def test_another_content_makes_another_key(component, tmp_path, change):
    before = entry_key(fields(component, tmp_path / "digests.json"))
    path = sorted(component.directory.glob("*.safetensors"))[0]
    if change == "config":
        component.config["some_new_setting"] = 1
    else:
        tensors = load_file(path)
        name = sorted(tensors)[0]
        if change == "weight":
            tensors[name].view(-1)[0] += 1
        else:
            tensors["x"] = torch.zeros(1)
        save_file(tensors, path)
    changed = Component(component.directory)
    changed.config = component.config
    assert entry_key(fields(changed, tmp_path / "digests.json")) != before


def test_ttnn_and_format_are_in_the_key(component, tmp_path, monkeypatch):
    before = fields(component, tmp_path / "digests.json")
    assert before["ttnn"] == "0.81.1"
    monkeypatch.setattr(key, "FORMAT_VERSION", key.FORMAT_VERSION + 1)
    monkeypatch.setattr(key, "ttnn_version", lambda: "9.9")
    after = fields(component, tmp_path / "digests.json")
    assert {name for name in before if before[name] != after[name]} == {"format", "ttnn"}


def key_of(model, component, tmp_path):
    return entry_key(key.key_fields(model, component, "bf16", DigestMemory(tmp_path / "digests.json")))


def test_the_versions_of_what_is_used_are_in_the_key_and_no_others(component, tmp_path):
    used = fields(component, tmp_path / "digests.json")["conversions"]
    assert used == {
        name: versions.versions()[name]
        for name in (
            "column-parallel-bias",
            "column-parallel-weight",
            "form-diffusers",
            "head-norm-weight",
            "patch-embedding-weight",
            "rotary-frequencies",
            "row-parallel-bias",
            "row-parallel-weight",
        )
    }


def test_a_raised_version_makes_another_key(component, tmp_path, monkeypatch):
    def raised(kind):
        return dataclasses.replace(kind, version=kind.version + 1)

    def model():
        return declared(NamedMesh(Layout.parse("2x4sp0tp1")), component)

    before = key_of(model(), component, tmp_path)
    changed = model()
    changed.rotary.frequencies.conversion = raised(changed.rotary.frequencies.conversion)
    keys = {before, key_of(changed, component, tmp_path)}
    monkeypatch.setitem(versions.FORMS, "diffusers", raised(versions.FORMS["diffusers"]))
    keys.add(key_of(model(), component, tmp_path))
    assert len(keys) == 3


def test_moved_renamed_and_rewritten_code_makes_no_difference(component, tmp_path, monkeypatch):
    """Other names of classes, modules, functions and attributes, another forward pass, another order."""
    model = declared(NamedMesh(Layout.parse("2x4sp0tp1")), component)
    before = key_of(model, component, tmp_path)
    for _, _, parameter in model.parameters():
        # The same conversion, by a function of another name in another file.
        parameter.convert = eval(
            compile("lambda *parts: moved(*parts)", "elsewhere.py", "eval"), {"moved": parameter.convert}
        )
    renamed = type("Renamed", (type(model),), {"__module__": "models.elsewhere", "__call__": lambda self: None})
    model.__class__ = renamed
    model.__dict__ = {f"renamed_{name}" if name != "mesh" else name: v for name, v in reversed(vars(model).items())}
    assert {name.split(".")[0] for name, _, _ in model.parameters()} >= {"renamed_blocks", "renamed_rotary"}
    monkeypatch.setattr(type(model.renamed_blocks[0]), "__call__", lambda self: None)
    assert key_of(model, component, tmp_path) == before


def test_parameters_of_one_name_in_the_store_are_refused(component, tmp_path):
    model = declared(NamedMesh(Layout.parse("1x1sp0tp1")), component)
    model.twin = model.rotary
    with pytest.raises(ValueError, match=r"two parameters are stored as pos_frequencies\.rotary-frequencies"):
        key_of(model, component, tmp_path)


def test_digests_are_remembered_until_a_file_is_touched(tmp_path, monkeypatch):
    path, memory = tmp_path / "file", DigestMemory(tmp_path / "digests.json")

    def of():
        return memory.of([HeldFile(path)])[path]

    path.write_bytes(b"one")
    first = of()
    hashed = []
    monkeypatch.setattr(digest, "sha256", lambda p, *_, _old=digest.sha256: hashed.append(p) or _old(p))
    assert of() == first
    assert hashed == []
    stat = path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    second = of()
    assert second != first
    assert len(hashed) == 1
    memory.path.write_text("[damaged")
    assert of() == second
    assert len(hashed) == 2
    assert memory.path.stat().st_mode & 0o777 == 0o644
    path.write_bytes(b"one")
    of()
    value = json.loads(memory.path.read_text())
    (a, one), (b, two) = value.items()
    memory.path.write_text(json.dumps({a: two, b: one}))
    assert of() == first, "exchanged digests are not taken"
    assert len(hashed) == 4
    memory.path.chmod(0o666)
    assert of() == first, "nor one that others can write"
    assert len(hashed) == 5


def test_the_directory_is_asked_for_when_it_is_used(monkeypatch):
    import platformdirs

    monkeypatch.delenv("MOCHI_TT_CACHE_DIR", raising=False)
    monkeypatch.delenv("TT_DIT_CACHE_DIR", raising=False)
    folder = location.FOLDER
    assert location.store_directory() == platformdirs.user_cache_path("mochi-tt") / folder
    monkeypatch.setenv("TT_DIT_CACHE_DIR", "/third")
    assert location.store_directory() == Path("/third") / folder
    monkeypatch.setenv("MOCHI_TT_CACHE_DIR", "/second")
    assert location.store_directory() == Path("/second") / folder
    assert location.store_directory("/first") == Path("/first") / folder
    monkeypatch.setenv("MOCHI_TT_CACHE_DIR", "")
    assert location.store_directory() == Path("/third") / folder


def test_the_full_models_are_planned_without_weights():
    def planned(layout, precision):
        models = Models.declare(Configs(), NamedMesh(Layout.parse(layout)))
        return {name: plan(module, name, precision) for name, module in models.by_component().items()}

    both = {precision: planned("2x4sp0tp1", precision) for precision in ("bf16", "mixed", "bf8")}
    bf16, mixed, bf8 = (plans["transformer"] for plans in both.values())
    assert 10.0e9 < bf16.parameters < 10.1e9
    assert bf16.disk_bytes == pytest.approx(2 * bf16.parameters, rel=0.01)
    # Modulations, in the last block without the text's second to fourth, are cut over SP=2 as well as TP=4.
    modulations = 2 * 3072 * (48 * 4 * (3072 + 1536) - 3 * 1536 + 2 * 3072)
    assert bf16.chip_bytes == pytest.approx((bf16.disk_bytes - modulations / 2) / 4, rel=0.002)
    assert set(bf16.by_dtype) == {"BFLOAT16", "FLOAT32"}
    assert set(bf8.by_dtype) == {"BFLOAT16", "BFLOAT8_B", "FLOAT32"}
    # Attention and feed-forwards of 48 blocks, less the last block's missing text output and feed-forward.
    visual = 4 * 3072 * 3072 + 3 * 3072 * 8192
    text = 3 * 1536 * 3072 + 3072 * 1536 + 3 * 1536 * 4096
    large = 48 * (visual + text) - 3072 * 1536 - 3 * 1536 * 4096
    assert bf16.disk_bytes - bf8.disk_bytes == large * 2 - large * 1088 // 1024
    forward = 48 * 3 * (3072 * 8192 + 1536 * 4096) - 3 * 1536 * 4096
    assert bf16.disk_bytes - mixed.disk_bytes == forward * 2 - forward * 1088 // 1024
    assert planned("4x8sp1tp0", "bf16")["transformer"].chip_bytes < bf16.chip_bytes
    assert planned("1x1sp0tp1", "bf16")["transformer"].chip_bytes == pytest.approx(bf16.disk_bytes, rel=0.01)
    assert 4.75e9 < both["bf16"]["text_encoder"].parameters < 4.77e9
    assert both["bf16"]["vae"].chip_bytes == pytest.approx(both["bf16"]["vae"].disk_bytes, rel=0.01), "replicated"
    for other in ("text_encoder", "vae"):
        assert both["bf8"][other] == both["bf16"][other], "only the transformer is packed smaller"


@pytest.mark.parametrize("sizes", [{}, {"attention_head_dim": 20, "num_attention_heads": 6}])
def test_a_plan_reads_no_weights_and_counts_all_parameters(sizes):
    from tests.support import SMALL, reference

    model = reference(**(SMALL | sizes))
    config = TransformerConfig.from_dict(dict(model.config))
    found = plan(MochiTransformer(config, NamedMesh(Layout((1, 2), 0, 1))), "transformer", "bf16")
    assert found.parameters == sum(p.numel() for p in model.parameters())


def test_fused_and_plain_models_have_entries_of_their_own(component, tmp_path):
    """Their SwiGLU weights have one shape and different column orders."""
    keys = set()
    for ways in (FUSED, ALL_PLAIN):
        mesh = NamedMesh(Layout.parse("2x4sp0tp1"), ways)
        model = MochiTransformer(TransformerConfig.from_dict(component.config), mesh)
        keys.add(entry_key(key.key_fields(model, component, "bf16", DigestMemory(tmp_path / "digests.json"))))
    assert len(keys) == 2
