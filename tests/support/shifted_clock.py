"""``critiq`` with a wall clock that can be set: ``python -m tests.support.shifted_clock serve ...``.

The file that the environment variable ``CLOCK`` names holds the seconds by which it is off. Monotonic clocks stay as
they are, as when a machine's clock is set. Only Python code is misled: gRPC compares Python's clock with that of its
own C code, so what asks it how much time a call has left is told the right time.
"""

from __future__ import annotations

import os
import sys
import time
from datetime import datetime as real_datetime
from datetime import tzinfo
from pathlib import Path

_now = time.time


def shift() -> float:
    """Seconds by which the clock is off."""
    return float(Path(os.environ["CLOCK"]).read_text() or 0)


def _time() -> float:
    asks = sys._getframe(1).f_globals.get("__name__", "")
    return _now() + (0.0 if asks.startswith("critiq_server.api.") else shift())


class Datetime(real_datetime):
    """Its ``now`` goes by the clock that is off."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> real_datetime:  # type: ignore[override]
        return real_datetime.fromtimestamp(time.time(), tz)


def main() -> None:
    time.time = _time
    from critiq.cli import main as critiq
    from critiq_server.jobs import callbacks

    callbacks.datetime = Datetime  # type: ignore[misc]
    critiq()


if __name__ == "__main__":
    main()
