"""What security costs a request: a small picture, answered from the store, open, with keys, over TLS, with tokens.

    python -m benchmarks.keys [--calls 2000]

One caller, one call after the other, over gRPC and over REST on loopback; the servers take turns. Then the checks
alone: of a key, of a token, and of a key that several processes check so many times a second each, who count its limits
in memory, in a directory each, and together.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import jwt
import uvloop
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, get_default_algorithms
from PIL import Image

import critiq
from critiq_server.app import App
from critiq_server.security.guard import Guard
from critiq_server.security.keys import append, new_key
from critiq_server.security.settings import SecuritySettings
from critiq_server.security.tokens import Tokens
from critiq_server.settings import load_settings
from tests.support.certificates import Authority

ROUNDS = 10
_starts: Any = None


async def measure(calls: int) -> None:
    """Prints the table."""
    folder = Path(tempfile.mkdtemp())
    text, key = new_key("benchmark", ["score"], 1e9, 1000, 10**9)
    append(folder / "keys.yaml", key)
    authority = Authority(folder)
    files = authority.server()
    signer = ec.generate_private_key(ec.SECP256R1())
    entry = {**ECAlgorithm.to_jwk(signer.public_key(), as_dict=True), "kid": "one"}
    (folder / "jwks.json").write_text(json.dumps({"keys": [entry]}))
    claims = {"iss": "https://login", "aud": "critiq", "sub": "benchmark", "scope": "score", "exp": time.time() + 9999}
    token = jwt.encode(claims, signer, "ES256", {"kid": "one"})
    keys = {"keys_file": folder / "keys.yaml"}
    tokens = {"jwt": {"jwks": str(folder / "jwks.json"), "issuer": "https://login", "audience": ["critiq"]}}
    tls = {"tls": {"certificate": files.certificate, "key": files.key}}
    kinds: dict[str, tuple[dict[str, Any], str]] = {
        "open": ({}, ""),
        "keys": (keys, text),
        "TLS": (tls, ""),
        "keys and TLS": ({**keys, **tls}, text),
        "token": (tokens, token),
    }
    file = BytesIO()
    Image.new("RGB", (64, 64), (90, 120, 30)).save(file, "PNG")
    apps = []
    for security, _ in kinds.values():
        ports: dict[str, Any] = {"server": {"rest_port": 0, "grpc_port": 0, "metrics_port": 0}, "security": security}
        apps.append(App(load_settings(None, ports)))
        await apps[-1].start()
    try:
        for face in ("gRPC", "REST"):
            clients = [
                critiq.AsyncClient(_url(app, face), api_key=credential, ca_file=files.ca)
                for app, (_, credential) in zip(apps, kinds.values(), strict=True)
            ]
            times: list[list[float]] = [[] for _ in kinds]
            for _ in range(ROUNDS):
                for client, found in zip(clients, times, strict=True):
                    found.append(await _median(client, file.getvalue(), calls // ROUNDS))
            medians = [statistics.median(found) for found in times]
            for kind, median in zip(kinds, medians, strict=True):
                print(f"{face}, {kind}: {median:7.0f} µs ({median - medians[0]:+5.0f})")
            for client in clients:
                await client.close()
        print(f"a TLS handshake over REST: {await _handshakes(apps[2].rest_port, authority):.0f} µs, both sides")
    finally:
        for app in apps:
            await app.stop(grace=1.0)
    shared = {"limits_directory": folder / "limits"}
    for place, name, credential in (
        ({}, "key", text),
        ({}, "token seen before", token),
        (shared, "key with three limits that are shared", text),
    ):
        guard = Guard(SecuritySettings.model_validate({**keys, **tokens, **place}), folder / "keys.yaml")
        await guard.open()
        started = time.process_time()
        for _ in range(20_000):
            with guard.admit(credential, {"score"}, "", (), await guard.bearer(credential, "")).call():
                pass
        print(f"the check of a {name} alone: {(time.process_time() - started) / 20_000 * 1e6:.1f} µs of CPU")
        guard.close()
    for processes, rate in ((2, 500), (4, 500), (4, 5000)):
        for counted in ("in memory", "in a directory each", "together"):
            print(_contended(folder, text, processes, rate, counted))
    checker = Tokens(SecuritySettings.model_validate(tokens).jwt)
    await checker.open()
    for algorithm, made in (("ES256", signer), ("RS256", rsa.generate_private_key(65537, 2048))):
        signed = jwt.encode(claims, made, algorithm)
        published = jwt.PyJWK(get_default_algorithms()[algorithm].to_jwk(made.public_key(), as_dict=True))
        started = time.process_time()
        for _ in range(1000):
            checker._check(signed, published, algorithm)
        print(f"the first check of a token, {algorithm}: {(time.process_time() - started) * 1e3:.0f} µs of CPU")


def _contended(folder: Path, text: str, processes: int, rate: int, counted: str, seconds: float = 3.0) -> str:
    """A line on how long the check of one key takes that so many processes check so often a second each."""
    context = multiprocessing.get_context("spawn")
    starts = context.Barrier(processes)
    with ProcessPoolExecutor(processes, context, _take, (starts,)) as pool:
        directories = {
            "in memory": [None] * processes,
            "in a directory each": [folder / f"limits-{number}" for number in range(processes)],
            "together": [folder / "limits"] * processes,
        }[counted]
        path = folder / "keys.yaml"
        found = [pool.submit(_check_often, path, directory, text, rate, seconds) for directory in directories]
        times = sorted(took for one in found for took in one.result())
    each = len(times) / processes / seconds
    median, *late = (1e6 * times[int(share * (len(times) - 1))] for share in (0.5, 0.99, 0.999, 1))
    tail = ", ".join(f"{name} {took:.0f}" for name, took in zip(("p99", "p99.9", "longest"), late, strict=True))
    return f"{processes} processes, {each:,.0f} checks a second each, {counted}: median {median:.0f} µs, {tail}"


def _take(starts: Any) -> None:
    global _starts  # noqa: PLW0603 - what processes share can be given to them only when they begin
    _starts = starts


def _check_often(path: Path, directory: Path | None, text: str, rate: int, seconds: float) -> list[float]:
    async def check() -> list[float]:
        guard = Guard(SecuritySettings(keys_file=path, limits_directory=directory), path)
        await guard.open()
        _starts.wait()
        times, started = [], time.perf_counter()
        due = started
        while due < started + seconds:
            before = time.perf_counter()
            with guard.admit(text, {"score"}, "").call():
                pass
            times.append(time.perf_counter() - before)
            due = max(due + 1 / rate, before)
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
        guard.close()
        return times

    return asyncio.run(check())


async def _handshakes(port: int, authority: Authority, count: int = 200) -> float:
    trusted, times = authority.trust(), []
    for _ in range(count):
        started = time.perf_counter()
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusted)
        times.append(time.perf_counter() - started)
        writer.transport.abort()
    return statistics.median(times) * 1e6


def _url(app: App, face: str) -> str:
    tls = app.settings.security.tls.certificate is not None
    if face == "gRPC":
        return f"grpc{'s' * tls}://127.0.0.1:{app.grpc_port}"
    return f"http{'s' * tls}://127.0.0.1:{app.rest_port}"


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
