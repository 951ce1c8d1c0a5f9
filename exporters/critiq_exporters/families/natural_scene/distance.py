"""Distances under a covariance that is only known when a picture is, without an inverse: ONNX has none."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._higher_order_ops.scan import scan  # the only loop that the exporter keeps; its place is not settled yet


def quadratic_form(matrix: Tensor, vectors: Tensor) -> Tensor:
    """``v' M^-1 v`` for each vector: float64 ``[batch, n, n]`` and ``[batch, n, m]`` to ``[batch, m]``.

    ``matrix`` is symmetric and positive definite. Eliminating it from ``[[M, V], [V', 0]]`` leaves ``-V' M^-1 V``.
    """
    size = matrix.shape[-1]
    zeros = torch.zeros_like(vectors[:, :1, :] * vectors[:, :1, :].transpose(1, 2))
    rest = torch.cat([torch.cat([matrix, vectors], 2), torch.cat([vectors.transpose(1, 2), zeros], 2)], 1)
    marks = torch.eye(size + vectors.shape[2], dtype=matrix.dtype)[:size].unsqueeze(1)
    rest, _ = scan(_eliminate, rest, marks)
    left: Tensor = -rest[:, size:, size:].diagonal(dim1=1, dim2=2)
    return left


def _eliminate(matrix: Tensor, mark: Tensor) -> tuple[Tensor, Tensor]:
    """One step: ``mark`` ``[1, n]`` is one at the pivot, else zero."""
    row, column = mark @ matrix, matrix @ mark.transpose(0, 1)
    pivot = row @ mark.transpose(0, 1)
    return matrix - column @ (row / pivot), pivot.squeeze(2)


def covariance(rows: Tensor, kept: Tensor) -> Tensor:
    """Sample covariance of the rows of ``[batch, rows, n]`` that ``kept`` ``[batch, rows]`` marks: ``[batch, n, n]``.

    NaN where fewer than two are kept. What is not kept may be NaN.
    """
    weight = kept.to(rows.dtype).unsqueeze(2)
    rows = torch.where(kept.unsqueeze(2), rows, 0.0)
    count = weight.sum(1, keepdim=True)
    centred = (rows - rows.sum(1, keepdim=True) / count) * weight
    return centred.transpose(1, 2) @ centred / (count - 1)
