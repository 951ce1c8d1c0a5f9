"""Encrypted connections: trusted with the right certificate, refused without."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import critiq
from tests.client import fake_server
from tests.client.fake_server import Behaviour, FakeServer

PICTURES = [b"picture %d" % index for index in range(5)]

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with openssl")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    key, chain = folder / "key.pem", folder / "chain.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=test"
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(chain)]
    subprocess.run([*command.split(), *names], check=True, capture_output=True, timeout=60)
    return key, chain


@pytest.fixture(scope="module")
def tls_server(certificate: tuple[Path, Path]) -> Iterator[FakeServer]:
    with fake_server.running(Behaviour(), certificate=certificate) as server:
        yield server


def test_trusted(tls_server: FakeServer, certificate: tuple[Path, Path], transport: str) -> None:
    with critiq.Client(tls_server.url(transport), ca_file=certificate[1]) as client:
        assert client.score(PICTURES[0]).scores
        assert len(list(client.score_stream(PICTURES))) == 5


async def test_trusted_asyncio(tls_server: FakeServer, certificate: tuple[Path, Path], transport: str) -> None:
    async with critiq.AsyncClient(tls_server.url(transport), ca_file=certificate[1]) as client:
        assert (await client.score(PICTURES[0])).scores
        assert len([result async for result in client.score_stream(PICTURES)]) == 5


def test_strangers_are_not_trusted(tls_server: FakeServer, transport: str) -> None:
    with critiq.Client(tls_server.url(transport), retries=0) as client, pytest.raises(critiq.Unavailable):
        client.score(PICTURES[0])


def test_certificates_that_are_not_there() -> None:
    with pytest.raises(critiq.InvalidArgument, match=r"^ca_file: no such file"):
        critiq.Client("https://localhost", ca_file="no/such.pem")
