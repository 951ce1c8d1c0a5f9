"""A server on loopback that speaks vLLM's pooling protocol and behaves as a test tells it to."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Answer = tuple[int, Any]
Behaviour = Callable[[dict[str, Any], int], Answer]
"""Of a request's body and its number to the status and body of the answer."""


def pooled(vector: NDArray[np.float32] | Sequence[float]) -> Answer:
    """The answer of a server that pools to ``vector``."""
    return 200, {"object": "list", "data": [{"index": 0, "object": "pooling", "data": [float(x) for x in vector]}]}


def question_of(body: dict[str, Any]) -> tuple[NDArray[np.uint8], str]:
    """The picture and the text of a request."""
    picture, text = body["messages"][0]["content"]
    data = base64.b64decode(picture["image_url"]["url"].removeprefix("data:image/png;base64,"))
    return np.array(Image.open(BytesIO(data))), text["text"]


class PoolingServer:
    """A server on loopback, and the requests that came."""

    def __init__(self, behave: Behaviour) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.under_way = self.most_at_once = 0
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer.bodies.append(body)
                    outer.headers.append(dict(self.headers))
                    number = len(outer.bodies)
                    outer.under_way += 1
                    outer.most_at_once = max(outer.most_at_once, outer.under_way)
                status, answer = behave(body, number) if self.path == "/pooling" else (404, {})
                with lock:
                    outer.under_way -= 1
                content = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@contextmanager
def pooling_server(behave: Behaviour) -> Iterator[PoolingServer]:
    served = PoolingServer(behave)
    thread = threading.Thread(target=served.server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield served
    finally:
        served.server.shutdown()
        served.server.server_close()
        thread.join()
