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
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

Job = Callable[[], Any]
Done = Callable[[Any], None]


@dataclass(slots=True, eq=False)
class Started:
    """A job in a thread; ``lost`` once another thread has taken that one's place."""

    job: Job
    done: Done
    lost: bool = False


class Workers:
    """``count`` threads. Made and used on the event loop; only jobs run in the threads."""

    def __init__(self, count: int, name: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._jobs: SimpleQueue[Started | None] = SimpleQueue()
        self._waiting: deque[Callable[[], None]] = deque()
        self.count = count
        self._name = name
        self.free = count
        for number in range(count):
            self._hire(number)

    def start(self, job: Job, done: Done) -> Started:
        """Runs ``job``, which must not raise, in a free thread, then ``done`` with its result on the event loop."""
        self.free -= 1
        started = Started(job, done)
        self._jobs.put(started)
        return started

    def write_off(self, started: Started) -> None:
        """Puts another thread in the place of the one that does not come back from a job.

        Should it come back after all, ``done`` is called as ever, and one thread ends.
        """
        started.lost = True
        self._hire(self.count)
        self.free += 1
        self._serve_line()

    def when_free(self, callback: Callable[[], None]) -> None:
        """Calls ``callback`` once, on the event loop, when a thread is free; first come, first served."""
        self._waiting.append(callback)

    def close(self) -> None:
        """Ends the threads once what they were given is done. No more jobs may be started."""
        for _ in range(self.count):
            self._jobs.put(None)

    def _hire(self, number: int) -> None:
        threading.Thread(target=self._work, name=f"critiq-{self._name}-{number}", daemon=True).start()

    def _work(self) -> None:
        # A plain queue and one wake-up a job: half the cost of an executor's two futures.
        while (started := self._jobs.get()) is not None:
            result = started.job()
            try:
                self._loop.call_soon_threadsafe(self._ended, started, result)
            except RuntimeError:  # the event loop is closed: nobody waits any more
                return

    def _ended(self, started: Started, result: Any) -> None:
        if started.lost:
            self._jobs.put(None)
        else:
            self.free += 1
        try:
            started.done(result)
        finally:  # whatever becomes of this job, those who wait for a thread get their turn
            self._serve_line()

    def _serve_line(self) -> None:
        while self.free and self._waiting:
            self._waiting.popleft()()
