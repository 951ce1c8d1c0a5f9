"""The gRPC face. It translates; it decides nothing."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import grpc
import grpc.aio
from google.protobuf import descriptor_pool
from google.protobuf.message import Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from critiq import wire
from critiq.errors import CritiqError, TooLarge
from critiq.v1 import models_pb2, scoring_pb2
from critiq_server.api import aliases, moderation, translate
from critiq_server.api import jobs as jobs_face
from critiq_server.api.access import GuardedCalls
from critiq_server.api.grpc_errors import abort
from critiq_server.api.oip import rpc as inference
from critiq_server.api.tracing import TracedCalls
from critiq_server.jobs.operations import Jobs
from critiq_server.moderation import Moderation
from critiq_server.queries import Item
from critiq_server.routing.keys import HEADER as ROUTING_KEY
from critiq_server.scoring.drift_labels import HEADER
from critiq_server.security.guard import Guard
from critiq_server.security.tls import Certificates, Pair
from critiq_server.service import Service
from critiq_server.settings import LimitSettings
from critiq_server.telemetry.faults import internal

_ENDLESS = 2**31 - 1
_PING_SECONDS = 20
_LONGEST_SOCKET = 107
"""Bytes of a Unix socket's name on Linux."""

Context = grpc.aio.ServicerContext[Any, Any]
M = TypeVar("M", bound=Message)
Unary = Callable[[M, float | None], Awaitable[Message]]


class GrpcFace:
    """The services ``Scoring``, ``Models``, the Open Inference Protocol's, health and reflection on one port.

    Args:
        shared: other processes listen on the port too.
    """

    def __init__(
        self,
        service: Service,
        is_ready: Callable[[], bool],
        moderation: Moderation,
        jobs: Jobs,
        guard: Guard | None = None,
        *,
        traced: bool = False,
        shared: bool = False,
    ) -> None:
        limit = service.settings.limits.request_bytes
        self._service = service
        self._moderation = moderation
        self._jobs = jobs
        self._inference = inference.InferenceFace(service, is_ready)
        self._request_bytes = limit
        self.health = health.aio.HealthServicer()  # type: ignore[attr-defined]
        self.server = grpc.aio.server(
            interceptors=[
                *([TracedCalls()] if traced else []),
                *([GuardedCalls(guard, abort)] if guard is not None else []),
            ],
            options=[
                # The handlers refuse what is over the limit with a clear message; gRPC itself stops at twice as much.
                ("grpc.max_receive_message_length", 2 * limit),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", int(shared)),
                *_connection_options(service.settings.limits),
                # From 1,000 calls that wait to be picked up gRPC resets some at random, with no reason that a caller
                # could act on. Ours is the gate that refuses, with a hint.
                ("grpc.server.max_pending_requests", _ENDLESS),
                ("grpc.server.max_pending_requests_hard_limit", _ENDLESS),
            ],
        )
        self._add_services()

    def bind(self, host: str, port: int, certificates: Certificates | None = None) -> int:
        """Listens, over TLS if there are certificates; returns the port. Raises ``OSError`` if it is taken."""
        address = f"{f'[{host}]' if ':' in host else host}:{port}"
        try:
            if certificates is None:
                return self.server.add_insecure_port(address)
            return self.server.add_secure_port(address, _credentials(certificates))
        except RuntimeError as error:
            raise OSError(f"cannot listen on {host}:{port}") from error

    def bind_socket(self, path: Path) -> None:
        """Listens on a Unix socket too, for this user only: no certificate is asked for there.

        Raises:
            OSError: that cannot be; says why.
        """
        if len(os.fsencode(path)) > _LONGEST_SOCKET:
            raise OSError(f"{path} has {len(os.fsencode(path))} bytes, a socket's name has at most {_LONGEST_SOCKET}")
        before = os.umask(0o077)  # later would be too late: it listens at once
        try:
            self.server.add_insecure_port(f"unix:{path}")
        except RuntimeError as error:
            raise OSError(f"cannot listen on the socket {path}; its directory must exist and let us write") from error
        finally:
            os.umask(before)

    async def set_health(self, service: str, serving: bool) -> None:
        """Sets what health checks of ``service`` answer."""
        status = health_pb2.HealthCheckResponse
        await self.health.set(service, status.SERVING if serving else status.NOT_SERVING)

    def _add_services(self) -> None:
        scoring = {
            "Score": self._unary(scoring_pb2.ScoreRequest, self._score),
            "ScoreBatch": self._unary(scoring_pb2.ScoreBatchRequest, self._score_batch),
            "ScoreStream": grpc.stream_stream_rpc_method_handler(self._score_stream, response_serializer=_serialize),
            "Rank": self._unary(scoring_pb2.RankRequest, self._rank),
            "Compare": self._unary(scoring_pb2.CompareRequest, self._compare),
            "Prefetch": self._unary(scoring_pb2.ScoreBatchRequest, self._prefetch),
            "Moderate": self._unary(scoring_pb2.ModerateRequest, partial(moderation.moderate, self._moderation)),
            "Policies": self._unary(scoring_pb2.PoliciesRequest, partial(moderation.policies, self._moderation)),
        }
        models = {
            "List": self._unary(models_pb2.ListModelsRequest, self._list_models),
            "Get": self._unary(models_pb2.GetModelRequest, self._get_model),
            "Load": self._unary(models_pb2.LoadModelRequest, self._load_model),
            "Unload": self._unary(models_pb2.UnloadModelRequest, self._unload_model),
        }
        models |= {
            name: self._unary(kind, method) for name, (kind, method) in aliases.methods(self._service.routing).items()
        }
        jobs = {name: self._unary(kind, method) for name, (kind, method) in jobs_face.methods(self._jobs).items()}
        inferring = {name: self._unary(kind, method) for name, (kind, method) in self._inference.methods().items()}
        inferring["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(
            self._infer_stream, response_serializer=_serialize
        )
        self.server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler("critiq.v1.Scoring", scoring),
                grpc.method_handlers_generic_handler("critiq.v1.Models", models),
                grpc.method_handlers_generic_handler(jobs_face.NAME, jobs),
                grpc.method_handlers_generic_handler(inference.NAME, inferring),
            )
        )
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self.server)
        own = ("critiq.v1.Scoring", "critiq.v1.Models", jobs_face.NAME, inference.NAME)
        names = (*own, "grpc.health.v1.Health", reflection.SERVICE_NAME)
        pools: Any = _Pools(descriptor_pool.Default(), inference.DESCRIPTORS)
        reflection.enable_server_reflection(names, self.server, pools)

    def _unary(self, kind: type[M], method: Unary[M]) -> grpc.RpcMethodHandler[Any, Any]:
        """A handler that gets the raw bytes: so text that is not UTF-8 is the caller's error, not an internal one."""

        async def handle(data: bytes, context: Context) -> Message:
            try:
                self._note_headers(context)
                self._check_size(data)
                return await method(translate.parse(kind, data), _remaining(context))
            except CritiqError as error:
                await abort(context, error)
            except Exception as error:
                await abort(context, internal(kind.DESCRIPTOR.name, error))

        return grpc.unary_unary_rpc_method_handler(handle, response_serializer=_serialize)

    async def _score(self, request: scoring_pb2.ScoreRequest, timeout: float | None) -> Message:
        return wire.result_to_proto(await self._service.score(translate.query(request), timeout))

    async def _score_batch(self, request: scoring_pb2.ScoreBatchRequest, timeout: float | None) -> Message:
        items = [translate.item(entry, str(position)) for position, entry in enumerate(request.items)]
        results = await self._service.score_batch(items, timeout)
        return scoring_pb2.ScoreBatchResponse(results=[wire.item_to_proto(result) for result in results])

    async def _score_stream(self, requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[Message]:
        self._note_headers(context)
        try:
            async for result in self._service.score_stream(self._read_items(requests), _remaining(context)):
                yield wire.item_to_proto(result)
        except CritiqError as error:
            await abort(context, error)
        except Exception as error:
            await abort(context, internal("ScoreStream", error))

    async def _read_items(self, requests: AsyncIterator[bytes]) -> AsyncIterator[Item]:
        async for data in requests:
            self._check_size(data)
            yield translate.item(translate.parse(scoring_pb2.ScoreItem, data), "")

    async def _infer_stream(self, requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[Message]:
        self._note_headers(context)
        async for answer in self._inference.stream(requests, self._check_size, _remaining(context)):
            yield answer

    async def _rank(self, request: scoring_pb2.RankRequest, timeout: float | None) -> Message:
        return wire.rank_to_proto(
            await self._service.rank(
                [translate.image_or_error(image) for image in request.images],
                request.prompt,
                translate.target(request.target),
                translate.priority(request.priority),
                translate.selection(request),
                timeout,
            )
        )

    async def _compare(self, request: scoring_pb2.CompareRequest, timeout: float | None) -> Message:
        return wire.compare_to_proto(await self._service.compare(*translate.pair(request), timeout))

    async def _prefetch(self, request: scoring_pb2.ScoreBatchRequest, timeout: float | None) -> Message:
        items = [translate.item(entry, str(position)) for position, entry in enumerate(request.items)]
        return wire.prefetch_to_proto(self._service.prefetch(items))

    async def _list_models(self, request: models_pb2.ListModelsRequest, timeout: float | None) -> Message:
        models = self._service.models.list()
        return models_pb2.ListModelsResponse(models=[wire.model_to_proto(model) for model in models])

    async def _get_model(self, request: models_pb2.GetModelRequest, timeout: float | None) -> Message:
        return wire.model_to_proto(self._service.models.get(request.name, request.version))

    async def _load_model(self, request: models_pb2.LoadModelRequest, timeout: float | None) -> Message:
        return wire.model_to_proto(await self._service.models.load(request.name, request.version))

    async def _unload_model(self, request: models_pb2.UnloadModelRequest, timeout: float | None) -> Message:
        await self._service.models.unload(request.name, request.version)
        return models_pb2.UnloadModelResponse()

    def _note_headers(self, context: Context) -> None:
        metadata: dict[str, Any] = dict(context.invocation_metadata() or ())
        aliases.note_routing_key(str(metadata.get(ROUTING_KEY, "")))
        label = metadata.get(HEADER)
        self._service.drift.labels.set(None if label is None else str(label))

    def _check_size(self, data: bytes) -> None:
        if len(data) > self._request_bytes:
            raise TooLarge(f"the request has {len(data)} bytes, the limit is {self._request_bytes}; send less at once")


class _Pools:
    """Several pools of descriptors as one, for reflection: each look-up goes to the first that knows the answer."""

    def __init__(self, *pools: Any) -> None:
        self._pools = pools

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def find(*arguments: Any) -> Any:
            for pool in self._pools[:-1]:
                try:
                    return getattr(pool, name)(*arguments)
                except KeyError:
                    continue
            return getattr(self._pools[-1], name)(*arguments)

        return find


def _connection_options(limits: LimitSettings) -> list[tuple[str, int]]:
    """Of clients that are slow, gone, or too busy with pings."""
    seconds = {
        "grpc.server_handshake_timeout_ms": limits.header_seconds,
        "grpc.max_connection_idle_ms": limits.grpc_idle_seconds,
        "grpc.max_connection_age_ms": limits.grpc_age_seconds or _ENDLESS / 1000,
        "grpc.keepalive_time_ms": limits.grpc_keepalive_seconds,
        "grpc.keepalive_timeout_ms": _PING_SECONDS,
        # A client that pings more often than this is told so and let go ("too_many_pings").
        "grpc.http2.min_ping_interval_without_data_ms": _PING_SECONDS / 2,
    }
    return [
        *((name, min(int(value * 1000), _ENDLESS)) for name, value in seconds.items()),
        # At the first gRPC refuses some calls at random, at the second all; one limit is easier to explain.
        ("grpc.max_metadata_size", limits.grpc_metadata_bytes),
        ("grpc.absolute_max_metadata_size", limits.grpc_metadata_bytes),
    ]


def _credentials(certificates: Certificates) -> grpc.ServerCredentials:
    """gRPC asks for the certificate before each handshake."""
    given = certificates.pair

    def configuration(pair: Pair) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([(pair.key, pair.chain)], pair.client_ca)

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        nonlocal given
        pair = certificates.pair
        if pair is given:
            return None  # no change
        given = pair
        return configuration(pair)

    required = certificates.settings.require_client_certificate
    callback: Any = fetch  # its stubs do not know that None is an answer
    return grpc.dynamic_ssl_server_credentials(configuration(given), callback, required)


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()


def _remaining(context: Context) -> float | None:
    """Seconds that there are for the answer; ``None`` if the caller set no deadline.

    A little less than until then: what we say of being late must get there before gRPC ends the call without a word.
    """
    remaining: float | None = context.time_remaining()
    return None if remaining is None else max(0.0, remaining - min(0.05 * remaining, 0.05))
