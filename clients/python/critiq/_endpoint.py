"""Where a server is: the URL that a client is given."""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from critiq.errors import InvalidArgument

DEFAULT_URL = "localhost:8001"
API_KEY_VARIABLE = "CRITIQ_API_KEY"
CA_FILE_VARIABLE = "CRITIQ_CA_FILE"
CERT_VARIABLE = "CRITIQ_CLIENT_CERT"
CERT_KEY_VARIABLE = "CRITIQ_CLIENT_KEY"
_GRPC_PORT = 8001
_PRINTABLE = re.compile(r"[!-~]+")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """``target``: ``host:port`` for gRPC (``ipv4:`` and several where there are more), the base URL for REST."""

    target: str
    grpc: bool
    secure: bool
    headers: Mapping[str, str] = field(repr=False)
    """They may hold a key: never shown."""
    ca_file: Path | None = None
    """PEM certificates to trust instead of the system's."""
    cert: tuple[Path, Path] | None = None
    """PEM files of our own certificate and its key."""


Cert = tuple[str | Path, str | Path]


def parse(
    url: str,
    headers: Mapping[str, str] | None,
    ca_file: str | Path | None,
    api_key: str | None = None,
    cert: Cert | None = None,
) -> Endpoint:
    """``host[:port]``, ``grpc://``, ``grpcs://`` and ``unix:`` mean gRPC, ``http://`` and ``https://`` REST.

    For gRPC there may be several addresses with commas between them.

    Raises:
        InvalidArgument: another scheme, no host, a port that is no number, several addresses of which one is none, an
            unreadable ``ca_file`` or ``cert``, or an ``api_key`` that no header can carry.
    """
    trusted = ca_file if ca_file is not None else os.environ.get(CA_FILE_VARIABLE) or None
    certificates = Path(trusted) if trusted is not None else None
    if certificates is not None and not certificates.is_file():
        raise InvalidArgument(f"no such file: {certificates}", field="ca_file")
    own = _own_certificate(cert)
    names = {name.lower(): value for name, value in (headers or {}).items()}
    key = api_key if api_key is not None else os.environ.get(API_KEY_VARIABLE, "")
    if key and not _PRINTABLE.fullmatch(key):
        raise InvalidArgument("it holds a space, a line's end or another character that no key has", field="api_key")
    if key and "authorization" not in names:
        names["authorization"] = f"Bearer {key}"
    elif key:  # what the caller has set there may be for a proxy
        names.setdefault("x-api-key", key)
    if url.startswith("unix:"):
        return Endpoint(url, True, False, names)
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme, rest = "grpc", url
    if scheme not in ("grpc", "grpcs", "http", "https"):
        raise InvalidArgument(f"{url!r}: use host:port, grpc://, grpcs://, unix:, http:// or https://", field="url")
    if "," in rest and scheme in ("grpc", "grpcs"):
        return Endpoint(_addresses(rest), True, scheme == "grpcs", names, certificates, own)
    try:
        parts = urlsplit(f"//{rest}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise InvalidArgument(f"{url!r}: {error}", field="url") from error
    if not host:
        raise InvalidArgument(f"{url!r} has no host", field="url")
    secure = scheme in ("grpcs", "https")
    if scheme in ("http", "https"):
        return Endpoint(f"{scheme}://{rest.rstrip('/')}", False, secure, names, certificates, own)
    if parts.path.strip("/") or parts.query:
        raise InvalidArgument(f"{url!r}: a gRPC address is only host and port", field="url")
    address = f"[{host}]" if ":" in host else host
    return Endpoint(f"{address}:{port or _GRPC_PORT}", True, secure, names, certificates, own)


def _addresses(listed: str) -> str:
    """gRPC's target for several servers."""
    found = []
    for entry in listed.split(","):
        try:
            parts = urlsplit(f"//{entry.strip()}")
            address, port = ip_address(parts.hostname or ""), parts.port or _GRPC_PORT
        except ValueError as error:
            raise InvalidArgument(
                f"{entry!r}: of several servers each is an IP address and a port, as in 10.0.0.1:8001,10.0.0.2:8001",
                field="url",
            ) from error
        found.append((address.version, f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"))
    versions = {version for version, _ in found}
    if len(versions) > 1:
        raise InvalidArgument(f"{listed!r} mixes IPv4 and IPv6; gRPC takes either", field="url")
    return f"ipv{versions.pop()}:{','.join(address for _, address in found)}"


def _own_certificate(cert: Cert | None) -> tuple[Path, Path] | None:
    if cert is None and CERT_VARIABLE in os.environ:
        if CERT_KEY_VARIABLE not in os.environ:
            raise InvalidArgument(f"{CERT_VARIABLE} is set and {CERT_KEY_VARIABLE} is not", field="cert")
        cert = os.environ[CERT_VARIABLE], os.environ[CERT_KEY_VARIABLE]
    if cert is None:
        return None
    if isinstance(cert, (str, Path)) or len(cert) != 2:
        raise InvalidArgument("a pair is due: the certificate's file and its key's", field="cert")
    chain, key = Path(cert[0]), Path(cert[1])
    for path in (chain, key):
        if not path.is_file():
            raise InvalidArgument(f"no such file: {path}", field="cert")
    try:  # gRPC would take anything and fail when it connects; a passphrase would be asked for at the terminal
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(chain, key, password=lambda: "")
    except (OSError, ValueError) as error:
        raise InvalidArgument(f"{chain} and {key} are no certificate and its key ({error})", field="cert") from error
    return chain, key
