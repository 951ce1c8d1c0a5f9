"""Certificates of callers: what one opens, and how the client and the command line show theirs."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest

import critiq
from critiq_server.app import App
from critiq_server.security.keys import append, new_certificate, new_key
from tests.server.security.table import RPC, called, endpoints, expected, rpcs
from tests.support.bundles import write_bundle
from tests.support.certificates import Authority, Files
from tests.support.requests import flat
from tests.support.servers import make_settings, running
from tests.support.waiting import until

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
        "tls": authority.server().settings(client_ca=authority.ca, **tls),
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
