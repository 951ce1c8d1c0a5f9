"""URLs that a caller names: read strictly, so that no two readers of one URL can disagree about its host."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, field_validator

from critiq.errors import InvalidArgument, PermissionDenied

MAX_LENGTH = 4096
"""Characters of a URL."""

_URL = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>[^/?#]*)(?P<path>[^?#]*)(?P<query>\?[^#]*)?(#.*)?"
)
_AUTHORITY = re.compile(r"(?P<host>[^:]*)(:(?P<port>[0-9]{1,5}))?")
_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_NAME = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
"""A last label of this form makes a resolver read the whole as an IPv4 address: 127.0.0.1, 2130706433, 0x7f.1."""
_PORTS = {"https": 443, "http": 80}


@dataclass(frozen=True, slots=True)
class Address:
    """Where a URL leads. ``target`` is path and query; it may hold a secret (signed URLs), so it is never shown."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def authority(self) -> str:
        """``host``, and the port where it is not the scheme's own: what the header ``Host`` says."""
        return self.host if self.port == _PORTS[self.scheme] else f"{self.host}:{self.port}"


class UrlRules(BaseModel):
    """Which URLs of callers this server connects to. https, names that are listed, public addresses, no redirects."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    hosts: tuple[str, ...] = Field(
        (),
        description="Hosts that URLs may name: cdn.example.com, or *.example.com for every name below it. Empty: off.",
    )
    ports: tuple[int, ...] = Field((443,), description="Ports that URLs may name.")
    allow_http: bool = Field(
        False, description="Insecure: http too, whose answers anybody on the way may change. For tests."
    )
    allow_private_addresses: bool = Field(
        False,
        description="Insecure unless every listed host is your own: hosts may have addresses that are not public, so "
        "callers reach what this server reaches.",
    )
    ca_file: Path | None = Field(None, description="PEM certificates to trust instead of the system's.")

    @field_validator("hosts")
    @classmethod
    def _hosts_are_names(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts:
            if problem := _name_problem(host.removeprefix("*.")):
                raise ValueError(f"{host!r} {problem}; write cdn.example.com or *.example.com")
        return hosts

    @field_validator("ca_file")
    @classmethod
    def _certificates_are_there(cls, path: Path | None) -> Path | None:
        if path is not None and not path.is_file():
            raise ValueError(f"there is no file {path}")
        return path

    def check(self, url: str, field: str, setting: str) -> Address:
        """Where ``url`` leads, if these rules allow it; nothing is resolved yet.

        Args:
            field: the request's field, for errors.
            setting: the name of these rules in the settings, for errors.

        Raises:
            InvalidArgument: it is no URL that could be allowed.
            PermissionDenied: its scheme, host or port is not allowed here.
        """
        address = parse(url, field)
        if address.scheme == "http" and not self.allow_http:
            raise PermissionDenied("the URL begins with http:; only https: is accepted", field=field)
        if not matches(address.host, self.hosts):
            raise PermissionDenied(
                f"the host {address.host!r} is not one that this server connects to (its setting {setting}.hosts)",
                field=field,
            )
        if address.port not in self.ports:
            raise PermissionDenied(
                f"the port {address.port} is not one that this server connects to "
                f"({setting}.ports: {', '.join(map(str, self.ports))})",
                field=field,
            )
        return address


def parse(url: str, field: str) -> Address:
    """The parts of an ``http(s)`` URL with a DNS name as its host.

    Raises ``InvalidArgument`` for everything that URL readers disagree about: user names, IP addresses in any notation,
    characters beyond ASCII, white space, backslashes, a dot at the end.
    """
    if len(url) > MAX_LENGTH:
        raise InvalidArgument(f"the URL has {len(url)} characters, the limit is {MAX_LENGTH}", field=field)
    if not re.fullmatch(r"[\x21-\x7e]+", url) or "\\" in url:
        raise InvalidArgument(
            "the URL is empty, or has white space, a backslash or characters beyond ASCII; percent-encode them, and "
            "write the host in its xn-- form",
            field=field,
        )
    found = _URL.fullmatch(url)
    if found is None or found["scheme"].lower() not in _PORTS:
        raise InvalidArgument("the URL must begin with https://", field=field)
    scheme = found["scheme"].lower()
    if "@" in found["authority"]:
        raise InvalidArgument("the URL has a user name or password before its host; leave it out", field=field)
    authority = _AUTHORITY.fullmatch(found["authority"].lower())
    host = authority["host"] if authority is not None else found["authority"]
    if authority is None or (problem := _name_problem(host)):
        raise InvalidArgument(f"the URL's host {host[:80]!r} {problem if authority else 'is no DNS name'}", field=field)
    port = int(authority["port"]) if authority["port"] else _PORTS[scheme]
    if not 0 < port < 65536:
        raise InvalidArgument(f"{port} is no port", field=field)
    return Address(scheme, host, port, (found["path"] or "/") + (found["query"] or ""))


def matches(host: str, patterns: Iterable[str]) -> bool:
    """Whether ``host`` is listed: exactly, or below a pattern's ``*.``."""
    return any(
        host.endswith(pattern[1:].lower()) if pattern.startswith("*.") else host == pattern.lower()
        for pattern in patterns
    )


def _name_problem(host: str) -> str:
    """What keeps ``host`` from being a DNS name; empty if nothing does."""
    host = host.lower()
    if _NUMBER.fullmatch(host.rpartition(".")[2]):
        return "is an IP address; name the host"
    if len(host) > 253 or not _NAME.fullmatch(host):
        return "is no DNS name"
    return ""
