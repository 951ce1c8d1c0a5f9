"""Callbacks, to a receiver that verifies them with the library of Standard Webhooks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError
from standardwebhooks import Webhook, WebhookVerificationError

import critiq
from critiq_server.app import App
from critiq_server.jobs import callbacks
from critiq_server.jobs.outbox import Outbox
from critiq_server.jobs.records import NewJob, stored
from critiq_server.jobs.settings import CallbackSettings, JobSettings
from critiq_server.jobs.store import JobStore
from critiq_server.jobs.thread import Thread
from critiq_server.outbound.connect import Answer, Outbound
from critiq_server.outbound.urls import Address
from critiq_server.queries import Item
from tests.support.bundles import write_bundle
from tests.support.https import answer
from tests.support.receiver import NEXT_SECRET, SECRET, Receiver, receiving
from tests.support.requests import flat
from tests.support.servers import make_settings, running
from tests.support.waiting import until

PROMPT = "a prompt that stays here"


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bundles")
    write_bundle(root)
    return root


@asynccontextmanager
async def serving(
    bundles: Path, path: Path, callbacks: dict[str, Any]
) -> AsyncIterator[tuple[App, critiq.AsyncClient]]:
    settings = make_settings(bundles, jobs={"path": path / "jobs.db", "callbacks": callbacks})
    async with running(settings) as app, critiq.AsyncClient(f"127.0.0.1:{app.grpc_port}") as client:
        yield app, client


async def settled(client: critiq.AsyncClient, name: str) -> critiq.JobCallback:
    """The job's callback once nothing more is tried."""
    for _ in range(500):
        callback = (await client.job(name)).callback
        assert callback is not None
        if callback.state != "pending":
            return callback
        await asyncio.sleep(0.02)
    raise AssertionError(f"the callback of {name} is still pending")


async def submitted(client: critiq.AsyncClient, receiver: Receiver) -> str:
    return (await client.submit_job([critiq.Item(flat(5), PROMPT), b"none"], callback=receiver.url)).id


async def test_told_once_with_counts_and_no_content(bundles: Path, tmp_path: Path) -> None:
    async with receiving() as receiver:
        settings = receiver.settings(link_base="https://critiq.example/")
        async with serving(bundles, tmp_path, settings) as (app, client):
            name = await submitted(client, receiver)
            assert await settled(client, name) == critiq.JobCallback("localhost", "delivered", 1)
            job = await client.job(name)
        ((message, event),) = receiver.events
        assert event["type"] == "job.done"
        assert datetime.fromisoformat(event["timestamp"]).timestamp() == pytest.approx(job.finished, abs=0.001)
        assert event["data"] == {
            "id": name,
            "state": "done",
            "counts": {"items": 2, "answered": 2, "failed": 1},
            "link": f"https://critiq.example/v1/jobs/{name}",
        }
        asked = receiver.site.asked[0]
        assert (asked.method, asked.target, asked.headers["content-type"]) == (
            "POST",
            "/hook?token=secret",
            "application/json",
        )
        assert message.startswith("msg_")
        assert PROMPT.encode() not in asked.body
        assert app.metrics.registry.get_sample_value("critiq_job_callbacks_total", {"outcome": "delivered"}) == 1
        with pytest.raises(WebhookVerificationError):  # what was tampered with is found out
            Webhook(SECRET).verify(asked.body.replace(b'"failed":1', b'"failed":0'), dict(asked.headers))
        with pytest.raises(WebhookVerificationError):
            Webhook(SECRET).verify(asked.body, {**asked.headers, "webhook-id": "msg_other"})


@pytest.mark.parametrize("secret", [SECRET, NEXT_SECRET])
async def test_while_secrets_change_either_verifies(bundles: Path, tmp_path: Path, secret: str) -> None:
    (tmp_path / "secrets").write_text(f"{NEXT_SECRET}\n\n")
    async with receiving(secret) as receiver:
        settings = receiver.settings(secrets_file=tmp_path / "secrets")
        async with serving(bundles, tmp_path, settings) as (_, client):
            assert (await settled(client, await submitted(client, receiver))).state == "delivered"
        assert len(receiver.site.asked[0].headers["webhook-signature"].split(" ")) == 2


async def test_again_until_it_is_taken(bundles: Path, tmp_path: Path) -> None:
    async with receiving() as receiver:
        receiver.replies = [
            answer(500),
            answer(302, Location="http://localhost/"),
            b"nonsense",
            answer(200, bytes(10**6)),
        ]
        async with serving(bundles, tmp_path, receiver.settings()) as (_, client):
            callback = await settled(client, await submitted(client, receiver))
        assert (callback.state, callback.attempts, callback.last_error) == ("delivered", 4, "")
        assert len({message for message, _ in receiver.events}) == 1
        assert len({asked.body for asked in receiver.site.asked}) == 1


async def test_a_receiver_that_is_down_then_up(bundles: Path, tmp_path: Path) -> None:
    async with receiving() as other, receiving() as gone:
        port, url = gone.site.port, gone.url
        settings = other.settings(ports=[other.site.port, port])
    async with receiving(port=other.site.port) as other, serving(bundles, tmp_path, settings) as (_, client):
        name = (await client.submit_job([flat()], callback=url)).id
        await until_tried(client, name, 2)
        job = await client.job(name)
        assert job.callback is not None
        assert job.callback.last_error.startswith("localhost was not reached")
        assert (job.callback.next_attempt or 0) > (job.finished or 0)
        await client.submit_job([flat()], callback=other.url)
        await other.told()  # one that is down holds up nobody else
        async with receiving(port=port) as receiver:
            ((_, event),) = await receiver.told()
            assert event["data"]["id"] == name
            assert (await settled(client, name)).state == "delivered"


async def test_gone(bundles: Path, tmp_path: Path) -> None:
    async with receiving() as receiver:
        receiver.replies = [answer(410)]
        async with serving(bundles, tmp_path, receiver.settings()) as (_, client):
            callback = await settled(client, await submitted(client, receiver))
            assert callback == critiq.JobCallback("localhost", "refused", 1, "answered 410")


@pytest.mark.parametrize("form", ["seconds", "date"])
async def test_the_receiver_says_when(bundles: Path, tmp_path: Path, form: str) -> None:
    async with receiving() as receiver:
        now = datetime.now(UTC).timestamp()
        hint = "300" if form == "seconds" else format_datetime(datetime.fromtimestamp(now + 300, UTC), usegmt=True)
        receiver.replies = [answer(503, Retry_After=hint)]
        async with serving(bundles, tmp_path, receiver.settings()) as (_, client):
            name = await submitted(client, receiver)
            await until_tried(client, name, 1)
            callback = (await client.job(name)).callback
        assert callback is not None
        assert callback.next_attempt is not None
        assert 295 < callback.next_attempt - now < 330


async def test_given_up(bundles: Path, tmp_path: Path) -> None:
    async with receiving() as receiver:
        receiver.replies = [answer(400)] * 1000
        async with serving(bundles, tmp_path, receiver.settings(give_up_seconds=1.5)) as (app, client):
            callback = await settled(client, await submitted(client, receiver))
            sample = app.metrics.registry.get_sample_value
            await until(lambda: sample("critiq_job_callbacks_total", {"outcome": "given_up"}) == 1)
        assert (callback.state, callback.last_error, callback.next_attempt) == ("given_up", "answered 400", None)
        assert callback.attempts == len(receiver.events) > 1


async def test_a_job_that_is_cancelled_is_told_of(bundles: Path, tmp_path: Path) -> None:
    async with receiving() as receiver, serving(bundles, tmp_path, receiver.settings()) as (_, client):
        job = await client.submit_job([critiq.Item(flat(5))], model="spare", callback=receiver.url)
        await client.cancel_job(job.id)
        ((_, event),) = await receiver.told()
        assert event["type"] in ("job.cancelled", "job.done")
        assert event["data"]["state"] == (await client.job(job.id)).state


async def test_due_after_a_restart(bundles: Path, tmp_path: Path) -> None:
    async with receiving() as receiver:
        receiver.replies = [answer(500)]
        settings = receiver.settings(first_pause_seconds=1.0, longest_pause_seconds=1.0)
        async with serving(bundles, tmp_path, settings) as (_, client):
            name = await submitted(client, receiver)
            await until_tried(client, name, 1)
        async with serving(bundles, tmp_path, settings) as (_, client):
            assert (await settled(client, name)).attempts == 2
        (first, _), (second, _) = receiver.events
        assert first == second


async def test_hosts_that_are_not_allowed(bundles: Path, tmp_path: Path) -> None:
    async with receiving() as receiver:
        settings = receiver.settings(allow_private_addresses=False)
        async with serving(bundles, tmp_path, settings) as (_, client):
            with pytest.raises(critiq.PermissionDenied, match=r"'other\.example' is not one"):
                await client.submit_job([flat()], callback="http://other.example/")
            with pytest.raises(critiq.InvalidArgument, match="is an IP address"):
                await client.submit_job([flat()], callback="http://127.0.0.1/")
            # The name is listed, and its address is this machine: that shows when it is looked up.
            name = await submitted(client, receiver)
            await until_tried(client, name, 1)
            callback = (await client.job(name)).callback
            assert callback is not None
            assert "not public" in callback.last_error
        assert receiver.site.asked == []


@pytest.mark.parametrize(
    "secret", ["", "whsec_", "whsec_c2hvcnQ=", "secret", "whsec_!!!", SECRET.removeprefix("whsec_")]
)
def test_secrets_that_sign_nothing(secret: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="24 to 64 bytes") as caught:
        CallbackSettings(secrets=(secret,))  # type: ignore[arg-type]
    assert not secret or repr(secret) not in str(caught.value)
    if secret:
        (tmp_path / "secrets").write_text(secret)
        with pytest.raises(ValidationError, match=r"line 1 is not whsec_"):
            CallbackSettings(secrets_file=tmp_path / "secrets")


def test_callbacks_are_signed_or_off(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="callbacks are signed"):
        CallbackSettings(hosts=("hooks.example",))
    with pytest.raises(ValidationError, match="cannot read"):
        CallbackSettings(secrets_file=tmp_path / "missing")


async def test_nothing_private_is_logged(bundles: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    async with receiving() as receiver, serving(bundles, tmp_path, receiver.settings()) as (_, client):
        receiver.replies = [answer(500)]
        await settled(client, await submitted(client, receiver))
    logged = "".join(capfd.readouterr())
    assert "job ended" in logged
    for private in (PROMPT, "token=secret", SECRET, json.dumps(PROMPT)):
        assert private not in logged


class _OneHostHangs(Outbound):
    """Takes every message at once, but for those to ``slow.example``, which it keeps waiting."""

    async def request(self, method: str, address: Address, **options: Any) -> Answer:
        if address.host == "slow.example":
            await asyncio.Event().wait()
        return Answer(204, {}, b"")


@asynccontextmanager
async def waiting(path: Path, urls: list[str], told: list[str]) -> AsyncIterator[callbacks.Callbacks]:
    """Callbacks of jobs that ended 0, 1, 2, … seconds after the beginning of 1970; ``told`` gets the outcomes."""
    settings = JobSettings(callbacks=CallbackSettings(hosts=("*.example",), secrets=(SECRET,)))  # type: ignore[arg-type]
    run = Thread()
    store = await run(JobStore, path / "jobs.db", settings)
    item = stored(Item("0", critiq.InvalidArgument("no picture")))
    for at, url in enumerate(urls):
        job = await run(store.submit, NewJob([item], callback=url), 0.0)
        await run(store.end, job.id, "done", "", float(at), lambda _: b"{}")
    outbound = _OneHostHangs(settings.callbacks, "jobs.callbacks")
    yield callbacks.Callbacks(Outbox(store), run, settings.callbacks, outbound, told.append)
    await run(store.close)
    run.close()


async def test_a_long_queue_for_one_host_hides_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callbacks, "_PAGE", 4)
    urls = [*(f"https://slow.example?{at}" for at in range(9)), "https://quick.example"]
    told: list[str] = []
    async with waiting(tmp_path, urls, told) as delivering:
        task = asyncio.create_task(delivering.deliver())
        await until(lambda: told == ["delivered"] and delivering._hosts == {"slow.example": 4})
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_timer_that_fires_early_loses_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.999, 1.001])
    async with waiting(tmp_path, ["https://slow.example", "https://quick.example"], []) as delivering:
        monkeypatch.setattr(callbacks, "time", SimpleNamespace(time=lambda: next(clock)))
        # The first is under way for long; the second becomes due while it is looked for.
        assert await delivering._start_due() == 0.0
        for task in delivering._sending.values():
            task.cancel()


async def until_tried(client: critiq.AsyncClient, name: str, count: int) -> None:
    for _ in range(500):
        callback = (await client.job(name)).callback
        if callback is not None and callback.attempts >= count:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"fewer than {count} tries")
