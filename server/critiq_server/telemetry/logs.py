"""Logging: structlog in front, the standard library's loggers through the same formatter. Prompts and pixels never."""

from __future__ import annotations

import logging
import sys
import time
from typing import TYPE_CHECKING, Any

import structlog

from critiq_server.telemetry import traces

if TYPE_CHECKING:
    from critiq_server.settings import LogSettings


def _ids(logger: Any, method: str, entry: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """The ids by which a line is found from a trace, and the other way round."""
    if found := traces.request_id.get():
        entry["request_id"] = found
    if traces.tracer is not None and (ids := traces.tracer.ids()) is not None:
        entry["trace_id"], entry["span_id"] = ids
    return entry


def _escaped(logger: Any, method: str, entry: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Callers choose names: they must not move the cursor of the terminal that shows the log."""
    for name, value in entry.items():
        if isinstance(value, str) and not value.isprintable():
            entry[name] = "".join(part if part.isprintable() else repr(part)[1:-1] for part in value)
    return entry


def configure(settings: LogSettings) -> None:
    """Sets up logging of the process, to standard error."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        _ids,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    rendering: list[structlog.typing.Processor]
    if settings.format == "json":
        shared.append(structlog.processors.format_exc_info)
        rendering = [structlog.processors.JSONRenderer()]
    else:
        # Not structlog's default: its tracebacks show the values of variables, and those hold prompts and pixels.
        console = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
        rendering = [_escaped, console]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    logging.basicConfig(handlers=[handler], level=settings.level.upper(), force=True)
    # httpx would log every URL, and those that callers name may hold their secrets.
    for name in ("uvicorn", "httpx", "httpcore"):
        logging.getLogger(name).setLevel("WARNING")
    # What is wrong with a form, its caller is told.
    logging.getLogger("python_multipart").setLevel("ERROR")
    logging.getLogger("uvicorn.error").addFilter(_Quiet())
    logging.getLogger("grpc._cython.cygrpc").addFilter(_is_no_leaving)


def _is_no_leaving(record: logging.LogRecord) -> bool:
    """Whether a line is of something else than a caller that left while it was answered.

    grpcio says nothing of those either, but where it learns that the caller is gone after its answer has failed.
    """
    error = record.exc_info[1] if record.exc_info else None
    return type(error).__name__ != "ExecuteBatchError" or not str(error).startswith('Failed "execute_batch"')


class _Quiet(logging.Filter):
    """Lets one warning through in so many seconds: strangers who send what is no HTTP must not fill the disk."""

    _SECONDS = 10.0

    def __init__(self) -> None:
        super().__init__()
        self._held_back, self._passed_at = 0, float("-inf")

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno > logging.WARNING:
            return True
        self._held_back += 1
        now = time.monotonic()
        if now - self._passed_at < self._SECONDS:
            return False
        record.msg, record.args = f"{record.getMessage()} ({self._held_back} since the last such line)", ()
        self._held_back, self._passed_at = 0, now
        return True
