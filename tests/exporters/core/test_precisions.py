"""Reduced precisions of graphs with parts that quantisation cannot take."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from critiq_exporters.core.evaluate import open_session
from critiq_exporters.core.graphs import write_graph
from critiq_exporters.core.precisions import convert
from critiq_server.bundles.manifest import Stage, StageInput


class Mean(nn.Module):
    """A linear layer, and the mean of its outputs under weights: a product of a matrix and a vector, as NIMA's."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 10)
        self.register_buffer("ratings", torch.arange(1.0, 11.0))

    def forward(self, x: Tensor) -> Tensor:
        mean: Tensor = self.linear(x).softmax(1) @ self.ratings
        return mean


def test_products_with_a_vector_stay_as_they_are_in_int8(tmp_path: Path) -> None:
    torch.manual_seed(0)
    stage = Stage(name="mean", graph="mean.onnx", inputs={"x": StageInput(stage="a", output="x")}, outputs=["mean"])
    x = np.random.default_rng(0).standard_normal((3, 16), np.float32)
    write_graph(Mean().eval(), stage, {"x": x}, tmp_path / "fp32.onnx")
    convert("int8", tmp_path / "fp32.onnx", tmp_path / "int8.onnx")
    expected, found = (open_session(tmp_path / f"{name}.onnx", 1).run(None, {"x": x})[0] for name in ("fp32", "int8"))
    assert not np.array_equal(found, expected)  # the linear layer is quantised
    np.testing.assert_allclose(found, expected, atol=0.2)
