"""A stand-in for the ``tensorrt`` module, as thin as can be: engines that are ONNX graphs, computed on the CPU.

It keeps the rules that critiq's code must follow (every input needs a profile, shapes outside it are refused, an engine
reads and writes by address), not what TensorRT computes or how fast.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

__version__ = "10.13.3"
_HEAD = b"engine\0"

NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
TensorIOMode = SimpleNamespace(INPUT="in", OUTPUT="out")
MemoryPoolType = SimpleNamespace(WORKSPACE=0)
BuilderFlag = SimpleNamespace(TF32=7)
unreadable: set[str] = set()
"""Operators that the parser refuses."""


class Logger:
    ERROR = 1

    def __init__(self, severity: int) -> None:
        self.severity = severity


def nptype(kind: int) -> Any:
    return onnx.helper.tensor_dtype_to_np_dtype(kind)


class Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, list[list[int]]] = {}

    def set_shape(self, name: str, least: Sequence[int], usual: Sequence[int], most: Sequence[int]) -> None:
        assert all(a <= b <= c for a, b, c in zip(least, usual, most, strict=True))
        self.shapes[name] = [list(least), list(usual), list(most)]


class Config:
    def __init__(self) -> None:
        self.profiles: list[Profile] = []
        self.flags = {BuilderFlag.TF32}
        self.cache: bytes | None = None
        self.workspace = 0

    def clear_flag(self, flag: int) -> None:
        self.flags.discard(flag)

    def set_memory_pool_limit(self, pool: int, size: int) -> None:
        self.workspace = size

    def add_optimization_profile(self, profile: Profile) -> None:
        self.profiles.append(profile)

    def create_timing_cache(self, known: bytes) -> bytes:
        return known

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> None:
        self.cache = cache

    def get_timing_cache(self) -> Any:
        return SimpleNamespace(serialize=lambda: (self.cache or b"") + b"timed;")


class Network:
    model: onnx.ModelProto

    @property
    def num_inputs(self) -> int:
        return len(self.model.graph.input)

    def get_input(self, number: int) -> Any:
        return self.model.graph.input[number]


class OnnxParser:
    def __init__(self, network: Network, logger: Logger) -> None:
        self._network = network
        self._errors: list[str] = []

    def parse_from_file(self, path: str) -> bool:
        self._network.model = onnx.load(path)
        found = {node.op_type for node in self._network.model.graph.node} & unreadable
        self._errors = [f"no importer for operator {name}" for name in sorted(found)]
        return not found

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, number: int) -> Any:
        return SimpleNamespace(desc=lambda: self._errors[number])


class Builder:
    def __init__(self, logger: Logger) -> None:
        self.logger = logger

    def create_network(self, flags: int) -> Network:
        assert flags == 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED
        return Network()

    def create_builder_config(self) -> Config:
        return Config()

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: Network, config: Config) -> bytes:
        (profile,) = config.profiles
        assert profile.shapes.keys() == {entry.name for entry in network.model.graph.input}
        assert BuilderFlag.TF32 not in config.flags
        return _HEAD + json.dumps(profile.shapes).encode() + b"\0" + network.model.SerializeToString()


class Runtime:
    def __init__(self, logger: Logger) -> None:
        self.logger = logger

    def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
        if not plan.startswith(_HEAD):
            return None
        shapes, graph = plan.removeprefix(_HEAD).split(b"\0", 1)
        return Engine(json.loads(shapes), onnx.load_from_string(graph))


class Engine:
    def __init__(self, shapes: dict[str, list[list[int]]], model: onnx.ModelProto) -> None:
        self.shapes, self._graph = shapes, model.graph
        self.session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        self._entries = {entry.name: entry for entry in [*model.graph.input, *model.graph.output]}

    @property
    def num_io_tensors(self) -> int:
        return len(self._entries)

    def get_tensor_name(self, number: int) -> str:
        return list(self._entries)[number]

    def get_tensor_mode(self, name: str) -> str:
        return TensorIOMode.INPUT if name in self.shapes else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> int:
        kind: int = self._entries[name].type.tensor_type.elem_type
        return kind

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        lengths = self._entries[name].type.tensor_type.shape.dim
        return tuple(length.dim_value if length.HasField("dim_value") else -1 for length in lengths)

    def create_execution_context(self) -> Context:
        return Context(self)


class Context:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = self._engine.shapes[name]
        self._shapes[name] = shape
        return len(shape) == len(least) and all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True))

    def set_tensor_address(self, name: str, address: int) -> None:
        self._addresses[name] = address

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._compute()[name].shape)

    def execute_async_v3(self, stream: int) -> bool:
        for name, value in self._compute().items():
            ctypes.memmove(self._addresses[name], value.ctypes.data, value.nbytes)
        return True

    def _compute(self) -> dict[str, NDArray[Any]]:
        feeds = {}
        for name, shape in self._shapes.items():
            kind = np.dtype(nptype(self._engine.get_tensor_dtype(name)))
            size = int(np.prod(shape)) * kind.itemsize
            raw = ctypes.string_at(self._addresses[name], size)
            feeds[name] = np.frombuffer(raw, kind).reshape(shape)
        names = [entry.name for entry in self._engine.session.get_outputs()]
        values = self._engine.session.run(names, feeds)
        return {name: np.ascontiguousarray(value) for name, value in zip(names, values, strict=True)}


class HostMemory:
    """Buffers that lie in the machine's own memory."""

    @staticmethod
    def ortvalue_from_numpy(array: NDArray[Any], device_type: str, device_id: int) -> HostBuffer:
        assert device_type == "cuda"
        return HostBuffer(array.copy())

    @staticmethod
    def ortvalue_from_shape_and_type(
        shape: Sequence[int], element_type: Any, device_type: str, device_id: int
    ) -> HostBuffer:
        assert device_type == "cuda"
        return HostBuffer(np.empty(shape, element_type))


class HostBuffer:
    def __init__(self, array: NDArray[Any]) -> None:
        self._array = array

    def data_ptr(self) -> int:
        return self._array.ctypes.data

    def numpy(self) -> NDArray[Any]:
        return self._array.copy()
