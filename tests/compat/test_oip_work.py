"""What bounds the work that the protocol's requests make, on servers that are held up."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from critiq_server.api.oip.inference import service_pb2
from tests.compat.oip_bodies import pictures
from tests.compat.oip_calls import SERVICE, grpc_answered, grpc_refused, refusal
from tests.server.api.test_overload import holding
from tests.support.bundles import write_simulated
from tests.support.faces import ports
from tests.support.gates import held
from tests.support.requests import flat
from tests.support.servers import make_settings, running
from tests.support.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_requests_of_both_faces_share_batches_and_limits(tmp_path: Path) -> None:
    """One picture holds the device; the others wait together, and one more is refused with a hint when to come back."""
    async with holding(tmp_path, in_flight=4, batch_items=4) as slow:
        first = await slow.blocked()
        path = "/v2/models/simulated/infer"
        waiting = [asyncio.ensure_future(slow.ports.http.post(path, **pictures(flat(level)))) for level in (2, 3)]
        request = service_pb2.ModelInferRequest(model_name="simulated/device")
        request.inputs.add(name="image", datatype="BYTES", shape=[1]).contents.bytes_contents.append(flat(4))
        waiting_stage = asyncio.ensure_future(grpc_answered(slow.ports, request))
        await until(lambda: slow.accepted == 4 and slow.gate.batcher.waiting == 3)
        response = await slow.ports.http.post(path, **pictures(flat(9)))
        status, message = refusal(response)
        assert (status, "try again later" in message) == (429, True)
        assert int(response.headers["retry-after"]) >= 1
        assert (await grpc_refused(slow.ports, request))[0] == "RESOURCE_EXHAUSTED"
        slow.gate.release()
        await first
        assert [(await entry).json()["outputs"][0]["data"] for entry in waiting] == [[2.0], [3.0]]
        assert np.frombuffer((await waiting_stage).raw_output_contents[0], "<f4") == [4.0]


async def test_concurrent_requests_for_one_picture_each_become_batches(tmp_path: Path) -> None:
    """While the device is busy with one, 64 more come over both faces: they are computed in two batches of 32."""
    write_simulated(tmp_path, batch_ms=1.0, max_batch=32)
    settings = make_settings(tmp_path, default="simulated")
    async with running(settings) as app, ports(app) as connected:
        with held(app, "device") as gate:
            first = asyncio.ensure_future(connected.http.post("/v2/models/simulated/infer", **pictures(flat(100))))
            await until(lambda: gate.computed == 1)
            over_http = [
                asyncio.ensure_future(connected.http.post("/v2/models/simulated/infer", **pictures(flat(level))))
                for level in range(32)
            ]
            over_grpc = []
            for level in range(32, 64):
                request = service_pb2.ModelInferRequest(model_name="simulated")
                request.inputs.add(name="image", datatype="BYTES", shape=[1]).contents.bytes_contents.append(
                    flat(level)
                )
                over_grpc.append(asyncio.ensure_future(grpc_answered(connected, request)))
            await until(lambda: gate.batcher.waiting == 64)
        found = [(await answer).json()["outputs"][0]["data"][0] for answer in over_http]
        found += [np.frombuffer((await answer).raw_output_contents[0], "<f4")[0] for answer in over_grpc]
        assert found == list(range(64))
        assert (await first).status_code == 200
        batches = app.metrics.registry.get_sample_value(
            "critiq_batch_size_count", {"model": "simulated", "stage": "device"}
        )
        assert batches == 3


async def test_nothing_is_computed_for_callers_that_leave(tmp_path: Path) -> None:
    async with holding(tmp_path) as slow:
        first = await slow.blocked()
        posted = asyncio.ensure_future(slow.ports.http.post("/v2/models/simulated/infer", **pictures(flat(2))))
        request = service_pb2.ModelInferRequest(model_name="simulated")
        request.inputs.add(name="image", datatype="BYTES", shape=[1]).contents.bytes_contents.append(flat(3))
        called = slow.ports.channel.unary_unary(SERVICE + "ModelInfer")(request.SerializeToString())
        stream = slow.ports.channel.stream_stream(SERVICE + "ModelStreamInfer")()
        for level in (4, 5):
            request.inputs[0].contents.bytes_contents[0] = flat(level)
            await stream.write(request.SerializeToString())
        reading = asyncio.ensure_future(stream.read())
        await slow.waiting(5)
        posted.cancel()
        called.cancel()
        stream.cancel()
        await until(lambda: slow.accepted == 1)
        slow.gate.release()
        await first
        await asyncio.gather(posted, called, reading, return_exceptions=True)
        assert slow.gate.computed == 1


@pytest.mark.parametrize("parameters", [{"timeout": 50_000}, {"timeout": 50_000, "on_error": "nan"}])
async def test_a_timeout_in_microseconds(tmp_path: Path, parameters: dict[str, Any]) -> None:
    async with holding(tmp_path) as slow:
        await slow.blocked()
        asked = pictures(flat(2), parameters=parameters)
        response = await slow.ports.http.post("/v2/models/simulated/infer", **asked)
        if "on_error" in parameters:
            assert "no answer within 0.05 s" in response.json()["parameters"]["errors"]
        else:
            assert refusal(response) == (
                504,
                "image[0]: no answer within 0.05 s; allow more time, or send less work at once",
            )


async def test_bulk_requests_wait_for_interactive_ones(tmp_path: Path) -> None:
    async with holding(tmp_path) as slow:
        first = await slow.blocked()
        path = "/v2/models/simulated/infer"
        order: list[int] = []

        async def ask(level: int, priority: int) -> None:
            response = await slow.ports.http.post(path, **pictures(flat(level), parameters={"priority": priority}))
            assert response.status_code == 200
            order.append(level)

        bulk = asyncio.ensure_future(ask(2, 2))
        await slow.waiting(2)
        urgent = asyncio.ensure_future(ask(3, 1))
        await slow.waiting(3)
        slow.gate.let_go(2)
        await asyncio.wait_for(urgent, 120)
        slow.gate.release()
        await asyncio.gather(first, bulk)
        assert order == [3, 2]
