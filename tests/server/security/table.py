"""Every route and every rpc, with the scope that it needs; and which there are, to be held against that."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any

import grpc
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from starlette.routing import BaseRoute, Mount, Route

import critiq
import critiq.v1
from critiq_server.api.oip import rpc as inference

OPEN, SCORE, MODELS, METRICS, ADMIN, LISTING = "", "score", "models", "metrics", "admin", "score models"
ANY = "score models metrics admin"

HTTP = {
    "/": {"GET": OPEN},
    "/page/{name}": {"GET": OPEN},
    "/docs": {"GET": OPEN},
    "/docs/oauth2-redirect": {"GET": OPEN},
    "/openapi.json": {"GET": OPEN},
    "/healthz": {"GET": OPEN},
    "/readyz": {"GET": OPEN},
    "/v1/score": {"POST": SCORE},
    "/v1/score/batch": {"POST": SCORE},
    "/v1/score/stream": {"POST": SCORE},
    "/v1/rank": {"POST": SCORE},
    "/v1/compare": {"POST": SCORE},
    "/v1/prefetch": {"POST": SCORE},
    "/v1/moderate": {"POST": SCORE},
    "/v1/policies": {"GET": SCORE},
    "/v1/moderations": {"POST": SCORE},
    "/v1/jobs": {"POST": SCORE, "GET": SCORE},
    "/v1/jobs/{name}": {"GET": SCORE, "DELETE": SCORE},
    "/v1/jobs/{name}/results": {"GET": SCORE},
    "/v1/models": {"GET": LISTING},
    "/v1/models/{name}": {"GET": LISTING},
    "/v1/models/{name}/load": {"POST": MODELS},
    "/v1/models/{name}/unload": {"POST": MODELS},
    "/v1/models/{name}/shadow": {"GET": LISTING},
    "/v1/aliases": {"GET": LISTING},
    "/v1/aliases/{name}": {"GET": LISTING, "PUT": MODELS, "DELETE": MODELS},
    "/v1/aliases/{name}/promote": {"POST": MODELS},
    "/v1/aliases/{name}/rollback": {"POST": MODELS},
    "/v1/drift": {"GET": METRICS},
    "/v1/drift/baseline": {"POST": MODELS},
    "/v1/live": {"GET": METRICS},
    "/v1/admin/profile": {"POST": ADMIN},
    "/v1/admin/threads": {"GET": ADMIN},
    "/v2": {"GET": SCORE},
    "/v2/health/live": {"GET": OPEN},
    "/v2/health/ready": {"GET": OPEN},
    "/v2/repository/index": {"POST": LISTING},
    "/v2/repository/models/{name}/load": {"POST": MODELS},
    "/v2/repository/models/{name}/unload": {"POST": MODELS},
    "/v2/models/{name}": {"GET": SCORE},
    "/v2/models/{name}/ready": {"GET": SCORE},
    "/v2/models/{name}/config": {"GET": SCORE},
    "/v2/models/{name}/infer": {"POST": SCORE},
    "/v2/models/{name}/versions/{version}": {"GET": SCORE},
    "/v2/models/{name}/versions/{version}/ready": {"GET": SCORE},
    "/v2/models/{name}/versions/{version}/config": {"GET": SCORE},
    "/v2/models/{name}/versions/{version}/infer": {"POST": SCORE},
}


RPC = {
    "critiq.v1.Scoring": dict.fromkeys(
        ("Score", "ScoreBatch", "ScoreStream", "Rank", "Compare", "Prefetch", "Moderate", "Policies"), SCORE
    ),
    "critiq.v1.Models": {
        **dict.fromkeys(("List", "Get", "ListAliases", "GetShadowReport"), LISTING),
        **dict.fromkeys(("Load", "Unload", "SetAlias", "PromoteAlias", "RollbackAlias", "RemoveAlias"), MODELS),
    },
    "critiq.v1.Jobs": dict.fromkeys(("Submit", "Get", "List", "Results", "Cancel"), SCORE),
    "inference.GRPCInferenceService": {
        "ServerLive": OPEN,
        "ServerReady": OPEN,
        "ServerMetadata": SCORE,
        "ModelReady": SCORE,
        "ModelMetadata": SCORE,
        "ModelConfig": SCORE,
        "ModelInfer": SCORE,
        "ModelStreamInfer": SCORE,
        "RepositoryIndex": LISTING,
        "RepositoryModelLoad": MODELS,
        "RepositoryModelUnload": MODELS,
    },
    "grpc.health.v1.Health": {"Check": OPEN, "Watch": OPEN},
    "grpc.reflection.v1alpha.ServerReflection": {"ServerReflectionInfo": ANY},
}


def endpoints(routes: list[BaseRoute], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Path and method of every route."""
    for route in routes:
        if isinstance(route, Mount):
            yield from endpoints(list(route.routes), prefix + route.path)
        else:
            assert isinstance(route, Route), f"{route} is of a kind that this test does not know"
            for method in route.methods or ():
                yield (prefix + route.path).replace(":path}", "}"), method


def expected(path: str, method: str) -> str:
    if path.startswith("/compat/"):  # all of it is scoring
        return SCORE
    assert path in HTTP, f"{method} {path} is a new route; decide which scope it needs, and put it into the table"
    by_method = HTTP[path]
    return by_method["GET" if method == "HEAD" and "GET" in by_method else method]


def rpcs() -> Iterator[tuple[str, Any]]:
    files = [health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR]
    for found in pkgutil.iter_modules(critiq.v1.__path__):
        if found.name.endswith("_pb2"):
            files.append(importlib.import_module(f"critiq.v1.{found.name}").DESCRIPTOR)
    services = [service for file in files for service in file.services_by_name.values()]
    services.append(inference.DESCRIPTORS.FindServiceByName(inference.NAME))
    for service in services:
        for method in service.methods:
            yield service.full_name, method


async def called(channel: grpc.aio.Channel, service: str, method: Any, key: str = "") -> tuple[grpc.StatusCode, str]:
    """What a call without content comes to."""
    path = f"/{service}/{method.name}"
    metadata = (("authorization", f"Bearer {key}"),) if key else None
    try:
        if not method.client_streaming and not method.server_streaming:
            await channel.unary_unary(path)(b"", metadata=metadata, timeout=120)
        elif method.client_streaming:
            async for _ in channel.stream_stream(path)(iter(()), metadata=metadata, timeout=120):
                pass
        else:
            call = channel.unary_stream(path)(b"", metadata=metadata, timeout=120)
            await call.read()
            call.cancel()
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details() or ""
    return grpc.StatusCode.OK, ""
