"""A server that is killed in the middle of a job: the next one goes on, and the callback comes."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path

import pytest

import critiq
from tests.support.bundles import write_simulated
from tests.support.receiver import receiving
from tests.support.requests import flat
from tests.support.servers import ServerProcess, server_process

COUNT = 100
PROMPT = "a prompt that is nobody's business"


@pytest.mark.slow
async def test_killed_and_started_again(tmp_path: Path) -> None:
    write_simulated(tmp_path / "bundles", batch_ms=100, max_batch=4)
    async with receiving() as receiver:
        arguments = ["--models", str(tmp_path / "bundles"), "--load", "simulated", "--default", "simulated"]
        arguments += ["--set", f"jobs.path={tmp_path / 'jobs.db'}", "--set", "jobs.portion=8"]
        arguments += ["--set", f"jobs.callbacks={json.dumps(receiver.settings())}"]
        with server_process(arguments, tmp_path / "first.log") as first:
            name, answered = await asyncio.to_thread(submit_and_kill, first, receiver.url)
        assert 0 < answered < COUNT
        assert receiver.events == []
        with server_process(arguments, tmp_path / "second.log") as second:
            ((message, event),) = await receiver.told()
            assert event["data"]["counts"] == {"items": COUNT, "answered": COUNT, "failed": 0}
            assert (event["data"]["id"], message[:4]) == (name, "msg_")
            await asyncio.to_thread(check_results, second, name)
        for log in ("first.log", "second.log"):
            text = (tmp_path / log).read_text()
            assert PROMPT not in text
            assert "token=secret" not in text


def submit_and_kill(server: ServerProcess, callback: str) -> tuple[str, int]:
    """The job's name, and how many of its items were answered when the server was killed."""
    with critiq.Client(server.rest) as client:
        job = client.submit_job([critiq.Item(flat(at), PROMPT) for at in range(COUNT)], callback=callback)
        while (now := client.job(job.id)).answered == 0:
            pass
    server.process.send_signal(signal.SIGKILL)
    server.process.wait(120)
    return job.id, now.answered


def check_results(server: ServerProcess, name: str) -> None:
    with critiq.Client(server.rest) as client:
        assert client.job(name).state == "done"
        found = list(client.job_results(name))
    assert [entry.id for entry in found] == [str(at) for at in range(COUNT)]
    assert [round(entry.result["red"].raw) for entry in found if entry.result] == list(range(COUNT))
