"""gRPC on a Unix socket beside the port."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np
import pytest

import critiq
from critiq_server.app import StartError
from tests.support.bundles import write_bundle
from tests.support.servers import make_settings, running


async def test_the_socket_answers_like_the_port(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    socket = tmp_path / "grpc"
    async with running(make_settings(tmp_path, server={"grpc_socket": socket})) as app:
        for url in (f"unix:{socket}", f"127.0.0.1:{app.grpc_port}"):
            async with critiq.AsyncClient(url) as client:
                result = await client.score(np.full((20, 20, 3), 51, np.uint8))
                assert result["brightness"].raw == pytest.approx(0.2)


async def test_the_socket_is_the_servers_users_alone(tmp_path: Path) -> None:
    """Whatever the umask, which stays as it was."""
    write_bundle(tmp_path)
    socket = tmp_path / "grpc"
    before = os.umask(0)
    try:
        async with running(make_settings(tmp_path, server={"grpc_socket": socket})):
            assert socket.is_socket()
            assert stat.S_IMODE(socket.stat().st_mode) & 0o077 == 0
            assert os.umask(0) == 0
    finally:
        os.umask(before)


async def test_a_socket_that_cannot_be_opened_is_said_at_the_start(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    with pytest.raises(StartError, match=r"server\.grpc_socket"):
        async with running(make_settings(tmp_path, server={"grpc_socket": tmp_path / "nowhere" / "grpc"})):
            pass
