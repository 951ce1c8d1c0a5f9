"""A worker as a process: a task and units come in on standard input as lines of JSON, what is done goes out.

in:   TASK, then UNIT...
out:  {"ready": true}, then {"done": ...} or {"failed": ...} for each unit; {"refused": ...} instead of ready
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading

from critiq_server.bulk.errors import BulkError
from critiq_server.bulk.scorer import Scorer
from critiq_server.bulk.task import Task
from critiq_server.bulk.units import Unit
from critiq_server.telemetry.logs import configure


def main() -> None:
    """Runs until standard input ends: then whoever started this process is gone, and so is this one."""
    told = sys.stdin.buffer
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    task = Task.from_json(told.readline().decode())
    configure(task.settings.log)

    def tell(**message: object) -> None:
        out.write(json.dumps(message) + "\n")

    async def run() -> None:
        loop = asyncio.get_running_loop()
        scorer = Scorer(task)
        under_way: set[asyncio.Task[None]] = set()

        async def score(unit: Unit) -> None:
            try:
                tell(done=(await scorer.score(unit)).to_json())
            except Exception as error:
                tell(failed=str(error) if isinstance(error, BulkError) else f"{type(error).__name__}: {error}")

        def take(line: bytes) -> None:
            begun = loop.create_task(score(Unit.from_json(line.decode())))
            under_way.add(begun)
            begun.add_done_callback(under_way.discard)

        def listen() -> None:
            for line in told:
                loop.call_soon_threadsafe(take, line)
            os._exit(0)

        try:
            await scorer.open()
        except BulkError as error:
            tell(refused=str(error))
            return
        tell(ready=True)
        threading.Thread(target=listen, daemon=True).start()
        await asyncio.Event().wait()

    if sys.platform == "win32":
        asyncio.run(run())
    else:
        import uvloop

        uvloop.run(run())


if __name__ == "__main__":
    main()
