"""Certificates of an authority of the tests' own, written as files."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


@dataclass(frozen=True)
class Files:
    """PEM files; ``ca`` is the authority's certificate."""

    certificate: Path
    key: Path
    ca: Path

    def settings(self, **more: Any) -> dict[str, Any]:
        """``security.tls`` of a server with this certificate."""
        return {"certificate": self.certificate, "key": self.key, **more}


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
        made = self._authority.issue_cert(
            *(name for name in names if "://" not in name), common_name=common_name, not_after=not_after
        )
        signed = made.cert_chain_pems[0].bytes()
        if uris := [name for name in names if "://" in name]:
            signed = self._with(uris, signed)
        chain, key = self._folder / f"{file}.pem", self._folder / f"{file}.key"
        # As careful tools do: a reader sees the old file or the new one, never half of it.
        for path, content in ((key, made.private_key_pem.bytes()), (chain, signed)):
            written = path.with_suffix(".new")
            written.touch(0o600)
            written.write_bytes(content)
            written.replace(path)
        return Files(chain, key, self.ca)

    def _with(self, uris: list[str], certificate: bytes) -> bytes:
        """The same certificate with these alternative names too, which trustme cannot make."""
        old = x509.load_pem_x509_certificate(certificate)
        signing = serialization.load_pem_private_key(self._authority.private_key_pem.bytes(), None)
        assert isinstance(signing, ec.EllipticCurvePrivateKey)
        new = (
            x509.CertificateBuilder(old.issuer, old.subject, old.public_key(), x509.random_serial_number())
            .not_valid_before(old.not_valid_before_utc)
            .not_valid_after(old.not_valid_after_utc)
        )
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri) for uri in uris]
        for extension in old.extensions:
            value = extension.value
            if isinstance(value, x509.SubjectAlternativeName):
                value = x509.SubjectAlternativeName([*names, *value])
            new = new.add_extension(value, extension.critical)
        return new.sign(signing, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def server(self, file: str = "server", not_after: datetime | None = None) -> Files:
        return self.issue(file, "127.0.0.1", "localhost", not_after=not_after)

    def trust(self, client: Files | None = None) -> ssl.SSLContext:
        """For Python's clients."""
        context = ssl.create_default_context(cafile=self.ca)
        if client is not None:
            context.load_cert_chain(client.certificate, client.key)
        return context
