"""Requests to addresses that a caller named: resolved once, public, pinned; bounded in bytes and time; no redirects."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial

import httpx

from critiq.errors import InvalidArgument, PermissionDenied, TooLarge, Unavailable
from critiq_server.outbound.urls import Address, UrlRules

Resolver = Callable[[str, int], Awaitable[list[str]]]
"""The addresses of (host, port), as text. Raises ``OSError`` if there are none."""

_LOOKUPS = ThreadPoolExecutor(4, "critiq-lookup")
"""Threads of their own: a slow name server holds up nobody else."""
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_LOCAL = tuple(map(ipaddress.ip_network, ("192.0.0.0/24", "192.88.99.0/24", "fec0::/10", "3fff::/20")))
"""Not of the public internet, although ``is_global`` says so: clouds have their metadata at 192.0.0.192."""
_IP = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Answer:
    """Status, headers (names in lower case) and body of an answer; the body is empty where the status is no 2xx."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300


class Outbound:
    """Sends one request a connection, so that nothing of one caller's reaches another.

    Args:
        rules: of the setting ``setting``, which error messages name.
        resolve: the system's resolver, unless a test says otherwise.
    """

    def __init__(self, rules: UrlRules, setting: str, resolve: Resolver | None = None) -> None:
        self._rules, self._setting = rules, setting
        self._resolve = resolve or system_resolver

    @property
    def enabled(self) -> bool:
        """Whether any host is allowed."""
        return bool(self._rules.hosts)

    def check(self, url: str, field: str) -> Address:
        """See :meth:`UrlRules.check`."""
        return self._rules.check(url, field, self._setting)

    async def request(
        self,
        method: str,
        address: Address,
        *,
        seconds: float,
        max_bytes: int | None,
        field: str,
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
    ) -> Answer:
        """Sends a request and reads its answer, all of it within ``seconds``. Redirects come back as they are.

        ``max_bytes``: of the answer's body; ``None``: the body is not read.

        Raises:
            InvalidArgument: there is no such host, or its certificate is not to be trusted.
            PermissionDenied: the host has an address that is not public.
            TooLarge: the body has more than ``max_bytes``, as declared or as it comes.
            Unavailable: the host was not reached, broke off, or took too long.
        """
        host = address.host
        try:
            async with asyncio.timeout(seconds):
                ips = await self._addresses(address, field)
                return await self._request(method, address, ips, headers or {}, content, max_bytes, field)
        except (TimeoutError, httpx.TimeoutException) as error:
            raise Unavailable(f"{host} gave no whole answer within {seconds:g} s", field=field) from error
        except httpx.HTTPError as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise InvalidArgument(f"the certificate of {host} is not to be trusted", field=field) from error
            raise Unavailable(f"{host} was not reached, or broke off ({type(error).__name__})", field=field) from error

    async def _addresses(self, address: Address, field: str) -> list[str]:
        """What the name stands for, asked once: it is these addresses that are judged and connected to."""
        try:
            found = await self._resolve(address.host, address.port)
        except (OSError, UnicodeError) as error:
            raise InvalidArgument(f"the host {address.host!r} has no address", field=field) from error
        if not self._rules.allow_private_addresses and not (found and all(map(is_public, found))):
            # Which address it is stays unsaid: the caller would learn the layout of a network that is none of theirs.
            raise PermissionDenied(f"the host {address.host!r} has an address that is not public", field=field)
        return found

    async def _request(
        self,
        method: str,
        address: Address,
        ips: list[str],
        headers: Mapping[str, str],
        content: bytes | None,
        max_bytes: int | None,
        field: str,
    ) -> Answer:
        # A client each: connections are pooled by address, and one address may have several names.
        async with httpx.AsyncClient(
            verify=self._trusted,
            trust_env=False,
            follow_redirects=False,
            timeout=None,  # noqa: S113 - our limit is on the whole
        ) as client:
            for ip in ips:
                request = httpx.Request(
                    method,
                    httpx.URL(scheme=address.scheme, host=ip, port=address.port, raw_path=address.target.encode()),
                    # Identity: a compressed body would unpack to more bytes than were counted.
                    headers={
                        "User-Agent": "critiq",
                        "Accept": "*/*",
                        "Accept-Encoding": "identity",
                        **headers,
                        "Host": address.authority,
                    },
                    content=content,
                    # The certificate must be the name's, although the connection goes to the address.
                    extensions={"sni_hostname": address.host},
                )
                try:
                    response = await client.send(request, stream=True)
                except httpx.ConnectError:
                    if ip == ips[-1]:
                        raise
                    continue
                try:
                    return await _read(response, address.host, max_bytes, field)
                finally:
                    await response.aclose()
        raise AssertionError("a resolver gives at least one address")

    @cached_property
    def _trusted(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self._rules.ca_file)


async def _read(response: httpx.Response, host: str, max_bytes: int | None, field: str) -> Answer:
    headers = {name.lower(): value for name, value in response.headers.items()}
    if not response.is_success or max_bytes is None:
        return Answer(response.status_code, headers, b"")
    declared = headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise TooLarge(f"{host} announces {int(declared):,} bytes; at most {max_bytes:,} are accepted", field=field)
    body = bytearray()
    async for part in response.aiter_raw():
        body += part
        if len(body) > max_bytes:
            raise TooLarge(f"{host} sends more than {max_bytes:,} bytes, which is all that is accepted", field=field)
    return Answer(response.status_code, headers, bytes(body))


async def system_resolver(host: str, port: int) -> list[str]:
    """The addresses that the system's resolver gives, without repeats."""
    lookup = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    found = await asyncio.get_running_loop().run_in_executor(_LOOKUPS, lookup)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def is_public(text: str) -> bool:
    """Whether an address is one of the public internet, and so is every IPv4 address that it wraps."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return all(
        entry.is_global
        and not (entry.is_multicast or entry.is_reserved or entry.is_unspecified)
        and not any(entry in network for network in _LOCAL)
        for entry in _meant_by(address)
    )


def _meant_by(address: _IP) -> list[_IP]:
    """The addresses that packets to ``address`` may end up at."""
    if isinstance(address, ipaddress.IPv4Address):
        return [address]
    if address.ipv4_mapped is not None:
        return [address.ipv4_mapped]
    wrapped: list[_IP] = []
    if address.sixtofour is not None:
        wrapped.append(address.sixtofour)
    if address.teredo is not None:
        wrapped += address.teredo
    if address in _NAT64:
        return [ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)]
    return [address, *wrapped]
