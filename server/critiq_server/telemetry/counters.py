"""Counters of the process, for code that is far from a server's :class:`~critiq_server.telemetry.metrics.Metrics`.

Every server's metrics show them. (Only tests have more than one server in a process.)
"""

from __future__ import annotations

import threading

from prometheus_client import Counter

FAULTS = Counter("critiq_faults_total", "Faults of the server itself; each has its lines in the log.", registry=None)
ERRORS = Counter(
    "critiq_errors_total",
    "Calls answered with an error, by face (rest, grpc) and code, whoever refused them: unreadable bodies, too.",
    ["face", "code"],
    registry=None,
)
AUDITS = Counter(
    "critiq_audits_total",
    "Administrative calls, by call and outcome (OK or the error's code).",
    ["call", "outcome"],
    registry=None,
)
CALLER_CALLS = Counter(
    "critiq_caller_calls_total",
    "Calls let in by their key, by its name; beyond 200 names: other.",
    ["caller"],
    registry=None,
)
CALLER_REFUSALS = Counter(
    "critiq_caller_refusals_total",
    "Calls that their key did not let in, by reason: missing, unknown, scope, limit.",
    ["reason"],
    registry=None,
)
TRACE_SPANS = Counter(
    "critiq_trace_spans_total",
    "Spans of traces, by outcome: made, exported, failed (the collector did not take them). Those made and neither "
    "exported nor failed wait, or were dropped because too many did.",
    ["outcome"],
    registry=None,
)
EVERY = (FAULTS, ERRORS, AUDITS, CALLER_CALLS, CALLER_REFUSALS, TRACE_SPANS)

_MOST_CALLERS = 200


class CallerLabels:
    """Callers' names as values of a label: the first so many that come, ``other`` for the rest.

    A file of keys has a handful, but an identity provider may name any number of subjects.
    """

    def __init__(self, most: int = _MOST_CALLERS) -> None:
        self._most, self._known = most, dict[str, Counter]()
        self._lock = threading.Lock()

    def __call__(self, name: str) -> Counter:
        """The counter of the calls of ``name``."""
        found = self._known.get(name)
        if found is None:
            with self._lock:
                if len(self._known) >= self._most:
                    return CALLER_CALLS.labels("other")
                found = self._known[name] = CALLER_CALLS.labels(name)
        return found


calls_of = CallerLabels()
