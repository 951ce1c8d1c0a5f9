"""The caller's trace goes on in the server: calls say which span they belong to, if OpenTelemetry has one."""

from __future__ import annotations

import sys
from collections.abc import Mapping


def traced(headers: Mapping[str, str]) -> dict[str, str]:
    """``headers``, with those of the current span if there is one; what ``headers`` have already stays.

    Nothing is imported: a program that has a current span has imported OpenTelemetry itself.
    """
    if "opentelemetry.trace" not in sys.modules:
        return dict(headers)
    try:
        from opentelemetry import propagate
    except ImportError:
        return dict(headers)
    found: dict[str, str] = {}
    propagate.inject(found)
    return {**found, **headers}
