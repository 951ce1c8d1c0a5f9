"""gRPC on a Unix socket beside the port."""

from __future__ import annotations

import os
import socket as socketlib
import stat
from pathlib import Path

import numpy as np
import pytest

import critiq
from critiq_server.app import App, StartError
from critiq_server.listening import check_free
from critiq_server.processes.supervisor import Supervisor
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


async def test_a_socket_is_not_taken_from_another_server_and_no_file_for_one(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    socket, file = tmp_path / "grpc", tmp_path / "notes.txt"
    file.write_text("mine")
    settings = make_settings(tmp_path, server={"grpc_socket": socket})
    async with running(settings):
        for workers in (1, 2):
            second = make_settings(tmp_path, server={"grpc_socket": socket, "workers": workers})
            with pytest.raises(StartError, match="another server listens at"):
                await (App(second).start() if workers == 1 else Supervisor(second, ()).run())
        async with critiq.AsyncClient(f"unix:{socket}") as client:
            assert (await client.score(np.full((20, 20, 3), 51, np.uint8)))["brightness"].raw == pytest.approx(0.2)
    with pytest.raises(StartError, match="is there and no socket"):
        check_free(file)
    assert file.read_text() == "mine"


def test_a_link_and_a_socket_that_killed_servers_left_are_in_nobodys_way(tmp_path: Path) -> None:
    link, left = tmp_path / "link", tmp_path / "left"
    link.symlink_to(tmp_path / "gone")
    with socketlib.socket(socketlib.AF_UNIX) as listened:
        listened.bind(str(left))
    for path in (link, left):
        check_free(path)
    assert not link.is_symlink()
