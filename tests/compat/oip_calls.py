"""What the tests of the protocol's forms ask, and how they read what comes back."""

from __future__ import annotations

from typing import Any

import grpc
import httpx
import pytest

from critiq_server.api.oip.inference import service_pb2
from tests.support.faces import Ports
from tests.support.requests import flat

SERVICE = "/inference.GRPCInferenceService/"
PICTURE = flat(51)


def refusal(response: httpx.Response) -> tuple[int, str]:
    assert response.headers["content-type"] == "application/json"
    found = response.json()
    assert set(found) == {"error"}
    assert "Traceback" not in found["error"]
    return response.status_code, found["error"]


async def grpc_answered(connected: Ports, request: Any, method: str = "ModelInfer") -> Any:
    data = await connected.channel.unary_unary(SERVICE + method)(request.SerializeToString(), timeout=120)
    return service_pb2.ModelInferResponse.FromString(data)


async def grpc_refused(connected: Ports, request: Any, method: str = "ModelInfer") -> tuple[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await connected.channel.unary_unary(SERVICE + method)(request.SerializeToString(), timeout=120)
    return caught.value.code().name, caught.value.details() or ""
