"""Stages as ONNX graphs in onnxruntime."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import onnxruntime
from pydantic import BaseModel, ConfigDict, Field

from critiq_server.runtime.base import Arrays, TensorSpec
from critiq_server.runtime.fault_settings import FaultSettings

logger = logging.getLogger(__name__)

Provider = Literal["tensorrt", "cuda", "cpu"]

CPU = "CPUExecutionProvider"

_NAMES: dict[Provider, str] = {
    "tensorrt": "TensorrtExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "cpu": CPU,
}
_AUTOMATIC: tuple[Provider, ...] = ("tensorrt", "cuda", "cpu")


class RuntimeSettings(BaseModel):
    """How graphs are run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    provider: Literal["auto", "engine", "tensorrt", "cuda", "cpu"] = Field(
        "auto",
        description="Where graphs run. engine: TensorRT engines that the bundle holds, without onnxruntime; tensorrt, "
        "cuda and cpu: onnxruntime's providers. auto: the first of these that works; a named one must work.",
    )
    device: int = Field(0, ge=0, description="Number of the GPU.")
    threads: int = Field(
        1,
        ge=0,
        description="Threads inside one graph on the CPU. 1: most throughput; 0 (all cores): shortest single request.",
    )
    concurrency: int = Field(
        0,
        ge=0,
        description="Batches of one stage computed at once. 0: on a CPU usable cores / `threads`, on a GPU 1.",
    )
    faults: FaultSettings = Field(default_factory=FaultSettings, description="What is done about stages that fail.")


class ProviderUnavailable(RuntimeError):
    """The provider that the settings ask for does not work on this machine."""


class OnnxRuntime:
    """One ONNX graph. See :class:`critiq_server.runtime.base.Runtime`.

    Raises:
        ProviderUnavailable: the provider asked for is missing or gave the graph back to the CPU.
    """

    def __init__(self, graph: Path, settings: RuntimeSettings, outputs: Sequence[str]) -> None:
        self._session, provider = _open(graph, settings)
        self._names = list(outputs)
        self.provider = _NAMES[provider]
        cores = usable_cores()
        threads = settings.threads or cores
        self.concurrency = settings.concurrency or (max(1, cores // threads) if provider == "cpu" else 1)
        missing = set(outputs) - {output.name for output in self._session.get_outputs()}
        if missing:
            raise ValueError(f"{graph.name} has no outputs {sorted(missing)}")
        self.input_names = frozenset(entry.name for entry in self._session.get_inputs())
        given = {entry.name: entry for entry in self._session.get_outputs()}
        self.outputs = {name: _spec(given[name].type, given[name].shape) for name in outputs}

    def run(self, inputs: Arrays, *, keep_memory: bool = True) -> Arrays:
        options = None
        if not keep_memory and self.provider == CPU:
            options = onnxruntime.RunOptions()
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        values = self._session.run(self._names, dict(inputs), options)
        return dict(zip(self._names, values, strict=True))


def _spec(kind: str, shape: Sequence[int | str | None]) -> TensorSpec:
    """``kind`` is onnxruntime's, for instance ``tensor(float)``."""
    element = kind.removeprefix("tensor(").removesuffix(")")
    dtype = {"float": "float32", "double": "float64"}.get(element, element)
    lengths = tuple(length if isinstance(length, int) else None for length in shape[1:])
    return TensorSpec(dtype, lengths, ranked=bool(shape))


_processes = 1


def share_cores(processes: int) -> None:
    """From now on this process takes its part of the cores only, as one of so many."""
    global _processes  # noqa: PLW0603 - a fact about the whole process
    _processes = processes


def usable_cores(control_group: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores that this process may use: its affinity and its container's CPU limit, not the machine's count.

    A part of a core counts as one. More threads than the limit pays for would be stopped for most of each period.
    After :func:`share_cores` it is this process's part of them.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = _cpu_limit(control_group)
    cores = cores if limit is None else min(cores, math.ceil(limit))
    return max(1, cores // _processes)


def _cpu_limit(control_group: Path) -> float | None:
    """Cores' worth of time that the control group allows (version 2, else 1); None: no limit."""
    try:
        if (control_group / "cpu.max").is_file():
            quota, period = (control_group / "cpu.max").read_text().split()
        else:
            quota, period = (
                (control_group / "cpu" / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period")
            )
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):  # no such file, or "max"
        return None


def _open(graph: Path, settings: RuntimeSettings) -> tuple[Any, Provider]:
    if settings.provider == "engine":
        raise ProviderUnavailable(f"onnxruntime runs no engines, and {graph.name} is a graph")
    if settings.provider != "auto":
        return _session(graph, settings, settings.provider), settings.provider
    available = set(onnxruntime.get_available_providers())
    for provider in _AUTOMATIC:
        if _NAMES[provider] not in available:
            continue
        try:
            return _session(graph, settings, provider), provider
        except ProviderUnavailable as error:
            logger.info("%s; trying the next provider", error)
    raise ProviderUnavailable(f"no provider runs {graph.name} here; onnxruntime has {sorted(available)}")


def _session(graph: Path, settings: RuntimeSettings, provider: Provider) -> Any:
    name = _NAMES[provider]
    available = onnxruntime.get_available_providers()
    if name not in available:
        raise ProviderUnavailable(
            f"provider {provider!r} was asked for, but this onnxruntime has only {sorted(available)}; "
            "install critiq[gpu] instead of critiq[server], or set runtime.provider to auto or cpu"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = settings.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Spinning threads take the core from decoding and from the event loop: measured up to 2.4 times slower.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Weights outside the arena: so the arena can give back what a batch needed.
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    wanted: list[Any] = [name]
    if provider != "cpu":
        # onnxruntime otherwise falls back to the CPU in silence.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        wanted = [(name, {"device_id": settings.device})]
        if provider == "tensorrt":
            wanted.append((_NAMES["cuda"], {"device_id": settings.device}))
    try:
        session = onnxruntime.InferenceSession(str(graph), options, providers=wanted)
    except Exception as error:
        if provider == "cpu":
            raise
        raise ProviderUnavailable(f"provider {provider!r} cannot run {graph.name}: {error}") from error
    if session.get_providers()[0] != name:
        raise ProviderUnavailable(
            f"provider {provider!r} was asked for, but onnxruntime gave {session.get_providers()[0]}; "
            "check the driver and the CUDA libraries, or set runtime.provider to auto or cpu"
        )
    return session
