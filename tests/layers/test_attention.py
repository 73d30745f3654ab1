"""Joint attention against PyTorch's, with the keys in several chunks and the visual rows ended by padding."""

import pytest
import torch
import ttnn

from models.layers import Chunks, Heads, joint_attention
from tests.support import check, randn

HEADS, WIDTH, TEXT = 4, 64, 40
# The exact kernel keeps the running output of the ring in the type of q, so with bfloat8_b each of 7 turns rounds it
# once more (0.032 on 4x8; no policy has both). The streaming kernel has an approximate exponential and bfloat16 sums.
# LoFi cuts two more bits of each factor. Errors of the kernels: docs/precision.md.
LIMITS = {
    (False, ttnn.MathFidelity.HiFi4): dict(max_rmse=0.035),
    (False, ttnn.MathFidelity.HiFi2): dict(max_rmse=0.035),
    (True, ttnn.MathFidelity.HiFi2): dict(max_rmse=0.04, min_pcc=0.999),
    (True, ttnn.MathFidelity.LoFi): dict(max_rmse=0.08, min_pcc=0.998),
}


@pytest.mark.parametrize("dtype", [ttnn.bfloat16, ttnn.bfloat8_b], ids=["bf16", "bf8"])
@pytest.mark.parametrize(
    ("fidelity", "streaming"),
    [
        (ttnn.MathFidelity.HiFi4, False),
        (ttnn.MathFidelity.HiFi2, False),
        (ttnn.MathFidelity.HiFi2, True),
        (ttnn.MathFidelity.LoFi, True),
    ],
    ids=["HiFi4", "HiFi2", "streaming", "streaming-LoFi"],
)
@pytest.mark.parametrize("mesh", ["1x1sp0tp1", "1x2sp1tp0", "2x4sp1tp0", "4x8sp1tp0"], indirect=True)
def test_several_chunks(mesh, fidelity, streaming, dtype):
    """Two chunks of keys on each chip and two of text; all but the last 9 of the visual rows are real."""
    rows = 64 * mesh.sp.size
    tokens = rows - 9 if mesh.sp.size > 1 else rows
    visual = [randn(1, HEADS, rows, WIDTH, seed=seed) for seed in (1, 2, 3)]
    text = [randn(1, HEADS, TEXT, WIDTH, seed=seed) for seed in (4, 5, 6)]
    scale = WIDTH**-0.5
    keys, values = (torch.cat([visual[i][:, :, :tokens], text[i]], dim=2) for i in (1, 2))
    queries = torch.cat([visual[0], text[0]], dim=2)
    exact = torch.nn.functional.scaled_dot_product_attention(queries, keys, values, scale=scale)

    out, joint = joint_attention(
        Heads(*(mesh.upload(x, dtype=dtype, sp=2, tp=1) for x in visual)),
        Heads(*(mesh.upload(x, dtype=dtype, tp=1) for x in text)),
        mesh,
        tokens=tokens,
        scale=scale,
        fidelity=fidelity,
        streaming=streaming,
        chunks=Chunks(32, 32),
    )
    check(
        mesh.download(out, sp=2, tp=1)[:, :, :tokens].float(), exact[:, :, :tokens], None, **LIMITS[streaming, fidelity]
    )
    check(mesh.download(joint, tp=1).float(), exact[:, :, rows:], None, **LIMITS[streaming, fidelity])
