"""A process that cannot be replaced is tried for again and again, whatever the machine lacks."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter

from critiq_server.processes import supervisor
from critiq_server.processes.supervisor import Supervisor
from tests.support.servers import make_settings
from tests.support.waiting import until


def process(path: Path, *, ends: bool) -> Any:
    async def wait() -> int:
        if not ends:
            await asyncio.Event().wait()
        return -9

    running: Any = SimpleNamespace(wait=wait, returncode=-9 if ends else None)
    member: Any = SimpleNamespace(path=path, number=0)
    made: Any = supervisor._Process(member, running, started=0.0)
    return made


async def test_a_machine_without_memory_for_another_process_is_asked_again_for_as_long_as_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(supervisor, "_LONGEST_PAUSE", 0.0)
    group = Supervisor(make_settings(tmp_path, server={"workers": 2}), ())
    dead, lives = process(tmp_path / "a", ends=True), process(tmp_path / "b", ends=False)
    tried = 0

    async def spawn(number: int) -> Any:
        nonlocal tried
        tried += 1
        if tried < 1200:  # at the longest pause ten hours
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return lives

    async def is_ready(process: Any) -> bool:
        return True

    monkeypatch.setattr(group, "_spawn", spawn)
    monkeypatch.setattr(group, "_wait_ready", is_ready)
    group._restarts = Counter("restarts", "Of this test.", registry=CollectorRegistry())
    group._processes = {0: dead}
    keeping = asyncio.create_task(group._keep(0))
    await until(lambda: keeping.done() or group._processes.get(0) is lives)
    assert not keeping.done()
    keeping.cancel()
    assert "a process cannot be started" in capsys.readouterr().out
