"""Posting over HTTP/1.1 with little ado: a client that costs as much as the server would measure itself."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass
class Connections:
    """Keeps connections open and uses them again. ``head``: header lines of every request."""

    host: str
    port: int
    head: str
    _idle: list[Stream] = field(default_factory=list)

    async def post(self, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Status, headers in lower case, body. Raises ``OSError`` or ``EOFError`` if the connection ends."""
        reader, writer = self._idle.pop() if self._idle else await asyncio.open_connection(self.host, self.port)
        try:
            first = f"POST {path} HTTP/1.1\r\nhost: {self.host}\r\n{self.head}content-length: {len(body)}\r\n\r\n"
            writer.write(first.encode() + body)
            lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            pairs = (line.partition(":") for line in lines[1:] if line)
            headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
            content = await reader.readexactly(int(headers["content-length"]))
        except BaseException:
            writer.close()
            raise
        if headers.get("connection") == "close":
            writer.close()
        else:
            self._idle.append((reader, writer))
        return int(lines[0].split()[1]), headers, content

    def close(self) -> None:
        for _, writer in self._idle:
            writer.close()
