"""Pictures by URL: downloaded by this server, then scored as if the caller had sent the file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from time import perf_counter

from pydantic import Field

from critiq.errors import CritiqError, InvalidArgument, PermissionDenied, Unavailable
from critiq_server.images.limits import ImageLimits
from critiq_server.images.source import EncodedImage
from critiq_server.outbound.connect import Answer, Outbound, Resolver
from critiq_server.outbound.urls import UrlRules
from critiq_server.telemetry import traces

FIELD = "image.url"


class UrlSettings(UrlRules):
    """Pictures by URL (docs/urls.md). Off until hosts are named."""

    timeout_seconds: float = Field(
        10.0, gt=0, description="For one download, names looked up included; the call's own deadline holds too."
    )
    concurrency: int = Field(
        16,
        ge=2,
        description="Downloaded pictures held at once, from before the download until they are scored; others wait. "
        "They take at most so many times limits.image.max_bytes. Bulk work has at most half of these places.",
    )


class RemotePictures:
    """Downloads pictures. Used from one event loop.

    Args:
        on_download: told ``OK`` or the error's code, and the seconds taken, after each download.
        resolve: for tests.
    """

    def __init__(
        self,
        settings: UrlSettings,
        limits: ImageLimits,
        on_download: Callable[[str, float], None] = lambda code, seconds: None,
        resolve: Resolver | None = None,
    ) -> None:
        self._settings, self._limits, self._on_download = settings, limits, on_download
        self._outbound = Outbound(settings, "urls", resolve)
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._bulk_slots = asyncio.Semaphore(settings.concurrency // 2)

    def check(self, url: str) -> None:
        """Raises ``PermissionDenied`` or ``InvalidArgument`` if the settings rule this URL out."""
        if not self._outbound.enabled:
            raise PermissionDenied(
                "this server fetches no pictures by URL; send the file's bytes, or have its setting urls.hosts name "
                "the hosts that it may fetch from",
                field=FIELD,
            )
        self._outbound.check(url, FIELD)

    @asynccontextmanager
    async def fetched(self, url: str, *, bulk: bool = False) -> AsyncIterator[EncodedImage]:
        """The file at ``url``, which is held only inside the context: that is what bounds the memory.

        Raises what :meth:`check` and :meth:`Outbound.request` raise; ``InvalidArgument`` if the host answers with
        anything but the file, ``Unavailable`` if it says that another try may succeed.
        """
        self.check(url)
        async with self._bulk_slots if bulk else nullcontext(), self._slots:
            yield EncodedImage(await self._download(url))

    async def _download(self, url: str) -> bytes:
        with traces.span("download", leaves=True):
            return await self._fetch(url)

    async def _fetch(self, url: str) -> bytes:
        code, started = "CANCELLED", perf_counter()
        try:
            address = self._outbound.check(url, FIELD)
            answer = await self._outbound.request(
                "GET",
                address,
                seconds=self._settings.timeout_seconds,
                max_bytes=self._limits.max_bytes,
                field=FIELD,
                headers={"Accept": "image/*,*/*;q=0.5", **traces.headers_for_strangers()},
            )
            _check_status(answer, address.host)
            code = "OK"
            return answer.body
        except CritiqError as error:
            code = error.code
            raise
        finally:
            self._on_download(code, perf_counter() - started)


def _check_status(answer: Answer, host: str) -> None:
    if answer.status == 200:
        return
    told = f"{host} answers {answer.status} instead of the picture"
    if 300 <= answer.status < 400:
        raise InvalidArgument(f"{told}; redirects are not followed: give the URL that it leads to", field=FIELD)
    if answer.status in (408, 425, 429) or answer.status >= 500:
        raise Unavailable(f"{told}; try again later", field=FIELD)
    raise InvalidArgument(told, field=FIELD)
