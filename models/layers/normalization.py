"""Norms over features that are fractured over TP: chips exchange one column of statistics, not activations."""

import ttnn

from models.layers import compute
from models.layers.module import Module, Parameter
from models.layers.width import Width
from models.parallel import Mesh, all_reduce, gather


def rms_norm(x: ttnn.Tensor, weight: ttnn.Tensor, mesh: Mesh, width: Width, eps: float) -> ttnn.Tensor:
    """Root-mean-square norm over features fractured over TP, times ``weight``.

    x [1, B, M, width / TP] fractured over TP, weight [1, 1, 1, width / TP] likewise -> like x. The weight must carry
    `Width.norm_factor`. Formula: ``x / sqrt(mean(x^2) + eps) * weight`` (arXiv:1910.07467), statistics in float32.
    """
    config = compute.accurate()
    stats = ttnn.rms_norm_pre_all_gather(x, dtype=ttnn.float32, compute_kernel_config=config)
    stats = gather(stats, mesh, dim=3, over=mesh.tp)
    return ttnn.rms_norm_post_all_gather(
        x, stats, epsilon=eps * width.eps_factor, weight=weight, compute_kernel_config=config
    )


def layer_norm(
    x: ttnn.Tensor, weight: ttnn.Tensor, bias: ttnn.Tensor, mesh: Mesh, width: Width, eps: float
) -> ttnn.Tensor:
    """Layer norm over features fractured over TP, times ``weight`` plus ``bias``.

    x [1, B, M, width / TP] fractured over TP, weight and bias [1, 1, 1, width / TP] likewise -> like x. The weight
    must carry `Width.norm_factor`.
    """
    config = compute.accurate()
    if width.is_padded:
        # The fused statistics would count the padding as data: centre first, which leaves a root-mean-square norm.
        return ttnn.add(rms_norm(_centred(x, mesh, width), weight, mesh, width, eps), bias, dtype=ttnn.bfloat16)
    stats = ttnn.layer_norm_pre_all_gather(x, dtype=ttnn.float32, compute_kernel_config=config)
    stats = gather(stats, mesh, dim=3, over=mesh.tp)
    return ttnn.layer_norm_post_all_gather(
        x, stats, epsilon=eps, weight=weight, bias=bias, compute_kernel_config=config
    )


def _centred(x: ttnn.Tensor, mesh: Mesh, width: Width) -> ttnn.Tensor:
    import torch

    total = ttnn.sum(ttnn.typecast(x, ttnn.float32), dim=-1, keepdim=True)
    mean = ttnn.multiply(all_reduce(total, mesh, over=mesh.tp), 1.0 / width.size)
    real = mesh.upload(width.pad(torch.ones(1, 1, 1, width.size), 3), dtype=ttnn.float32, tp=3)
    centred = ttnn.multiply(ttnn.subtract(x, mean, dtype=ttnn.float32), real)
    return ttnn.typecast(centred, ttnn.bfloat16)


class HeadRMSNorm(Module):
    """Root-mean-square norm of each attention head with a learned weight, local to every chip."""

    def __init__(self, mesh: Mesh, name: str, head_width: Width, eps: float) -> None:
        super().__init__(mesh)
        self.eps = eps * head_width.eps_factor
        self.weight = Parameter(
            {f"{name}.weight": (head_width.size,)},
            lambda vector: head_width.pad(vector * head_width.norm_factor, 0)[None, None, None],
        )

    def __call__(self, x: ttnn.Tensor) -> ttnn.Tensor:
        """x [1, H / TP, M, E] -> same, normed over E."""
        return ttnn.rms_norm(x, weight=self.weight.tensor, epsilon=self.eps, compute_kernel_config=compute.accurate())
