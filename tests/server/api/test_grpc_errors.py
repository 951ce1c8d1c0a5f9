"""How a call over gRPC ends whose caller may have given up: with our words in time, with nothing sent too late."""

from __future__ import annotations

import asyncio
import struct
from pathlib import Path
from typing import Any

import grpc
import pytest

from critiq.errors import DeadlineExceeded
from critiq_server.api import grpc_api
from critiq_server.api.grpc_errors import abort
from tests.support import requests
from tests.support.bundles import write_simulated
from tests.support.gates import held
from tests.support.servers import make_settings, running
from tests.support.waiting import until


class _Call:
    """A call's context, as far as :func:`abort` looks at it."""

    def __init__(self, remaining: float | None) -> None:
        self._remaining = remaining
        self.sent: list[Any] = []

    def time_remaining(self) -> float | None:
        return self._remaining

    def trailing_metadata(self) -> tuple[()]:
        return ()

    async def abort(self, *sent: Any) -> None:
        self.sent.append(sent)
        raise grpc.aio.AbortError("aborted")


@pytest.mark.parametrize("remaining", [None, 0.01])
async def test_a_late_answer_is_told_while_there_is_time(remaining: float | None) -> None:
    call: Any = _Call(remaining)
    with pytest.raises(grpc.aio.AbortError):
        await abort(call, DeadlineExceeded("no answer within 1 s"))
    assert call.sent[0][:2] == (grpc.StatusCode.DEADLINE_EXCEEDED, "no answer within 1 s")


async def test_nothing_is_sent_after_the_deadline() -> None:
    call: Any = _Call(0)
    with pytest.raises(asyncio.CancelledError):
        await abort(call, DeadlineExceeded("no answer within 1 s"))
    assert not call.sent


@pytest.mark.parametrize("remaining", [None, 0.0, 0.2, 1.0, 3600.0])
def test_the_deadline_within_the_server_is_a_little_before_the_callers(remaining: float | None) -> None:
    call: Any = _Call(remaining)
    found = grpc_api._remaining(call)
    if remaining is None or found is None:
        assert found is remaining
    else:
        assert 0.95 * remaining <= found <= remaining
        assert remaining - found == pytest.approx(min(0.05, 0.05 * remaining))


async def test_grpc_ends_a_call_that_we_say_nothing_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller speaks HTTP/2 only and never looks at the clock, so nobody but the server can have ended its call."""
    monkeypatch.setattr(grpc_api, "_remaining", lambda context: context.time_remaining())  # so we notice too late
    write_simulated(tmp_path, batch_ms=1.0, max_batch=1)
    async with running(make_settings(tmp_path, default="simulated")) as app:
        with held(app, "device"):
            reader, writer = await asyncio.open_connection("127.0.0.1", app.grpc_port)
            writer.write(_raw_call(requests.score().SerializeToString(), "300m"))
            received = b""
            async with asyncio.timeout(120):
                while b"grpc-status\x014" not in received:
                    more = await reader.read(4096)
                    assert more, received
                    received += more
            assert b"Deadline Exceeded" in received, "gRPC's words, not ours"
            await until(lambda: app.service.admission.items == 0)
            writer.close()


def _raw_call(message: bytes, timeout: str) -> bytes:
    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": "/critiq.v1.Scoring/Score",
        ":authority": "localhost",
        "content-type": "application/grpc",
        "te": "trailers",
        "grpc-timeout": timeout,
    }
    plain = b"".join(b"\0" + _short(name) + _short(value) for name, value in headers.items())
    return (
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        + _frame(4, 0, 0, b"")  # settings: none
        + _frame(1, 4, 1, plain)
        + _frame(0, 1, 1, b"\0" + struct.pack(">I", len(message)) + message)
    )


def _short(text: str) -> bytes:
    return bytes([len(text)]) + text.encode()


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload
