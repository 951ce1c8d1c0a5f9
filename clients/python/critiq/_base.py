"""What the blocking and the asyncio client have in common besides their requests."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from critiq import _endpoint
from critiq._retry import RetryPolicy
from critiq.errors import DeadlineExceeded, InvalidArgument
from critiq.types import Model

LOAD_TIMEOUT = 300.0
"""Seconds; a bundle of gigabytes is read, checked and replayed before the answer comes."""
POLL_PAUSE = 0.1
"""Seconds between looks while waiting for a server."""
NO_RETRIES = RetryPolicy(0)


class BaseClient:
    """Settings of a client. Makes no connection."""

    def __init__(
        self,
        url: str,
        timeout: float | None,
        retries: int,
        headers: Mapping[str, str] | None,
        ca_file: str | Path | None,
        api_key: str | None = None,
        cert: _endpoint.Cert | None = None,
    ) -> None:
        if retries < 0:
            raise InvalidArgument(f"{retries}; 0 or more are due", field="retries")
        self._endpoint = _endpoint.parse(url, headers, ca_file, api_key, cert)
        self._policy = RetryPolicy(retries)
        self._timeout: float | None = None
        self._timeout = self._limit(timeout)

    @property
    def url(self) -> str:
        """The address in use: ``host:port`` for gRPC, the base URL for REST."""
        return self._endpoint.target

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def _limit(self, timeout: float | None) -> float | None:
        """Seconds for a call, ``None``: no limit. The client's own where the call says nothing."""
        if timeout is None:
            return self._timeout
        if not timeout > 0:
            raise InvalidArgument(f"{timeout}; seconds above 0 are due", field="timeout")
        return None if math.isinf(timeout) else timeout

    def _not_ready(self, timeout: float, reason: str) -> DeadlineExceeded:
        return DeadlineExceeded(f"{self.url} is not ready after {timeout:g} s: {reason}")


def is_ready(models: list[Model]) -> bool:
    return any(model.is_default and model.state == "ready" for model in models)
