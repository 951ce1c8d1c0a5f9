"""A server with all that can be watched switched on, and traffic that touches all of it."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from redis.asyncio import Redis

import critiq
from critiq_server.app import App
from critiq_server.security.keys import append, new_key
from critiq_server.telemetry.gpu import GpuCollector
from tests.support.bundles import write_bundle, write_simulated
from tests.support.certificates import Authority
from tests.support.https import Asked, Website, answer, website
from tests.support.lmm_bundles import write_with_an_lmm
from tests.support.receiver import Receiver, receiving
from tests.support.redis_server import RedisServer, redis_server
from tests.support.requests import flat
from tests.support.servers import make_settings, running

POLICY = """
name: gate
version: 1
rules:
  - name: dark
    when: {dimension: brightness, below: 0.4}
    decision: reject
"""


@dataclass
class Watched:
    """``tiny`` lacks its LMM's features and answers from a fallback, ``plain`` needs none and has two versions and the
    alias ``gallery``, ``simulated`` is slow."""

    app: App
    client: critiq.AsyncClient
    ca: Path
    """Certificate of the authority that the server's certificate is of."""
    metrics_key: Path
    """File with a key for Prometheus."""
    site: Website
    receiver: Receiver
    _pictures: Iterator[int] = field(default_factory=lambda: count(1))

    def picture(self) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        """A picture that nobody has seen."""
        number = next(self._pictures)
        picture = np.full((40, 30, 3), number * 37 % 256, np.uint8)
        picture[0, 0] = (number % 256, number // 256 % 256, 7)
        return picture

    async def round(self) -> None:
        """A bit of everything."""
        client = self.client
        picture = self.picture()
        await client.score(picture, "a red cat", model="plain")
        await client.score(picture, "a red cat", model="plain")  # from memory
        await client.score(self.picture())  # degraded
        await client.score_batch([(self.picture(), "a cat") for _ in range(24)], model="plain")
        await client.rank([self.picture() for _ in range(3)], "a dog", model="plain")
        await client.compare(self.picture(), self.picture(), "a dog", model="plain")
        await client.score_batch([(self.picture(), "a cat") for _ in range(4)], model="gallery")
        await client.moderate(self.picture(), policy="gate")
        await client.prefetch([(self.picture(), "a green house")], model="plain")
        await client.score(critiq.ImageUrl(f"http://localhost:{self.site.port}/{next(self._pictures)}"), model="plain")
        async for _ in client.score_stream([(self.picture(), "") for _ in range(3)], model="plain"):
            pass
        await client.submit_job([(self.picture(), "a cat"), b"no picture"], callback=self.receiver.url)

    async def trouble(self) -> None:
        """What should not happen: a stage that fails, a model that does not load, a stranger, a slow client."""
        with self.app.service.registry.lease("simulated") as served:
            runtime: Any = served.model.stages["device"].runtime
        run, runtime.run = runtime.run, _fails
        with suppress(critiq.CritiqError):
            await self.client.score(self.picture(), model="simulated")
        runtime.run = run
        with suppress(critiq.CritiqError):
            await self.client.load_model("broken")
        url = f"grpcs://127.0.0.1:{self.app.grpc_port}"
        async with critiq.AsyncClient(url, ca_file=self.ca, api_key="of-no-key", retries=0) as stranger:
            with suppress(critiq.Unauthenticated):
                await stranger.score(self.picture())
        trusted = ssl.create_default_context(cafile=self.ca)
        reader, writer = await asyncio.open_connection("127.0.0.1", self.app.rest_port, ssl=trusted)
        writer.write(b"GET / HT")
        with suppress(OSError):
            await reader.read()
        writer.close()

    async def traffic(self, seconds: float) -> None:
        """Rounds, now and then trouble and more than is accepted, for so long."""
        until = time.monotonic() + seconds
        for turn in count():
            if time.monotonic() > until:
                return
            await self.round()
            if turn % 4 == 0:
                await self.trouble()
                await self.overload()
            await asyncio.sleep(0.2)

    async def overload(self) -> None:
        """More than is accepted: some are refused, some end before their turn."""
        await asyncio.gather(
            *(self.client.score(self.picture(), model="simulated", timeout=0.1) for _ in range(60)),
            return_exceptions=True,
        )


async def _damaged(bundles: Path, redis: RedisServer) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """A picture whose stored features were overwritten."""
    picture = np.full((30, 30, 3), 99, np.uint8)
    features = {"redis": {"url": redis.url}, "also": ["*/*"]}
    settings = make_settings(bundles, default="plain", features=features)
    async with running(settings) as app, critiq.AsyncClient(f"127.0.0.1:{app.grpc_port}") as client:
        await client.score(picture, "a cat")
    connection = Redis.from_url(redis.url)
    try:
        keys = await connection.keys()
        assert keys
        for key in keys:
            await connection.set(key, b"not what was stored")
    finally:
        await connection.aclose()
    return picture


def _fails(inputs: Any) -> Any:
    raise RuntimeError("the device is gone")


@asynccontextmanager
async def watched(folder: Path) -> AsyncIterator[Watched]:
    """Runs one, with a Redis, a website to fetch from, a receiver of callbacks; what it writes lies in ``folder``."""

    async def reply(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(200, flat(int(asked.target.removeprefix("/")) % 256)))
        await writer.drain()

    bundles = folder / "bundles"
    write_with_an_lmm(bundles)
    for version, bias in (("1", 0.0), ("2", 0.25)):
        write_bundle(bundles, "plain", version, bias=bias)
    write_bundle(bundles, "broken", expected_shift=1)
    write_simulated(bundles, batch_ms=40, max_batch=4)
    (folder / "gate.yaml").write_text(POLICY)
    text, operator = new_key("operator", ["score", "models", "metrics"])
    metrics_text, metrics_key = new_key("prometheus", ["metrics"])
    for key in (operator, metrics_key):
        append(folder / "keys.yaml", key)
    (folder / "metrics.key").write_text(metrics_text)
    files = Authority(folder / "tls").server()
    with redis_server() as redis:
        picture = await _damaged(bundles, redis)
        async with website(reply) as site, receiving() as receiver:
            settings = make_settings(
                bundles,
                models={
                    "load": ("tiny", "plain:1", "plain:2", "simulated"),
                    "allow_changes": True,
                    "aliases": {"gallery": {"targets": ["plain:1"], "shadow": "plain:2=100"}},
                    "shadow": {"thresholds": {"brightness": 0.4}},
                },
                lmm={"on_miss": "stored"},
                limits={"in_flight": 48, "batch_items": 32, "header_seconds": 1.0},
                features={
                    "disk": {"path": folder / "features"},
                    "redis": {"url": redis.url, "timeout_ms": 2000},
                    "also": ["*/*"],
                },
                urls={
                    "hosts": ["localhost"],
                    "ports": [site.port],
                    "allow_http": True,
                    "allow_private_addresses": True,
                },
                jobs={"path": folder / "jobs.db", "callbacks": receiver.settings()},
                moderation={"policies": [folder / "gate.yaml"]},
                drift={"check_seconds": 0.2, "baseline_requests": 100, "least_count": 20},
                security={
                    "keys_file": folder / "keys.yaml",
                    "tls": {"certificate": files.certificate, "key": files.key},
                },
            )
            async with (
                running(settings) as app,
                critiq.AsyncClient(
                    f"grpcs://127.0.0.1:{app.grpc_port}", ca_file=files.ca, api_key=text, retries=0
                ) as client,
            ):
                app.metrics.registry.register(GpuCollector(ONE_GPU))
                await client.score(picture, "a cat", model="plain")
                yield Watched(app, client, files.ca, folder / "metrics.key", site, receiver)


ONE_GPU = SimpleNamespace(
    NVMLError=RuntimeError,
    NVML_TEMPERATURE_GPU=0,
    nvmlDeviceGetCount=lambda: 1,
    nvmlDeviceGetHandleByIndex=lambda index: index,
    nvmlDeviceGetName=lambda handle: "Made up",
    nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(used=20 * 2**30, total=80 * 2**30),
    nvmlDeviceGetUtilizationRates=lambda handle: SimpleNamespace(gpu=40),
    nvmlDeviceGetTemperature=lambda handle, sensor: 55,
    nvmlDeviceGetPowerUsage=lambda handle: 300_000,
)
"""What stands for the driver of a machine with one GPU."""
