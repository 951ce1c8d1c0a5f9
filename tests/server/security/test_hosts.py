"""Names by which a server is called: no website's name that points at this machine reaches it from a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from critiq_server.security.keys import append, new_key
from tests.support.bundles import write_bundle
from tests.support.servers import make_settings, running

OURS = [
    "127.0.0.1",
    "127.0.0.1:8000",
    "localhost",
    "LOCALHOST:1",
    "localhost.",
    "a.localhost:80",
    "[::1]:80",
    "10.1.2.3",
]
FOREIGN = [
    "evil.example",
    "evil.example:8000",
    "localhost.evil.example",
    "notlocalhost",
    "127.0.0.1.evil.example",
    "[x",
]


async def statuses(port: int, hosts: list[str]) -> list[int]:
    async with httpx.AsyncClient() as client:
        url = f"http://127.0.0.1:{port}/healthz"
        return [(await client.get(url, headers={"host": host})).status_code for host in hosts]


@pytest.mark.parametrize(
    ("sections", "foreign"),
    [
        ({}, 403),
        ({"security": "keys"}, 200),
        ({"server": {"host": "0.0.0.0"}}, 200),
        ({"security": "keys", "server": {"allowed_hosts": ["critiq.example.org", "*.inner.example.org"]}}, 403),
        ({"server": {"allowed_hosts": ["evil.example", "*.evil.example", "notlocalhost"]}}, 200),
    ],
)
async def test_foreign_names_are_refused_where_a_page_could_make_them_up(
    tmp_path: Path, sections: dict[str, Any], foreign: int
) -> None:
    write_bundle(tmp_path / "bundles")
    if sections.get("security"):
        append(tmp_path / "keys.yaml", new_key("a", ["score"])[1])
        sections = {**sections, "security": {"keys_file": tmp_path / "keys.yaml"}}
    async with running(make_settings(tmp_path / "bundles", **sections)) as app:
        assert await statuses(app.rest_port, FOREIGN[:-1]) == [foreign] * 5
        if "allowed_hosts" not in sections.get("server", {}):
            assert set(await statuses(app.rest_port, OURS)) == {200}
        else:
            assert set(await statuses(app.rest_port, ["127.0.0.1:80", "[::1]", "10.1.2.3"])) == {200}
        if foreign == 403:
            assert await statuses(app.metrics_port, ["evil.example"]) == [403]
            assert await statuses(app.rest_port, FOREIGN[-1:]) == [403]


async def test_named_hosts_are_answered(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    server = {"allowed_hosts": ["critiq.example.org", "*.inner.example.org"]}
    async with running(make_settings(tmp_path, server=server)) as app:
        hosts = ["critiq.example.org:8000", "a.inner.example.org", "Critiq.Example.ORG"]
        assert await statuses(app.rest_port, hosts) == [200] * 3
        assert await statuses(app.rest_port, ["inner.example.org", "localhost"]) == [403] * 2
