"""What traces cost a request in processor time: off, on, and of how many calls.

    python -m benchmarks.traces [--calls 400] [--rounds 8]

Servers of the built-in model in this process, one for each setting, take turns; calls come over REST and over gRPC, one
after the other. The answer is stored, or each call brings a picture of its own (then for the small model `free`,
whose one stage costs next to nothing, so that the difference shows). The caller's own cost is in all figures alike. The
collector is a process of its own and drops what it gets.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from itertools import count
from pathlib import Path

import grpc
import uvloop
from PIL import Image

import critiq
from benchmarks.bundles import write_free
from critiq_server.app import App
from critiq_server.settings import load_settings
from critiq_server.telemetry import traces

RATIOS = (None, 0.0, 0.1, 1.0)
"""Share of calls that are traced; ``None``: traces are off."""


async def measure(calls: int, rounds: int, endpoint: str) -> None:
    """Prints the table."""
    folder = Path(tempfile.mkdtemp())
    write_free(folder)
    apps = [await _started(folder, ratio, endpoint) for ratio in RATIOS]
    numbers = count()
    print("| call | " + " | ".join(_title(ratio) for ratio in RATIOS) + " |")
    print("|---|" + "--:|" * len(RATIOS))
    try:
        for face in ("gRPC", "REST"):
            clients = [critiq.AsyncClient(_url(app, face)) for app in apps]
            for model in ("critiq-builtin", "free"):
                times: list[list[float]] = [[] for _ in RATIOS]
                for _ in range(rounds):
                    for app, client, found in zip(apps, clients, times, strict=True):
                        traces.tracer = app._tracer  # one a process: the last that started would have it
                        pictures = [_picture(0 if model != "free" else next(numbers)) for _ in range(calls)]
                        found.append(await _cpu(client, model, pictures))
                best = [min(found) for found in times]
                what = "answered from the store" if model != "free" else "computed, one stage"
                shown = [f"{best[0]:.0f}", *(f"{value:.0f} ({value - best[0]:+.0f})" for value in best[1:])]
                print(f"| {face}, {what} | " + " | ".join(shown) + " |", flush=True)
            for client in clients:
                await client.close()
    finally:
        for app in apps:
            await app.stop(grace=1.0)
    _off()


def _off() -> None:
    """The functions that every request calls, while traces are off."""
    traces.tracer = None
    found = []
    for _ in range(5):
        started = time.perf_counter()
        for _ in range(100_000):
            traces.origin()
            traces.event("found in memory")
        found.append((time.perf_counter() - started) / 200_000 * 1e9)
    print(f"\nOff, one call of a function of the traces: {statistics.median(found):.0f} ns")


async def _started(folder: Path, ratio: float | None, endpoint: str) -> App:
    settings = {} if ratio is None else {"endpoint": endpoint, "sample_ratio": ratio}
    app = App(
        load_settings(
            None,
            {
                "server": {"rest_port": 0, "grpc_port": 0, "metrics_port": 0},
                "models": {"directories": [folder]},
                "telemetry": {"traces": settings},
            },
        )
    )
    await app.start()
    return app


async def _cpu(client: critiq.AsyncClient, model: str, pictures: Sequence[bytes]) -> float:
    """Processor time of a call in microseconds, of all threads of this process."""
    await client.score(pictures[0], model=model)
    started = time.process_time()
    for picture in pictures:
        await client.score(picture, model=model)
    return (time.process_time() - started) / len(pictures) * 1e6


def _picture(number: int) -> bytes:
    file = BytesIO()
    Image.new("RGB", (64, 64), (number % 256, number // 256 % 256, number // 65536 % 256)).save(
        file, "PNG", compress_level=0
    )
    return file.getvalue()


def _title(ratio: float | None) -> str:
    return "off, µs" if ratio is None else f"{ratio:.0%} of calls"


def _url(app: App, face: str) -> str:
    return f"127.0.0.1:{app.grpc_port}" if face == "gRPC" else f"http://127.0.0.1:{app.rest_port}"


def _collect() -> None:
    """Takes spans until its standard input ends."""
    export = grpc.unary_unary_rpc_method_handler(lambda request, context: b"")
    service = "opentelemetry.proto.collector.trace.v1.TraceService"
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Export": export}),))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    sys.stdin.read()
    server.stop(None)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=400, help="Calls of each sort in a round.")
    parser.add_argument("--rounds", type=int, default=8, help="Rounds; the best counts.")
    parser.add_argument("--collect", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.collect:
        _collect()
    else:
        command = [sys.executable, "-m", "benchmarks.traces", "--collect"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as collector:
            assert collector.stdout is not None
            port = collector.stdout.readline().strip()
            uvloop.run(measure(arguments.calls, arguments.rounds, f"http://127.0.0.1:{port}"))
            collector.communicate()
