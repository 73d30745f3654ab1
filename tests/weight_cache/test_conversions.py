"""Nobody changes what is stored without raising a version: digests of the stored bytes of every kind of conversion."""

import copy
import functools
from dataclasses import replace

import pytest
import torch

from models.conversion import CONVERSIONS, Conversion
from models.layers import ColumnParallelLinear, HeadRMSNorm, Parameter, RowParallelLinear, Width
from models.layers.conv3d import Conv3d
from models.machine.ways import ALL_PLAIN
from models.mochi.components import Configs, Models
from models.mochi.text.t5 import T5Encoder
from models.mochi.transformer.rope import RotaryEmbedding
from models.mochi.vae.blocks import Shared, UpBlock
from models.mochi.vae.config import EncoderConfig
from models.mochi.vae.decoder import MochiVaeDecoder
from models.mochi.vae.encoder import MochiVaeEncoder
from models.parallel import Layout
from tests.weight_cache import conversions
from tests.weight_cache.conversions import CASES, CONFIGS, FORMAT, Formula, problem, renewed
from weight_cache.key import parameter_fields
from weight_cache.plan import NamedMesh
from weight_cache.precision import PRECISIONS, set_precision, stored_precision

# ttnn packs on the host, but asks the cluster for its tiles.
ON_A_MESH = pytest.mark.parametrize("mesh", ["1x1sp0tp1"], indirect=True)
NOW = conversions.present_versions()
measured = functools.cache(conversions.measure)


@ON_A_MESH
@pytest.mark.parametrize("kind", NOW)
def test_the_stored_bytes_are_those_of_the_version(mesh, kind):
    wrong = problem(kind, conversions.recorded(), measured(), NOW)
    assert not wrong, wrong


def test_every_kind_is_used_by_a_model_and_has_digests():
    mesh = NamedMesh(Layout.parse("2x4sp0tp1"))
    models = [*Models.declare(Configs(), mesh).by_component().values(), MochiVaeEncoder(EncoderConfig(), mesh)]
    used = {parameter.conversion.name for model in models for _, _, parameter in model.parameters()}
    assert used == set(CONVERSIONS), "remove a kind that nobody uses from the table, and add its name to RETIRED"
    assert set(conversions.recorded()["digests"]) == set(NOW)


@ON_A_MESH
def test_changed_bytes_are_seen_and_named(mesh, monkeypatch):
    """Here the columns of every fused matrix are rotated by one."""
    from models.layers import linear

    original = linear.fuse_columns
    monkeypatch.setattr(linear, "fuse_columns", lambda *arguments: original(*arguments).roll(1, dims=-1))
    changed = conversions.stored("transformer", *CASES["transformer"][0])
    wrong = {kind: problem(kind, conversions.recorded(), changed, NOW) for kind in changed}
    named = {kind for kind, text in wrong.items() if f"stored bytes of {kind} have changed" in text}
    assert named == {"column-parallel-weight", "column-parallel-bias", "patch-embedding-weight"}
    assert "raise its version in models/conversion.py, then run python -m" in wrong["column-parallel-bias"]


@ON_A_MESH
def test_a_shard_on_another_chip_is_seen(mesh, monkeypatch):
    """The values in the files are the same: the file of a parameter holds each shard once."""
    distribute = NamedMesh.distribute

    def swapped(self, host, **placement):
        if placement["sp"] is None:
            placement["sp"], placement["tp"] = placement["tp"], None
        return distribute(self, host, **placement)

    def bytes_of(case):
        return conversions.stored("files", *case)[FORMAT]

    case = ("2x2sp0tp1", "bf16", torch.bfloat16)
    before = bytes_of(case)
    assert bytes_of(case) == before
    monkeypatch.setattr(NamedMesh, "distribute", swapped)
    assert bytes_of(case) != before


RECORDED = {
    "ttnn": conversions.ttnn_version(),
    "digests": {
        "group-norm": {"version": 3, "cases": {"a": {"declared": "1", "bytes": "1"}}},
        "form-genmo": {"version": 1, "cases": {"b": {"bytes": "1"}}},
        FORMAT: {"version": 2, "cases": {"c": {"declared": "1", "bytes": "1"}}},
    },
}
VERSIONS = {kind: value["version"] for kind, value in RECORDED["digests"].items()}


def changed(kind=None, field="bytes"):
    """What is measured: as recorded, but for one digest."""
    value = {name: copy.deepcopy(digests["cases"]) for name, digests in RECORDED["digests"].items()}
    if kind is not None:
        next(iter(value[kind].values()))[field] = "2"
    return value


@pytest.mark.parametrize(
    ("kind", "place"),
    [
        ("group-norm", "models/conversion.py"),
        ("form-genmo", "weight_cache/versions.py"),
        (FORMAT, "weight_cache/manifest.py"),
    ],
)
def test_renewing_overwrites_a_digest_only_if_its_version_was_raised(kind, place):
    assert renewed(RECORDED, changed(), VERSIONS) == RECORDED
    with pytest.raises(ValueError, match=f"stored bytes of {kind} have changed .* raise its version in {place}"):
        renewed(RECORDED, changed(kind), VERSIONS)
    with pytest.raises(ValueError, match=f"the version of {kind} went down"):
        renewed(RECORDED, changed(), VERSIONS | {kind: VERSIONS[kind] - 1})
    raised = VERSIONS | {kind: VERSIONS[kind] + 1}
    assert "raised" in problem(kind, RECORDED, changed(kind), raised)
    made = renewed(RECORDED, changed(kind), raised)
    assert made["digests"][kind] == {"version": raised[kind], "cases": changed(kind)[kind]}
    assert problem(kind, made, changed(kind), raised) == ""
    if kind != FORMAT:
        with pytest.raises(ValueError, match=f"stored bytes of {kind}"):
            renewed(RECORDED, changed(kind), VERSIONS | {other: 9 for other in VERSIONS if other not in (kind, FORMAT)})


def test_a_raised_format_stands_for_all_kinds_and_so_does_another_ttnn():
    assert renewed(RECORDED, changed("group-norm"), VERSIONS | {FORMAT: 3})["digests"][FORMAT]["version"] == 3
    old = RECORDED | {"ttnn": "0.80.0"}
    assert "the digests are those of ttnn 0.80.0" in problem("group-norm", old, changed(), VERSIONS)
    assert renewed(old, changed("group-norm"), VERSIONS)["ttnn"] == RECORDED["ttnn"]


def test_another_declaration_of_the_same_bytes_is_named_as_such():
    """It would make another key, and so fill every store anew."""
    wrong = problem("group-norm", RECORDED, changed("group-norm", "declared"), VERSIONS)
    assert "declared of group-norm has changed" in wrong
    with pytest.raises(ValueError, match="declared of group-norm has changed"):
        renewed(RECORDED, changed("group-norm", "declared"), VERSIONS)


def test_new_kinds_and_cases_need_no_raise():
    more = changed() | {"conv3d-bias": {"a": {"declared": "1", "bytes": "1"}}}
    more["group-norm"]["b"] = {"declared": "1", "bytes": "9"}
    now = VERSIONS | {"conv3d-bias": 1}
    assert problem("conv3d-bias", RECORDED, more, now).startswith("conv3d-bias has no digests: run")
    assert "run" in problem("group-norm", RECORDED, more, now)
    made = renewed(RECORDED, more, now)
    assert not any(problem(kind, made, more, now) for kind in now)


def test_a_conversion_without_its_kind_is_refused():
    with pytest.raises(ValueError, match=r"made of a, b: convert and conversion go together"):
        Parameter({"a": (1,), "b": (1,)}, lambda a, b: a)
    with pytest.raises(ValueError, match=r"made of a: convert and conversion go together"):
        Parameter({"a": (1,)}, conversion=CONVERSIONS["group-norm"])
    mesh = NamedMesh(Layout.parse("1x1sp0tp1"))
    with pytest.raises(ValueError, match=r"made of a\.weight: convert and conversion go together"):
        ColumnParallelLinear(mesh, ["a"], Width.plain(32), Width.plain(32), flatten=lambda kernel: kernel)


def test_names_in_the_tables_are_used_once():
    names = [kind.name for kind in vars(conversions).values() if isinstance(kind, Conversion)]
    names += [*CONVERSIONS, *(kind.name for kind in conversions.FORMS.values())]
    assert len(names) == len(set(names)) == len(NOW) - 1, "without the format"


def alike() -> list:
    """Modules with the same checkpoint tensors and stored shapes, each differently converted."""
    mesh, plain = NamedMesh(Layout.parse("1x2sp0tp1")), NamedMesh(Layout.parse("1x2sp0tp1"), ALL_PLAIN)
    whole, gaps, pairs = Width(256, 1, 256), Width.heads(8, 20), Width.heads(4, 40)
    inside, tail = Width.plain(64), Width(160, 1, 256)
    column = functools.partial(ColumnParallelLinear, bias=True)
    two = replace(CONFIGS.transformer, num_attention_heads=2, attention_head_dim=40)
    head = functools.partial(RotaryEmbedding, config=two)
    return [
        [
            column(mesh, ["a"], inside, Width.plain(256)),
            column(mesh, ["a"], inside, Width.plain(128), chunks=2),
            column(mesh, ["a"], inside, Width.plain(128), chunks=2, swiglu=True),
            column(plain, ["a"], inside, Width.plain(64), chunks=4),
        ],
        [column(mesh, ["a"], inside, width) for width in (gaps, pairs, tail)],
        [column(mesh, ["a"], width, whole) for width in (gaps, pairs, tail)],
        [RowParallelLinear(mesh, "a", width, inside) for width in (gaps, pairs, tail)],
        [RowParallelLinear(mesh, "a", inside, width, bias=True) for width in (gaps, pairs, tail)],
        [HeadRMSNorm(mesh, "a", 2, width, 1e-6) for width in (Width.heads(2, 40), Width(80, 1, 128))],
        [head(mesh, head=width) for width in (Width.heads(1, 40), Width(40, 2, 32))],
        [Conv3d(mesh, "a", 64, 32, kernel, shape=(32, 64 * 3)) for kernel in ((3, 1, 1), (1, 3, 1))],
        [UpBlock(Shared(mesh), "a.", 32, 32, 0, time, space) for time, space in ((4, 1), (1, 2))],
        [MochiVaeDecoder(replace(CONFIGS.vae, latents_std=(std,) * 12), mesh) for std in (1.0, 2.0)],
        [T5Encoder(replace(CONFIGS.text_encoder, relative_attention_max_distance=far), mesh) for far in (20, 40)],
    ]


@pytest.mark.parametrize("index", range(len(alike())))
def test_what_is_declared_tells_conversions_apart(index):
    """Of one set of checkpoint tensors: other values to store, another key."""
    seen: dict[str, torch.Tensor] = {}
    for module in alike()[index]:
        fields = parameter_fields(module)
        source = Formula.of(module, torch.float32)
        for (_, prefix, parameter), (name, declared) in zip(module.parameters(), fields.items(), strict=True):
            value = parameter.read(source, prefix).clone()
            same = seen.setdefault(f"{name} {declared}", value)
            assert torch.equal(value, same), f"{name}: {declared}"
    assert len({key.split()[0] for key in seen}) < len(seen), "they are alike but for what is declared"


def test_a_fused_head_norm_declares_how_often_it_repeats_its_weight():
    mesh, plain = NamedMesh(Layout.parse("1x1sp0tp1")), NamedMesh(Layout.parse("1x1sp0tp1"), ALL_PLAIN)
    fused, composed = (
        next(iter(parameter_fields(HeadRMSNorm(where, "a", 8, Width.heads(1, 20), 1e-6)).values()))
        for where in (mesh, plain)
    )
    assert (fused["packing"], composed["packing"]) == ("8 times; 1 x 20 in 1 x 32", "1 times; 1 x 20 in 1 x 32")
    assert (fused["shape"], composed["shape"]) == ([1, 1, 1, 256], [1, 1, 1, 32])


def test_every_dtype_and_arrangement_that_a_model_stores_is_measured_of_files_too():
    def pairs(model):
        return {(parameter.dtype, parameter.layout) for _, _, parameter in model.parameters()}

    stored = set()
    for precision in PRECISIONS:
        models = Models.declare(CONFIGS, NamedMesh(Layout.parse("1x1sp0tp1")))
        for component, model in models.by_component().items():
            set_precision(model, stored_precision(component, precision))
            stored |= pairs(model)
    assert len(stored) == 4
    assert stored == pairs(conversions.declared("files", "1x1sp0tp1"))
