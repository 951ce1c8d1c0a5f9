"""Calls over REST, blocking and asyncio: the same protobuf messages in HTTP bodies."""

from __future__ import annotations

import asyncio
import math
import ssl
from typing import Any, TypeVar

import httpx
from google.protobuf.message import DecodeError

from critiq import errors, wire
from critiq._endpoint import Endpoint
from critiq._requests import Call
from critiq._retry import Deadline
from critiq._tracing import traced
from critiq.images import MAX_MESSAGE_BYTES
from critiq.v1 import scoring_pb2

T = TypeVar("T")

_PROTOBUF = "application/x-protobuf"
# How many calls run at once is the caller's choice (and the server's): httpx need not queue them.
_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=128)
# What proxies say beyond the codes that the server uses.
_BY_STATUS = errors.BY_HTTP_STATUS | {408: errors.DeadlineExceeded, 502: errors.Unavailable}


class HttpTransport:
    """Thread-safe."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._client = httpx.Client(base_url=endpoint.target, verify=_trust(endpoint), limits=_LIMITS)

    def send(self, call: Call[T], deadline: Deadline) -> Any:
        """One try; raises a :class:`~critiq.errors.CritiqError`."""
        request = _request(self._client, call, self._endpoint, deadline)
        try:
            response = self._client.send(request, stream=True)
            try:
                body = bytearray()
                for part in response.iter_bytes():
                    # httpx limits each wait, not their sum.
                    deadline.remaining()
                    _append(body, part)
            finally:
                response.close()
        except (httpx.HTTPError, httpx.InvalidURL, RuntimeError) as error:
            raise _translated(error, self._endpoint.target, deadline) from error
        return _read(call, response, bytes(body), self._endpoint.target)

    def close(self) -> None:
        self._client.close()


class AsyncHttpTransport:
    """Belongs to the event loop that makes the first call."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._client = httpx.AsyncClient(base_url=endpoint.target, verify=_trust(endpoint), limits=_LIMITS)

    async def send(self, call: Call[T], deadline: Deadline) -> Any:
        """One try; raises a :class:`~critiq.errors.CritiqError`."""
        request = _request(self._client, call, self._endpoint, deadline)
        try:
            async with asyncio.timeout(deadline.remaining()):
                response = await self._client.send(request, stream=True)
                try:
                    body = bytearray()
                    async for part in response.aiter_bytes():
                        _append(body, part)
                finally:
                    await response.aclose()
        except TimeoutError as error:
            raise deadline.exceeded() from error
        except (httpx.HTTPError, httpx.InvalidURL, RuntimeError) as error:
            raise _translated(error, self._endpoint.target, deadline) from error
        return _read(call, response, bytes(body), self._endpoint.target)

    async def close(self) -> None:
        await self._client.aclose()


def _request(
    client: httpx.Client | httpx.AsyncClient, call: Call[Any], endpoint: Endpoint, deadline: Deadline
) -> httpx.Request:
    headers = {**traced(endpoint.headers), "accept": _PROTOBUF}
    remaining = deadline.remaining()
    if remaining is not None:
        headers["critiq-timeout-ms"] = str(max(1, math.floor(remaining * 1000)))
    body = None
    if call.body:
        headers["content-type"] = _PROTOBUF
        body = call.request.SerializeToString()
    return client.build_request(
        call.verb, call.path, params=dict(call.params), headers=headers, content=body, timeout=remaining
    )


def _append(body: bytearray, part: bytes) -> None:
    body += part
    if len(body) > MAX_MESSAGE_BYTES:
        raise errors.TooLarge(f"the answer has more than {MAX_MESSAGE_BYTES} bytes")


def _read(call: Call[Any], response: httpx.Response, body: bytes, target: str) -> Any:
    protobuf = response.headers.get("content-type", "").partition(";")[0].strip() == _PROTOBUF
    if response.is_success and protobuf:
        try:
            return call.response.FromString(body)
        except DecodeError as error:
            raise errors.Internal(f"{target}: the answer is no {call.response.__name__}") from error
    if response.is_success:
        raise errors.Internal(f"{target} answers with {response.headers.get('content-type')}: is it a critiq server?")
    raise _refusal(response, body if protobuf else None, target)


def _refusal(response: httpx.Response, body: bytes | None, target: str) -> errors.CritiqError:
    """The server's own error if it sent one, else the closest to the status."""
    error: errors.CritiqError | None = None
    if body:
        try:
            sent = scoring_pb2.Error.FromString(body)
            error = wire.error_from_proto(sent) if sent.code else None
        except DecodeError:
            pass
    if error is None:
        kind = _BY_STATUS.get(response.status_code)
        if kind is None:
            kind = errors.InvalidArgument if response.status_code < 500 else errors.Internal
        error = kind(f"{target}: {response.status_code} {response.reason_phrase}")
    seconds = response.headers.get("retry-after", "")
    # The date form of the header is not worth a parser: our server sends seconds.
    if error.retry_after is None and seconds.isdigit():
        error.retry_after = float(seconds)
    return error


def _translated(error: Exception, target: str, deadline: Deadline) -> errors.CritiqError:
    if isinstance(error, httpx.TimeoutException):
        return deadline.exceeded()
    if isinstance(error, httpx.UnsupportedProtocol | httpx.InvalidURL):
        return errors.InvalidArgument(f"{target}: {error}", field="url")
    if isinstance(error, RuntimeError):  # what httpx raises on a closed client
        return errors.Cancelled(str(error))
    return errors.Unavailable(f"{target}: {error or type(error).__name__}")


def _trust(endpoint: Endpoint) -> ssl.SSLContext | bool:
    if not endpoint.secure or (endpoint.ca_file is None and endpoint.cert is None):
        # Redirects are not followed, so plain HTTP needs no certificates, which take a while to load.
        return endpoint.secure
    context = (
        httpx.create_ssl_context() if endpoint.ca_file is None else ssl.create_default_context(cafile=endpoint.ca_file)
    )
    if endpoint.cert is not None:
        context.load_cert_chain(*endpoint.cert)
    return context
