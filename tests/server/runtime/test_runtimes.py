from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from critiq_server.bundles.manifest import Simulated
from critiq_server.runtime.onnx import OnnxRuntime, ProviderUnavailable, RuntimeSettings, usable_cores
from critiq_server.runtime.simulated import SimulatedAccelerator
from tests.support.bundles import write_bundle


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundles")) / "image.onnx"


def test_onnx_computes_a_batch(graph: Path) -> None:
    runtime = OnnxRuntime(graph, RuntimeSettings(), ["brightness"])
    levels = np.array([0, 51, 255], np.uint8)
    found = runtime.run({"image": np.broadcast_to(levels[:, None, None, None], (3, 8, 8, 3))})
    np.testing.assert_allclose(found["brightness"], [0, 0.2, 1.0], rtol=1e-6)
    assert runtime.input_names == {"image"}


def test_auto_takes_what_works(graph: Path) -> None:
    assert OnnxRuntime(graph, RuntimeSettings(), ["brightness"]).provider == "CPUExecutionProvider"


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_that_was_asked_for_and_is_missing_is_an_error(graph: Path, provider: str) -> None:
    settings = RuntimeSettings.model_validate({"provider": provider})
    with pytest.raises(ProviderUnavailable, match=provider) as refusal:
        OnnxRuntime(graph, settings, ["brightness"])
    assert "critiq[gpu]" in str(refusal.value)


def test_cores_are_shared_between_batches_and_threads(graph: Path) -> None:
    cores = usable_cores()
    assert OnnxRuntime(graph, RuntimeSettings(threads=1), ["brightness"]).concurrency == cores
    assert OnnxRuntime(graph, RuntimeSettings(threads=0), ["brightness"]).concurrency == 1
    assert OnnxRuntime(graph, RuntimeSettings(concurrency=3), ["brightness"]).concurrency == 3


@pytest.mark.parametrize(
    ("files", "most"),
    [
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu.max": "what\n"}, None),
        ({}, None),
    ],
)
def test_a_containers_cpu_limit_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], most: int | None
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert usable_cores(tmp_path) == (most or 64)


def test_the_simulated_accelerator_takes_its_time() -> None:
    device = SimulatedAccelerator(Simulated(batch_ms=20, item_ms=5), ["a", "b"])
    pictures = np.arange(4 * 2 * 3, dtype=np.uint8).reshape(4, 2, 3)
    started = time.perf_counter()
    found = device.run({"image": pictures})
    assert time.perf_counter() - started >= 0.040
    assert found["a"].tolist() == found["b"].tolist() == [0, 6, 12, 18]
    assert found["a"].dtype == np.float32


def test_the_simulated_accelerator_does_one_batch_at_a_time() -> None:
    device = SimulatedAccelerator(Simulated(batch_ms=30, item_ms=0), ["a"])
    started = time.perf_counter()
    threads = [threading.Thread(target=device.run, args=({"x": np.zeros((1, 1))},)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.perf_counter() - started >= 0.090
