"""Lets a call in by its key, and keeps the audit log."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from critiq.errors import CritiqError, PermissionDenied, TooBusy, Unauthenticated
from critiq_server.security.keys import PREFIX, Caller, KeysError, Ring, Scope, read_keys
from critiq_server.security.limits import Allowance, caller
from critiq_server.security.settings import SecuritySettings
from critiq_server.telemetry.counters import AUDITS, CALLER_REFUSALS, calls_of
from critiq_server.telemetry.faults import again_and_again

if TYPE_CHECKING:
    from critiq_server.security.shared_counts import SharedCounts
    from critiq_server.security.tokens import Tokens

logger = structlog.get_logger("critiq.audit")

HOW = "send the header `Authorization: Bearer KEY`, or `x-api-key: KEY`"
_BEARERS = 10_000
"""Callers whose calls are counted; of those beyond, the ones that have not come for longest begin anew."""
_QUIET_SECONDS = 10.0
_COUNTS_SECONDS = 1.0
"""Within which calls of a process that was killed are forgotten."""


async def open_guard(settings: SecuritySettings) -> Guard | None:
    """The guard that the settings ask for; ``None``: everybody may call. Raises ``KeysError``."""
    if settings.keys_file is None and not settings.jwt.jwks:
        return None
    guard = Guard(settings, settings.keys_file)
    await guard.open()
    return guard


class Guard:
    """The keys of the settings' file and the callers that tokens name, and what each has left.

    Args:
        path: the file of keys; ``None``: there are tokens only.

    Raises:
        KeysError: the file cannot be used, or what tokens need is not installed.
    """

    def __init__(self, settings: SecuritySettings, path: Path | None) -> None:
        self.settings = settings
        self._path = path
        self._keys = Ring()
        self._tokens = _tokens(settings)
        self._counts = _counts(settings)
        self._allowances: dict[str, Allowance] = {}
        self._bearers: OrderedDict[str, Allowance] = OrderedDict()
        self._stamp: tuple[int, ...] = ()
        self._failed: tuple[int, ...] | None = None
        self._refused, self._logged_at = 0, float("-inf")
        self._read()

    @property
    def takes_certificates(self) -> bool:
        """Whether a client certificate may stand for a key."""
        return self._keys.has_certificates

    async def open(self) -> None:
        """Gets the keys of tokens, and what was counted before; raises ``KeysError``."""
        if self._tokens is not None:
            await self._tokens.open()
        if self._counts is not None:
            await self._counts.open()

    def close(self) -> None:
        """For other processes no calls are under way here from now on."""
        if self._counts is not None:
            self._counts.close()

    async def bearer(self, credential: str, what: str) -> Caller | None:
        """Whom a token names; ``None`` for what is none, which :meth:`admit` judges. Raises ``Unauthenticated``."""
        if self._tokens is None or not credential or credential.startswith(PREFIX):
            return None
        try:
            return await self._tokens.caller(credential)
        except Unauthenticated:
            CALLER_REFUSALS.labels("unknown").inc()
            self._note(what, "token", "")
            raise

    def admit(
        self,
        credential: str,
        scopes: Collection[Scope],
        what: str,
        certificate: Sequence[str] = (),
        bearer: Caller | None = None,
    ) -> Allowance:
        """The allowance of the key, from which one call is spent; answer it within :meth:`Allowance.call`.

        Args:
            credential: the key as it was sent; empty if none was.
            certificate: names in the client's certificate, which count where no key was sent.
            bearer: whom :meth:`bearer` has found that the credential names.
            scopes: the key needs one of these.
            what: the call, for the log.

        Raises:
            Unauthenticated: no key, or none that is known.
            PermissionDenied: the key opens other things.
            TooBusy: the key's limits.
        """
        key = bearer or (self._keys.find(credential) if credential else self._keys.find_certificate(certificate))
        if key is None:
            known = credential or certificate
            CALLER_REFUSALS.labels("unknown" if known else "missing").inc()
            what_for = "key" if credential or not certificate else "certificate"
            self._note(what, f"unknown {what_for}" if known else "no key", "")
            missing = f"this {what_for} is not known here" if known else "this call needs an API key"
            raise Unauthenticated(f"{missing}; {HOW}")
        if not any(scope in scopes for scope in key.scopes):
            CALLER_REFUSALS.labels("scope").inc()
            self._note(what, "scope", key.name)
            raise PermissionDenied(
                f"this call needs a key with the scope {' or '.join(sorted(scopes))}; the key {key.name!r} has "
                f"{', '.join(key.scopes) or 'none'}"
            )
        allowance = self._allowances[key.handle] if bearer is None else self._of(bearer)
        try:
            allowance.check_room()
            allowance.spend()
        except TooBusy:
            CALLER_REFUSALS.labels("limit").inc()
            raise
        calls_of(key.name).inc()
        return allowance

    def _of(self, bearer: Caller) -> Allowance:
        allowance = self._bearers.get(bearer.handle)
        if allowance is None:
            allowance = self._bearers[bearer.handle] = Allowance(bearer, self._counts)
            if len(self._bearers) > _BEARERS:
                self._bearers.popitem(last=False)
        elif allowance.key is not bearer:
            allowance.change(bearer)
        self._bearers.move_to_end(bearer.handle)
        return allowance

    async def watch(self) -> None:
        """Keeps the keys of both kinds fresh, for ever."""
        seconds, what = self.settings.reload_seconds, "watching the file of keys"
        watched = [again_and_again(seconds, what, self.look)] if self._path is not None else []
        if self._tokens is not None:
            watched.append(self._tokens.watch())
        if self._counts is not None:
            watched.append(again_and_again(_COUNTS_SECONDS, "watching the counts of limits", self._counts.look))
        await asyncio.gather(*watched)

    def look(self) -> None:
        """Reads the file again if it has changed. If that fails, the keys stay as they were."""
        stamp = self._stamp_now()
        if stamp == self._stamp:
            return
        try:
            self._read()
            logger.info("keys read again", keys=len(self._keys), file=str(self._path))
        except KeysError as error:
            # Tried at each look, as the fault may be a passing one and the file withdraw keys; said once.
            if stamp != self._failed:
                logger.error("the changed file of keys is not used; the keys from before stay", why=str(error))
            self._failed = stamp

    def _read(self) -> None:
        if self._path is None:
            return
        stamp = self._stamp_now()
        self._keys = read_keys(self._path)
        self._stamp, self._failed = stamp, None
        before, self._allowances = self._allowances, {}
        for key in self._keys:
            known = before.get(key.handle)
            if known is None:
                known = Allowance(key, self._counts)
            else:
                known.change(key)
            self._allowances[key.handle] = known

    def _stamp_now(self) -> tuple[int, ...]:
        """Empty if the file is gone."""
        if self._path is None:
            return ()
        try:
            found = self._path.stat()
        except OSError:
            return ()
        return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino

    def _note(self, what: str, why: str, name: str) -> None:
        """A line of the log, but one in so many seconds: strangers must not fill the disk."""
        self._refused += 1
        now = time.monotonic()
        if now - self._logged_at >= _QUIET_SECONDS:
            logger.warning("refused", call=what[:200], why=why, key=name, refused_since_last_line=self._refused)
            self._refused, self._logged_at = 0, now


def _tokens(settings: SecuritySettings) -> Tokens | None:
    if not settings.jwt.jwks:
        return None
    try:
        from critiq_server.security.tokens import Tokens
    except ImportError as error:
        raise KeysError(f"security.jwt needs more packages ({error}): pip install 'critiq[jwt]'") from error
    return Tokens(settings.jwt)


def _counts(settings: SecuritySettings) -> SharedCounts | None:
    if settings.limits_directory is None:
        return None
    from critiq_server.security.shared_counts import SharedCounts

    return SharedCounts(settings.limits_directory)


@contextmanager
def audited(call: str, **fields: str) -> Iterator[None]:
    """Logs an administrative call, whose it was, and what it came to."""
    given = {name: value[:200] for name, value in fields.items()}
    outcome = "INTERNAL"
    try:
        yield
        outcome = "OK"
    except CritiqError as error:
        outcome = error.code
        raise
    finally:
        AUDITS.labels(call, outcome).inc()
        logger.info("audit", call=call, key=caller.get() or "", outcome=outcome, **given)
