"""Features from an LMM that is served elsewhere: vLLM's pooling endpoint, one request a question.

The server must pool as the bundle says (last token or mean), and must not normalise. What comes back is checked:
width, finite numbers, a length other than 1. A question that fails is asked again, with growing pauses; after several
failures in a row none is asked for a while, so that a server that is down costs callers no waiting.
"""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from io import BytesIO
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tenacity import RetryError, Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from critiq_server.bundles.lmm import Backbone, GridProcessor
from critiq_server.runtime.lmm.base import Instruction, LmmUnreachable, Pixels, rounded
from critiq_server.runtime.lmm.folder import LmmUnavailable
from critiq_server.runtime.lmm.settings import RemoteSettings
from critiq_server.telemetry import traces

_PAUSE_FIRST, _PAUSE_LONGEST = 0.1, 2.0
"""Seconds before a question is asked again; each pause is drawn below a bound that doubles."""
_LENGTH_OF_NORMALISED = 1e-3
"""How near to 1 the length of a feature may be before it is taken for a normalised one."""


class _TryAgain(Exception):
    """The server had a fault or was too busy; the same question may succeed."""


class Breaker:
    """Opens after ``failures`` in a row; after ``seconds`` one call is let through, and its outcome decides."""

    def __init__(self, failures: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._allowed, self._seconds, self._clock = failures, seconds, clock
        self._failed = 0
        self._opens_again = 0.0
        self._lock = threading.Lock()

    def check(self) -> None:
        """Raises ``LmmUnreachable`` while calls are held back."""
        with self._lock:
            if self._failed < self._allowed:
                return
            left = self._opens_again - self._clock()
            if left > 0:
                raise LmmUnreachable(
                    f"the remote LMM failed {self._failed} times in a row and is not asked for {left:.1f} s",
                    retry_after=left,
                )
            self._opens_again = self._clock() + self._seconds  # this call tries it; others wait for what becomes of it

    def succeeded(self) -> None:
        with self._lock:
            self._failed = 0

    def failed(self) -> None:
        with self._lock:
            self._failed += 1
            if self._failed >= self._allowed:
                self._opens_again = self._clock() + self._seconds


class RemoteExtractor:
    """See :class:`critiq_server.runtime.lmm.base.Extractor`.

    Args:
        backbone: how the LMM is read; its template must be the chat template that the remote server applies.
        settings: where the LMM is, and how patiently it is asked.
        transport: of the HTTP client, for tests.

    Raises ``LmmUnavailable`` if the settings name no address.
    """

    def __init__(
        self, backbone: Backbone, settings: RemoteSettings, transport: httpx.BaseTransport | None = None
    ) -> None:
        if not settings.url:
            raise LmmUnavailable(
                f"features of {backbone.model!r} are to be asked remotely, and lmm.remote.url names no server; "
                "set it, or set lmm.on_miss to compute or stored"
            )
        self._backbone, self._settings = backbone, settings
        self.provider = f"remote:{httpx.URL(settings.url).host}"
        self.concurrency = settings.concurrency
        self.gathers = False
        headers = {"Authorization": f"Bearer {settings.api_key.get_secret_value()}"} if settings.api_key else {}
        self._client = httpx.Client(
            base_url=settings.url,
            timeout=settings.timeout_seconds,
            headers=headers,
            transport=transport,
            limits=httpx.Limits(max_connections=settings.concurrency),
        )
        self._breaker = Breaker(settings.breaker_failures, settings.breaker_seconds)
        self._threads = ThreadPoolExecutor(settings.concurrency, "critiq-remote")

    def bucket(self, height: int, width: int) -> Hashable:
        """Each question is a request of its own: any two pictures may share a batch."""
        return None

    def extract(
        self, pictures: Sequence[Pixels], prompts: Sequence[str] | None, instructions: Sequence[Instruction]
    ) -> NDArray[np.float32]:
        if prompts is None and (asking := [entry.id for entry in instructions if entry.reads_prompt]):
            raise ValueError(f"{asking[0]} quotes the picture's prompt, and no prompts were given")
        urls = [_data_url(picture) for picture in pictures]
        questions = [
            (url, entry.filled(prompts[row] if prompts is not None else ""))
            for row, url in enumerate(urls)
            for entry in instructions
        ]
        # Each in a copy of this thread's context, which knows the trace.
        contexts = [copy_context() for _ in questions]
        features = list(self._threads.map(lambda own, question: own.run(self._ask, *question), contexts, questions))
        return rounded(np.stack(features), self._backbone.stored).reshape(len(pictures), len(instructions), -1)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._client.close()

    def _ask(self, url: str, text: str) -> NDArray[np.float32]:
        """One feature, float32 ``[width]``; raises ``LmmUnreachable``."""
        with traces.span("ask remote LMM", {"critiq.lmm": self._backbone.model}, leaves=True):
            return self._answered(url, text)

    def _answered(self, url: str, text: str) -> NDArray[np.float32]:
        attempts = Retrying(
            stop=stop_after_attempt(self._settings.attempts),
            wait=wait_random_exponential(_PAUSE_FIRST, _PAUSE_LONGEST),
            retry=retry_if_exception_type(_TryAgain),
        )
        self._breaker.check()
        try:
            feature = self._read(attempts(self._request, url, text))
        except RetryError as error:
            self._breaker.failed()
            reason = error.last_attempt.exception()
            raise LmmUnreachable(
                f"the remote LMM at {self._settings.url} failed {self._settings.attempts} times: {reason}",
                retry_after=self._settings.breaker_seconds,
            ) from error
        except LmmUnreachable:
            self._breaker.failed()
            raise
        self._breaker.succeeded()
        return feature

    def _request(self, url: str, text: str) -> httpx.Response:
        body: dict[str, Any] = {
            "model": self._settings.model or self._backbone.model,
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": url}},
                        {"type": "text", "text": text},
                    ],
                }
            ],
            "task": "embed",  # left out, the answer would be a state for every token
            "add_generation_prompt": True,
            "use_activation": False,
            "encoding_format": "float",
        }
        bounds = self._backbone.processor
        if isinstance(bounds, GridProcessor):
            body["mm_processor_kwargs"] = {"min_pixels": bounds.min_pixels, "max_pixels": bounds.max_pixels}
        try:
            response = self._client.post("/pooling", json=body, headers=traces.headers())
        except httpx.HTTPError as error:
            raise _TryAgain(f"{type(error).__name__}: {error}") from error
        if response.status_code >= 500 or response.status_code in (408, 425, 429):
            raise _TryAgain(f"it answered {response.status_code}: {response.text[:200]}")
        if response.status_code != 200:
            raise LmmUnreachable(
                f"the remote LMM at {self._settings.url} refused the question with {response.status_code}: "
                f"{response.text[:200]}"
            )
        return response

    def _read(self, response: httpx.Response) -> NDArray[np.float32]:
        try:
            feature = np.asarray(response.json()["data"][0]["data"], np.float32).squeeze()
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise self._useless("no pooled hidden state in its answer") from error
        if feature.shape != (self._backbone.width,):
            raise self._useless(
                f"a feature of shape {list(feature.shape)} instead of [{self._backbone.width}]: another model, or it "
                "pools otherwise"
            )
        if not np.isfinite(feature).all():
            raise self._useless("numbers that are not finite")
        if abs(float(np.linalg.norm(feature)) - 1) < _LENGTH_OF_NORMALISED:
            raise self._useless("a feature of length 1: it normalises; switch that off in its pooler's configuration")
        return feature

    def _useless(self, what: str) -> LmmUnreachable:
        return LmmUnreachable(f"the remote LMM at {self._settings.url} gave {what}")


def _data_url(picture: Pixels) -> str:
    """Without loss: another JPEG of the picture would be another picture."""
    file = BytesIO()
    Image.fromarray(picture).save(file, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
