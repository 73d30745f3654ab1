"""The text encoder's ops against PyTorch, with other data on every chip."""

import pytest
import torch
import ttnn

CONFIG = ttnn.WormholeComputeKernelConfig(
    math_fidelity=ttnn.MathFidelity.HiFi4, math_approx_mode=False, fp32_dest_acc_en=True, packer_l1_acc=True
)


def test_embedding(chips, device_2x4):
    tables = chips.random(1, 1, 50, 64)
    ids = torch.tensor([[3, 49, 0, 3, 17]])
    mapper = ttnn.ReplicateTensorToMesh(device_2x4)
    uploaded = ttnn.from_torch(
        ids.int(), device=device_2x4, dtype=ttnn.uint32, layout=ttnn.ROW_MAJOR_LAYOUT, mesh_mapper=mapper
    )
    table = ttnn.reshape(chips.put(tables, layout=ttnn.ROW_MAJOR_LAYOUT), (50, 64))
    out = ttnn.embedding(uploaded, table, layout=ttnn.TILE_LAYOUT)
    chips.check(out, lambda table: table[0, 0][ids], tables)


@pytest.mark.parametrize(
    ("variant", "approximate"), [(ttnn.GeluVariant.Accurate, "none"), (ttnn.GeluVariant.Tanh, "tanh")]
)
def test_gelu(chips, variant, approximate):
    x = chips.random(1, 1, 40, 64)
    out = ttnn.gelu(chips.put(x), variant=variant)
    chips.check(out, lambda x: torch.nn.functional.gelu(x, approximate=approximate), x, atol=1e-6)


def test_softmax_over_an_unaligned_width(chips):
    x = chips.random(1, 2, 40, 45, dtype=ttnn.float32)
    out = ttnn.softmax(chips.put(x, ttnn.float32), dim=-1, compute_kernel_config=CONFIG)
    # 11 bits of the differences to the maximum, which are up to 8.
    chips.check(out, lambda x: torch.softmax(x, dim=-1), x, atol=2**-9)


def test_transposed_product(chips):
    a, b = chips.random(1, 2, 40, 64), chips.random(1, 2, 45, 64)
    out = ttnn.matmul(chips.put(a), chips.put(b), transpose_b=True, dtype=ttnn.float32, compute_kernel_config=CONFIG)
    chips.check(out, lambda a, b: a @ b.transpose(-2, -1), a, b, atol=1e-4)
