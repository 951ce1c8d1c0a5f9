"""TLS on a server's ports: who is let in, and certificates that are exchanged while it works."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import ssl
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError
from structlog.testing import capture_logs

import critiq
from critiq_server.app import App, StartError
from critiq_server.security.settings import TlsSettings
from critiq_server.security.tls import Certificates, TlsError
from tests.support.bundles import write_bundle
from tests.support.certificates import Authority, Files
from tests.support.requests import flat
from tests.support.servers import make_settings, running, server_process


def settings(files: Files, **more: Any) -> dict[str, Any]:
    return {"certificate": files.certificate, "key": files.key, **more}


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
    async with serving(tmp_path, settings(files), compat=compat) as app:
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
    async with serving(tmp_path, settings(authority.server(), min_version=oldest)) as app:
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
    tls = settings(files, reload_seconds=0.05)
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
            limit = time.monotonic() + 10
            while (now := await asyncio.to_thread(certificate_of, port)) in shown[port]:
                assert time.monotonic() < limit, "the new certificate is not shown"
                await asyncio.sleep(0.02)
            assert ssl.DER_cert_to_PEM_cert(now) in issued
            shown[port].add(now)
    stop.set()
    await asyncio.gather(*load)  # raises what failed
    assert all(len(found) == 11 for found in shown.values())
    assert min(answered.values()) > 20, answered


def test_a_pair_that_cannot_be_used_is_not(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    files = authority.server()
    certificates = Certificates(TlsSettings(**settings(files)))
    first = certificates.pair
    other = authority.issue("other", "localhost")

    def look(said: str) -> None:
        with capture_logs() as logs:
            certificates.look()
            assert not [entry for entry in logs if entry["log_level"] == "error"], "one look may fall between two files"
            certificates.look()
            certificates.look()
        assert [said in entry["why"] for entry in logs if entry["log_level"] == "error"] == [True], logs
        assert certificates.pair is first

    files.certificate.write_bytes(other.certificate.read_bytes())
    look("is not that of the certificate")
    files.certificate.write_text("nonsense")
    look("no certificate and key in PEM")
    files.key.unlink()
    look("cannot read")
    locked = ["openssl", "genpkey", "-algorithm", "RSA", "-aes-128-cbc", "-pass", "pass:word", "-out", str(files.key)]
    subprocess.run(locked, check=True, capture_output=True)
    look("has a passphrase")
    authority.server()
    certificates.look()
    assert certificates.pair is not first


def test_a_mounted_secret_is_exchanged_by_turning_a_link(tmp_path: Path) -> None:
    """As Kubernetes does: ``..data`` is a link to a folder; the files are links through it."""
    volume = tmp_path / "volume"
    volume.mkdir()
    for version in ("one", "two"):
        made = Authority(tmp_path / version).server("tls")
        assert made.certificate.parent == tmp_path / version
    (volume / "..data").symlink_to(tmp_path / "one")
    for name in ("tls.pem", "tls.key"):
        (volume / name).symlink_to(Path("..data") / name)
    certificates = Certificates(TlsSettings(certificate=volume / "tls.pem", key=volume / "tls.key"))
    first = certificates.pair.chain
    (volume / "..new").symlink_to(tmp_path / "two")
    (volume / "..new").replace(volume / "..data")
    certificates.look()
    assert first != certificates.pair.chain == (tmp_path / "two/tls.pem").read_bytes()


def test_the_end_is_known_and_warned_of(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    now = datetime.now(UTC).replace(microsecond=0, tzinfo=None)
    for days, warnings in ((15, []), (13, ["expires soon"]), (-1, ["has expired"])):
        ends = now + timedelta(days=days, minutes=5)
        told: list[float] = []
        with capture_logs() as logs:
            certificates = Certificates(
                TlsSettings(**settings(authority.server(not_after=ends))),
                lambda pair, told=told: told.append(pair.ends),
            )
            certificates.look()  # said once a day
        assert told == [ends.replace(tzinfo=UTC).timestamp()]
        assert [entry["event"].partition("certificate ")[2] for entry in logs] == warnings


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_a_key_that_others_can_read_is_warned_of(tmp_path: Path) -> None:
    files = Authority(tmp_path).server()
    for mode, warned in ((0o600, False), (0o640, True), (0o604, True)):
        files.key.chmod(mode)
        with capture_logs() as logs:
            Certificates(TlsSettings(**settings(files)))
        assert any("private key" in entry["event"] for entry in logs) == warned, f"{mode:o}"


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_a_mounted_key_may_be_read_by_the_servers_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = Authority(tmp_path).server()
    monkeypatch.setattr(os, "geteuid", lambda: files.key.stat().st_uid + 10001)
    for mode, warned in ((0o440, False), (0o444, True)):
        files.key.chmod(mode)
        with capture_logs() as logs:
            Certificates(TlsSettings(**settings(files)))
        assert any("private key" in entry["event"] for entry in logs) == warned, f"{mode:o}"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"certificate": "a"}, "certificate needs security.tls.key"),
        ({"key": "a"}, "key needs security.tls.certificate"),
        ({"client_ca": "a"}, "client_ca needs"),
        ({"certificate": "a", "key": "b", "require_client_certificate": True}, "needs security.tls.client_ca"),
        ({"min_version": "1.1"}, "'1.2' or '1.3'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        TlsSettings(**values)
    assert TlsSettings.model_validate({"min_version": 1.3}).min_version == "1.3"  # what YAML makes of it


async def test_a_server_does_not_start_with_what_it_cannot_use(tmp_path: Path) -> None:
    files = Authority(tmp_path).server()
    files.key.write_text("nonsense")
    write_bundle(tmp_path / "bundles")
    with pytest.raises(StartError, match="no certificate and key in PEM"):
        await App(make_settings(tmp_path / "bundles", security={"tls": settings(files)})).start()
    with pytest.raises(TlsError, match="cannot read"):
        Certificates(TlsSettings(certificate=tmp_path / "none", key=files.key))
