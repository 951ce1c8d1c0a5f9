"""What a build says while it runs and when it ends."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from critiq_exporters.features.build import Progress

_LINES_EVERY = 30.0
_REDRAW_EVERY = 0.5


class Teller:
    """Progress on standard error: one line that changes on a terminal, a line every half minute elsewhere."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._every = _REDRAW_EVERY if self._terminal else _LINES_EVERY
        self._last = time.monotonic()

    def tell(self, progress: Progress) -> None:
        now = time.monotonic()
        if now - self._last < self._every:
            return
        self._last = now
        line = progress_line(progress, now)
        sys.stderr.write(f"\r\x1b[K{line}" if self._terminal else f"{line}\n")
        sys.stderr.flush()

    def end(self) -> None:
        if self._terminal:
            sys.stderr.write("\r\x1b[K")


def progress_line(progress: Progress, now: float) -> str:
    """How many of how many, at what rate, and how long the rest takes at this rate."""
    of = f" of {progress.total:,}" if progress.total is not None else ""
    line = f"{progress.done:,}{of} pictures"
    elapsed = now - progress.started
    rate = progress.computed / elapsed if elapsed > 0 else 0.0
    if progress.computed:
        line += f", {rate:.2f} computed a second"
        if progress.total is not None:
            line += f", {duration(max(0, progress.total - progress.done) / rate)} left"
    if progress.failures:
        line += f", {len(progress.failures):,} failed"
    return line


def summary(progress: Progress, now: float) -> str:
    """What came of it, and what the time went into."""
    elapsed = max(now - progress.started, 1e-9)
    parts = [
        f"{progress.computed:,} pictures computed, {progress.stored:,} already stored, "
        f"{len(progress.failures):,} failed, in {duration(elapsed)}"
    ]
    if progress.computed:
        shares = {
            "LMM": progress.lmm_seconds,
            "waiting for pictures": progress.waiting_seconds,
            "storing": progress.storing_seconds,
        }
        told = ", ".join(f"{name} {100 * seconds / elapsed:.1f} %" for name, seconds in shares.items())
        parts.append(f"{progress.computed / elapsed:.2f} a second; of the time: {told}")
    return "\n".join(parts)


def write_failures(progress: Progress, path: Path) -> None:
    """One JSON object a line: the picture's name and what was wrong. No file where nothing was."""
    if not progress.failures:
        path.unlink(missing_ok=True)
        return
    lines = [json.dumps({"name": one.name, "error": one.error}, ensure_ascii=False) for one in progress.failures]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="surrogateescape")


def duration(seconds: float) -> str:
    """``4.2 s``, ``3 min 20 s``, ``5 h 7 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60:,} h {minutes % 60} min"
