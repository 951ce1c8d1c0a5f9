"""Bearer tokens that an identity provider signs (JWT), checked against its public keys.

A token is checked once; what it said is kept, under its hash, until it ends. Nothing in a token's header is followed
but the key's id, which is looked up among the provider's keys.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import ssl
import time
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import jwt
import structlog
from jwt.types import Options

from critiq.errors import Unauthenticated
from critiq_server.security.keys import SCOPES, Caller, KeysError, Scope
from critiq_server.security.settings import JwtSettings
from critiq_server.telemetry.faults import again_and_again

logger = structlog.get_logger("critiq.audit")

LONGEST = 8192
"""Bytes of a token. Those of providers have some 1,000."""
_KEPT = 10_000
_LONGEST_NAME = 200
_LARGEST_SET = 2**20
_FETCH_SECONDS = 5.0
_PAUSE_SECONDS = 10.0
"""Between fetches because of unknown keys: strangers make tokens, and must not make us hammer the provider."""
_KINDS = {"RS": "RSA", "PS": "RSA", "ES": "EC", "Ed": "OKP"}
_CURVES = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521"}
_OPTIONS: Options = {"require": ["exp", "iss", "aud"]}


class TokensError(KeysError):
    """The provider's keys cannot be had; the message says why."""


class Tokens:
    """Who the provider says that callers are."""

    def __init__(self, settings: JwtSettings) -> None:
        self.settings = settings
        self._keys: Mapping[str, jwt.PyJWK] = {}
        self._known: OrderedDict[bytes, tuple[Caller, float]] = OrderedDict()
        self._fetching: asyncio.Task[None] | None = None
        self._fetched_at = float("-inf")

    async def open(self) -> None:
        """Gets the keys for the first time; raises ``TokensError``."""
        await self._fetch()

    async def watch(self) -> None:
        """Gets the keys again and again, for ever. If that fails, those from before stay."""
        await again_and_again(self.settings.refresh_seconds, "watching the provider's keys", self._refresh)

    async def caller(self, token: str) -> Caller:
        """Who a token's bearer is.

        Raises:
            Unauthenticated: says what is wrong with the token, and shows nothing of it.
        """
        if len(token) > LONGEST:
            raise Unauthenticated(f"the token has {len(token)} characters, the limit is {LONGEST}")
        digest = hashlib.sha256(token.encode("utf-8", "replace")).digest()
        found = self._known.get(digest)
        if found is not None and time.time() < found[1]:
            self._known.move_to_end(digest)
            return found[0]
        key, algorithm = await self._key(token)
        # Not in a thread: a check takes about as long as handing it over and back.
        caller, ends = self._check(token, key, algorithm)
        self._known[digest] = caller, ends
        if len(self._known) > _KEPT:
            self._known.popitem(last=False)
        return caller

    async def _key(self, token: str) -> tuple[jwt.PyJWK, str]:
        try:
            header = jwt.get_unverified_header(token)
        except jwt.InvalidTokenError:
            raise Unauthenticated("this is neither a key of this server nor a token (JWT)") from None
        algorithm, key_id = header.get("alg"), header.get("kid", "")
        if algorithm not in self.settings.algorithms:
            raise Unauthenticated(
                f"the token is signed in a way that is not taken here; taken: {', '.join(self.settings.algorithms)}"
            )
        key = self._find(key_id)
        if key is None and time.monotonic() - self._fetched_at >= _PAUSE_SECONDS:
            await self._refresh()
            key = self._find(key_id)
        if key is None:
            raise Unauthenticated("the token is signed with a key that its issuer does not list")
        if not _fits(key, algorithm):
            raise Unauthenticated("the token's signature is of another kind than the key that it names")
        return key, algorithm

    def _find(self, key_id: Any) -> jwt.PyJWK | None:
        if not key_id and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        return self._keys.get(key_id) if isinstance(key_id, str) else None

    def _check(self, token: str, key: jwt.PyJWK, algorithm: str) -> tuple[Caller, float]:
        settings = self.settings
        try:
            claims = jwt.decode(
                token,
                key.key,
                algorithms=[algorithm],
                audience=settings.audience,
                issuer=settings.issuer,
                leeway=settings.leeway_seconds,
                options=_OPTIONS,
            )
            ends = float(claims["exp"]) + settings.leeway_seconds
        except jwt.ExpiredSignatureError:
            raise Unauthenticated("the token has expired; get a new one from its issuer") from None
        except jwt.ImmatureSignatureError:
            raise Unauthenticated("the token is not valid yet; is a clock wrong?") from None
        except jwt.InvalidAudienceError:
            raise Unauthenticated(
                f"the token is not for this server, which is {' or '.join(settings.audience)}"
            ) from None
        except jwt.InvalidIssuerError:
            raise Unauthenticated(f"the token is not from {settings.issuer}") from None
        except jwt.MissingRequiredClaimError as error:
            raise Unauthenticated(f"the token has no claim {error.claim!r}, which is due") from None
        except jwt.InvalidSignatureError:
            raise Unauthenticated("the token's signature is wrong") from None
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError):
            raise Unauthenticated("the token cannot be read") from None
        return self._named(claims), ends

    def _named(self, claims: Mapping[str, Any]) -> Caller:
        settings = self.settings
        name = claims.get(settings.name_claim)
        if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= _LONGEST_NAME:
            raise Unauthenticated(
                f"the token's claim {settings.name_claim!r} names no caller: 1 to {_LONGEST_NAME} printable characters "
                "are due"
            )
        return Caller(
            name=f"jwt:{name}",  # no key has such a name, so nobody gets at a key's jobs by being called like it
            scopes=self._scopes(claims),
            requests_per_second=settings.requests_per_second,
            concurrency=settings.concurrency,
            requests_per_day=settings.requests_per_day,
        )

    def _scopes(self, claims: Mapping[str, Any]) -> tuple[Scope, ...]:
        said = claims.get(self.settings.scope_claim, "")
        listed = said.split() if isinstance(said, str) else said if isinstance(said, list) else []
        return tuple(scope for scope in SCOPES if f"{self.settings.scope_prefix}{scope}" in listed)

    async def _refresh(self) -> None:
        """Fetches, once for all who wait for it; says in the log if that fails."""
        if self._fetching is None or self._fetching.done():
            self._fetching = asyncio.create_task(self._fetch_or_keep())
        await asyncio.shield(self._fetching)

    async def _fetch_or_keep(self) -> None:
        try:
            await self._fetch()
        except TokensError as error:
            logger.error("the keys of tokens are not fetched; those from before stay", why=str(error))

    async def _fetch(self) -> None:
        self._fetched_at = time.monotonic()
        source = self.settings.jwks
        data = await self._download() if "://" in source else await asyncio.to_thread(_read, Path(source))
        keys = _parse(source, data)
        if {name: key._jwk_data for name, key in keys.items()} != {name: k._jwk_data for name, k in self._keys.items()}:
            self._known.clear()  # what was signed with a key that is gone is not taken any more
            logger.info("keys of tokens", source=source, keys=len(keys))
        self._keys = keys

    async def _download(self) -> bytes:
        url, data = self.settings.jwks, bytearray()
        try:
            context = await asyncio.to_thread(ssl.create_default_context, cafile=self.settings.jwks_ca_file)
            async with (
                asyncio.timeout(_FETCH_SECONDS),
                httpx.AsyncClient(verify=context) as client,
                client.stream("GET", url) as answer,
            ):
                if answer.status_code != 200:
                    raise TokensError(f"{url} answers with {answer.status_code}, where 200 is due")
                async for part in answer.aiter_bytes():
                    data += part
                    if len(data) > _LARGEST_SET:
                        raise TokensError(f"{url} sends more than {_LARGEST_SET:,} bytes; is it a key set?")
        except TimeoutError:
            raise TokensError(f"{url} does not answer within {_FETCH_SECONDS:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise TokensError(f"{url} cannot be fetched ({error or type(error).__name__})") from None
        return bytes(data)


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > _LARGEST_SET:
            raise TokensError(f"{path} is larger than {_LARGEST_SET:,} bytes; is it a key set?")
        return path.read_bytes()
    except OSError as error:
        raise TokensError(f"the keys of tokens cannot be read ({error})") from None


def _parse(source: str, data: bytes) -> dict[str, jwt.PyJWK]:
    """Public keys by id. Secret ones, which would make every reader a signer, and those for encryption are left out."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        found = None
    entries = found.get("keys") if isinstance(found, dict) else None
    if not isinstance(entries, list):
        raise TokensError(f"{source} holds no JSON Web Key Set")
    keys, left_out = {}, 0
    for entry in entries:
        try:
            if entry["kty"] not in _KINDS.values() or entry.get("use", "sig") != "sig" or "d" in entry:
                raise ValueError("of no use here")
            keys[str(entry.get("kid", ""))] = jwt.PyJWK(entry)
        except (jwt.PyJWTError, ValueError, TypeError, KeyError, AttributeError):
            left_out += 1
    if not keys:
        raise TokensError(f"{source} has no public key for signatures (RSA, EC or OKP)")
    if left_out:
        logger.warning("keys of tokens that are left out", source=source, keys=left_out)
    return keys


def _fits(key: jwt.PyJWK, algorithm: str) -> bool:
    entry = key._jwk_data
    return (
        entry["kty"] == _KINDS[algorithm[:2]]
        and entry.get("alg", algorithm) == algorithm
        and (algorithm not in _CURVES or entry.get("crv") == _CURVES[algorithm])
    )
