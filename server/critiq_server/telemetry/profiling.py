"""What the server is doing: where the event loop's time goes, and where each thread and task stands.

Functions, files and lines only: no values, which would be callers' prompts and pictures.
"""

from __future__ import annotations

import asyncio
import importlib
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Literal, get_args

from critiq.errors import InvalidArgument, TooBusy

Form = Literal["html", "speedscope", "text"]
FORMS: tuple[Form, ...] = get_args(Form)
LONGEST = 60.0
"""Seconds of one profile at the most: while it runs, every call of a Python function costs some more."""
_INTERVAL = 0.001
_ROOT = str(Path(__file__).parents[2])


class ProfilingUnavailable(Exception):
    """Profiles are asked for and cannot be made; the message says what to do."""


class EventLoopProfiler:
    """Profiles the thread of the event loop, one profile at a time.

    Raises:
        ProfilingUnavailable: the package ``pyinstrument`` is not installed.
    """

    def __init__(self) -> None:
        try:
            self._pyinstrument: Any = importlib.import_module("pyinstrument")
            self._renderers: Any = importlib.import_module("pyinstrument.renderers")
        except ImportError as error:
            raise ProfilingUnavailable(
                "telemetry.profiling is on, and pyinstrument is not installed; pip install 'critiq[telemetry]'"
            ) from error
        self._ends_at: float | None = None

    async def profile(self, seconds: float, form: str) -> str:
        """Looks on for so many seconds; the profile as a web page, for speedscope.app, or as text.

        Raises:
            InvalidArgument: not 0 < ``seconds`` <= 60, or no such form.
            TooBusy: a profile is being made.
        """
        if not 0 < seconds <= LONGEST:
            raise InvalidArgument(f"{seconds:g} is not between 0 and {LONGEST:g} seconds", field="seconds")
        if form not in FORMS:
            raise InvalidArgument(f"{form[:32]!r} is none of {', '.join(FORMS)}", field="format")
        loop = asyncio.get_running_loop()
        if self._ends_at is not None:
            left = max(0.1, self._ends_at - loop.time())
            raise TooBusy("a profile is being made; come back when it has ended", retry_after=left)
        self._ends_at = loop.time() + seconds
        # Of the whole thread: not only of the task that asks, which sleeps.
        profiler = self._pyinstrument.Profiler(interval=_INTERVAL, async_mode="disabled")
        try:
            profiler.start()
            try:
                await asyncio.sleep(seconds)
            finally:
                session = profiler.stop()
            return await asyncio.to_thread(self._rendered, session, form)
        finally:
            self._ends_at = None

    def _rendered(self, session: Any, form: str) -> str:
        renderers: dict[str, Callable[[], Any]] = {
            "html": self._renderers.HTMLRenderer,
            "speedscope": lambda: self._renderers.SpeedscopeRenderer(show_all=True),
            "text": lambda: self._renderers.ConsoleRenderer(show_all=True, unicode=True, color=False),
        }
        return str(renderers[form]().render(session))


def threads_and_tasks() -> str:
    """Where each thread and each task of the event loop stands; call it on the event loop."""
    frames = sys._current_frames()
    parts = []
    for thread in sorted(threading.enumerate(), key=lambda thread: thread.name):
        frame = frames.get(thread.ident or 0)
        stack = "" if frame is None else "".join(traceback.format_stack(frame))
        parts.append(f"thread {thread.name}{' (daemon)' if thread.daemon else ''}\n{stack}")
    places = Counter(_waits(task) for task in asyncio.all_tasks())
    parts += [f"{count} task{'s' if count > 1 else ''} waiting\n{place}" for place, count in places.most_common()]
    return "\n".join(parts)


def _waits(task: asyncio.Task[Any]) -> str:
    """From the task's outermost coroutine to what it waits in."""
    lines = []
    coroutine: Any = task.get_coro()
    while coroutine is not None:
        frame: FrameType | None = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "ag_frame", None)
        if frame is None:
            break
        lines.append(f"  {frame.f_code.co_qualname}, {_short(frame.f_code.co_filename)}:{frame.f_lineno}")
        coroutine = getattr(coroutine, "cr_await", None)
    return "\n".join(lines) + "\n"


def _short(file: str) -> str:
    return file.removeprefix(f"{_ROOT}/")
