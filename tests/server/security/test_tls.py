"""TLS on a server's ports: who is let in, and certificates that are exchanged while it works."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

import critiq
from critiq_server.app import App, StartError
from critiq_server.security.settings import TlsSettings
from critiq_server.security.tls import Certificates, TlsError
from tests.support.bundles import write_bundle
from tests.support.certificates import Authority
from tests.support.requests import flat
from tests.support.servers import make_settings, running, server_process


@asynccontextmanager
async def serving(root: Path, tls: dict[str, Any], **sections: Any) -> AsyncIterator[App]:
    write_bundle(root / "bundles")
    async with running(make_settings(root / "bundles", security={"tls": tls}, **sections)) as app:
        yield app


def certificate_of(port: int) -> bytes:
    """What a server shows now."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2", "http/1.1"])
    with socket.create_connection(("127.0.0.1", port), 10) as plain, context.wrap_socket(plain) as tls:
        found = tls.getpeercert(binary_form=True)
    assert found is not None
    return found


async def test_every_port_speaks_tls_and_nothing_else(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    files = authority.server()
    compat = {"pickle": {"listeners": ["0=brightness"]}}
    async with serving(tmp_path, files.settings(), compat=compat) as app:
        ports = [app.rest_port, app.metrics_port, *app.compat_ports]
        for url in (f"https://127.0.0.1:{app.rest_port}", f"grpcs://127.0.0.1:{app.grpc_port}"):
            async with critiq.AsyncClient(url, ca_file=authority.ca) as client:
                assert (await client.score(flat())).scores
            async with critiq.AsyncClient(url, retries=0) as stranger:
                with pytest.raises(critiq.Unavailable):
                    await stranger.score(flat())
        async with httpx.AsyncClient(verify=authority.trust()) as client:
            metrics = (await client.get(f"https://127.0.0.1:{app.metrics_port}/metrics")).text
            shown = re.search(r'critiq_certificate_expiry_timestamp_seconds{certificate="server"} (\S+)', metrics)
            assert shown is not None
            assert float(shown[1]) > time.time() + 86_400
            for port in ports:
                assert (await client.get(f"https://127.0.0.1:{port}/healthz")).status_code in (200, 404, 405)
                with pytest.raises(httpx.HTTPError):
                    await client.get(f"http://127.0.0.1:{port}/healthz")


@pytest.mark.parametrize("oldest", ["1.2", "1.3"])
async def test_old_versions_are_refused(tmp_path: Path, oldest: str) -> None:
    authority = Authority(tmp_path)
    async with serving(tmp_path, authority.server().settings(min_version=oldest)) as app:
        old = authority.trust()
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        async with httpx.AsyncClient(verify=old) as client:
            asked = client.get(f"https://127.0.0.1:{app.rest_port}/healthz")
            if oldest == "1.2":
                assert (await asked).status_code == 200
            else:
                with pytest.raises(httpx.ConnectError):
                    await asked


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_no_request_fails_while_certificates_are_exchanged(tmp_path: Path, loop: str) -> None:
    """Ten exchanges under load over REST and gRPC, on connections that stay and on new ones; nobody notices."""
    authority = Authority(tmp_path)
    files = authority.server()
    tls = files.settings(reload_seconds=0.05)
    if loop == "asyncio":
        async with serving(tmp_path, tls) as app:
            await exchange_under_load(authority, app.rest_port, app.grpc_port)
        return
    write_bundle(tmp_path / "bundles")
    arguments = [f"--set=security.tls.{name}={value}" for name, value in tls.items()]
    arguments += ["--models", str(tmp_path / "bundles"), "--default=tiny", "--load=tiny"]
    with server_process(arguments, tmp_path / "log") as server:
        ports = [int(url.rpartition(":")[2]) for url in (server.rest, server.grpc)]
        assert server.rest.startswith("https://")
        await exchange_under_load(authority, *ports)
        assert server.terminate() == 0
    assert "Traceback" not in (tmp_path / "log").read_text()


async def exchange_under_load(authority: Authority, rest: int, grpc: int) -> None:
    urls = (f"https://127.0.0.1:{rest}", f"grpcs://127.0.0.1:{grpc}")
    stop = asyncio.Event()
    answered = dict.fromkeys(("kept", "new"), 0)

    async def stay(url: str) -> None:
        async with critiq.AsyncClient(url, ca_file=authority.ca, retries=0) as client:
            while not stop.is_set():
                assert (await client.score(flat())).scores
                answered["kept"] += 1

    async def come_and_go(url: str) -> None:
        while not stop.is_set():
            async with critiq.AsyncClient(url, ca_file=authority.ca, retries=0) as client:
                assert (await client.score(flat())).scores
                answered["new"] += 1

    load = [asyncio.create_task(kind(url)) for kind in (stay, come_and_go) for url in urls]
    shown = {port: {await asyncio.to_thread(certificate_of, port)} for port in (rest, grpc)}
    for _ in range(10):
        issued = authority.server().certificate.read_text()
        for port in (rest, grpc):
            limit = time.monotonic() + 60
            while (now := await asyncio.to_thread(certificate_of, port)) in shown[port]:
                assert time.monotonic() < limit, "the new certificate is not shown"
                await asyncio.sleep(0.02)
            assert ssl.DER_cert_to_PEM_cert(now) in issued
            shown[port].add(now)
    stop.set()
    await asyncio.gather(*load)  # raises what failed
    assert all(len(found) == 11 for found in shown.values())
    assert min(answered.values()) > 20, answered


async def test_a_server_does_not_start_with_what_it_cannot_use(tmp_path: Path) -> None:
    files = Authority(tmp_path).server()
    files.key.write_text("nonsense")
    write_bundle(tmp_path / "bundles")
    with pytest.raises(StartError, match="no certificate and key in PEM"):
        await App(make_settings(tmp_path / "bundles", security={"tls": files.settings()})).start()
    with pytest.raises(TlsError, match="cannot read"):
        Certificates(TlsSettings(certificate=tmp_path / "none", key=files.key))
