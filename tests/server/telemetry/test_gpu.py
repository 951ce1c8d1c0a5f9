"""Metrics of GPUs: through NVIDIA's own module, from a library that stands in for the driver's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SHOW = """
from prometheus_client import CollectorRegistry, generate_latest
from critiq_server.telemetry.gpu import watch_gpus
registry = CollectorRegistry()
watch_gpus(registry)
print(generate_latest(registry).decode())
"""


def shown(libraries: Path, code: str = SHOW) -> dict[str, float]:
    """The samples that a process exports that looks for the driver's library there."""
    env = {**os.environ, "LD_LIBRARY_PATH": str(libraries)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60, check=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("critiq_")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


@pytest.mark.skipif(shutil.which("gcc") is None, reason="builds its library with gcc")
def test_each_gpu_tells_what_it_can(tmp_path: Path) -> None:
    source = Path(__file__).with_name("nvml.c")
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-o", str(tmp_path / "libnvidia-ml.so.1"), str(source)], check=True, timeout=60
    )
    whole, share = 'gpu="0",name="Whole GPU"', 'gpu="1",name="Share of a GPU"'
    assert shown(tmp_path) == {
        f"critiq_gpu_memory_used_bytes{{{whole}}}": 20 * 2**30,
        f"critiq_gpu_memory_used_bytes{{{share}}}": 3 * 2**30,
        f"critiq_gpu_memory_bytes{{{whole}}}": 80 * 2**30,
        f"critiq_gpu_memory_bytes{{{share}}}": 80 * 2**30,
        f"critiq_gpu_utilisation_ratio{{{whole}}}": 0.37,
        f"critiq_gpu_temperature_celsius{{{whole}}}": 55,
        f"critiq_gpu_temperature_celsius{{{share}}}": 56,
        f"critiq_gpu_power_watts{{{whole}}}": 312.5,
    }


def test_without_a_driver_there_are_none(tmp_path: Path) -> None:
    (tmp_path / "libnvidia-ml.so.1").write_text("this is no library")
    assert shown(tmp_path) == {}


def test_without_the_module_there_are_none(tmp_path: Path) -> None:
    assert shown(tmp_path, "import sys\nsys.modules['pynvml'] = None\n" + SHOW) == {}
