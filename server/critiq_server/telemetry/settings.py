"""What the server tells of itself beyond metrics and logs."""

from __future__ import annotations

import re

from pydantic import BaseModel, ConfigDict, Field, field_validator


class TraceSettings(BaseModel):
    """Traces, sent to an OpenTelemetry collector over OTLP/gRPC (docs/telemetry.md). Off until an endpoint is named.

    What is not here is read from OpenTelemetry's own variables (``OTEL_SERVICE_NAME``, ``OTEL_EXPORTER_OTLP_HEADERS``
    and so on).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    endpoint: str = Field(
        "", description="The collector: http://HOST:PORT, or https://HOST:PORT with TLS. Empty: no traces."
    )
    sample_ratio: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Share of calls that are traced, of those whose caller has not decided. Empty: as "
        "OTEL_TRACES_SAMPLER says, or all.",
    )
    follow_callers: bool = Field(
        True,
        description="Whether a trace goes on where the caller's has begun, and is kept if the caller's is. false: each "
        "call begins its own, which names the caller's.",
    )
    tell_hosts: bool = Field(
        False,
        description="Whether hosts that callers name (pictures by URL, callbacks of jobs) are sent the trace's id.",
    )

    @field_validator("endpoint")
    @classmethod
    def _says_whether_it_is_tls(cls, value: str) -> str:
        if value and not re.fullmatch(r"https?://[^/\s]+/?", value):
            raise ValueError(
                "must be http://HOST:PORT (no TLS) or https://HOST:PORT (TLS), such as http://localhost:4317"
            )
        return value


class TelemetrySettings(BaseModel):
    """Traces, and profiles of the running server."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    traces: TraceSettings = Field(default_factory=TraceSettings, description="Traces over OTLP.")
    profiling: bool = Field(
        False,
        description="Whether callers may profile the server and see its threads, under /v1/admin. Where keys are asked "
        "for, theirs needs the scope admin.",
    )
