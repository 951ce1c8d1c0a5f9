"""The connection to a critiq server, shared by all nodes."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

try:
    import critiq
except ImportError as error:
    raise ImportError(
        "critiq's nodes need its client in ComfyUI's own Python: python -m pip install critiq (the portable build: "
        "python_embeded\\python.exe -m pip install critiq)"
    ) from error

DEFAULT_URL = os.environ.get("CRITIQ_URL", "localhost:8001")
TIMEOUT = 120.0
"""Seconds for one call with its retries."""

_clients: dict[str, critiq.Client] = {}
_lock = threading.Lock()


@contextmanager
def calling(url: str) -> Iterator[critiq.Client]:
    """The client of the server at ``url``; what goes wrong becomes one sentence that a user can act on."""
    address = url.strip() or DEFAULT_URL
    try:
        with _lock:
            client = _clients.get(address)
            if client is None:
                client = _clients[address] = critiq.Client(address, timeout=TIMEOUT)
        yield client
    except (critiq.Stopping, critiq.ModelNotLoaded) as error:
        raise RuntimeError(f"the critiq server at {address} is not ready: {error}") from error
    except critiq.Unavailable as error:
        raise RuntimeError(
            f"no critiq server answers at {address!r}: start one with `critiq serve`, or write its address into the "
            f"node's field `server` (host:port for gRPC, http://host:port for REST). {error}"
        ) from error
    except critiq.CritiqError as error:
        raise RuntimeError(f"critiq at {address}: {error}") from error
