"""What is served, in the words of the Open Inference Protocol."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version as package_version

from critiq.errors import CritiqError, InvalidArgument
from critiq_server.api.oip.tensors import DATATYPES
from critiq_server.service import Service
from critiq_server.wording import quoted

NAME = "critiq"
VERSION = package_version("critiq")
EXTENSIONS = ("binary_tensor_data", "model_configuration", "model_repository")
STATES: Mapping[str, str] = {"ready": "READY", "loading": "LOADING"}
"""Others are ``UNAVAILABLE``."""


RENAMED: Mapping[str, str] = {
    "target.model": "model",
    "target.version": "version",
    "target.scale": "parameters.scale",
    "stage": "model",
}
"""What a request's fields are called here."""


@contextmanager
def in_its_words() -> Iterator[None]:
    """Errors that name a field of critiq's own requests name this protocol's instead."""
    try:
        yield
    except CritiqError as error:
        if error.field not in RENAMED:
            raise
        raise type(error)(error.message, field=RENAMED[error.field], retry_after=error.retry_after) from error


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """``shape`` has -1 where a length varies; the first is the number of items."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    optional: bool = False


@dataclass(frozen=True, slots=True)
class ModelInfo:
    name: str
    versions: Sequence[str]
    inputs: Sequence[TensorInfo]
    outputs: Sequence[TensorInfo]


@dataclass(frozen=True, slots=True)
class IndexEntry:
    name: str
    version: str
    state: str
    reason: str


def describe(service: Service, model: str, version: str) -> ModelInfo:
    """The tensors of ``NAME`` or ``NAME/STAGE``. Raises ``NotFound`` or, for stages, ``ModelNotLoaded``."""
    with in_its_words():
        return _describe(service, model, version)


def _describe(service: Service, model: str, version: str) -> ModelInfo:
    name, slash, stage = model.partition("/")
    if slash:
        signature = service.stage(name, version, stage)
        outputs = [
            TensorInfo(
                output, DATATYPES[spec.dtype], (-1, *(-1 if length is None else length for length in spec.shape))
            )
            for output, spec in signature.outputs.items()
        ]
        inputs = _inputs(signature.reads, prompt_optional="image" in signature.reads)
        return ModelInfo(f"{signature.model}/{stage}", [signature.version], inputs, outputs)
    found = service.models.get(name, version)
    loaded = [entry.version for entry in service.models.list() if entry.name == found.name and entry.state == "ready"]
    outputs = [TensorInfo(dimension.name, "FP32", (-1,)) for dimension in found.dimensions]
    inputs = _inputs(frozenset(("image", "prompt")), prompt_optional=True)
    return ModelInfo(found.name, [version] if version else loaded, inputs, outputs)


def is_ready(service: Service, model: str, version: str) -> bool:
    """Whether ``NAME`` or ``NAME/STAGE`` is served; false for what does not exist."""
    try:
        check_ready(service, model, version)
    except CritiqError:
        return False
    return True


def check_ready(service: Service, model: str, version: str) -> None:
    """Raises ``NotFound`` or ``ModelNotLoaded`` where ``NAME`` or ``NAME/STAGE`` is not served."""
    name, slash, stage = model.partition("/")
    with in_its_words():
        if slash:
            service.stage(name, version, stage)
        else:
            with service.registry.lease(name, version):
                pass


def index(service: Service, *, ready: bool) -> list[IndexEntry]:
    """Every known model version, or those that are served."""
    entries = [
        IndexEntry(model.name, model.version, STATES.get(model.state, "UNAVAILABLE"), model.state_reason)
        for model in service.models.list()
    ]
    return [entry for entry in entries if entry.state == "READY" or not ready]


def config_datatype(datatype: str) -> str:
    """The name of a datatype in a model's configuration."""
    return "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"


def check_load_parameters(parameters: Mapping[str, object]) -> None:
    """Raises ``InvalidArgument`` if there are any: a client may not bring a configuration or files of its own."""
    for name in parameters:
        raise InvalidArgument(
            f"the parameter {quoted(name)} is unknown here: a bundle has its configuration and files in it",
            field="parameters",
        )


def _inputs(reads: frozenset[str], *, prompt_optional: bool) -> list[TensorInfo]:
    inputs = []
    if "image" in reads:
        inputs.append(TensorInfo("image", "BYTES", (-1,)))
        inputs.append(TensorInfo("pixels", "UINT8", (-1, -1, -1, 3), optional=True))
    if "prompt" in reads:
        inputs.append(TensorInfo("prompt", "BYTES", (-1,), optional=prompt_optional))
    return inputs
