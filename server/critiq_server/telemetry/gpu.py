"""NVIDIA GPUs as their driver's library NVML sees them, for Prometheus: all of this machine or container."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import structlog
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector, CollectorRegistry

logger = structlog.get_logger("critiq")

_LABELS = ["gpu", "name"]


class GpuCollector(Collector):
    """Asks the driver whenever metrics are scraped.

    Args:
        nvml: the module ``pynvml``, initialised.
    """

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml
        self._gpus: list[tuple[list[str], Any]] = []
        for index in range(nvml.nvmlDeviceGetCount()):
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            name = nvml.nvmlDeviceGetName(handle)
            self._gpus.append(([str(index), name.decode() if isinstance(name, bytes) else name], handle))
        self._readings: list[tuple[str, str, Callable[[Any], float]]] = [
            ("critiq_gpu_memory_used_bytes", "Bytes of the GPU's memory in use, by whoever.", self._memory_used),
            ("critiq_gpu_memory_bytes", "Bytes of memory that the GPU has.", self._memory),
            ("critiq_gpu_utilisation_ratio", "Share of the last moment in which the GPU computed, 0..1.", self._busy),
            ("critiq_gpu_temperature_celsius", "The GPU's temperature.", self._temperature),
            ("critiq_gpu_power_watts", "Power that the GPU draws.", self._power),
        ]

    def describe(self) -> Iterable[GaugeMetricFamily]:
        return [GaugeMetricFamily(name, text, labels=_LABELS) for name, text, _ in self._readings]

    def collect(self) -> Iterator[GaugeMetricFamily]:
        for name, text, read in self._readings:
            family = GaugeMetricFamily(name, text, labels=_LABELS)
            for labels, handle in self._gpus:
                try:
                    family.add_metric(labels, read(handle))
                except self._nvml.NVMLError:
                    continue  # this GPU does not say (a part of one has no power of its own), or is gone
            yield family

    def _memory_used(self, handle: Any) -> float:
        return float(self._nvml.nvmlDeviceGetMemoryInfo(handle).used)

    def _memory(self, handle: Any) -> float:
        return float(self._nvml.nvmlDeviceGetMemoryInfo(handle).total)

    def _busy(self, handle: Any) -> float:
        return float(self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu) / 100

    def _temperature(self, handle: Any) -> float:
        return float(self._nvml.nvmlDeviceGetTemperature(handle, self._nvml.NVML_TEMPERATURE_GPU))

    def _power(self, handle: Any) -> float:
        return float(self._nvml.nvmlDeviceGetPowerUsage(handle)) / 1000


def watch_gpus(registry: CollectorRegistry) -> None:
    """Adds the GPUs' metrics where there is a driver and the module to ask it (``critiq[telemetry]``)."""
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        logger.debug("no metrics of GPUs", why="the package nvidia-ml-py is not installed")
        return
    try:
        nvml.nvmlInit()
        collector = GpuCollector(nvml)
    except nvml.NVMLError as error:
        logger.debug("no metrics of GPUs", why=str(error))
        return
    registry.register(collector)
