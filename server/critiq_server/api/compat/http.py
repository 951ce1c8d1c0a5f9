"""What the faces have in common: bodies of bounded size, callers that leave, and the two kinds of refusal."""

from __future__ import annotations

import math
from collections.abc import Coroutine
from typing import Any, TypeVar

import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from critiq.errors import Cancelled, CritiqError, InvalidArgument, TooLarge
from critiq_server.api.compat.rewards import may_pass
from critiq_server.telemetry.counters import ERRORS
from critiq_server.telemetry.faults import internal

T = TypeVar("T")

JSON = "application/json"


async def body(request: Request, limit: int) -> bytes:
    """The whole body; raises ``TooLarge`` as soon as it is longer than ``limit`` bytes."""
    declared = request.headers.get("content-length", "")
    pieces: list[bytes] = []
    received = 0
    if not (declared.isdigit() and int(declared) > limit):
        async for piece in request.stream():
            pieces.append(piece)
            received += len(piece)
            if received > limit:
                break
        else:
            return b"".join(pieces)
    raise TooLarge(f"the body has more than {limit} bytes; send fewer pictures at once", field="body")


def json_of(data: bytes) -> dict[str, Any]:
    """Raises ``InvalidArgument`` if ``data`` is no JSON object."""
    try:
        found = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise InvalidArgument(f"the body is no JSON: {error}", field="body") from error
    if not isinstance(found, dict):
        raise InvalidArgument("the body is no JSON object", field="body")
    return found


async def outcome(what: str, work: Coroutine[Any, Any, T]) -> T | CritiqError:
    """The result of ``work``, or its error whatever it is; ``what`` names it in the log."""
    try:
        return await work
    except CritiqError as error:
        return error
    except ClientDisconnect:
        return Cancelled("the caller disconnected")
    except Exception as error:
        return internal(what, error)


def status(error: CritiqError, lasting: int = 400) -> tuple[int, dict[str, str]]:
    """503 with a ``Retry-After`` for what may pass, else ``lasting``.

    Never 500: clients repeat it up to a thousand times, over hours, before anybody sees the message.
    """
    ERRORS.labels("rest", error.code).inc()
    if not may_pass(error):
        return lasting, {}
    return 503, {"Retry-After": str(max(1, math.ceil(error.retry_after or 0)))}


def json_response(content: Any, code: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(content), code, headers, media_type=JSON)
