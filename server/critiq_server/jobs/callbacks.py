"""Tells callers' servers that their jobs have ended: signed as Standard Webhooks says, until they have taken it."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial

import orjson
import structlog

from critiq.errors import CritiqError
from critiq.jobs import Job
from critiq_server.jobs.outbox import Delivery, Outbox
from critiq_server.jobs.settings import CallbackSettings
from critiq_server.jobs.thread import Thread
from critiq_server.outbound.connect import Answer, Outbound
from critiq_server.outbound.urls import parse
from critiq_server.telemetry import traces
from critiq_server.telemetry.faults import internal

logger = structlog.get_logger("critiq")

FIELD = "callback.url"

_AT_ONCE, _AT_ONCE_A_HOST = 32, 4
"""Tries under way; one slow receiver does not hold up the others."""
_PAGE = 1000
_LONGEST_SLEEP = 10.0
_STEP = 5.0
"""A clock that is this many seconds off its own pace was set; less is how it is kept right."""
_AFTER_A_FAULT = 60.0


def message(job: Job, settings: CallbackSettings) -> bytes:
    """The body of the message that a job has ended. Neither pictures, prompts nor scores: results are fetched."""
    return orjson.dumps(
        {
            "type": f"job.{job.state}",
            "timestamp": datetime.fromtimestamp(job.finished or job.created, UTC).isoformat().replace("+00:00", "Z"),
            "data": {
                "id": job.id,
                "state": job.state,
                "counts": {"items": job.items, "answered": job.answered, "failed": job.failed, **job.decisions},
                "link": f"{settings.link_base.rstrip('/')}/v1/jobs/{job.id}",
            },
        }
    )


class Callbacks:
    """Delivers what is in the outbox.

    Args:
        run: runs the outbox's methods in the thread that it belongs to.
        on_try: told ``delivered``, ``failed``, ``refused`` or ``given_up`` after each try.
    """

    def __init__(
        self,
        outbox: Outbox,
        run: Thread,
        settings: CallbackSettings,
        outbound: Outbound,
        on_try: Callable[[str], None],
    ) -> None:
        self._outbox, self._run, self._settings, self._on_try = outbox, run, settings, on_try
        self._outbound = outbound
        self._keys = settings.keys()
        self._sending: dict[int, asyncio.Task[None]] = {}
        self._hosts: Counter[str] = Counter()
        self._wake = asyncio.Event()
        self._ahead = time.time() - time.monotonic()

    def wake(self) -> None:
        """Something may be due."""
        self._wake.set()

    async def deliver(self) -> None:
        """Works until cancelled."""
        try:
            while True:
                self._wake.clear()
                try:
                    await self._follow_clock()
                    seconds = await self._start_due()
                except Exception as error:
                    internal("callbacks", error)
                    seconds = _LONGEST_SLEEP
                await _sleep(self._wake, seconds)
        finally:
            for task in self._sending.values():
                task.cancel()
            await asyncio.gather(*self._sending.values(), return_exceptions=True)

    async def _follow_clock(self) -> None:
        """When the clock was set, what is due goes by the new time: it would be a day late after a step back by one."""
        now = time.time()
        ahead = now - time.monotonic()
        step = ahead - self._ahead
        if abs(step) > _STEP:
            self._ahead = ahead
            logger.warning("the clock was set: callbacks follow it", seconds=round(step, 1))
            await self._run(self._outbox.clock_set, now, step, self._settings.give_up_seconds)

    async def _start_due(self) -> float:
        """Starts tries of what is due, as far as there is room; returns the seconds until there may be more to do."""
        now, seen = time.time(), 0
        # Page by page: a long queue for one host, which has its share of the tries already, hides nobody behind it.
        while len(self._sending) < _AT_ONCE and (page := await self._run(self._outbox.due, now, _PAGE, seen)):
            seen += len(page)
            for delivery in page:
                host = parse(delivery.url, FIELD).host
                if delivery.job in self._sending or self._hosts[host] >= _AT_ONCE_A_HOST:
                    continue
                if len(self._sending) >= _AT_ONCE:
                    break
                self._hosts[host] += 1
                task = asyncio.create_task(self._try(delivery))
                self._sending[delivery.job] = task
                task.add_done_callback(partial(self._done, delivery.job, host))
        # What was due by now is under way, or waits for what is: that wakes us when it ends.
        following = await self._run(self._outbox.next_due, now)
        return _LONGEST_SLEEP if following is None else min(_LONGEST_SLEEP, max(0.0, following - time.time()))

    def _done(self, job: int, host: str, task: asyncio.Task[None]) -> None:
        del self._sending[job]
        self._hosts[host] -= 1
        if not self._hosts[host]:
            del self._hosts[host]
        self._wake.set()

    async def _try(self, delivery: Delivery) -> None:
        try:
            link = "" if traces.tracer is None else await self._run(self._outbox.trace, delivery)
            with traces.linked("callback", link, {"critiq.attempt": delivery.attempts + 1}):
                outcome = await self._attempt(delivery)
                traces.note({"critiq.outcome": outcome})
        except Exception as error:
            outcome = "failed"
            internal("callback", error)
            await asyncio.sleep(_AFTER_A_FAULT)  # it is still due: not at once again
        self._on_try(outcome)
        logger.info("callback", message=delivery.message, outcome=outcome, attempt=delivery.attempts + 1)

    async def _attempt(self, delivery: Delivery) -> str:
        try:
            answer = await self._post(delivery)
        except CritiqError as error:
            return await self._put_off(delivery, error.message, None)
        if answer.is_success:
            await self._run(self._outbox.delivered, delivery)
            return "delivered"
        told = f"answered {answer.status}"
        if answer.status == 410:
            await self._run(self._outbox.refused, delivery, told)
            return "refused"
        return await self._put_off(delivery, told, _retry_after(answer))

    async def _post(self, delivery: Delivery) -> Answer:
        address = self._outbound.check(delivery.url, FIELD)
        now = datetime.now(UTC)
        text = delivery.body.decode()
        return await self._outbound.request(
            "POST",
            address,
            seconds=self._settings.timeout_seconds,
            max_bytes=None,
            field=FIELD,
            headers={
                "Content-Type": "application/json",
                **traces.headers_for_strangers(),
                "webhook-id": delivery.message,
                "webhook-timestamp": str(int(now.timestamp())),
                "webhook-signature": " ".join(key.sign(delivery.message, now, text) for key in self._keys),
            },
            content=delivery.body,
        )

    async def _put_off(self, delivery: Delivery, error: str, hint: float | None) -> str:
        """Sets when the next try is due: pauses double, and are drawn so that many do not come back together."""
        settings = self._settings
        bound = min(settings.longest_pause_seconds, settings.first_pause_seconds * 2.0 ** min(delivery.attempts, 60))
        pause = max(bound * random.uniform(0.5, 1.0), hint or 0.0)  # noqa: S311
        await self._follow_clock()
        due = time.time() + pause
        if due > await self._run(self._outbox.gives_up, delivery):
            await self._run(self._outbox.failed, delivery, error, None)
            return "given_up"
        await self._run(self._outbox.failed, delivery, error, due)
        return "failed"


def _retry_after(answer: Answer) -> float | None:
    """Seconds that the receiver asks for, in either form of the header."""
    text = answer.headers.get("retry-after", "")
    if text.isascii() and text.isdecimal():
        return float(text[:9])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


async def _sleep(wake: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await wake.wait()
    except TimeoutError:
        pass
