"""What a process hears of others that hang, are gone, or have nothing to say."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from critiq.errors import FailedPrecondition
from critiq.types import Processes
from critiq_server.processes import group
from critiq_server.processes.group import Member

pytestmark = pytest.mark.skipif(os.name == "nt", reason="several processes need Linux or macOS")


@pytest.fixture
def member() -> Iterator[Member]:
    """The first of three. The second hangs: it listens, and answers nothing. Of the third there is a socket only."""
    with tempfile.TemporaryDirectory() as directory:  # a short path: sockets' names are limited
        hangs, gone = (socket.socket(socket.AF_UNIX) for _ in range(2))
        hangs.bind(f"{directory}/1-2.sock")
        hangs.listen()
        gone.bind(f"{directory}/2-3.sock")
        gone.close()
        yield Member(0, 3, Path(directory), "0-1", 0, {}, lifeline=-1)
        hangs.close()


async def test_who_does_not_answer_is_missing_and_not_waited_for(member: Member) -> None:
    replies = await member.ask("live", seconds=0.2)
    assert (dict(replies.values), replies.processes) == ({}, Processes(1, 3, (1, 2)))


async def test_who_hangs_is_named_to_who_loads_a_model(member: Member, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group, "_PATIENCE", 0.2)
    with pytest.raises(FailedPrecondition, match=r"done here, but 1 of the other 2 .*: process 1 does not answer"):
        await member.tell("load", name="tiny", version="1")
    assert await member.loaded_elsewhere() == ()
