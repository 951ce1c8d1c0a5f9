"""One serving process against several: `critiq serve --workers N`.

    python -m benchmarks.workers [--workers 2] [--rounds 8]

Both servers run all the time and take turns of a slice each; servers and client share all cores of the machine. What is
asked: pictures that are stored, where a process's event loop is the limit, and new ones, where computing is.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from contextlib import AsyncExitStack, ExitStack
from itertools import count, repeat
from pathlib import Path
from statistics import median

from benchmarks import bundles
from benchmarks.load import Load, Slice
from benchmarks.pictures import JpegAlbum
from benchmarks.server import Server, serving
from benchmarks.transports import TRANSPORTS

CASES = (("file", "stored", 4000), ("grpc", "stored", 2500), ("file", "new", 300))
CALLERS = 32


async def compare(name: str, same: bool, requests: int, servers: list[Server], rounds: int) -> list[list[Slice]]:
    """Slices of each server, a round after the other."""
    transport, numbers = TRANSPORTS[name], count()
    found: list[list[Slice]] = [[] for _ in servers]
    async with AsyncExitStack() as stack:
        pairs = []
        for server in servers:
            which = repeat(0) if same else numbers
            load = Load(server, transport, JpegAlbum(), which, prompts=False, concurrency=CALLERS)
            send = await stack.enter_async_context(transport.connect(server, CALLERS))
            for _ in range(4 * CALLERS if same else 1):  # each process has seen the picture
                await load.prime(send)
            pairs.append((load, send))
        for _ in range(rounds):
            for (load, send), slices in zip(pairs, found, strict=True):
                slices.append(await load.run(requests, send, None))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.workers", description=__doc__.partition("\n")[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=8)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        bundles.write_cnn(Path(folder))
        arguments = ["--default", "cnn", "--load", "cnn", "--models", folder]
        servers = [
            stack.enter_context(serving([*arguments, f"--workers={number}"], None)) for number in (1, options.workers)
        ]
        print(f"| request | pictures | 1 process /s | {options.workers} processes /s | ratio | p99 ms | p99 ms |")
        print("|---|---|--:|--:|--:|--:|--:|")
        for name, kind, requests in CASES:
            one, several = asyncio.run(compare(name, kind == "stored", requests, servers, options.rounds))
            ratio = median(ours.rate / theirs.rate for ours, theirs in zip(several, one, strict=True))
            rates = [median(entry.rate for entry in slices) for slices in (one, several)]
            late = [median(entry.p99_ms for entry in slices) for slices in (one, several)]
            print(
                f"| {TRANSPORTS[name].title} | {kind} | {rates[0]:.0f} | {rates[1]:.0f} | {ratio:.2f} | "
                f"{late[0]:.0f} | {late[1]:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
