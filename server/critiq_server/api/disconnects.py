"""Work for a caller that may hang up."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import Request

from critiq.errors import Cancelled, Stopping

T = TypeVar("T")


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Runs ``work``, and cancels it if the caller disconnects first: nothing is computed for nobody."""
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_gone(request))
    watcher.add_done_callback(lambda _: task.cancel())
    try:
        return await task
    except asyncio.CancelledError:
        if watcher.done():
            raise Cancelled("the caller disconnected") from None
        # Otherwise only a server that has run out of time to stop does this.
        raise Stopping("the server stopped before the answer was ready; send the request to another one") from None
    finally:
        watcher.cancel()


async def _gone(request: Request) -> None:
    """Returns when the caller has disconnected. The body has been read by now."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
