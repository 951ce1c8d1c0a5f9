"""A receiver of callbacks as a customer would write one: it verifies with the library of Standard Webhooks."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from standardwebhooks import Webhook

from tests.support.https import Asked, Website, answer, website
from tests.support.waiting import until

SECRET = "whsec_" + base64.b64encode(b"a secret of the tests, 32 bytes.").decode()
NEXT_SECRET = "whsec_" + base64.b64encode(b"another of the tests, also 32 b.").decode()


@dataclass
class Receiver:
    """``replies``: answers to the next messages, then 204. ``events``: what was verified, by message id in order."""

    site: Website
    replies: list[bytes] = field(default_factory=list)
    events: list[tuple[str, Any]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://localhost:{self.site.port}/hook?token=secret"

    def settings(self, **changes: Any) -> dict[str, Any]:
        """Of ``jobs.callbacks``, so that this receiver is told, and soon again."""
        return {
            "hosts": ["localhost"],
            "ports": [self.site.port],
            "allow_http": True,
            "allow_private_addresses": True,
            "secrets": [SECRET],
            "first_pause_seconds": 0.05,
            "longest_pause_seconds": 0.2,
            "timeout_seconds": 5,
            **changes,
        }

    async def told(self, count: int = 1) -> list[tuple[str, Any]]:
        """Waits until so many messages have been verified."""
        await until(lambda: len(self.events) >= count)
        return self.events


@asynccontextmanager
async def receiving(secret: str = SECRET, port: int = 0) -> AsyncIterator[Receiver]:
    """Runs one."""

    async def reply(asked: Asked, writer: asyncio.StreamWriter) -> None:
        event = Webhook(secret).verify(asked.body, dict(asked.headers))
        receiver.events.append((asked.headers["webhook-id"], event))
        writer.write(receiver.replies.pop(0) if receiver.replies else answer(204))
        await writer.drain()

    async with website(reply, port=port) as site:
        receiver = Receiver(site)
        yield receiver
