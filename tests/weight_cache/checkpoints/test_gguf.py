"""GGUF files that the package `gguf` wrote, against what it dequantises; and files that are none."""

import random
import struct
import tracemalloc

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from models.machine.errors import InputError, MissingInputError
from tests.weight_cache.checkpoints.genmo import transformer_to_genmo
from tests.weight_cache.checkpoints.gguf_files import write
from tests.weight_cache.helpers import assert_same, from_store, in_memory
from weight_cache.checkpoints import gguf_file
from weight_cache.checkpoints.checkpoint import Checkpoint
from weight_cache.checkpoints.forms import open_transformer
from weight_cache.checkpoints.gguf_file import HeldGguf
from weight_cache.checkpoints.held import HeldFile
from weight_cache.key import header_digest

TYPES = gguf.GGMLQuantizationType
QUANTISED = [TYPES.Q8_0, TYPES.Q4_0]


@pytest.fixture(scope="module")
def original(small_checkpoint):
    return Checkpoint(small_checkpoint)


@pytest.fixture(scope="module")
def dit(original):
    return transformer_to_genmo({name: original.transformer.tensor(name).clone() for name in original.transformer})


@pytest.fixture(scope="module")
def small_file(tmp_path_factory):
    """A few tensors, and the bytes of the file."""
    path = tmp_path_factory.mktemp("gguf") / "x.gguf"
    generator = torch.Generator().manual_seed(1)
    state = {name: torch.randn(4, 64, generator=generator) for name in ("a.weight", "b.weight")}
    write(path, state | {"c.bias": torch.randn(5, generator=generator)}, TYPES.Q8_0)
    return path.read_bytes()


@pytest.mark.parametrize("kind", QUANTISED, ids=lambda kind: kind.name)
def test_a_file_is_its_dequantised_weights(tmp_path, dit, kind):
    original = ("x_embedder.proj.weight",)
    meant = write(tmp_path / "mochi_preview_dit_GGUF.gguf", dit, kind, original)
    save_file(meant, tmp_path / "dit.safetensors")
    ours, plain = (open_transformer(tmp_path / name) for name in ("mochi_preview_dit_GGUF.gguf", "dit.safetensors"))
    ours.check()
    assert ours.form == "gguf"
    assert ours.keys() == plain.keys()
    assert ours.config == plain.config
    for name in plain:
        assert ours.shape(name) == plain.shape(name)
        assert torch.equal(ours.tensor(name).float(), plain.tensor(name).float()), name
    with gguf_reader(tmp_path / "mochi_preview_dit_GGUF.gguf") as reader:
        assert sum(tensor.tensor_type == kind for tensor in reader.tensors) > len(reader.tensors) / 3
        for tensor in reader.tensors:
            assert np.array_equal(
                dequantize(tensor.data, tensor.tensor_type).reshape(-1),
                HeldGguf(tmp_path / "mochi_preview_dit_GGUF.gguf").get_tensor(tensor.name).float().numpy().reshape(-1),
            )


class gguf_reader:
    """The package's own reader, in a `with` block."""

    def __init__(self, path):
        self.path = path

    def __enter__(self):
        return gguf.GGUFReader(self.path)

    def __exit__(self, *_):
        pass


@pytest.mark.parametrize("kind", QUANTISED, ids=lambda kind: kind.name)
@pytest.mark.parametrize("mesh", ["1x2sp0tp1"], indirect=True)
def test_the_model_on_the_mesh_is_that_of_the_dequantised_weights(mesh, tmp_path, dit, kind):
    from tests.weight_cache.test_store import predict

    meant = write(tmp_path / "m.gguf", dit, kind)
    save_file(meant, tmp_path / "dit.safetensors")
    direct = in_memory(mesh, open_transformer(tmp_path / "dit.safetensors"))
    first, _ = from_store(mesh, open_transformer(tmp_path / "m.gguf"), tmp_path / "store")
    again, _ = from_store(mesh, open_transformer(tmp_path / "m.gguf"), tmp_path / "store")
    assert len(list((tmp_path / "store").rglob("manifest.json"))) == 1, "found again"
    for loaded in (first, again):
        assert_same(loaded, direct)
        assert (predict(loaded) == predict(direct)).all()


def test_a_checkpoint_is_found_by_its_file_and_its_folder(tmp_path, dit, small_checkpoint):
    folder = tmp_path / "diffusion_models"
    folder.mkdir()
    write(folder / "mochi_preview_dit_GGUF_Q8_0.gguf", dit, TYPES.Q8_0)
    for source in (folder / "mochi_preview_dit_GGUF_Q8_0.gguf", tmp_path):
        checkpoint = Checkpoint.open(source, base=small_checkpoint)
        assert checkpoint.home == "comfyui"
        assert checkpoint.transformer.form == "gguf"
        assert checkpoint.identity() | {"source": ""} == (
            Checkpoint.open(source, base=small_checkpoint).identity() | {"source": ""}
        )
    save_file(dit, folder / "mochi_preview_bf16.safetensors")
    with pytest.raises(InputError, match="name one of them"):
        Checkpoint.open(tmp_path, base=small_checkpoint)


def test_identity_reads_the_header_and_not_the_file(tmp_path, dit, monkeypatch):
    """The first eight bytes of a GGUF file are no length."""
    path = tmp_path / "m.gguf"
    write(path, dit, TYPES.Q8_0)
    assert header_digest(HeldFile(path)) == header_digest(HeldFile(path))
    before, digest = open_transformer(path).fingerprint(), header_digest(HeldFile(path))
    renamed = {f"{name}": tensor for name, tensor in dit.items()}
    renamed["final_layer.linear.bias"] = renamed["final_layer.linear.bias"] + 1
    write(path, renamed, TYPES.Q8_0)
    assert open_transformer(path).fingerprint() != before
    assert header_digest(HeldFile(path)) == digest
    write(path, dit, TYPES.Q4_0)
    assert header_digest(HeldFile(path)) != digest


@pytest.mark.parametrize("kind", [kind for kind in TYPES if kind.name not in ("F32", "F16", "BF16")])
def test_every_type_is_the_packages_or_refused_by_name(tmp_path, kind):
    """Random blocks, in pieces: types that need no reader are equal bit for bit."""
    values, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = np.random.default_rng(3).integers(0, 256, (6, size), dtype=np.uint8)
    path = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(path, "mochi")
    writer.add_tensor("a.weight", blocks.reshape(2, 3 * size), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    try:
        expected = dequantize(blocks, kind).reshape(2, 3 * values)
    except NotImplementedError:
        with pytest.raises(InputError, match=rf"x.gguf has tensors of type {kind.name}, .*use a file in Q8_0"):
            HeldGguf(path)
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf_file, "_PIECE", 2 * values)
        made = HeldGguf(path).get_tensor("a.weight").numpy()
    assert np.array_equal(made.view(np.uint32), expected.astype(np.float32).view(np.uint32))


def refusal(path) -> str | None:
    try:
        held = HeldGguf(path)
        for name in list(held.keys()):
            held.get_tensor(name)
    except InputError as error:
        line = str(error)
        assert "\n" not in line
        assert len(line) < 1000
        assert str(path.name) in line
        return line
    return None


def patched(content: bytes, place: int, form: str, value) -> bytes:
    made = bytearray(content)
    struct.pack_into(f"<{form}", made, place, value)
    return bytes(made)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda c: b"", "it is empty"),
        (lambda c: c[:10], "in the middle"),
        (lambda c: b"GGML" + c[4:], "does not begin with GGUF"),
        (lambda c: patched(c, 4, "I", 1), "is of version 1"),
        (lambda c: c[:4] + struct.pack(">I", 3) + c[8:], "is of version 50331648"),
        (lambda c: patched(c, 8, "Q", 1 << 62), "tensors, and 65536 are read"),
        (lambda c: patched(c, 16, "Q", 1 << 62), "values, and 65536 are read"),
        (lambda c: patched(c, 24, "Q", 1 << 62), "a text has 4611686018427387904 bytes"),
        (lambda c: c[:-64], "ends at byte"),
        (lambda c: c.replace(b"b.weight", b"a.weight"), "a.weight is there twice"),
        (lambda c: c.replace(b"general.architecture", b"general.alignmentxxx"), None),
    ],
)
def test_a_damaged_header_is_refused_in_a_line(tmp_path, small_file, change, why):
    path = tmp_path / "x.gguf"
    path.write_bytes(change(small_file))
    line = refusal(path)
    if why is None:
        assert line is None
    else:
        assert line is not None
        assert why in line


def test_shapes_and_places_that_no_tensor_has_are_refused(tmp_path, small_file):
    path = tmp_path / "x.gguf"
    place = small_file.index(b"b.weight") + len(b"b.weight")
    for offset, form, value, why in [
        (0, "I", 0, "0 dimensions"),
        (0, "I", 1 << 31, "dimensions, and 1 to 8"),
        (4, "Q", 0, "has the sizes"),
        (4, "Q", 1 << 60, "has the sizes"),
        (4, "Q", 65, "has rows of 65"),
        (4, "Q", 1 << 20, "ends at byte"),
        (20, "I", 9999, "type 9999, which the package gguf does not know"),
        (24, "Q", 1, "no multiple of 32"),
        (24, "Q", 0, "begins within another tensor"),
        (24, "Q", 1 << 40, "ends at byte"),
    ]:
        path.write_bytes(patched(small_file, place + offset, form, value))
        line = refusal(path)
        assert line is not None, (offset, value)
        assert why in line, line


@given(data=st.data())
def test_any_damage_is_a_value_or_a_line(tmp_path, small_file, data):
    content = bytearray(small_file)
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)))
    path = tmp_path / "x.gguf"
    path.write_bytes(bytes(content[:cut] if data.draw(st.booleans()) else content))
    refusal(path)


def test_a_large_tensor_is_read_in_pieces(tmp_path):
    """Beside the result, which is torch's, reading takes a few pieces: 4 MB each here, of a tensor of 32 MB."""
    path, shape = tmp_path / "x.gguf", (1024, 8192)
    write(path, {"a.weight": torch.randn(shape, generator=torch.Generator().manual_seed(2))}, TYPES.Q8_0)
    held = HeldGguf(path)
    tracemalloc.start()
    made = held.get_tensor("a.weight")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert made.shape == shape
    assert peak < 24 << 20


@pytest.mark.full
def test_thousands_of_damaged_headers(tmp_path, small_file):
    rng, path = random.Random(11), tmp_path / "x.gguf"
    header = small_file.index(b"c.bias") + 60
    refused = 0
    for _ in range(2000):
        content = bytearray(small_file)
        for _ in range(rng.randint(1, 3)):
            content[rng.randrange(header)] = rng.randrange(256)
        path.write_bytes(bytes(content))
        refused += refusal(path) is not None
    assert refused > 1500


def test_without_the_package_a_line_says_how_to_get_it(tmp_path, small_file, monkeypatch):
    import builtins
    import sys

    path = tmp_path / "x.gguf"
    path.write_bytes(small_file)
    original = builtins.__import__
    monkeypatch.delitem(sys.modules, "gguf")

    def missing(name, *arguments, **options):
        if name == "gguf":
            raise ModuleNotFoundError("No module named 'gguf'", name="gguf")
        return original(name, *arguments, **options)

    monkeypatch.setattr("importlib.import_module", missing)
    with pytest.raises(MissingInputError, match=r"reading x.gguf needs the package gguf.*mochi-tt\[gguf\]"):
        HeldGguf(path)


@pytest.mark.parametrize(
    ("beside", "kind"),
    [
        ("quant_state.bitsandbytes__nf4", "NF4"),
        ("quant_state.bitsandbytes__fp4", "FP4"),
        ("absmax", "4 bits"),
    ],
)
def test_bitsandbytes_is_refused_by_name(tmp_path, dit, kind, beside):
    name = "blocks.0.attn.qkv_x.weight"
    packed = torch.zeros(dit[name].numel() // 2, 1, dtype=torch.uint8)
    state = dit | {name: packed, f"{name}.{beside}": torch.zeros(4, dtype=torch.uint8)}
    save_file(state, tmp_path / "nf4.safetensors")
    with pytest.raises(InputError, match=rf"nf4.safetensors is quantised by bitsandbytes to {kind} .*GGUF Q8_0"):
        open_transformer(tmp_path / "nf4.safetensors")


def test_int8_of_bitsandbytes_is_refused_by_name(tmp_path, dit):
    name = "blocks.0.attn.qkv_x"
    state = dit | {f"{name}.weight": dit[f"{name}.weight"].to(torch.int8), f"{name}.SCB": torch.ones(4)}
    save_file(state, tmp_path / "int8.safetensors")
    with pytest.raises(InputError, match=r"int8.safetensors is quantised by bitsandbytes to int8"):
        open_transformer(tmp_path / "int8.safetensors")


def test_plain_fp8_is_read_as_its_values(tmp_path, dit, small_checkpoint):
    """As Kijai's `mochi_preview_dit_fp8_e4m3fn`: matrices in fp8, no scale, no mark."""
    plain = {name: t.to(torch.float8_e4m3fn) if t.ndim == 2 else t for name, t in dit.items()}
    save_file(plain, tmp_path / "mochi_preview_dit_fp8_e4m3fn.safetensors")
    found = Checkpoint.open(tmp_path / "mochi_preview_dit_fp8_e4m3fn.safetensors", base=small_checkpoint).transformer
    save_file({name: t.float() for name, t in plain.items()}, tmp_path / "dit.safetensors")
    meant = open_transformer(tmp_path / "dit.safetensors")
    for name in meant:
        assert torch.equal(found.tensor(name).float(), meant.tensor(name)), name
