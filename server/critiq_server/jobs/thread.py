"""The one thread in which the database of the jobs is used."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

from critiq.errors import Stopping

P = ParamSpec("P")
T = TypeVar("T")


class Thread:
    """Runs functions one after the other, off the event loop. Call it with a function and its arguments."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, "critiq-jobs")

    async def __call__(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What the function gives. It runs to its end even if the caller is cancelled."""
        loop = asyncio.get_running_loop()
        try:
            outcome = loop.run_in_executor(self._executor, partial(function, *args, **kwargs))
        except RuntimeError as error:  # it is closed
            raise Stopping("the server is stopping; ask again once it has started", retry_after=1.0) from error
        return await asyncio.shield(outcome)

    def close(self) -> None:
        """Waits for what was given to it."""
        self._executor.shutdown()
