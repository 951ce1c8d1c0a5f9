"""Which of several processes works on the jobs of one file: the one that holds a lock beside it."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

_EVERY = 1.0


class Turn:
    """The system gives the lock back when the process that holds it ends, however it ends."""

    def __init__(self, file: Path) -> None:
        self._path = file.with_name(f"{file.name}.turn")
        self._held: int | None = None

    async def take(self) -> None:
        """Waits until it is this process's turn. Raises ``OSError`` if the file cannot be opened or locked now."""
        while not self._try():  # noqa: ASYNC110 - what is waited for is another process
            await asyncio.sleep(_EVERY)

    def give(self) -> None:
        """Leaves it to another process."""
        if self._held is not None:
            os.close(self._held)
            self._held = None

    def _try(self) -> bool:
        if sys.platform == "win32":
            return True  # there are no several processes
        import fcntl

        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        except OSError:
            os.close(descriptor)
            raise
        self._held = descriptor
        return True
