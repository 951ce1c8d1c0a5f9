"""TLS on a server's ports: who is let in, and certificates that are exchanged while it works."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest
from pydantic import ValidationError
from structlog.testing import capture_logs

import critiq
from critiq_server.app import App, StartError
from critiq_server.security.keys import append, new_certificate, new_key
from critiq_server.security.settings import TlsSettings
from critiq_server.security.tls import Certificates, TlsError
from tests.server.security.test_access import RPC, called, endpoints, expected, rpcs
from tests.support.bundles import write_bundle
from tests.support.certificates import Authority, Files
from tests.support.requests import flat
from tests.support.servers import make_settings, running, server_process
from tests.support.waiting import until


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


ROBOT = "spiffe://example.org/robot"


@asynccontextmanager
async def with_certificates(root: Path, **tls: Any) -> AsyncIterator[tuple[App, Authority]]:
    """A server that lets in one key and the certificate of ``ROBOT``."""
    authority = Authority(root / "tls")
    write_bundle(root / "bundles")
    append(root / "keys.yaml", new_certificate("robot", ROBOT, ["score"], requests_per_day=1000))
    security = {
        "keys_file": root / "keys.yaml",
        "reload_seconds": 0.05,
        "tls": settings(authority.server(), client_ca=authority.ca, **tls),
    }
    async with running(make_settings(root / "bundles", security=security, jobs={"path": root / "jobs.db"})) as app:
        yield app, authority


def addresses(app: App) -> tuple[str, str]:
    return f"https://127.0.0.1:{app.rest_port}", f"grpcs://127.0.0.1:{app.grpc_port}"


async def test_a_certificate_stands_for_a_key(tmp_path: Path) -> None:
    async with with_certificates(tmp_path, require_client_certificate=True) as (app, authority):
        robot = authority.issue("robot", ROBOT, "robot.example.org", common_name="somebody else")
        others = authority.issue("others", "other.example.org", common_name=ROBOT)
        bare, forged = (
            authority.server("bare"),
            Authority(tmp_path / "evil").issue("forged", ROBOT, "robot.example.org"),
        )
        text, key = new_key("operator", ["score", "models"])
        append(tmp_path / "keys.yaml", key)
        guard = app._guard
        assert guard is not None
        await until(lambda: guard._keys.find(text) is not None)

        def client(url: str, files: Files | None, key: str = "") -> critiq.AsyncClient:
            cert = None if files is None else (files.certificate, files.key)
            return critiq.AsyncClient(url, ca_file=authority.ca, cert=cert, api_key=key, retries=0)

        for url in addresses(app):
            async with client(url, robot) as good:
                assert (await good.score(flat())).scores
                assert [item.error async for item in good.score_stream([flat(), flat(9)])] == [None, None]
                job = await good.submit_job([flat()])
                with pytest.raises(critiq.PermissionDenied, match="'robot' has score"):
                    await good.load_model("tiny")
            # Its common name does not count beside alternative ones.
            with pytest.raises(critiq.Unauthenticated, match="certificate is not known"):
                async with client(url, others) as bad:
                    await bad.score(flat())
            with pytest.raises(critiq.Unauthenticated, match="certificate is not known"):
                async with client(url, bare) as bad:
                    await anext(aiter(bad.score_stream([flat()])))
            for files in (None, forged):
                with pytest.raises(critiq.Unavailable):
                    async with client(url, files, text) as bad:
                        await bad.score(flat())
            async with client(url, robot, text) as both:  # a key goes before the certificate
                with pytest.raises(critiq.NotFound):
                    await both.job(job.id)
            with pytest.raises(critiq.Unauthenticated, match="key is not known"):
                async with client(url, robot, "critiq_nonsense") as bad:
                    await bad.score(flat())


async def test_a_certificate_may_be_offered_to_http_only(tmp_path: Path) -> None:
    async with with_certificates(tmp_path) as (app, authority):
        robot = authority.issue("robot", ROBOT, "robot.example.org")
        rest, grpc = addresses(app)
        cert = (robot.certificate, robot.key)
        async with critiq.AsyncClient(rest, ca_file=authority.ca, cert=cert) as client:
            assert (await client.score(flat())).scores
        for url, offered in ((rest, None), (grpc, cert)):
            async with critiq.AsyncClient(url, ca_file=authority.ca, cert=offered) as client:
                with pytest.raises(critiq.Unauthenticated, match="needs an API key"):
                    await client.score(flat())


async def test_every_route_and_rpc_holds_for_certificates(tmp_path: Path) -> None:
    async with with_certificates(tmp_path, require_client_certificate=True) as (app, authority):
        robot, stranger = (
            authority.issue("robot", ROBOT, "robot.example.org"),
            authority.issue("stranger", "stranger.example.org"),
        )
        guarded: Any = app._rest.config.app
        found = set(endpoints(list(guarded._app.routes)))
        for files in (robot, stranger):
            async with (
                httpx.AsyncClient(base_url=addresses(app)[0], verify=authority.trust(files)) as http,
                grpc.aio.secure_channel(
                    f"127.0.0.1:{app.grpc_port}",
                    grpc.ssl_channel_credentials(
                        authority.ca.read_bytes(), files.key.read_bytes(), files.certificate.read_bytes()
                    ),
                ) as channel,
            ):
                for path, method in sorted(found):
                    scopes = expected(path, method).split()
                    status = (await http.request(method, re.sub(r"{[^}]*}", "nothing", path))).status_code
                    place = f"{method} {path}: {status}"
                    if files is robot and (not scopes or "score" in scopes):
                        assert status not in (401, 403, 500), place
                    elif scopes:
                        assert status == (403 if files is robot else 401), place
                for service, method in rpcs():
                    scopes = RPC[service][method.name].split()
                    code, _ = await called(channel, service, method)
                    place = f"{service}/{method.name}: {code}"
                    refusals = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
                    if files is robot and (not scopes or "score" in scopes):
                        assert code not in refusals, place
                    elif scopes:
                        assert code is refusals[files is robot], place


def test_the_client_says_what_is_wrong_with_its_certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = Authority(tmp_path)
    one, two = authority.issue("one", "a"), authority.issue("two", "b")
    for url in ("https://localhost", "grpcs://localhost"):
        with pytest.raises(critiq.InvalidArgument, match="cert: no such file"):
            critiq.Client(url, cert=(one.certificate, tmp_path / "none"))
        with pytest.raises(critiq.InvalidArgument, match="no certificate and its key"):
            critiq.Client(url, cert=(one.certificate, two.key))
    monkeypatch.setenv("CRITIQ_CLIENT_CERT", str(one.certificate))
    with pytest.raises(critiq.InvalidArgument, match="CRITIQ_CLIENT_KEY is not"):
        critiq.Client("https://localhost")


async def test_the_command_line_carries_certificates(tmp_path: Path) -> None:
    async with with_certificates(tmp_path, require_client_certificate=True) as (app, authority):
        robot = authority.issue("robot", ROBOT, "robot.example.org")
        options = ["--ca-file", authority.ca, "--client-cert", robot.certificate, "--client-key", robot.key]
        variables = ("CRITIQ_CA_FILE", "CRITIQ_CLIENT_CERT", "CRITIQ_CLIENT_KEY")
        environment = dict(zip(variables, map(str, options[1::2]), strict=True))
        rest, over_grpc = addresses(app)

        async def run(url: str, *before: str, **more: str) -> tuple[int | None, bytes]:
            process = await asyncio.create_subprocess_exec(
                *[sys.executable, "-m", "critiq.cli", *before, "models", f"--url={url}"],
                env={**os.environ, **more},
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            said, _ = await process.communicate()
            return process.returncode, said

        for status, said in await asyncio.gather(run(rest, *map(str, options)), run(over_grpc, **environment)):
            assert status == 0, said
