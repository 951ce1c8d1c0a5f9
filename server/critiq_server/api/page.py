"""The page at ``/``: static files, read once, that may load nothing from elsewhere."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from pathlib import PurePosixPath

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
HEADERS = {
    # Scripts and styles of our own files only, none in the document; pictures that the visitor chose are blobs. No
    # part of the page can turn text into HTML: names and prompts stay text.
    "Content-Security-Policy": "; ".join(
        [
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self' blob:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        ]
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    # Kept, but asked about each time: after an update nobody runs yesterday's script.
    "Cache-Control": "no-cache",
}
INDEX = "index.html"


def routes() -> list[Route]:
    """``/`` and ``/page/NAME``, to be added to the REST application."""
    answers = {
        entry.name: _File(entry.read_bytes(), MEDIA_TYPES[PurePosixPath(entry.name).suffix])
        for entry in files("critiq_server.page").joinpath("static").iterdir()
    }

    async def index(request: Request) -> Response:
        return answers[INDEX].answer(request)

    async def part(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in answers or name == INDEX:
            raise HTTPException(404, "the page has no such file")
        return answers[name].answer(request)

    return [Route("/", index, methods=["GET"]), Route("/page/{name}", part, methods=["GET"])]


class _File:
    def __init__(self, content: bytes, media_type: str) -> None:
        self._content = content
        self._headers = HEADERS | {"ETag": f'"{hashlib.sha256(content).hexdigest()[:32]}"', "Content-Type": media_type}

    def answer(self, request: Request) -> Response:
        known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
        if self._headers["ETag"] in known:
            return Response(status_code=304, headers=self._headers)
        return Response(self._content, headers=self._headers)
