"""A server under mixed load for a while: does its memory grow? ``python -m tests.reliability.soak --minutes 20``.

Prints the slope of its memory over time with a confidence interval, its open files and its threads. Ends with status 1
if an answer was wrong or other than was due, or if memory, files or threads grew. ``--only gone --pause 0`` asks for
one kind of work as fast as it is answered, which tells what grows with its calls from what grows with time.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

import critiq
from tests.reliability.load import Callers, callers
from tests.support import requests
from tests.support.bundles import write_bundle
from tests.support.faces import PROTOBUF
from tests.support.servers import server_process

PICTURES = 3_000
"""Different pictures, asked for again and again; all of them once before the clock runs."""
ALLOWED_MB_PER_HOUR = 10.0


@dataclass(frozen=True)
class Sample:
    """``at``: hours since the start; ``memory``: resident MB of the server; ``anonymous``: those of no file.

    What is resident of a store on disk counts in the first, and the system takes it back when it needs room.
    """

    at: float
    memory: float
    anonymous: float
    files: int
    threads: int


async def soak(
    root: Path, seconds: float, warm_up: float, only: Sequence[str] = (), pause: float | None = None
) -> tuple[list[Sample], Counter[str], int, str]:
    """What was measured after the warm-up, what was answered, the server's exit status, and its log.

    ``only``: kinds of work, empty: all; ``pause``: seconds between two calls of a kind, in place of its own.
    """
    write_bundle(root / "bundles")
    features = {"also": ["tiny/image_encoder"], "disk": {"path": str(root / "features"), "limit_mb": 1}}
    # What is bounded is full by the end of the warm-up, so what grows afterwards is none of it: stores, kept jobs, and
    # drift's windows, which by their defaults fill up over a week.
    chosen = {
        "engine.store_mb": 2,
        "features": json.dumps(features),
        "jobs.path": root / "jobs.db",
        "jobs.max_kept": 50,
        "drift.baseline_requests": 2000,
        "drift.slot_seconds": 10,
        "drift.keep_days": 0.002,
        "drift.check_seconds": 10,
    }
    arguments = ["--models", str(root / "bundles"), "--load", "tiny", "--default", "tiny"]
    arguments += [part for name, value in chosen.items() for part in ("--set", f"{name}={value}")]
    done: Counter[str] = Counter()
    samples: list[Sample] = []
    with server_process(arguments, root / "log") as server:
        process = psutil.Process(server.process.pid)
        async with (
            callers(server, lambda level: level / 255) as asked,
            critiq.AsyncClient(server.rest) as client,
            AsyncExitStack() as stack,
        ):
            await _fill(asked)
            for number, (kind, work) in enumerate(WORK):
                if not only or kind in only:
                    wait = PAUSES.get(kind, 0.01) if pause is None else pause
                    await stack.enter_async_context(_again_and_again(work, asked, client, done, 400 * number, wait))
            started = time.monotonic()
            while (passed := time.monotonic() - started) < seconds:
                await asyncio.sleep(1.0)
                if passed >= warm_up:
                    memory = _megabytes(server.process.pid)
                    samples.append(Sample(passed / 3600, *memory, process.num_fds(), process.num_threads()))
        status = await asyncio.to_thread(server.terminate)
    return samples, done, status, (root / "log").read_text()


def _megabytes(pid: int) -> tuple[float, float]:
    found = dict(re.findall(r"^(VmRSS|RssAnon):\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE))
    return int(found["VmRSS"]) * 1024 / 1e6, int(found["RssAnon"]) * 1024 / 1e6


async def _fill(asked: Callers) -> None:
    numbers = iter(range(PICTURES))

    async def ask() -> None:
        for number in numbers:
            await asked.over_both(number)

    await asyncio.gather(*(ask() for _ in range(8)))


@asynccontextmanager
async def _again_and_again(
    work: Work, asked: Callers, client: critiq.AsyncClient, done: Counter[str], first: int, pause: float
) -> AsyncIterator[None]:
    ended = False

    async def repeat() -> None:
        for number in itertools.count(first):
            if ended:
                return
            done[await work(asked, client, number % PICTURES)] += 1
            await asyncio.sleep(pause)

    task = asyncio.ensure_future(repeat())
    try:
        yield
    finally:
        ended = True
        await asyncio.wait_for(task, 60)


async def _single(asked: Callers, client: critiq.AsyncClient, number: int) -> str:
    return f"single {(await asked.over_both(number)).code}"


async def _batch(asked: Callers, client: critiq.AsyncClient, number: int) -> str:
    pictures = [requests.score(requests.flat((number + step) % 200, (40, 30)), "a cat") for step in range(6)]
    body = requests.batch([*pictures, requests.score(b"no picture")]).SerializeToString()
    answer = await asked.http.post("/v1/score/batch", content=body, headers={"content-type": PROTOBUF})
    return f"batch {answer.status_code}"


async def _rank(asked: Callers, client: critiq.AsyncClient, number: int) -> str:
    pictures = [requests.flat((number + 7 * step) % 200, (50, 30)) for step in range(4)]
    body = requests.rank(pictures, "a cat", dimensions=["wordiness"]).SerializeToString()
    answer = await asked.http.post("/v1/rank", content=body, headers={"content-type": PROTOBUF})
    return f"rank {answer.status_code}"


async def _bad(asked: Callers, client: critiq.AsyncClient, number: int) -> str:
    broken = requests.flat(number % 200)[: 30 + number % 40]
    return f"bad picture {(await asked.http.post('/v1/score', content=broken)).status_code}"


async def _unreadable(asked: Callers, client: critiq.AsyncClient, number: int) -> str:
    answer = await asked.http.post(f"/v1/models/none-{number}/load" if number % 2 else "/v1/score", content=b"{")
    return f"bad request {answer.status_code}"


async def _gone_over_grpc(asked: Callers, client: critiq.AsyncClient, number: int) -> str:
    """Leaves before the answer comes: by cancelling, or because too little time was allowed."""
    body = requests.score(requests.flat(number % 200, (200, 150)), "a cat").SerializeToString()
    call = asked.channel.unary_unary("/critiq.v1.Scoring/Score")(body, timeout=0.0005 if number % 2 else 30)
    await asyncio.sleep(0.001)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    return "gone"


async def _gone_over_rest(asked: Callers, client: critiq.AsyncClient, number: int) -> str:
    """Hangs up before the answer comes."""
    body = requests.flat(number % 200, (200, 150))
    _, writer = await asyncio.open_connection(asked.http.base_url.host, asked.http.base_url.port)
    writer.write(b"POST /v1/score?prompt=a+cat HTTP/1.1\r\nhost: localhost\r\ncontent-type: image/png\r\n")
    writer.write(f"content-length: {len(body)}\r\n\r\n".encode() + body)
    await writer.drain()
    await asyncio.sleep(0.001)
    writer.close()
    return "gone"


async def _job(asked: Callers, client: critiq.AsyncClient, number: int) -> str:
    job = await client.submit_job([critiq.Item(requests.flat((number + step) % 200), "a cat") for step in range(5)])
    job = await client.wait_job(job.id, timeout=60)
    return f"job {job.state}, {job.failed} failed"


Work = Callable[[Callers, critiq.AsyncClient, int], Awaitable[str]]
WORK: tuple[tuple[str, Work], ...] = (
    ("single", _single),
    ("single", _single),
    ("batch", _batch),
    ("rank", _rank),
    ("bad", _bad),
    ("unreadable", _unreadable),
    ("gone", _gone_over_grpc),
    ("gone-rest", _gone_over_rest),
    ("job", _job),
)
PAUSES = {"gone": 0.2, "gone-rest": 0.2}
"""Seconds between two calls of a kind, where it is not the hundredth that leaves a machine of two cores usable: one
call in thirty or so leaves, as some callers do."""
DUE = {
    "single OK",
    "batch 200",
    "rank 200",
    "bad picture 400",
    "bad request 400",
    "bad request 403",
    "gone",
    "job done, 0 failed",
}


def slope(samples: list[Sample], of: str) -> tuple[float, float]:
    """Of ``memory`` or ``anonymous``: MB an hour by least squares, and half the width of its 95 % confidence interval.

    Samples a second apart are not independent: they are averaged over a twentieth of the time before.
    """
    parts = np.array_split(np.array([(sample.at, getattr(sample, of)) for sample in samples]), min(20, len(samples)))
    at, memory = np.array([part.mean(axis=0) for part in parts]).T
    (gradient, _), covariance = np.polyfit(at, memory, 1, cov=True)
    students_t = 2.101  # 18 degrees of freedom
    return float(gradient), float(students_t * np.sqrt(covariance[0, 0]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--warm-up", type=float, default=None, help="minutes; default: a quarter of the whole")
    parser.add_argument(
        "--only", nargs="*", choices=sorted({kind for kind, _ in WORK}), default=(), help="kinds of work"
    )
    parser.add_argument("--pause", type=float, default=None, help="seconds between two calls of a kind")
    chosen = parser.parse_args()
    warm_up = chosen.minutes / 4 if chosen.warm_up is None else chosen.warm_up
    with tempfile.TemporaryDirectory() as root:
        samples, done, status, log = asyncio.run(
            soak(Path(root), 60 * chosen.minutes, 60 * warm_up, chosen.only, chosen.pause)
        )
    gradient, half = slope(samples, "memory")
    anonymous, its_half = slope(samples, "anonymous")
    files, threads = ([getattr(sample, name) for sample in samples] for name in ("files", "threads"))
    calls = sum(done.values())
    print(f"{calls} calls in {chosen.minutes:g} minutes: " + ", ".join(f"{v} {k}" for k, v in done.items()))
    thousands_an_hour = calls / 1000 / chosen.minutes * 60
    print(
        f"memory {samples[0].memory:.1f} MB after {warm_up:g} minutes, {samples[-1].memory:.1f} MB at the end: "
        f"{gradient:+.1f} ± {half:.1f} MB/hour (95 %), without files {anonymous:+.1f} ± {its_half:.1f}, which is "
        f"{1000 * anonymous / thousands_an_hour:+.0f} ± {1000 * its_half / thousands_an_hour:.0f} kB a thousand calls; "
        f"open files {min(files)} to {max(files)}, threads {min(threads)} to {max(threads)}; exit status {status}"
    )
    for at in range(0, len(samples), max(1, len(samples) // 15)):
        print(
            f"  minute {60 * samples[at].at:5.1f}: {samples[at].memory:.2f} MB, {samples[at].anonymous:.2f} of no file"
        )
    wrong = {kind: count for kind, count in done.items() if kind not in DUE}
    problems = [f"answers that were not due: {wrong}"] * bool(wrong)
    problems += ["memory grows"] * bool(gradient - half > ALLOWED_MB_PER_HOUR)
    quarter = len(samples) // 4
    for name, counts in (("files", files), ("threads", threads)):
        first, last = (np.median(part) for part in (counts[:quarter], counts[-quarter:]))
        problems += [f"{name} grow: {first:g}, then {last:g}"] * bool(last > first + 2)
    if "Traceback" in log:
        problems.append("the log has tracebacks")
        print(log[max(0, log.index("Traceback") - 300) :][:3000])
    problems += [f"the server ended with {status}"] * (status != 0)
    print("; ".join(problems) or "nothing grows")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
