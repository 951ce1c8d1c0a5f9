"""Certificates of an authority of the tests' own, written as files."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import trustme


@dataclass(frozen=True)
class Files:
    """PEM files; ``ca`` is the authority's certificate."""

    certificate: Path
    key: Path
    ca: Path


class Authority:
    """Issues certificates into a folder."""

    def __init__(self, folder: Path) -> None:
        self._authority = trustme.CA()
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.ca = folder / "ca.pem"
        self._authority.cert_pem.write_to_path(self.ca)

    def issue(self, file: str, *names: str, common_name: str | None = None, not_after: datetime | None = None) -> Files:
        """A new certificate and key in ``FILE.pem`` and ``FILE.key``, in place of those there."""
        made = self._authority.issue_cert(*names, common_name=common_name, not_after=not_after)
        chain, key = self._folder / f"{file}.pem", self._folder / f"{file}.key"
        # As careful tools do: a reader sees the old file or the new one, never half of it.
        for path, content in ((key, made.private_key_pem.bytes()), (chain, made.cert_chain_pems[0].bytes())):
            written = path.with_suffix(".new")
            written.touch(0o600)
            written.write_bytes(content)
            written.replace(path)
        return Files(chain, key, self.ca)

    def server(self, file: str = "server", not_after: datetime | None = None) -> Files:
        return self.issue(file, "127.0.0.1", "localhost", not_after=not_after)

    def trust(self, client: Files | None = None) -> ssl.SSLContext:
        """For Python's clients."""
        context = ssl.create_default_context(cafile=self.ca)
        if client is not None:
            context.load_cert_chain(client.certificate, client.key)
        return context
