"""Stages as TensorRT engines, without onnxruntime's provider in between.

An engine runs only on the kind of GPU and with the TensorRT version that it was built for; anything else is refused by
name. TensorRT is imported when an engine is opened, and is not a dependency: its libraries come from NVIDIA's own
package index. GPU memory is onnxruntime's, so ``critiq[gpu]`` is all that it needs beside TensorRT.
"""

from __future__ import annotations

import ctypes
import importlib
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from critiq_server.bundles.manifest import Engine
from critiq_server.runtime.base import Arrays, TensorSpec
from critiq_server.runtime.onnx import ProviderUnavailable

NATIVE = "TensorRT"


class Buffer(Protocol):
    """An array in GPU memory."""

    def data_ptr(self) -> int:
        """Its address."""
        ...

    def numpy(self) -> NDArray[Any]:
        """A copy in the machine's memory, once everything before it on the default stream is done."""
        ...


class Memory(Protocol):
    """Where buffers come from; onnxruntime's ``OrtValue`` is one."""

    def ortvalue_from_numpy(self, array: NDArray[Any], device_type: str, device_id: int) -> Buffer:
        """A buffer that holds ``array``."""
        ...

    def ortvalue_from_shape_and_type(
        self, shape: Sequence[int], element_type: Any, device_type: str, device_id: int
    ) -> Buffer:
        """A buffer with room for such an array."""
        ...


class EngineRuntime:
    """One engine. See :class:`critiq_server.runtime.base.Runtime`.

    Args:
        plan: the engine's file.
        outputs: what it must give.
        device: number of the GPU.
        trt: the ``tensorrt`` module.
        memory: where buffers come from.

    Raises:
        ProviderUnavailable: TensorRT does not take the file.
        ValueError: the engine does not give ``outputs``.
    """

    provider = NATIVE
    concurrency = 1

    def __init__(self, plan: Path, outputs: Sequence[str], device: int, trt: Any, memory: Memory) -> None:
        runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        engine = runtime.deserialize_cuda_engine(plan.read_bytes())
        if engine is None:
            raise ProviderUnavailable(f"TensorRT {trt.__version__} does not take {plan.name}; build it again here")
        names = [engine.get_tensor_name(number) for number in range(engine.num_io_tensors)]
        given = {name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT}
        if missing := set(outputs) - given:
            raise ValueError(f"{plan.name} has no outputs {sorted(missing)}")
        self.input_names = frozenset(names) - given
        self._given = {name: trt.nptype(engine.get_tensor_dtype(name)) for name in names if name in given}
        self._takes = {name: trt.nptype(engine.get_tensor_dtype(name)) for name in self.input_names}
        self._outputs = list(outputs)
        self.outputs = {name: self._spec(engine.get_tensor_shape(name), self._given[name]) for name in outputs}
        self._device = device
        self._memory = memory
        self._engine = engine  # the context lives no longer than it
        self._context = engine.create_execution_context()
        self._one_at_a_time = threading.Lock()

    def run(self, inputs: Arrays, *, keep_memory: bool = True) -> Arrays:
        with self._one_at_a_time:
            held = []
            for name, array in inputs.items():
                taken = np.ascontiguousarray(array, self._takes[name])
                if not self._context.set_input_shape(name, taken.shape):
                    raise ValueError(f"the engine was not built for {name!r} of shape {list(taken.shape)}")
                held.append(self._bind(name, self._memory.ortvalue_from_numpy(taken, "cuda", self._device)))
            found = {}
            for name, kind in self._given.items():
                shape = tuple(self._context.get_tensor_shape(name))
                buffer = self._memory.ortvalue_from_shape_and_type(shape, kind, "cuda", self._device)
                found[name] = self._bind(name, buffer)
            if not self._context.execute_async_v3(0):
                raise RuntimeError("TensorRT could not run the engine")
            # The copy waits for the default stream; only then may the inputs' memory go.
            values = {name: found[name].numpy() for name in self._outputs}
            held.clear()
            return values

    @staticmethod
    def _spec(shape: Sequence[int], kind: Any) -> TensorSpec:
        return TensorSpec(np.dtype(kind).name, tuple(None if length < 0 else int(length) for length in shape[1:]))

    def _bind(self, name: str, buffer: Buffer) -> Buffer:
        self._context.set_tensor_address(name, buffer.data_ptr())
        return buffer


def open_engine(directory: Path, engines: Sequence[Engine], outputs: Sequence[str], device: int) -> EngineRuntime:
    """The one of ``engines`` that was built for this machine.

    Raises ``ProviderUnavailable`` where none was, or where TensorRT or a GPU is missing; the message says what to do.
    """
    trt = import_tensorrt()
    capability = compute_capability(device)
    for engine in engines:
        if (engine.compute_capability, engine.tensorrt) == (capability, trt.__version__):
            return EngineRuntime(directory / engine.file, outputs, device, trt, _memory())
    built = ", ".join(
        f"compute capability {entry.compute_capability} with TensorRT {entry.tensorrt}" for entry in engines
    )
    raise ProviderUnavailable(
        f"the bundle has engines for {built or 'no GPU'}; this machine has compute capability {capability} with "
        f"TensorRT {trt.__version__}: build its own with `critiq export tensorrt BUNDLE`, or set runtime.provider to "
        "auto"
    )


def import_tensorrt() -> Any:
    """The ``tensorrt`` module; raises ``ProviderUnavailable`` where it is not installed."""
    try:
        return importlib.import_module("tensorrt")
    except (ImportError, OSError) as error:
        raise ProviderUnavailable(
            f"TensorRT is not installed here ({error}); install it from NVIDIA's package index: "
            "pip install --extra-index-url https://pypi.nvidia.com tensorrt"
        ) from error


def compute_capability(device: int = 0) -> str:
    """Of GPU number ``device``, for instance ``9.0``. Raises ``ProviderUnavailable`` where there is none."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise ProviderUnavailable(f"no NVIDIA driver is installed here ({error})") from error
    handle = ctypes.c_int()
    if cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(handle), device):
        raise ProviderUnavailable(f"there is no usable GPU number {device} here")
    major, minor = ctypes.c_int(), ctypes.c_int()
    cuda.cuDeviceGetAttribute(ctypes.byref(major), 75, handle)  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
    cuda.cuDeviceGetAttribute(ctypes.byref(minor), 76, handle)  # ... and _MINOR
    return f"{major.value}.{minor.value}"


def _memory() -> Memory:
    import onnxruntime

    memory: Memory = onnxruntime.OrtValue
    return memory
