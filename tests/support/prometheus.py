"""A real Prometheus on loopback, with the configuration and the rules that are shipped."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.support.waiting import until_async

SHIPPED = Path(__file__).parents[2] / "deploy" / "prometheus"


def needs(program: str) -> str:
    """The program's path; skips the test where it is not installed."""
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"{program} is not installed (Debian: apt install prometheus)")
    return found


@dataclass
class Prometheus:
    """``http`` asks its API."""

    url: str
    http: httpx.AsyncClient

    async def api(self, path: str, **parameters: Any) -> Any:
        """``data`` of an answer; an error fails the test."""
        response = await self.http.get(f"/api/v1/{path}", params=parameters)
        assert response.status_code == 200, f"{path} {parameters}: {response.text}"
        return response.json()["data"]

    async def query(self, expression: str) -> list[dict[str, Any]]:
        """Series with their present values."""
        found: list[dict[str, Any]] = (await self.api("query", query=expression))["result"]
        return found


@asynccontextmanager
async def prometheus(
    folder: Path, targets: Sequence[str], ca: Path, key: Path, interval: str = "500ms"
) -> AsyncIterator[Prometheus]:
    """Runs one that scrapes ``targets`` over TLS with a key.

    Of the shipped configuration these and the intervals are changed, and the lines for keys and TLS switched on.
    """
    with _process(folder, targets, ca, key, interval) as (process, address):
        async with httpx.AsyncClient(base_url=f"http://{address}", trust_env=False, timeout=120) as http:

            async def ready() -> bool:
                assert process.poll() is None, f"Prometheus ended; see {folder / 'log'}"
                try:
                    return (await http.get("/-/ready")).status_code == 200
                except httpx.TransportError:
                    return False

            await until_async(ready)
            yield Prometheus(f"http://{address}", http)


@contextmanager
def _process(
    folder: Path, targets: Sequence[str], ca: Path, key: Path, interval: str
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    program = needs("prometheus")
    text = re.sub(r"# (authorization:|scheme:|tls_config:)", r"\1", (SHIPPED / "prometheus.yaml").read_text())
    assert "/run/secrets/critiq-metrics-key" in text
    assert "/run/secrets/ca.pem" in text
    text = text.replace("/run/secrets/critiq-metrics-key", str(key)).replace("/run/secrets/ca.pem", str(ca))
    config = yaml.safe_load(text)
    config["global"] = dict.fromkeys(("scrape_interval", "evaluation_interval"), interval)
    config["rule_files"] = [str(SHIPPED / name) for name in config["rule_files"]]
    config["scrape_configs"] = [entry for entry in config["scrape_configs"] if entry["job_name"] == "critiq"]
    config["scrape_configs"][0] |= {"static_configs": [{"targets": list(targets)}], "dns_sd_configs": []}
    folder.mkdir()
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [program, f"--config.file={folder / 'prometheus.yaml'}", f"--storage.tsdb.path={folder / 'data'}"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([*command, f"--web.listen-address={address}"], stdout=log, stderr=log)
    try:
        yield process, address
    finally:
        process.kill()
        process.wait()
