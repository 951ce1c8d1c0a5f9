"""Maximum-likelihood fits of Weibull distributions, in a fixed number of steps."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._higher_order_ops.scan import scan  # keeps the loop a loop in the graph

from critiq_exporters.families.natural_scene.statistics import constant

_STEPS = 5


def fit_weibull(x: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and shape of positive float64 samples ``[..., height, width]``: two of ``[...]``.

    Newton's method on the likelihood's derivative, from the estimate by moments of the logarithm (Menon, 1963). NaN
    where all samples are equal.
    """
    logs = x.log().flatten(-2)
    top = logs.amax(-1, keepdim=True)
    logs = logs - top  # powers of the samples then stay at most 1
    mean = logs.mean(-1)

    def improve(shape: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        powers = torch.exp(shape.unsqueeze(-1) * logs)
        total, weighted = powers.sum(-1), powers * logs
        first, second = weighted.sum(-1) / total, (weighted * logs).sum(-1) / total
        step = (first - 1 / shape - mean) / (second - first * first + 1 / (shape * shape))
        better = torch.minimum(torch.maximum(shape - step, shape / 2), shape * 2)
        return better, step

    deviation = ((logs - mean.unsqueeze(-1)) ** 2).mean(-1).sqrt()
    shape, _ = scan(improve, constant([1.2]) / deviation, torch.zeros(_STEPS, 1, dtype=x.dtype))
    scale = torch.exp(shape.unsqueeze(-1) * logs).mean(-1).log() / shape
    return (scale + top.squeeze(-1)).exp(), shape
