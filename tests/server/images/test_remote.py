"""Pictures by URL, from a real server over TLS; only the name's look-up is the test's."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest

from critiq.errors import CritiqError, InvalidArgument, PermissionDenied, TooLarge, Unavailable
from critiq_server.images.limits import ImageLimits
from critiq_server.images.remote import RemotePictures, UrlSettings
from critiq_server.outbound import connect
from tests.support.https import LOOPBACK, Asked, Reply, Website, answer, make_certificate, website
from tests.support.requests import flat

HOST = "pictures.example"
PUBLIC = "93.184.215.14"
LIMIT = 100_000
Certificate = tuple[Path, Path]

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with openssl")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"), HOST)


def always(data: bytes) -> Reply:
    async def reply(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()

    return reply


class Names:
    """A resolver that gives one answer after the other, the last for ever."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers, self.asked = list(answers), 0

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked += 1
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def pictures(site: Website, certificate: Certificate, names: Names | None = None, **changes: Any) -> RemotePictures:
    values = {"hosts": (HOST,), "ports": (site.port,), "ca_file": certificate[1], "allow_private_addresses": True}
    settings = UrlSettings(**{**values, **changes})
    return RemotePictures(settings, ImageLimits(max_bytes=LIMIT), resolve=names or Names([LOOPBACK]))


async def fetch(remote: RemotePictures, site: Website, path: str = "/a.png?sig=1%2F2", **asked: Any) -> bytes:
    async with remote.fetched(f"https://{HOST}:{site.port}{path}", **asked) as image:
        return image.data


async def refused(download: Awaitable[bytes], kind: type[CritiqError], message: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        await download
    assert caught.value.field == "image.url"
    assert type(caught.value) is kind
    assert "sig=" not in str(caught.value)


async def test_the_file_comes_as_it_is(certificate: Certificate) -> None:
    async with website(always(answer(200, flat())), certificate) as site:
        assert await fetch(pictures(site, certificate), site) == flat()
    asked = site.asked[0]
    assert (asked.method, asked.target) == ("GET", "/a.png?sig=1%2F2")
    assert asked.headers["host"] == f"{HOST}:{site.port}"
    assert asked.headers["accept-encoding"] == "identity"
    assert site.server_names == [HOST]


async def test_another_address_is_tried_where_the_first_refuses(certificate: Certificate) -> None:
    async with website(always(answer(200, flat())), certificate) as site:
        assert await fetch(pictures(site, certificate, Names(["127.0.0.2", LOOPBACK])), site) == flat()


@pytest.mark.parametrize("address", ["127.0.0.1", "169.254.169.254", "10.0.0.1", "::ffff:127.0.0.1", "fd00:ec2::254"])
async def test_private_addresses_are_not_connected_to(certificate: Certificate, address: str) -> None:
    async with website(always(answer(200, flat())), certificate) as site:
        names = Names([PUBLIC, address])  # one public address does not make up for the other
        await refused(
            fetch(pictures(site, certificate, names, allow_private_addresses=False), site),
            PermissionDenied,
            "not public",
        )
    assert site.asked == []


async def test_a_name_is_looked_up_once(certificate: Certificate, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that means something else the second time (rebinding) has no second time."""
    nobody = "127.0.0.2"  # taken for public here, so that the test leaves this machine alone
    monkeypatch.setattr(connect, "is_public", lambda address: address == nobody)
    names = Names([nobody], [LOOPBACK])
    async with website(always(answer(200, flat())), certificate) as site:
        remote = pictures(site, certificate, names, allow_private_addresses=False)
        await refused(fetch(remote, site), Unavailable, HOST)
        assert names.asked == 1
        await refused(fetch(remote, site), PermissionDenied, "not public")
    assert site.asked == []


async def test_a_name_without_an_address(certificate: Certificate) -> None:
    async def unknown(host: str, port: int) -> list[str]:
        raise OSError("name or service not known")

    async with website(always(b""), certificate) as site:
        settings = UrlSettings(hosts=(HOST,), ports=(site.port,))
        await refused(
            fetch(RemotePictures(settings, ImageLimits(), resolve=unknown), site), InvalidArgument, "has no address"
        )


async def test_redirects_are_not_followed(certificate: Certificate) -> None:
    async with website(always(answer(302, Location="https://169.254.169.254/")), certificate) as site:
        await refused(fetch(pictures(site, certificate), site), InvalidArgument, "302.*redirects are not followed")
    assert len(site.asked) == 1


@pytest.mark.parametrize(("status", "kind"), [(404, InvalidArgument), (206, InvalidArgument), (503, Unavailable)])
async def test_answers_that_are_no_file(certificate: Certificate, status: int, kind: type[CritiqError]) -> None:
    async with website(always(answer(status, b"sorry")), certificate) as site:
        await refused(fetch(pictures(site, certificate), site), kind, f"answers {status}")


async def test_too_many_bytes_announced(certificate: Certificate) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 100001\r\n\r\n"
    async with website(always(head), certificate) as site:
        await refused(fetch(pictures(site, certificate), site), TooLarge, "announces 100,001 bytes; at most 100,000")


async def test_bytes_without_end(certificate: Certificate) -> None:
    sent = 0

    async def reply(asked: Asked, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(bytes(50_000))
            await writer.drain()
            sent += 50_000

    async with website(reply, certificate) as site:
        await refused(fetch(pictures(site, certificate), site), TooLarge, "more than 100,000 bytes")
    assert sent < 20_000_000  # what the sockets hold at the most


async def test_one_byte_at_a_time(certificate: Certificate) -> None:
    async def reply(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.02)

    async with website(reply, certificate) as site:
        await refused(
            fetch(pictures(site, certificate, timeout_seconds=0.3), site), Unavailable, r"no whole answer within 0\.3 s"
        )


async def test_a_host_that_breaks_off(certificate: Certificate) -> None:
    async with website(always(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"), certificate) as site:
        await refused(fetch(pictures(site, certificate), site), Unavailable, "broke off")


async def test_a_host_that_speaks_no_http(certificate: Certificate) -> None:
    async with website(always(b"\x00\x01\x02 hello\r\n\r\n"), certificate) as site:
        await refused(fetch(pictures(site, certificate), site), Unavailable, HOST)


async def test_certificates_of_others(certificate: Certificate, tmp_path: Path) -> None:
    other = make_certificate(tmp_path, "other.example")
    async with website(always(answer(200, flat())), other) as site:
        await refused(
            fetch(pictures(site, certificate), site), InvalidArgument, "certificate of pictures.example"
        )  # an unknown authority
        await refused(
            fetch(pictures(site, other), site), InvalidArgument, "certificate of pictures.example"
        )  # a known one, for another name
    assert site.asked == []


async def test_places_bound_what_is_held(certificate: Certificate) -> None:
    async with website(always(answer(200, flat())), certificate) as site:
        remote = pictures(site, certificate, concurrency=2)
        url = f"https://{HOST}:{site.port}/"
        async with remote.fetched(url, bulk=True):
            with pytest.raises(TimeoutError):  # bulk work has half of the places
                await asyncio.wait_for(fetch(remote, site, bulk=True), 0.2)
            async with remote.fetched(url):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(fetch(remote, site), 0.2)
            assert await fetch(remote, site) == flat()


async def test_downloads_are_counted(certificate: Certificate) -> None:
    codes: list[str] = []
    async with website(always(answer(200, flat())), certificate) as site:
        settings = UrlSettings(hosts=(HOST,), ports=(site.port,), ca_file=certificate[1])
        remote = RemotePictures(settings, ImageLimits(), lambda code, seconds: codes.append(code), Names([LOOPBACK]))
        with pytest.raises(PermissionDenied):
            await fetch(remote, site)
    assert codes == ["PERMISSION_DENIED"]
