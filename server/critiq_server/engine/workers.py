"""Threads that several batchers share, so that no more jobs run at once than there are cores.

Decoding and computing on the same cores are better one after the other than in turns of a few milliseconds: each turn
finds the caches full of the other's data. And a batch that is formed only when a thread is free for it can grow until
then.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

Job = Callable[[], Any]
Done = Callable[[Any], None]


class Workers:
    """``count`` threads. Made and used on the event loop; only jobs run in the threads."""

    def __init__(self, count: int, name: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._jobs: SimpleQueue[tuple[Job, Done] | None] = SimpleQueue()
        self._waiting: deque[Callable[[], None]] = deque()
        self.count = count
        self.free = count
        for number in range(count):
            threading.Thread(target=self._work, name=f"critiq-{name}-{number}", daemon=True).start()

    def start(self, job: Job, done: Done) -> None:
        """Runs ``job``, which must not raise, in a free thread, then ``done`` with its result on the event loop."""
        self.free -= 1
        self._jobs.put((job, done))

    def when_free(self, callback: Callable[[], None]) -> None:
        """Calls ``callback`` once, on the event loop, when a thread is free; first come, first served."""
        self._waiting.append(callback)

    def close(self) -> None:
        """Ends the threads once what they were given is done. No more jobs may be started."""
        for _ in range(self.count):
            self._jobs.put(None)

    def _work(self) -> None:
        # A plain queue and one wake-up a job: half the cost of an executor's two futures.
        while (entry := self._jobs.get()) is not None:
            job, done = entry
            result = job()
            try:
                self._loop.call_soon_threadsafe(self._ended, done, result)
            except RuntimeError:  # the event loop is closed: nobody waits any more
                return

    def _ended(self, done: Done, result: Any) -> None:
        self.free += 1
        try:
            done(result)
        finally:  # whatever becomes of this job, those who wait for a thread get their turn
            while self.free and self._waiting:
                self._waiting.popleft()()
