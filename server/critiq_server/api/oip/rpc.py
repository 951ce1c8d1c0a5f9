"""The Open Inference Protocol over gRPC: ``inference.GRPCInferenceService``. It translates; it decides nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import asdict
from typing import Any

from google.protobuf.message import Message

from critiq.errors import CritiqError, InvalidArgument
from critiq_server.api import translate
from critiq_server.api.oip import answering, models
from critiq_server.api.oip.inference import service_pb2
from critiq_server.api.oip.tensors import Tensor, encode
from critiq_server.service import Service
from critiq_server.telemetry.faults import internal
from critiq_server.wording import quoted

NAME = "inference.GRPCInferenceService"
DESCRIPTORS = service_pb2.DESCRIPTOR.pool
"""Where the messages are described; not the process's pool, see ``tools/contract.py``."""

Unary = Callable[[Any, float | None], Awaitable[Message]]

_CONTENTS: Mapping[str, str] = {"BYTES": "bytes_contents", "UINT8": "uint_contents"}
"""The field that holds the values of a datatype; inputs of others are refused by name later."""


class InferenceFace:
    """The methods, as functions of a message and the seconds until the call's deadline."""

    def __init__(self, service: Service, is_ready: Callable[[], bool]) -> None:
        self._service = service
        self._is_ready = is_ready

    def methods(self) -> dict[str, tuple[type[Message], Unary]]:
        """All but ``ModelStreamInfer``, by name, with the message that each takes."""
        return {
            "ServerLive": (service_pb2.ServerLiveRequest, self._live),
            "ServerReady": (service_pb2.ServerReadyRequest, self._ready),
            "ServerMetadata": (service_pb2.ServerMetadataRequest, self._server),
            "ModelReady": (service_pb2.ModelReadyRequest, self._model_ready),
            "ModelMetadata": (service_pb2.ModelMetadataRequest, self._model),
            "ModelConfig": (service_pb2.ModelConfigRequest, self._config),
            "ModelInfer": (service_pb2.ModelInferRequest, self._infer),
            "RepositoryIndex": (service_pb2.RepositoryIndexRequest, self._index),
            "RepositoryModelLoad": (service_pb2.RepositoryModelLoadRequest, self._load),
            "RepositoryModelUnload": (service_pb2.RepositoryModelUnloadRequest, self._unload),
        }

    async def stream(
        self, requests: AsyncIterator[bytes], check_size: Callable[[bytes], None], timeout: float | None
    ) -> AsyncIterator[Message]:
        """Answers requests as they come, several at a time, in their order; an error is its own request's."""
        answers: asyncio.Queue[asyncio.Task[Message] | None] = asyncio.Queue()
        window = asyncio.Semaphore(self._service.settings.limits.stream_window)

        async def read() -> None:
            try:
                async for data in requests:
                    await window.acquire()
                    answers.put_nowait(asyncio.create_task(self._streamed(data, check_size, timeout)))
            finally:
                answers.put_nowait(None)

        reader = asyncio.create_task(read())
        try:
            while (answer := await answers.get()) is not None:
                yield await answer
                window.release()
            await reader
        finally:
            reader.cancel()
            while not answers.empty():
                if (left := answers.get_nowait()) is not None:
                    left.cancel()

    async def _streamed(self, data: bytes, check_size: Callable[[bytes], None], timeout: float | None) -> Message:
        request = service_pb2.ModelInferRequest()
        try:
            check_size(data)
            request = translate.parse(service_pb2.ModelInferRequest, data)
            return service_pb2.ModelStreamInferResponse(infer_response=await self._infer(request, timeout))
        except CritiqError as error:
            known = error
        except Exception as error:
            known = internal("ModelStreamInfer", error)
        failed = service_pb2.ModelInferResponse(model_name=request.model_name, id=request.id)
        return service_pb2.ModelStreamInferResponse(error_message=str(known), infer_response=failed)

    async def _live(self, request: service_pb2.ServerLiveRequest, timeout: float | None) -> Message:
        return service_pb2.ServerLiveResponse(live=True)

    async def _ready(self, request: service_pb2.ServerReadyRequest, timeout: float | None) -> Message:
        return service_pb2.ServerReadyResponse(ready=self._is_ready())

    async def _server(self, request: service_pb2.ServerMetadataRequest, timeout: float | None) -> Message:
        return service_pb2.ServerMetadataResponse(
            name=models.NAME, version=models.VERSION, extensions=models.EXTENSIONS
        )

    async def _model_ready(self, request: service_pb2.ModelReadyRequest, timeout: float | None) -> Message:
        ready = models.is_ready(self._service, request.name, request.version)
        return service_pb2.ModelReadyResponse(ready=ready)

    async def _model(self, request: service_pb2.ModelMetadataRequest, timeout: float | None) -> Message:
        model = models.describe(self._service, request.name, request.version)
        kind = service_pb2.ModelMetadataResponse.TensorMetadata
        return service_pb2.ModelMetadataResponse(
            name=model.name,
            versions=model.versions,
            platform=models.NAME,
            inputs=[kind(name=entry.name, datatype=entry.datatype, shape=entry.shape) for entry in model.inputs],
            outputs=[kind(name=entry.name, datatype=entry.datatype, shape=entry.shape) for entry in model.outputs],
        )

    async def _config(self, request: service_pb2.ModelConfigRequest, timeout: float | None) -> Message:
        model = models.describe(self._service, request.name, request.version)
        inputs = [
            service_pb2.ModelInput(
                name=entry.name,
                data_type=_config_datatype(entry.datatype),
                dims=entry.shape,
                optional=entry.optional,
            )
            for entry in model.inputs
        ]
        outputs = [
            service_pb2.ModelOutput(name=entry.name, data_type=_config_datatype(entry.datatype), dims=entry.shape)
            for entry in model.outputs
        ]
        config = service_pb2.ModelConfig(
            name=model.name, platform=models.NAME, backend=models.NAME, input=inputs, output=outputs
        )
        return service_pb2.ModelConfigResponse(config=config)

    async def _infer(
        self, request: service_pb2.ModelInferRequest, timeout: float | None
    ) -> service_pb2.ModelInferResponse:
        for at, output in enumerate(request.outputs):
            if output.parameters:
                raise InvalidArgument(
                    f"the parameter {quoted(min(output.parameters))} is unknown here; an output takes none",
                    field=f"outputs[{at}].parameters",
                )
        question = answering.Request(
            request.model_name,
            request.model_version,
            request.id,
            _parameters(request.parameters),
            _inputs(request),
            [output.name for output in request.outputs],
        )
        return _answer(await answering.infer(self._service, question, timeout))

    async def _index(self, request: service_pb2.RepositoryIndexRequest, timeout: float | None) -> Message:
        entries = models.index(self._service, ready=request.ready)
        kind = service_pb2.RepositoryIndexResponse.ModelIndex
        return service_pb2.RepositoryIndexResponse(models=[kind(**asdict(entry)) for entry in entries])

    async def _load(self, request: service_pb2.RepositoryModelLoadRequest, timeout: float | None) -> Message:
        models.check_load_parameters(request.parameters)
        await self._service.models.load(request.model_name)
        return service_pb2.RepositoryModelLoadResponse()

    async def _unload(self, request: service_pb2.RepositoryModelUnloadRequest, timeout: float | None) -> Message:
        await self._service.models.unload(request.model_name)
        return service_pb2.RepositoryModelUnloadResponse()


def _inputs(request: service_pb2.ModelInferRequest) -> list[Tensor]:
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise InvalidArgument(
            f"there are {len(request.inputs)} inputs and {len(raw)} raw_input_contents; there must be one for each, "
            "or none",
            field="raw_input_contents",
        )
    tensors = []
    for at, entry in enumerate(request.inputs):
        if entry.parameters:
            raise InvalidArgument(
                f"the parameter {quoted(min(entry.parameters))} is unknown here; an input takes none",
                field=f"inputs[{at}].parameters",
            )
        if raw and entry.HasField("contents"):
            raise InvalidArgument("it has contents as well as raw_input_contents", field=f"inputs[{at}]")
        values = raw[at] if raw else list(getattr(entry.contents, _CONTENTS.get(entry.datatype, "bytes_contents")))
        tensors.append(Tensor(entry.name, entry.datatype, tuple(entry.shape), values))
    return tensors


def _parameters(parameters: Mapping[str, service_pb2.InferParameter]) -> dict[str, Any]:
    found = {}
    for name, parameter in parameters.items():
        kind = parameter.WhichOneof("parameter_choice")
        if kind is None:
            raise InvalidArgument(f"the parameter {quoted(name)} has no value", field="parameters")
        found[name] = getattr(parameter, kind)
    return found


def _answer(answer: answering.Answer) -> service_pb2.ModelInferResponse:
    response = service_pb2.ModelInferResponse(model_name=answer.model, model_version=answer.version, id=answer.id)
    _set_parameters(response.parameters, answer.parameters)
    for output in answer.outputs:
        entry = response.outputs.add(name=output.name, datatype=output.datatype, shape=output.values.shape)
        _set_parameters(entry.parameters, output.parameters)
        response.raw_output_contents.append(encode(output.values))
    return response


def _set_parameters(target: Any, parameters: Mapping[str, str]) -> None:
    for name, value in parameters.items():
        target[name].string_param = value


def _config_datatype(datatype: str) -> Any:
    return service_pb2.DataType.Value(models.config_datatype(datatype))
