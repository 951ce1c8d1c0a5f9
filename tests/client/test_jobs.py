"""Jobs from the blocking client and the command line, against a real server; and their way over the wire."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

import critiq
from critiq import _jobs, jobs, types
from critiq._requests import Options
from critiq.v1 import jobs_pb2
from tests.client.test_cli import Cli
from tests.client.test_wire import comparable, counts, numbers, over_the_wire, problems, results, text
from tests.support.bundles import write_bundle
from tests.support.requests import flat
from tests.support.servers import ServerProcess, server_process

POLICY = """
name: bright
version: "1"
rules: [{name: dark, when: {dimension: brightness, below: 0.5}, decision: reject}]
"""


@pytest.fixture(scope="module")
def jobs_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = tmp_path_factory.mktemp("jobs")
    write_bundle(root / "bundles")
    (root / "bright.yaml").write_text(POLICY)
    arguments = ["--models", str(root / "bundles"), "--load", "tiny", "--default", "tiny"]
    arguments += ["--set", f"jobs.path={root / 'jobs.db'}", "--set", f"moderation.policies=[{root / 'bright.yaml'}]"]
    with server_process(arguments, root / "log") as server:
        yield server


@pytest.fixture
def url(jobs_server: ServerProcess, transport: str) -> str:
    return jobs_server.grpc if transport == "grpc" else jobs_server.rest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pictures").mkdir()
    for name, data in (("dark.png", flat(10)), ("light.png", flat(200)), ("none.png", b"no picture")):
        (tmp_path / "pictures" / name).write_bytes(data)
    return tmp_path / "pictures"


def test_from_submission_to_results(url: str) -> None:
    with critiq.Client(url) as client:
        job = client.submit_job([critiq.Item(flat(at), "a cat", f"p{at}") for at in range(20)])
        assert (job.has_ended, job.items) == (False, 20)
        ended = client.wait_job(job.id, timeout=120)
        assert (ended.state, ended.answered, ended.has_ended) == ("done", 20, True)
        found = list(client.job_results(job.id))
        assert [entry.id for entry in found] == [f"p{at}" for at in range(20)]
        assert [round(255 * entry.result["brightness"].raw) for entry in found if entry.result] == list(range(20))
        assert client.cancel_job(job.id) == ended
        assert client.jobs(limit=1) == [ended]
        assert client.jobs("failed") == []
        assert ended not in client.jobs(after=job.id)
        with pytest.raises(critiq.NotFound, match="there is no job 'nothing'"):
            client.job("nothing")


def test_results_of_many_pages(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_jobs, "_PAGE", 3)
    with critiq.Client(url) as client:
        job = client.submit_job([flat(at) for at in range(7)])
        client.wait_job(job.id, timeout=120)
        assert [entry.id for entry in client.job_results(job.id)] == [str(at) for at in range(7)]


def test_an_item_that_cannot_be_sent_is_named(url: str) -> None:
    with critiq.Client(url) as client, pytest.raises(critiq.InvalidArgument, match=r"items\[1\]"):
        client.submit_job([flat(), "no/such/file.png"])


def test_a_broken_connection_takes_no_second_job_on() -> None:
    """A call that is tried again has the same key; the next call has another."""
    calls = [_jobs._submit([flat()], Options(), "", "", "", key) for key in ("", "", "mine")]
    keys = [call.request.idempotency_key for call in calls]  # type: ignore[attr-defined]
    assert all(call.safe for call in calls)
    assert keys[2] == "mine"
    assert len(set(keys)) == 3


def test_waiting_ends_in_time() -> None:
    waiting = _jobs._Waiting("job_1", 0.05, "server")
    job = critiq.Job("job_1", "running", items=4, answered=3, failed=0, created=1.0)
    with pytest.raises(critiq.DeadlineExceeded, match=r"after 0\.05 s: it is running, with 3 of 4 items answered"):
        waiting.pause(job)


def test_waiting_outlasts_a_restart(jobs_server: ServerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    with critiq.Client(jobs_server.grpc) as client:
        job = client.submit_job([flat()])
        ended = client.wait_job(job.id, timeout=120)
        looks = iter([critiq.Job(job.id, "running", 1, 0, 0, 1.0), critiq.Unavailable("restarting"), ended])

        def look(id: str, *, timeout: float | None = None) -> critiq.Job:
            seen = next(looks)
            if isinstance(seen, Exception):
                raise seen
            return seen

        monkeypatch.setattr(client, "job", look)
        assert client.wait_job(job.id, timeout=120) == ended


def test_command_line(url: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cli = Cli(url, tmp_path, monkeypatch)
    name = cli("jobs", "submit", folder, "--prompt", "a cat", "--policy", "bright").stdout.strip()
    assert name.startswith("job_")
    waited = json.loads(cli("jobs", "wait", name, "--json", code=1).stdout)  # a picture failed
    assert (waited["state"], waited["failed"], waited["decisions"]) == ("done", 1, {"reject": 1, "accept": 1})
    rows = [json.loads(line) for line in cli("jobs", "show", name, "--results", "--json").stdout.splitlines()]
    assert [Path(row["id"]).name for row in rows] == ["dark.png", "light.png", "none.png"]
    assert [row["verdict"] and row["verdict"]["decision"] for row in rows] == ["reject", "accept", None]
    shown = cli("jobs", "show", name, "--results").stdout
    assert "brightness 0.039" in shown
    assert "INVALID_ARGUMENT" in shown
    assert "1 accept, 1 reject" in cli("jobs", "show", name).stdout
    assert name in cli("jobs", "list", "--state", "done").stdout
    assert name not in cli("jobs", "list", "--state", "failed").stdout
    assert json.loads(cli("jobs", "cancel", name, "--json").stdout)["state"] == "done"
    assert "there is no job" in cli("jobs", "show", "nothing", code=2).stderr
    assert "no policy 'dim'" in cli("jobs", "submit", folder, "--policy", "dim", code=2).stderr


def test_the_same_key_is_the_same_job(url: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cli = Cli(url, tmp_path, monkeypatch)
    arguments = ("jobs", "submit", folder, "--key", f"nightly {url}")
    assert cli(*arguments).stdout == cli(*arguments).stdout
    assert "choose another key" in cli(*arguments, "--prompt", "another", code=2).stderr


callbacks = st.builds(
    critiq.JobCallback, text, st.sampled_from(get_args(jobs.CallbackState)), counts, text, st.none() | numbers
)
all_jobs = st.builds(
    critiq.Job,
    text,
    st.sampled_from(get_args(jobs.JobState)),
    counts,
    counts,
    counts,
    numbers,
    st.none() | numbers,
    st.none() | numbers,
    text,
    text,
    text,
    st.none() | callbacks,
    st.dictionaries(st.sampled_from(get_args(types.Decision)), counts),
)
job_results = st.builds(critiq.JobResult, text, result=results) | st.builds(critiq.JobResult, text, error=problems)


@given(all_jobs)
def test_jobs_over_the_wire(job: critiq.Job) -> None:
    assert jobs.job_from_proto(over_the_wire(jobs.job_to_proto(job))) == job


@given(st.builds(jobs.JobResults, st.lists(job_results, max_size=3).map(tuple), st.none() | counts))
def test_results_over_the_wire(page: jobs.JobResults) -> None:
    assert comparable(jobs.results_from_proto(over_the_wire(jobs.results_to_proto(page)))) == comparable(page)


def test_no_field_is_forgotten() -> None:
    for message, kind in (
        (jobs_pb2.Job, critiq.Job),
        (jobs_pb2.JobCallback, critiq.JobCallback),
        (jobs_pb2.JobResultsResponse, jobs.JobResults),
    ):
        fields = {field.name for field in dataclasses.fields(kind)}
        assert {field.name for field in message.DESCRIPTOR.fields} == fields
