"""Every route and every rpc behind keys, on a real server: what is open, what a key opens, and what it may ask for.

Routes are taken from the application and rpcs from the descriptors, so a new one fails here until it is in the table.
"""

from __future__ import annotations

import grpc
import httpx
import pytest
from grpc_reflection.v1alpha import reflection_pb2

from critiq_server.api.access import http_scopes
from critiq_server.security.keys import SCOPES, new_key
from tests.server.security.conftest import Server, ask
from tests.server.security.table import HTTP, RPC, called, endpoints, expected, rpcs

module = pytest.mark.asyncio(loop_scope="module")


@module
async def test_every_route_asks_for_its_scope(server: Server) -> None:
    found = set(endpoints(list(server.application().routes)))
    assert {path for path, _ in found} >= set(HTTP), "the table has routes that are not there any more"
    stranger = new_key("stranger", SCOPES)[0]
    for path, method in sorted(found):
        scopes = expected(path, method).split()
        place = f"{method} {path}"
        for key in ("", stranger, "nonsense"):
            answered = await ask(server, path, method, key)
            assert (answered.status_code == 401) == bool(scopes), f"{place}: {answered.status_code} {answered.text}"
            assert ("www-authenticate" in answered.headers) == bool(scopes), place
        for scope, key in server.keys.items():
            answered = await ask(server, path, method, key)
            if scopes and scope not in scopes:
                assert answered.status_code == 403, f"{place} with {scope}: {answered.status_code}"
                assert method == "HEAD" or "needs a key with the scope" in answered.text
            else:
                assert answered.status_code not in (401, 403, 500), f"{place} with {scope}: {answered.text}"


@module
async def test_every_rpc_asks_for_its_scope(server: Server) -> None:
    stranger = new_key("stranger", SCOPES)[0]
    refusals = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
    seen = set()
    for service, method in rpcs():
        place = f"{service}/{method.name}"
        seen.add(place)
        assert method.name in RPC.get(service, {}), f"{place} is new; decide which scope it needs"
        scopes = RPC[service][method.name].split()
        for key in ("", stranger):
            found, _ = await called(server.grpc, service, method, key)
            assert (found is refusals[0]) == bool(scopes), f"{place}: {found}"
        for scope, key in server.keys.items():
            found, details = await called(server.grpc, service, method, key)
            if scopes and scope not in scopes:
                assert found is refusals[1], f"{place} with {scope}: {found}"
                assert "needs a key with the scope" in details
            else:
                assert found not in refusals, f"{place} with {scope}: {found} {details}"
    assert seen == {f"{service}/{name}" for service, names in RPC.items() for name in names}


@module
async def test_reflection_names_no_service_that_is_not_in_the_table(server: Server) -> None:
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    path = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    call = server.grpc.stream_stream(path, response_deserializer=reflection_pb2.ServerReflectionResponse.FromString)
    metadata = (("x-api-key", server.keys["metrics"]),)
    async for answer in call(iter([request.SerializeToString()]), metadata=metadata):
        assert {service.name for service in answer.list_services_response.service} <= set(RPC)


def test_what_nobody_has_thought_of_is_closed() -> None:
    for path in ("/v3/new", "/healthz/", "/metrics", "//", "/page/a/b", "/V1/models", "/v2/health/live/x"):
        assert http_scopes("GET", path), path
    assert http_scopes("POST", "/healthz")
    assert http_scopes("GET", "/openapi.json", open_documents=False)
    assert not http_scopes("GET", "/readyz", open_documents=False)


@module
async def test_the_metrics_and_other_ports_ask_too(server: Server) -> None:
    async with httpx.AsyncClient() as client:
        metrics = f"http://127.0.0.1:{server.app.metrics_port}/metrics"
        assert (await client.get(metrics)).status_code == 401
        assert (await client.get(metrics, headers={"x-api-key": server.keys["score"]})).status_code == 403
        answered = await client.get(metrics, headers={"x-api-key": server.keys["metrics"]})
        assert answered.status_code == 200
        assert "critiq_requests" in answered.text
        listener = f"http://127.0.0.1:{server.app.compat_ports[0]}/"
        assert (await client.post(listener, content=b"")).status_code == 401
        assert (await client.post(listener, headers={"x-api-key": server.keys["models"]})).status_code == 403
        assert (await client.post(listener, headers={"x-api-key": server.keys["score"]})).status_code not in (401, 403)
