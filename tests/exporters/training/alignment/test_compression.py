from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor, nn

from critiq_exporters.training.alignment.compression import compress_weights, quantise, round_as_stored


class Small(nn.Module):
    """A look-up table, a convolution, and matrices that export as MatMul and as Gemm."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(400, 64)
        self.filter = nn.Conv1d(64, 64, 3, padding=1)
        self.each = nn.Linear(64, 128)
        self.all = nn.Linear(128, 64)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.filter(self.table(ids).transpose(1, 2)).transpose(1, 2)
        y: Tensor = self.all(torch.tanh(self.each(x)).mean(1))
        return y


@pytest.fixture
def exported(tmp_path: Path) -> tuple[Small, Path]:
    torch.manual_seed(0)
    module, path = Small().eval(), tmp_path / "small.onnx"
    _export(module, path)
    return module, path


def _export(module: nn.Module, path: Path) -> None:
    ids = torch.zeros((2, 7), dtype=torch.int64)
    torch.onnx.export(
        module, (ids,), path, input_names=["ids"], dynamic_shapes=({0: torch.export.Dim("batch")},), opset_version=20,
        dynamo=True, external_data=False, verbose=False,
    )  # fmt: skip


def test_a_compressed_graph_is_a_third_of_the_size_and_says_nearly_the_same(exported: tuple[Small, Path]) -> None:
    module, path = exported
    before = path.stat().st_size
    compress_weights(path)
    assert path.stat().st_size < before * 0.4
    ids = torch.randint(0, 400, (5, 7))
    with torch.inference_mode():
        expected = module(ids).numpy()
    found = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"ids": ids.numpy()})[0]
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()
    assert np.abs(found - expected).max() > 0.0


@given(arrays(np.float32, (6, 5), elements=st.floats(-1e3, 1e3, width=32)), st.sampled_from([0, 1]))
def test_quantising_errs_by_at_most_half_a_step(weight: np.ndarray, axis: int) -> None:
    values, scale = quantise(weight, axis)
    assert scale.shape == ((6, 1) if axis == 0 else (1, 5))
    assert np.all(np.abs(values * scale - weight) <= scale * 0.5001 + 1e-6)


def test_a_module_with_rounded_weights_is_what_its_compressed_graph_computes(exported: tuple[Small, Path]) -> None:
    module, path = exported
    before = module.each.weight.clone()
    round_as_stored(module)
    assert 0.0 < float((module.each.weight - before).abs().max()) < 0.01
    _export(module, path)
    compress_weights(path)
    ids = torch.randint(0, 400, (5, 7))
    with torch.inference_mode():
        expected = module(ids).numpy()
    found = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"ids": ids.numpy()})[0]
    assert np.abs(found - expected).max() < 1e-5
