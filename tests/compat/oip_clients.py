"""The four clients that ``tritonclient`` holds, behind one way to call them."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio

from critiq_server.app import App

CLIENTS: dict[str, Any] = {
    "http": tritonclient.http,
    "http.aio": tritonclient.http.aio,
    "grpc": tritonclient.grpc,
    "grpc.aio": tritonclient.grpc.aio,
}


def address(app: App, kind: str) -> str:
    return f"127.0.0.1:{app.grpc_port if kind.startswith('grpc') else app.rest_port}"


async def call(app: App, kind: str, method: str, *arguments: Any, **options: Any) -> Any:
    """What one method of a fresh client of that kind returns."""
    module = CLIENTS[kind]
    if kind.endswith("aio"):
        async with module.InferenceServerClient(address(app, kind)) as client:
            return await getattr(client, method)(*arguments, **options)

    def in_a_thread() -> Any:
        with module.InferenceServerClient(address(app, kind)) as client:
            return getattr(client, method)(*arguments, **options)

    return await asyncio.to_thread(in_a_thread)


def files(kind: str, *pictures: bytes, name: str = "image") -> Any:
    """A BYTES input, binary over HTTP."""
    tensor = CLIENTS[kind].InferInput(name, [len(pictures)], "BYTES")
    tensor.set_data_from_numpy(np.array(pictures, object))
    return tensor


def prompts(kind: str, *texts: str) -> Any:
    return files(kind, *(text.encode() for text in texts), name="prompt")


def pixels(kind: str, pictures: Any) -> Any:
    array = np.asarray(pictures)
    tensor = CLIENTS[kind].InferInput("pixels", list(array.shape), "UINT8")
    tensor.set_data_from_numpy(array)
    return tensor


def wanted(kind: str, *names: str, **options: Any) -> list[Any]:
    return [CLIENTS[kind].InferRequestedOutput(name, **options) for name in names]
