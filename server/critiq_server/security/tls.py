"""The server's certificate: read, tried, and read again when its files change, without a connection being cut."""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from critiq_server.security.settings import TlsSettings
from critiq_server.telemetry.faults import again_and_again

logger = structlog.get_logger("critiq.tls")

_SOON = 14 * 86_400
_A_DAY = 86_400
_LARGEST_FILE = 4 * 2**20
_NO_CHECK_TIME = 0x200000
"""OpenSSL's X509_V_FLAG_NO_CHECK_TIME, for which Python has no name."""
_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}

_Stamp = tuple[tuple[int, ...], ...]


class TlsError(Exception):
    """Certificate, key or authorities cannot be used; the message says why, and shows nothing of the key."""


@dataclass(frozen=True)
class Pair:
    """What the files held when they were last in order.

    Attributes:
        context: for TLS servers of Python.
        chain, key, client_ca: PEM, for those that take files' contents; ``client_ca`` is ``None`` where it is not set.
        ends: when the certificate expires, in seconds since 1970.
    """

    context: ssl.SSLContext
    chain: bytes
    key: bytes
    client_ca: bytes | None
    ends: float


class Certificates:
    """The certificate in use.

    Args:
        on_change: is told of each pair that comes into use, the first one too.

    Raises:
        TlsError: the first pair cannot be used. Later ones that cannot are logged, and the one before stays.
    """

    def __init__(self, settings: TlsSettings, on_change: Callable[[Pair], None] = lambda pair: None) -> None:
        if settings.certificate is None or settings.key is None:
            raise TlsError("security.tls.certificate and security.tls.key are not set")
        self.settings = settings
        self._chain_file, self._key_file = settings.certificate, settings.key
        self._on_change = on_change
        self._pair: Pair
        self._stamp: _Stamp
        self._failed: _Stamp | None = None
        self._told = float("-inf")
        self._take(*self._read())

    @property
    def pair(self) -> Pair:
        return self._pair

    async def watch(self) -> None:
        """Takes up changed files, and warns before the certificate ends, for ever."""
        await again_and_again(self.settings.reload_seconds, "watching the certificate", self.look)

    def look(self) -> None:
        """Takes up the files if they have changed."""
        self._warn_before_the_end()
        stamp = self._stamp_now()
        if stamp == self._stamp:
            return
        try:
            self._take(*self._read())
            logger.info("certificate read again", file=str(self._chain_file), ends=_date(self._pair.ends))
        except TlsError as error:
            # Files are exchanged one after the other, so a pair may not fit for an instant: said at the second look.
            if stamp == self._failed:
                logger.error("the changed certificate is not used; the one from before stays", why=str(error))
                self._stamp = stamp
            self._failed = stamp

    def _take(self, pair: Pair, stamp: _Stamp) -> None:
        self._pair, self._stamp = pair, stamp
        self._on_change(pair)
        self._told = float("-inf")
        self._warn_before_the_end()
        key = self._key_file.stat()
        # A mounted secret is root's, and the group is how the server itself reads it.
        by_group = os.name == "posix" and key.st_uid != os.geteuid() and key.st_gid in (os.getegid(), *os.getgroups())
        if os.name == "posix" and key.st_mode & (0o004 if by_group else 0o044):
            logger.warning(
                "others on this machine can read the server's private key; chmod 600 it",
                file=str(self._key_file),
                mode=f"{key.st_mode & 0o777:o}",
            )

    def _read(self) -> tuple[Pair, _Stamp]:
        stamp = self._stamp_now()
        settings = self.settings
        chain, key = _contents(self._chain_file), _contents(self._key_file)
        client_ca = None if settings.client_ca is None else _contents(settings.client_ca)
        context = _context(self._chain_file, self._key_file)
        context.minimum_version = _VERSIONS[settings.min_version]
        context.set_alpn_protocols(["http/1.1"])
        if settings.client_ca is not None:
            try:
                context.load_verify_locations(settings.client_ca)
            except (OSError, ValueError) as error:
                raise TlsError(f"{settings.client_ca} holds no authorities' certificates in PEM ({error})") from None
            context.verify_mode = ssl.CERT_REQUIRED if settings.require_client_certificate else ssl.CERT_OPTIONAL
        pair = Pair(context, chain, key, client_ca, _end(self._chain_file, self._key_file, chain))
        if self._stamp_now() != stamp:
            raise TlsError("the files changed while they were read")
        return pair, stamp

    def _stamp_now(self) -> _Stamp:
        """Of the files behind symbolic links: Kubernetes exchanges a mounted secret by turning a link."""
        stamp: list[tuple[int, ...]] = []
        for path in (self._chain_file, self._key_file, self.settings.client_ca):
            if path is not None:
                try:
                    found = path.stat()
                except OSError:
                    stamp.append(())
                else:
                    stamp.append((found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino))
        return tuple(stamp)

    def _warn_before_the_end(self) -> None:
        left = self._pair.ends - time.time()
        if left < _SOON and time.monotonic() - self._told >= _A_DAY:
            self._told = time.monotonic()
            said = "the server's certificate has expired" if left <= 0 else "the server's certificate expires soon"
            logger.warning(said, file=str(self._chain_file), ends=_date(self._pair.ends), days_left=int(left // _A_DAY))


def _contents(path: Path) -> bytes:
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise TlsError(f"{path} is larger than {_LARGEST_FILE:,} bytes; is it a PEM file?")
        return path.read_bytes()
    except OSError as error:
        raise TlsError(f"cannot read {path} ({error.strerror})") from None


def _context(chain: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # A passphrase would be asked for at the terminal.
        context.load_cert_chain(chain, key, password=lambda: "")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise TlsError(f"the key in {key} is not that of the certificate in {chain}") from None
        if b"ENCRYPTED" in _contents(key):
            raise TlsError(f"the key in {key} has a passphrase; take it off: openssl pkey -in FILE -out FILE") from None
        raise TlsError(f"{chain} and {key} hold no certificate and key in PEM ({error.reason or error})") from None
    except (OSError, ValueError) as error:
        raise TlsError(f"cannot use {chain} and {key} ({error})") from None
    return context


def _end(chain_file: Path, key_file: Path, chain: bytes) -> float:
    """When the certificate expires: told by a handshake in memory, which also shows that one succeeds."""
    text = chain.decode("ascii", "replace")
    start, stop = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    first = start + text.partition(start)[2].partition(stop)[0] + stop
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname = False
    trusting.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | ssl.VerifyFlags(_NO_CHECK_TIME)
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    try:
        trusting.load_verify_locations(cadata=first)
        client = trusting.wrap_bio(back, there, server_hostname="localhost")
        server = _context(chain_file, key_file).wrap_bio(there, back, server_side=True)
        for side in (client, server, client):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
        return ssl.cert_time_to_seconds(str((client.getpeercert() or {})["notAfter"]))
    except (ssl.SSLError, ValueError, KeyError) as error:
        raise TlsError(f"no client could use the certificate in {chain_file} ({error})") from None


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
