"""What an API key costs a request: the same small picture, answered from the store, with and without keys.

    python -m benchmarks.keys [--calls 2000]

One caller, one call after the other, over gRPC and over REST on loopback; the two servers take turns.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import uvloop
from PIL import Image

import critiq
from critiq_server.app import App
from critiq_server.security.guard import Guard
from critiq_server.security.keys import append, new_key
from critiq_server.security.settings import SecuritySettings
from critiq_server.settings import load_settings

ROUNDS = 10


async def measure(calls: int) -> None:
    """Prints the table."""
    folder = Path(tempfile.mkdtemp())
    text, key = new_key("benchmark", ["score"], 1e9, 1000, 10**9)
    append(folder / "keys.yaml", key)
    with_keys = {"security": {"keys_file": folder / "keys.yaml"}}
    file = BytesIO()
    Image.new("RGB", (64, 64), (90, 120, 30)).save(file, "PNG")
    apps = []
    for sections in ({}, with_keys):
        ports: dict[str, Any] = {"server": {"rest_port": 0, "grpc_port": 0, "metrics_port": 0}, **sections}
        apps.append(App(load_settings(None, ports)))
        await apps[-1].start()
    try:
        for face in ("gRPC", "REST"):
            clients = [critiq.AsyncClient(_url(app, face), api_key=text) for app in apps]
            times: list[list[float]] = [[], []]
            for _ in range(ROUNDS):
                for client, found in zip(clients, times, strict=True):
                    found.append(await _median(client, file.getvalue(), calls // ROUNDS))
            without, guarded = (statistics.median(found) for found in times)
            print(f"{face}: {without:7.0f} µs without keys, {guarded:7.0f} with: {guarded - without:+5.0f} µs")
            for client in clients:
                await client.close()
    finally:
        for app in apps:
            await app.stop(grace=1.0)
    guard = Guard(SecuritySettings(keys_file=folder / "keys.yaml"), folder / "keys.yaml")
    started = time.process_time()
    for _ in range(20_000):
        with guard.admit(text, {"score"}, "").call():
            pass
    print(f"the check alone: {(time.process_time() - started) / 20_000 * 1e6:.1f} µs of CPU")


def _url(app: App, face: str) -> str:
    return f"127.0.0.1:{app.grpc_port}" if face == "gRPC" else f"http://127.0.0.1:{app.rest_port}"


async def _median(client: critiq.AsyncClient, picture: bytes, calls: int) -> float:
    times = []
    for _ in range(calls):
        started = time.perf_counter()
        await client.score(picture)
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1e6


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=2000, help="Calls over each face to each server.")
    uvloop.run(measure(parser.parse_args().calls))
