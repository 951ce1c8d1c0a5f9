"""Bodies over HTTP while they come: each has a limit, and all of them together."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from critiq.errors import TooBusy, TooLarge
from critiq_server.settings import LimitSettings

_HINT = 1.0


class BodyLimit:
    """An ASGI application that refuses bodies over the limit: by their declared length before reading, or as soon as
    they exceed it; and those for which there is no room beside the others that it holds just now."""

    def __init__(self, app: ASGIApp, limits: LimitSettings) -> None:
        self._app = app
        self._most, self._most_together = limits.request_bytes, limits.received_bytes
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        received = 0
        declared = dict(scope["headers"]).get(b"content-length", b"0")

        async def limited() -> Message:
            nonlocal received
            if declared.isdigit() and int(declared) > self._most:
                raise self._too_large(int(declared))
            message = await receive()
            size = len(message.get("body", b""))
            if received + size > self._most:
                raise self._too_large(received + size)
            if self._held > received and self._held + size > self._most_together:
                raise TooBusy(
                    f"the server holds {self._held} bytes of requests not answered yet, and takes "
                    f"{self._most_together} at once; try again later",
                    retry_after=_HINT,
                )
            received += size
            self._held += size
            return message

        try:
            await self._app(scope, limited, send)
        finally:
            self._held -= received

    def _too_large(self, size: int) -> TooLarge:
        return TooLarge(
            f"the body has {size} bytes or more, the limit is {self._most}; send less at once", field="body"
        )
