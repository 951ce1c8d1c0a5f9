"""When a call is tried again: one policy for both transports and both shells.

Tried again is what the server refused or never got (:class:`~critiq.errors.TooBusy`, :class:`~critiq.errors.Stopping`,
:class:`~critiq.errors.Unavailable`), after the server's hint plus an exponentially growing, fully random pause: many
callers that were refused together must not come back together. Never past the call's deadline.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

from tenacity import AsyncRetrying, RetryCallState, Retrying, retry_if_exception, stop_after_attempt, stop_before_delay
from tenacity.stop import stop_base

from critiq.errors import CritiqError, DeadlineExceeded, ModelNotLoaded

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 5.0


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """``retries``: tries after the first one."""

    retries: int

    def blocking(self, timeout: float | None) -> Retrying:
        """Calls a function until it succeeds or ``timeout`` (seconds) would pass while waiting."""
        return Retrying(stop=self._stop(timeout), wait=pause, retry=retry_if_exception(is_worth_retrying), reraise=True)

    def asynchronous(self, timeout: float | None) -> AsyncRetrying:
        """The same for coroutine functions."""
        return AsyncRetrying(
            stop=self._stop(timeout), wait=pause, retry=retry_if_exception(is_worth_retrying), reraise=True
        )

    def _stop(self, timeout: float | None) -> stop_base:
        stop: stop_base = stop_after_attempt(self.retries + 1)
        return stop if timeout is None else stop | stop_before_delay(timeout)


class Deadline:
    """``timeout`` seconds from now, shared by all tries of a call; ``None``: never."""

    def __init__(self, timeout: float | None, target: str) -> None:
        self._timeout = timeout
        self._target = target
        self._end = None if timeout is None else time.monotonic() + timeout

    def remaining(self) -> float | None:
        """Seconds left, above 0; raises :class:`~critiq.errors.DeadlineExceeded` if there are none."""
        if self._end is None:
            return None
        left = self._end - time.monotonic()
        if left <= 0:
            raise self.exceeded()
        return left

    def exceeded(self) -> DeadlineExceeded:
        return DeadlineExceeded(f"no answer from {self._target} within {self._timeout:g} s")


def is_worth_retrying(error: BaseException) -> bool:
    if isinstance(error, ModelNotLoaded):
        # Without a hint nobody is loading it.
        return error.retry_after is not None
    return isinstance(error, CritiqError) and error.retryable


def pause(state: RetryCallState) -> float:
    """Seconds before the next try."""
    error = state.outcome.exception() if state.outcome is not None else None
    hint = error.retry_after if isinstance(error, CritiqError) and error.retry_after is not None else 0.0
    ceiling = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (state.attempt_number - 1))
    return hint + random.uniform(0.0, ceiling)  # noqa: S311
