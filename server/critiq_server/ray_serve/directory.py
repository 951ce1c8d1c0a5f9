"""Where the replicas listen themselves: what a load balancer, a client or Prometheus needs to go past Ray's ingress."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

BEAT_SECONDS = 2.0
"""How often a replica says that it is there."""
LIFETIME_SECONDS = 3 * BEAT_SECONDS
"""After so long without a word it is taken for dead."""


@dataclass(frozen=True, slots=True)
class Endpoints:
    """One replica: its name in Ray, the machine, and ``host:port`` of each face."""

    replica: str
    node: str
    grpc: str
    rest: str
    metrics: str


class Directory:
    """The replicas that have been heard of lately. It keeps nothing: started anew, it knows all after one beat."""

    def __init__(self) -> None:
        self._heard: dict[str, tuple[Endpoints, float]] = {}

    async def note(self, endpoints: Endpoints) -> None:
        """A replica says that it is there."""
        self._heard[endpoints.replica] = endpoints, time.monotonic()

    async def forget(self, replica: str) -> None:
        """A replica says that it stops."""
        self._heard.pop(replica, None)

    async def list(self) -> list[dict[str, Any]]:
        """The live replicas, by name."""
        since = time.monotonic() - LIFETIME_SECONDS
        self._heard = {name: entry for name, entry in self._heard.items() if entry[1] >= since}
        return [asdict(self._heard[name][0]) for name in sorted(self._heard)]

    async def check_health(self) -> None:
        """There is nothing that could be wrong with it."""
