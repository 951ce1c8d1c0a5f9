"""What one of several serving processes knows of the others: the sockets they share, how to tell them things."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import orjson

from critiq.errors import FailedPrecondition
from critiq.types import Processes
from critiq_server.others import NOTHING, SECONDS, Replies

VARIABLE = "CRITIQ_PROCESS"
"""In the environment of a process that another one started: :meth:`Member.text`."""
_LONGEST_LOAD = 600.0
_PATIENCE = 10.0
"""Seconds within which a process that does not hang answers what costs it nothing."""


@dataclass(frozen=True)
class Member:
    """One of the processes that ``critiq serve --workers N`` starts.

    Args:
        number: 0 to ``count`` - 1; a process that takes another's place has its number.
        directory: where each process has a socket on which the others, and the one that started it, talk to it.
        name: of its socket, without ``.sock``.
        grpc_port: shared, each process listens on it.
        sockets: descriptors of listening sockets, by what is served there (``rest``, or a listener of ``compat``).
        lifeline: descriptor that reaches its end when the process that started this one is gone.
    """

    number: int
    count: int
    directory: Path
    name: str
    grpc_port: int
    sockets: Mapping[str, int]
    lifeline: int

    @staticmethod
    def of_this_process() -> Member | None:
        """What the environment says; ``None``: this process was started by itself."""
        text = os.environ.pop(VARIABLE, "")
        if not text:
            return None
        values = json.loads(text)
        return Member(**{**values, "directory": Path(values["directory"])})

    def text(self) -> str:
        """For the environment of the process."""
        return json.dumps({**self.__dict__, "directory": str(self.directory), "sockets": dict(self.sockets)})

    @property
    def path(self) -> Path:
        """The socket of this process."""
        return self.directory / f"{self.name}.sock"

    def shared(self, what: str) -> socket.socket:
        """A listening socket that all processes have."""
        return socket.socket(fileno=os.dup(self.sockets[what]))

    @property
    def grpc_path(self) -> Path:
        """Where this process answers gRPC on a Unix socket, if it is the one to do so."""
        return self.directory / f"{self.name}.grpc"

    def link(self, path: Path) -> None:
        """Has ``path`` lead to :attr:`grpc_path`, in one step; the process before has unlinked its own by itself."""
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f".{path.name}.{self.name}")
        new.symlink_to(self.grpc_path)
        new.replace(path)

    def listen(self) -> socket.socket:
        """Opens the socket of this process; only this user can reach it, as the directory is his alone."""
        opened = socket.socket(socket.AF_UNIX)
        opened.bind(str(self.path))
        opened.listen(128)
        return opened

    async def tell(self, what: str, **values: str) -> None:
        """Has every other process do the same.

        Raises:
            FailedPrecondition: one of them could not; the others did.
        """
        refusals = []
        for path in self._others():
            try:
                async with talk(path, _PATIENCE) as http:
                    await http.get("/ready")  # one that hangs is not waited for as long as one that loads
                async with talk(path) as http:
                    answer = await http.post(f"/{what}", json=values)
                if answer.status_code != httpx.codes.OK:
                    refusals.append(answer.text)
            except httpx.TimeoutException:
                refusals.append(f"process {_number(path)} does not answer")
            except httpx.TransportError:
                continue  # it is gone; who takes its place asks what is loaded
        if refusals:
            raise FailedPrecondition(
                f"done here, but {len(refusals)} of the other {self.count - 1} processes could not: {refusals[0]}"
            )

    async def ask(self, what: str, about: Mapping[str, Any] = NOTHING, seconds: float = SECONDS) -> Replies:
        """What the others that serve answer. One that is being replaced is the same as who takes its place."""
        paths = self._others()
        answers = await asyncio.gather(*(_asked(path, what, about, seconds) for path in paths))
        found = {
            _number(path): answer
            for path, answer in zip(paths, answers, strict=True)
            if answer is not None and _number(path) != self.number
        }
        missing = tuple(number for number in range(self.count) if number != self.number and number not in found)
        return Replies(found, Processes(self.count - len(missing), self.count, missing))

    async def take_turn(self) -> None:
        """Has the process whose place this one takes, if it is still there, write down what this one is to read."""
        await asyncio.gather(
            *(_asked(path, "save", NOTHING, SECONDS) for path in self._others() if _number(path) == self.number)
        )

    async def loaded_elsewhere(self) -> tuple[str, ...]:
        """NAME:VERSION of what another process that is ready serves; empty if none is."""
        for path in self._others():
            try:
                async with talk(path, _PATIENCE) as http:
                    answer = await http.get("/loaded")
                found: list[Any] = answer.json() if answer.status_code == httpx.codes.OK else []
            except httpx.TransportError:
                continue
            if found:
                return tuple(map(str, found))
        return ()

    def _others(self) -> list[Path]:
        """Their sockets; of one number the newest last."""
        return sorted((path for path in self.directory.glob("*.sock") if path != self.path), key=_order)


def _order(path: Path) -> list[int]:
    """Number and generation, of which sockets' names are made."""
    return [int(part) for part in path.stem.split("-")]


def _number(path: Path) -> int:
    return _order(path)[0]


async def _asked(path: Path, what: str, about: Mapping[str, Any], seconds: float) -> Any:
    """The answer of one process; ``None``: it does not serve, or has nothing to say in time."""
    try:
        async with asyncio.timeout(seconds), talk(path, seconds) as http:
            answer = await http.post(f"/ask/{what}", content=orjson.dumps(dict(about)))
        return orjson.loads(answer.content) if answer.status_code == httpx.codes.OK else None
    except (TimeoutError, httpx.TransportError, orjson.JSONDecodeError):
        return None


def talk(path: Path, seconds: float = _LONGEST_LOAD) -> httpx.AsyncClient:
    """A client of the process that has this socket; each answer may take so long."""
    # Without TLS there is nothing to verify, and to read all authorities' certificates takes 50 ms.
    transport = httpx.AsyncHTTPTransport(uds=str(path), verify=False)
    return httpx.AsyncClient(transport=transport, base_url="http://process", timeout=seconds)
