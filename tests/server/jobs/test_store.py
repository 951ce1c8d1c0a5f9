"""The database of the jobs: what it keeps, in which order it gives work out, and what is left of what it forgets."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from critiq.errors import CritiqError, FailedPrecondition, InvalidArgument, TooBusy
from critiq.jobs import Job, JobResult
from critiq_server.engine.demand import Priority
from critiq_server.images.source import EncodedImage, RawImage, RemoteImage
from critiq_server.jobs.outbox import Outbox
from critiq_server.jobs.records import NewJob, query_of, result_bytes, result_of, stored
from critiq_server.jobs.settings import CallbackSettings, JobSettings
from critiq_server.jobs.store import Answer, JobStore, JobStoreError
from critiq_server.queries import Item, Query, Target
from tests.support.receiver import SECRET

PROMPT = "a prompt that nobody else has"
PICTURE = b"pixels that nobody else has" * 5000
URL = "https://hooks.example/a?token=1"
OUTCOME = result_bytes(JobResult("0", error=InvalidArgument("no picture", field="image")))


def settings(**changes: Any) -> JobSettings:
    return JobSettings(callbacks=CallbackSettings(hosts=("hooks.example",), secrets=(SECRET,)), **changes)  # type: ignore[arg-type]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[JobStore]:
    opened = JobStore(tmp_path / "jobs.db", settings(max_jobs=5, max_bytes=10 * len(PICTURE), max_kept=3))
    yield opened
    opened.close()


def new(count: int = 1, **changes: Any) -> NewJob:
    items = [stored(Item(str(at), Query(EncodedImage(PICTURE), PROMPT))) for at in range(count)]
    return NewJob(items, **changes)


def body(job: Job) -> bytes:
    return job.state.encode()


def finish(store: JobStore, name: str, now: float) -> None:
    for item in store.portion(name, 100):
        store.answer(name, [Answer(item.position, OUTCOME, True)], [])
    assert store.end(name, "done", "", now, body) is not None


def test_from_submission_to_its_end(store: JobStore) -> None:
    job = store.submit(new(3, callback=URL), now=10.0)
    assert (job.state, job.items, job.answered, job.created, job.started) == ("queued", 3, 0, 10.0, None)
    assert job.callback is not None
    assert (job.callback.host, job.callback.state) == ("hooks.example", "pending")
    claimed = store.claim([], now=11.0)
    assert claimed is not None
    assert (claimed.id, claimed.state, claimed.started) == (job.id, "running", 11.0)
    portion = store.portion(job.id, 2)
    assert [(item.position, item.id, item.tries) for item in portion] == [(0, "0", 0), (1, "1", 0)]
    assert portion[0].query == Query(EncodedImage(PICTURE), PROMPT, Target(), Priority.BULK)
    store.answer(job.id, [Answer(0, OUTCOME, True)], again=[1])
    assert [(item.position, item.tries) for item in store.portion(job.id, 10)] == [(2, 0), (1, 1)]
    store.answer(job.id, [Answer(2, OUTCOME, False, "review")], again=[])
    half = store.get(job.id)
    assert half is not None
    assert (half.answered, half.failed, half.decisions) == (2, 1, {"review": 1})
    assert store.totals().waiting_bytes == new().size
    ended = store.end(job.id, "done", "", 12.0, body)
    assert ended is not None
    assert (ended.state, ended.finished) == ("done", 12.0)
    assert store.end(job.id, "cancelled", "", 13.0, body) is None
    assert Outbox(store).due(12.0, 10)[0].body == b"done"
    assert store.totals().waiting_bytes == 0


def test_results_in_pages(store: JobStore) -> None:
    job = store.submit(new(4), 1.0)
    store.claim([], 1.0)
    store.answer(job.id, [Answer(at, f"{at}".encode(), False) for at in (0, 1, 3)], [])
    assert store.results(job.id, 0, 2) == ([b"0", b"1"], 3)
    assert store.results(job.id, 3, 2) == ([b"3"], None)


def test_work_left_over_comes_first_then_the_oldest(store: JobStore) -> None:
    first, second, third = (store.submit(new(), now=float(at)) for at in range(3))
    assert [store.claim([], 5.0) for _ in range(2)] == [store.get(first.id)] * 2  # running, and nobody has it
    claimed = store.claim([first.id], 5.0)
    assert claimed is not None
    assert claimed.id == second.id
    again = store.claim([first.id], 6.0)
    assert again is not None
    assert again.id == second.id
    assert store.claim([first.id, second.id, third.id], 6.0) is None


def test_a_portion_holds_at_most_so_many_bytes(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "jobs.db", settings())
    large = Query(EncodedImage(bytes(20 * 2**20)))
    job = store.submit(NewJob([stored(Item(str(at), large)) for at in range(3)]), 1.0)
    assert [item.position for item in store.portion(job.id, 10)] == [0]
    store.close()


def test_room(store: JobStore) -> None:
    store.submit(new(9), 1.0)
    with pytest.raises(TooBusy, match="1 jobs wait with") as caught:
        store.submit(new(2), 1.0)
    assert caught.value.retry_after == 5.0
    for _ in range(4):
        store.submit(NewJob([stored(Item("0", InvalidArgument("no picture")))]), 1.0)
    with pytest.raises(TooBusy, match="5 jobs wait"):
        store.submit(NewJob([stored(Item("0", InvalidArgument("no picture")))]), 1.0)


def test_a_key_is_one_job(store: JobStore) -> None:
    first = store.submit(new(key="k"), 1.0)
    assert store.submit(new(key="k"), 2.0) == first
    for other in (new(2, key="k"), new(key="k", asked_policy=("p", "")), new(key="k", callback=URL)):
        with pytest.raises(FailedPrecondition, match=first.id):
            store.submit(other, 2.0)
    assert store.submit(new(key="k", policy="p", policy_version="2"), 2.0) == first  # what a default stood for
    assert store.submit(new(), 2.0).id != store.submit(new(), 2.0).id


def test_newest_first(store: JobStore) -> None:
    names = [store.submit(new(), 1.0).id for _ in range(4)]
    store.claim([], 2.0)
    assert [job.id for job in store.recent(None, 2, "")] == names[:1:-1]
    assert [job.id for job in store.recent(None, 9, names[2])] == names[1::-1]
    assert [job.id for job in store.recent("running", 9, "")] == names[:1]


def test_nothing_is_left_of_what_is_scored_or_forgotten(store: JobStore, tmp_path: Path) -> None:
    def on_disk() -> bytes:
        return b"".join(path.read_bytes() for path in sorted(tmp_path.iterdir()))

    job = store.submit(new(3, key="the key"), 1.0)
    assert PROMPT.encode() in on_disk()
    assert PICTURE[:100] in on_disk()
    store.empty_log()
    assert (tmp_path / "jobs.db").stat().st_size > 3 * len(PICTURE)
    store.claim([], 1.0)
    finish(store, job.id, now=2.0)
    store.empty_log()
    assert PROMPT.encode() not in on_disk()
    assert PICTURE[:100] not in on_disk()
    assert b"no picture" in on_disk()  # the results stay
    assert (tmp_path / "jobs.db").stat().st_size < 3 * len(PICTURE)  # and the room is given back
    assert store.forget(ended_before=1.5) == 0
    assert store.forget(ended_before=2.5) == 1
    assert store.get(job.id) is None
    assert b"no picture" not in on_disk()
    assert b"the key" not in on_disk()


def test_a_cancelled_job_drops_its_pictures(store: JobStore, tmp_path: Path) -> None:
    job = store.submit(new(3), 1.0)
    store.end(job.id, "cancelled", "", 2.0, body)
    store.empty_log()
    assert PICTURE[:100] not in b"".join(path.read_bytes() for path in tmp_path.iterdir())
    store.answer(job.id, [Answer(0, OUTCOME, False)], [])  # what was under way comes too late
    assert store.results(job.id, 0, 9) == ([], None)


def test_what_ended_longest_ago_goes_beyond_the_limit(store: JobStore) -> None:
    names = []
    for at in range(5):
        job = store.submit(new(callback=URL if at == 0 else ""), 1.0)
        finish(store, job.id, now=float(at)) if store.claim([], 1.0) else None
        names.append(job.id)
    assert store.forget(ended_before=0.0) == 2
    # The first has a callback to deliver, so it stays.
    assert [job.id for job in store.recent(None, 9, "")] == [names[4], names[3], names[0]]


def test_callbacks_that_nobody_takes_do_not_fill_the_disk(store: JobStore) -> None:
    for at in range(5):
        job = store.submit(new(callback=URL), 1.0)
        assert store.claim([], 1.0) is not None
        finish(store, job.id, now=float(at))
    assert store.forget(ended_before=0.0) == 2
    assert [job.finished for job in store.recent(None, 9, "")] == [4.0, 3.0, 2.0]


def test_tries_of_callbacks(store: JobStore) -> None:
    outbox = Outbox(store)
    jobs = [store.submit(new(callback=URL), 1.0) for _ in range(3)]
    for job in jobs:
        store.claim([], 1.0)
        finish(store, job.id, now=5.0)
    first, second, third = outbox.due(5.0, 10)
    assert outbox.due(4.9, 10) == []
    outbox.failed(first, "answered 500", due=9.0)
    assert outbox.due(8.0, 1)[0].message == second.message
    again = next(entry for entry in outbox.due(9.0, 10) if entry.job == first.job)
    assert (again.message, again.body, again.attempts) == (first.message, first.body, 1)
    outbox.delivered(second)
    assert outbox.next_due() == 5.0
    outbox.refused(again, "answered 410")
    assert outbox.next_due() is None
    outbox.failed(third, "answered 500", due=20.0)  # it was under way
    assert outbox.next_due() is None
    states = {job.id: job.callback for job in store.recent(None, 9, "")}
    found = [states[job.id] for job in jobs]
    assert [entry.state for entry in found if entry] == ["refused", "delivered", "refused"]
    assert [entry.attempts for entry in found if entry] == [2, 1, 0]


def test_one_server_a_file(store: JobStore, tmp_path: Path) -> None:
    with pytest.raises(JobStoreError, match="in use by another server"):
        JobStore(tmp_path / "jobs.db", settings())


def test_only_the_owner_may_read_the_file(store: JobStore, tmp_path: Path) -> None:
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


@pytest.mark.parametrize("statement", ["CREATE TABLE mine (a)", "PRAGMA user_version = 99"])
def test_files_of_others(tmp_path: Path, statement: str) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as connection:
        connection.execute(statement)
    connection.close()
    with pytest.raises(JobStoreError, match=r"database of something else|version 99"):
        JobStore(path, settings())


def test_paths_that_cannot_be_used(tmp_path: Path) -> None:
    for path in (tmp_path / "no" / "such" / "jobs.db", tmp_path):
        with pytest.raises(JobStoreError, match=r"jobs\.path must name a file"):
            JobStore(path, settings())
    text = tmp_path / "text.db"
    text.write_text("no database" * 1000)
    with pytest.raises(JobStoreError, match=r"jobs\.path must name a file"):
        JobStore(text, settings())


IMAGES = st.one_of(
    st.binary(max_size=20).map(EncodedImage),
    st.text(max_size=20).map(RemoteImage),
    st.builds(
        RawImage,
        st.binary(max_size=20),
        st.tuples(*[st.integers(0, 9)] * 3),
        st.sampled_from(["uint8", "float32"]),
        st.sampled_from(["hwc", "chw"]),
    ),
)
QUERIES = st.builds(
    Query,
    IMAGES,
    st.text(max_size=20),
    st.builds(Target, st.text(max_size=5), st.text(max_size=5), st.lists(st.text(max_size=5), max_size=3).map(tuple)),
    st.just(Priority.BULK),
)


@given(QUERIES)
def test_queries_come_back_as_they_were(query: Query) -> None:
    entry = stored(Item("a", query))
    assert query_of(entry.asked, entry.data) == query


def test_errors_of_reading_are_results() -> None:
    entry = stored(Item("a", InvalidArgument("no picture", field="image")))
    assert entry.result is not None
    found = result_of(entry.result)
    assert isinstance(found.error, CritiqError)
    assert (found.id, str(found.error)) == ("a", "image: no picture")


def test_a_file_from_before_jobs_had_owners_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    first = JobStore(path, settings())
    job = first.submit(new(key="k"), 1.0)
    first.connection.execute("ALTER TABLE jobs DROP COLUMN owner")
    first.connection.execute("PRAGMA user_version = 1")
    first.close()
    second = JobStore(path, settings())
    assert second.get(job.id) == job
    assert second.get(job.id, "somebody") is None
    assert second.submit(new(key="k"), 2.0) == job
    assert second.submit(new(key="k", owner="somebody"), 2.0).id != job.id
    second.close()
